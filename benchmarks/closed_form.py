"""Networks cut without training: accuracy with and without recovery in closed form, and of onnxsim's file at the same MACs.

    python benchmarks/closed_form.py --cifar10 CIFAR10.npz --resnet20 FILE --resnet56 FILE --mobilenet FILE --vit FILE \
        --minilm FOLDER --stsb FOLDER [--onnxsim PYTHON] [--keep 0.8 --keep 0.65] [--out benchmarks/results/closed_form.jsonl]

A network is measured where its files are given; a row that is there already is not measured again. `--onnxsim` is the
interpreter of an environment with onnxsim and onnxruntime. Calibration inputs are drawn from the training data, without labels;
test data only judge.
"""

from __future__ import annotations

import copy
import csv
import gzip
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import results_file
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor, nn

import l0prune
from l0prune.finetuning.config import FinetuneConfig
from l0prune.measuring.session import onnxruntime  # type: ignore[attr-defined]
from l0prune.onnx.export import export_onnx
from l0prune.sources.datasets import load_data
from l0prune.sources.model_spec import load_model

TOKENS = 32
KEEPS = (0.8, 0.65)
Outputs = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True, eq=False)
class Case:
    """A trained network.

    Args:
        name: In the table.
        model: Called with keyword arguments.
        calibration: Its inputs by name, one entry a row.
        evaluate: From what computes its output to a score.
        metric: What that is.
    """

    name: str
    model: nn.Module
    calibration: dict[str, Tensor]
    evaluate: Callable[[Outputs], float]
    metric: str

    def batches(self, size: int = 64) -> list[dict[str, Tensor]]:
        """The calibration inputs."""
        n = len(next(iter(self.calibration.values())))
        return [{k: v[i : i + size] for k, v in self.calibration.items()} for i in range(0, n, size)]


class PostNormViT(nn.Module):
    """The vision transformer of smmk47/CIFAR10-Classification: post-norm encoder layers with ReLU on patches of 4."""

    def __init__(self, width: int = 128, n_layers: int = 6, n_heads: int = 8) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 4, 4)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 65, width))
        layer = nn.TransformerEncoderLayer(width, n_heads, 2 * width, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.mlp_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) to (N, 10)."""
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.mlp_head(self.transformer(x)[:, 0])


class Encoder(nn.Module):
    """A sentence encoder that returns its last hidden states alone."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Tokens (N, T) to (N, T, width)."""
        states: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


def image_case(name: str, model: nn.Module, mean: Any, std: Any, cifar10: Path, samples: int, n_test: int) -> Case:
    """A classifier of CIFAR-10."""
    data = load_data(f"npz:{cifar10}")
    x_train, x_test = data.x_train, data.x_test
    assert isinstance(x_train, np.ndarray)
    assert isinstance(x_test, np.ndarray)
    rows = np.random.default_rng(0).permutation(len(x_train))[:samples]

    def pictures(x: np.ndarray) -> Tensor:
        scaled = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
        return (scaled - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    def evaluate(outputs: Outputs) -> float:
        right = 0
        for i in range(0, n_test, 250):
            labels = torch.from_numpy(data.y_test[i : i + 250])
            right += int((outputs({"x": pictures(x_test[i : i + 250])}).argmax(-1) == labels).sum())
        return 100 * right / n_test

    return Case(name, model.eval(), {"x": pictures(x_train[rows])}, evaluate, "accuracy")


def text_case(minilm: Path, stsb: Path, samples: int, n_test: int) -> Case:
    """all-MiniLM-L6-v2, judged by the rank correlation of cosines with the scores of STS-B."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    model = Encoder(AutoModel.from_pretrained(minilm, use_safetensors=True, attn_implementation="sdpa"))

    def pairs(part: str) -> list[dict[str, str]]:
        with gzip.open(next(stsb.glob(f"*{part}*.tsv.gz")), "rt", encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))

    def tokens(sentences: list[str]) -> dict[str, Tensor]:
        options = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
        found = tokenizer(sentences, **options)
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    test = pairs("test")[:n_test]

    def embedded(outputs: Outputs, column: str) -> Iterator[Tensor]:
        for i in range(0, len(test), 64):
            inputs = tokens([row[column] for row in test[i : i + 64]])
            mask = inputs["attention_mask"].unsqueeze(-1)
            yield (outputs(inputs) * mask).sum(1) / mask.sum(1)

    def evaluate(outputs: Outputs) -> float:
        one, other = (torch.cat(list(embedded(outputs, column))) for column in ("sentence1", "sentence2"))
        cosines = torch.cosine_similarity(one, other)
        return 100 * float(spearmanr(cosines.numpy(), [float(row["score"]) for row in test]).statistic)

    rows = np.random.default_rng(0).permutation(len(pairs("train")))[:samples]
    train = pairs("train")
    return Case("MiniLM", model.eval(), tokens([train[i]["sentence1"] for i in rows]), evaluate, "Spearman")


def torch_outputs(model: nn.Module) -> Outputs:
    """What a module computes."""

    def outputs(inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return model(**inputs)

    return outputs


def onnx_outputs(path: Path) -> Outputs:
    """What a file computes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {k: v.numpy() for k, v in inputs.items()})[0])


