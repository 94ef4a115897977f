"""A shrunk run from its checkpoint to its files: cut, verified, written all or nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from l0prune.cli.finetune_run import begin
from l0prune.cli.model_options import transformers_folder
from l0prune.cli.opened_run import OpenedRun, dense_model, gated_model, open_finished
from l0prune.cli.output import note
from l0prune.cli.request import FinetuneRequest
from l0prune.files import draft_folder, remove

if TYPE_CHECKING:
    from torch import nn

    from l0prune.sources.model_spec import LoadedModel

__all__ = ["shrink_model", "shrink_run"]

FORMS = ("dense", "compact")
FIGURES = (
    *("model", "metric", "unit", "higher_is_better", "dense", "final", "doubts", "method"),
    *("budget", "budget_met", "hard_costs"),
)
"""Of what the run of a model comes to, what is shown beside the cut."""


def shrink_model(
    out: Path,
    typed: Mapping[str, Any],
    *,
    argv: Sequence[str],
    overwrite: bool = False,
    hf_folder: Path | None = None,
    onnx: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a run in which nothing is trained to `out`, with its compact network and ONNX files.

    Args:
        out: Directory of the run.
        typed: Options of `finetune` by name.
        argv: The command line, for the record.
        overwrite: Replace a run that is there.
        hf_folder: As `shrink_run` takes it.
        onnx: As `shrink_run` takes it.

    Returns:
        As `shrink_run`, with what the dense and the compact network score.

    Raises:
        L0PruneError: as `begin` and `shrink_run`.
    """
    asked = {"augment": False, **typed, "epochs": 0.0}
    figures = begin(out, FinetuneRequest.asked(asked), argv=argv, overwrite=overwrite) or {}
    return shrink_run(out, hf_folder=hf_folder, onnx=onnx) | {
        name: figures[name] for name in FIGURES if name in figures
    }