def cut(case: Case, keep: float, method: str, *, closed_form: bool) -> dict[str, Any]:
    """The network that the library makes of it without training, and what that scores."""
    clock = time.perf_counter()
    model, batches = copy.deepcopy(case.model), case.batches()
    gated = l0prune.inject(model, l0prune.trace(model, {k: v[:2] for k, v in case.calibration.items()}))
    config = FinetuneConfig(epochs=0, method=method, closed_form=closed_form, calibration_samples=10**6)
    result = l0prune.finetune(gated, batches, task="match", budget=l0prune.Budget("macs", keep), config=config)
    seconds = time.perf_counter() - clock
    score = case.evaluate(torch_outputs(result.compact.eval()))
    return {"macs": result.hard_costs["macs"], "score": score, "seconds": round(seconds, 1)}


def rivals(case: Case, keeps: list[float], python: Path) -> Iterator[dict[str, Any]]:
    """Rows of onnxsim."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        export_onnx(case.model, {k: v[:2] for k, v in case.calibration.items()}, out / "dense.onnx")
        arrays: dict[str, Any] = {name: value.numpy() for name, value in case.calibration.items()}
        np.savez(out / "calibration.npz", **arrays)
        script = Path(__file__).with_name("closed_form_onnxsim.py")
        command = [
            str(python),
            str(script),
            str(out / "dense.onnx"),
            str(out / "calibration.npz"),
            folder,
            *map(str, keeps),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            if not line.startswith("{"):
                continue
            row = json.loads(line)
            file = row.pop("file", None)
            score = {} if file is None else {"score": case.evaluate(onnx_outputs(out / file))}
            yield {"network": case.name, "method": f"onnxsim {row.pop('name')}", **row, **score}
        if done.returncode:
            yield {"network": case.name, "method": "onnxsim", "keep": None, "error": done.stderr.strip()[-300:]}


def cases(files: dict[str, Path | None], samples: int, n_test: int) -> Iterator[Callable[[], Case]]:
    """The networks whose files are given."""
    cifar10 = files["cifar10"]
    for name, spec, arguments in (
        ("resnet20", "resnet20", {}),
        ("resnet56", "resnet56", {}),
        ("mobilenet", "mobilenetv2_cifar", {"width": 0.75, "stem_stride": 2}),
    ):
        if cifar10 and files[name]:

            def of_images(name: str = name, spec: str = spec, arguments: Any = arguments) -> Case:
                loaded = load_model(spec, weights=str(files[name]), model_args=arguments)
                shape = loaded.preprocessing
                assert shape is not None, spec
                return image_case(name, loaded.model, shape.mean, shape.std, cifar10, samples, n_test)

            yield of_images
    if cifar10 and files["vit"]:

        def vit() -> Case:
            model = PostNormViT()
            model.load_state_dict(load_file(files["vit"]))
            return image_case("vit", model, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201), cifar10, samples, n_test)

        yield vit
    minilm, stsb = files["minilm"], files["stsb"]
    if minilm and stsb:
        yield lambda: text_case(minilm, stsb, min(samples, 256), n_test)


@click.command(help=__doc__)
@click.option("--cifar10", type=click.Path(path_type=Path))
@click.option("--resnet20", type=click.Path(path_type=Path))
@click.option("--resnet56", type=click.Path(path_type=Path))
@click.option("--mobilenet", type=click.Path(path_type=Path))
@click.option("--vit", type=click.Path(path_type=Path))
@click.option("--minilm", type=click.Path(path_type=Path))
@click.option("--stsb", type=click.Path(path_type=Path))
@click.option("--onnxsim", type=click.Path(path_type=Path))
@click.option("--keep", "keeps", type=float, multiple=True, default=KEEPS)
@click.option("--method", "methods", multiple=True, default=("magnitude",))
@click.option("--samples", default=512)
@click.option("--test", "n_test", default=10_000)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/closed_form.jsonl"))
def main(
    keeps: tuple[float, ...],
    methods: tuple[str, ...],
    samples: int,
    n_test: int,
    out: Path,
    onnxsim: Path | None,
    **files: Path | None,
) -> None:
    torch.set_num_threads(1)
    out.parent.mkdir(parents=True, exist_ok=True)
    known = results_file.read(out)

    def is_known(network: str, method: str, keep: float | None) -> bool:
        return any(
            r["network"] == network and r["method"].startswith(method) and keep in (None, r["keep"]) for r in known
        )

    def note(row: dict[str, Any]) -> None:
        about = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1, "samples": samples}
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | about) + "\n")
        click.echo(json.dumps(row))

    for make in cases(files, samples, n_test):
        case = make()
        if not is_known(case.name, "dense", None):
            note(
                {
                    "network": case.name,
                    "method": "dense",
                    "keep": 1.0,
                    "score": case.evaluate(torch_outputs(case.model)),
                }
            )
        for keep in keeps:
            for method in methods:
                for closed_form in (False, True):
                    name = f"{method}{', closed form' if closed_form else ', cut alone'}"
                    if not is_known(case.name, name, keep):
                        row = {"network": case.name, "method": name, "keep": keep}
                        note({**row, **cut(case, keep, method, closed_form=closed_form)})
        if onnxsim is not None and not is_known(case.name, "onnxsim", None):
            for row in rivals(case, list(keeps), onnxsim):
                note(row)


if __name__ == "__main__":
    main()