def shrink_run(
    path: Path,
    *,
    align: str | int | None = None,
    hf_folder: Path | None = None,
    trust: bool = False,
    onnx: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write RUN/compact and RUN/onnx, all of it or nothing.

    Args:
        path: A finished run.
        align: Round the kept widths again; None keeps those that were trained.
        hf_folder: Write a folder of transformers there as well.
        trust: Whether factories may run that only its run.json names.
        onnx: Arguments of `export_onnx` for both files.

    Returns:
        Costs before and after, the largest difference from the gated network, the form, and the files; plain data.

    Raises:
        EquivalenceError: if the compact network does not compute what the gated one does; nothing is written.
        L0PruneError: if the run or its model cannot be brought back.
    """
    import l0prune
    from l0prune.files import write_json
    from l0prune.hf.saving import require_folder
    from l0prune.latency.cost import LatencyCost
    from l0prune.latency.predicted import PredictedLayers
    from l0prune.measuring.alignment import resolve_alignment
    from l0prune.onnx.image_file import PREPROCESSING, describe_images
    from l0prune.surgery.shrink import surgery_of

    run = open_finished(path, trust=trust)
    loaded = dense_model(run)
    step = None if align is None else resolve_alignment(align)
    with draft_folder(run.directory.onnx) as draft:
        without_onnx = export(loaded.model, loaded, draft / "dense.onnx", onnx)
        dense_params = count_parameters(loaded.model)
        gated = gated_model(run, loaded)
        as_trained = (gated.gate_values() != 0).cpu().numpy()
        compact = l0prune.shrink(gated, align=step)
        if hf_folder is not None:
            require_folder(compact, hf_folder)
        without_onnx = without_onnx or export(compact, loaded, draft / "compact.onnx", onnx)
        one_path = not without_onnx and has_one_path(draft / "compact.onnx")
        l0prune.save(compact, run.directory.compact, preprocessing=loaded.preprocessing)
        sizes = publish(draft, run.directory.onnx) if not without_onnx else withdraw(run.directory.onnx)
        if loaded.preprocessing is not None and not without_onnx:
            describe_images(loaded.preprocessing, run.directory.onnx / PREPROCESSING)
    # What tells of the files that were here before.
    for outdated in (run.directory.latency, run.directory.bench, run.directory.report):
        outdated.unlink(missing_ok=True)
    record = surgery_of(compact)
    by_profile = gated.costs("latency") if "latency" in gated.costs.names else None
    if isinstance(by_profile, LatencyCost):
        write_json(run.directory.latency, PredictedLayers.of(by_profile, record.values != 0).to_json())
    cut_again = bool(((record.values != 0) != as_trained).any())
    trained = run.directory.read().result or {}
    known = {"cut_again": f"shrink --align {step}" if cut_again else None, "no_onnx_because": without_onnx}
    changed = {key: value for key, value in known.items() if value or key in trained}
    if changed:
        run.directory.set_status("finished", result=trained | changed)
    if hf_folder is not None:
        write_hf(compact, hf_folder, run, {} if cut_again else trained)
    if cut_again:
        note(f"--align {step} changed the network after its training: score it with `l0prune eval {quote(str(path))}`")
    before, after = (
        gated.costs.amounts(),
        gated.costs.amounts(lambda metric: gated.costs(metric).hard(record.values != 0)),
    )
    return {
        "run": str(path),
        "form": record.form,
        "not_in_place_because": record.not_in_place_because,
        "integers_left": record.integers_left,
        "align": step,
        "max_abs_diff": record.difference.max_abs,
        "max_rel_diff": record.difference.max_rel,
        "not_compared": record.not_compared,
        "draws_random_numbers": record.draws_random_numbers,
        **{f"{metric}_before": amount for metric, amount in before.items()},
        **{f"{metric}_after": amount for metric, amount in after.items()},
        "params_before": dense_params,
        "params_after": count_parameters(compact),
        "bytes_before": sizes["dense"],
        "bytes_after": sizes["compact"],
        "no_onnx_because": without_onnx,
        "onnx_holds_one_path": one_path,
        "files": files_of(run) | ({} if hf_folder is None else {"hf": str(hf_folder)}),
    }


def write_hf(compact: "nn.Module", folder: Path, run: OpenedRun, trained: dict[str, Any]) -> None:
    """Write the compact model as a folder of transformers, with the tokenizer of the dense one and the scores of the run.

    Raises:
        L0PruneError: as `l0prune.hf.save_pretrained`.
    """
    import l0prune

    source = transformers_folder(run.request.model.spec)
    keys = ("metric", "dense", "final")
    scores = (
        {trained["metric"]: {"dense": trained["dense"], "cut": trained["final"]}}
        if trained.keys() >= set(keys)
        else None
    )
    plain = True if run.request.training.uniform else None
    l0prune.hf.save_pretrained(compact, folder, source, scores=scores, plain=plain)


def export(model: "nn.Module", loaded: "LoadedModel", path: Path, onnx: Mapping[str, Any] | None = None) -> str | None:
    """Write an ONNX file; where none can hold the model, for conditions in its code or operations that ONNX lacks, say why."""
    import l0prune
    from l0prune.errors import NoOnnxError

    try:
        l0prune.export_onnx(model, loaded.example_inputs, path, **(onnx or {}))
    except NoOnnxError as error:
        return str(error)
    return None


def has_one_path(path: Path) -> bool:
    """Whether an ONNX file holds one path alone through a model with conditions."""
    from l0prune.onnx.onnx_model import OnnxModel

    return OnnxModel(path).has_one_path


def withdraw(target: Path) -> dict[str, int | None]:
    """Take away ONNX files of an earlier cut; there is no size of what is not there."""
    remove(target)
    return dict.fromkeys(FORMS)


def publish(draft: Path, target: Path) -> dict[str, int | None]:
    """Move the ONNX files (and weights they keep beside them) to their place; returns the bytes of each form."""
    if target.is_symlink():
        target.unlink()
    target.mkdir(exist_ok=True)
    sizes: dict[str, Any] = dict.fromkeys(FORMS, 0)
    for file in sorted(draft.iterdir(), key=lambda path: path.suffix == ".onnx"):
        sizes[file.name.partition(".")[0]] += file.stat().st_size
        file.replace(target / file.name)
    return sizes


def files_of(run: OpenedRun) -> dict[str, str]:
    """Where the results are."""
    files = {f"{form}_onnx": run.directory.onnx / f"{form}.onnx" for form in FORMS}
    onnx = {name: str(path) for name, path in files.items() if path.exists()}
    return {"compact": str(run.directory.compact), **onnx}


def count_parameters(model: "nn.Module") -> int:
    """Trainable numbers of a model."""
    return sum(parameter.numel() for parameter in model.parameters())
