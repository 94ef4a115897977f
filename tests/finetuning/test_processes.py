"""Several processes train one network on shared batches."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetuning_case import N_CLASSES, QUICK, accuracy, run
from safetensors.torch import load_file
from torch import nn

import l0prune

TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate import PartialState
from finetuning_case import accuracy, run
from safetensors.torch import save_file
from test_processes import CASES

out = Path(sys.argv[1])
result = run(out=out / "run", **{"evaluate": accuracy, **CASES[sys.argv[2]]()})
state = PartialState()
tensors = {**result.compact.state_dict(), "log_alpha": result.gated.gates.log_alpha.detach()}
tensors["n_processes"] = torch.tensor(state.num_processes)
save_file({k: v.contiguous() for k, v in tensors.items()}, out / f"rank{state.process_index}.safetensors")
"""


class Plain(nn.Module):
    """Without batch norm and dropout, in which processes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.hidden = nn.Conv2d(8, 12, 3, padding=1)
        self.linear = nn.Linear(12, N_CLASSES)

    def forward(self, x):
        return self.linear(torch.relu(self.hidden(torch.relu(self.conv(x)))).mean((2, 3)))


def plain_case():
    """A network and a run whose every part but the batches is shared by all processes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Plain().eval()
    config = replace(QUICK, ema_decay=0.8, gated_weight_decay=True, gate_lr=0.7)
    gated = l0prune.inject(net, l0prune.trace(net, (torch.zeros(2, 3, 6, 6),)))
    return {"gated": gated, "config": config, "budget": None, "penalty": l0prune.Penalty(0.5)}


def tokens_case():
    """Texts of unequal length: the rows of one process have more tokens that count than those of the other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, N_CLASSES)).eval()
        ids = torch.randint(0, 9, (6, 8, 5))
    labels = (ids % N_CLASSES).masked_fill(torch.arange(5) > torch.arange(8).unsqueeze(1) % 8, -100)
    gated = l0prune.inject(net, l0prune.trace(net, ids[0]))
    budget, config = l0prune.Budget("macs", 0.6), replace(QUICK, gate_lr=0.3, settle_epochs=0, salience_batches=0)
    batches = list(zip(ids, labels, strict=True))
    parts = {"gated": gated, "batches": batches, "config": config, "budget": budget}
    return {**parts, "loss": None, "task": "tokens", "evaluate": None}


CASES = {"budget": dict, "penalty": plain_case, "tokens": tokens_case}


def launched(tmp_path: Path, case: str) -> dict[str, torch.Tensor]:
    """What two processes end with, after seeing that they agree."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    here = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1] / "helpers")))
    environment = {"PYTHONPATH": here, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}

    done = subprocess.run(
        [*launch, str(script), str(tmp_path), case], env=environment, capture_output=True, text=True, timeout=240
    )

    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2))
    assert int(first["n_processes"]) == 2
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=0, rtol=0, msg=name)
    return first


@pytest.mark.slow
def test_two_processes_under_a_penalty_train_as_one(tmp_path):
    found = launched(tmp_path, "penalty")

    alone = run(**plain_case())
    assert int((alone.gated.gate_values() != 0).sum()) < 20
    torch.testing.assert_close(found["log_alpha"], alone.gated.gates.log_alpha.detach(), atol=1e-4, rtol=0)
    for name, value in alone.compact.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_two_processes_with_unequal_numbers_of_tokens_train_as_one(tmp_path):
    found = launched(tmp_path, "tokens")

    alone = run(**tokens_case())
    assert 0 < alone.n_open < alone.gated.n_gates
    for name, value in alone.compact.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=3e-5, rtol=0)


@pytest.mark.slow
def test_two_processes_agree_and_come_close_to_one(tmp_path):
    first = launched(tmp_path, "budget")

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
    alone = run(evaluate=accuracy, config=QUICK)
    assert [line["evaluation"]["accuracy"] for line in lines if "evaluation" in line][-1] > 0.9
    assert alone.evaluation["accuracy"] > 0.9
    # BatchNorm normalises each process's rows by themselves, so the two runs drift apart a little.
    torch.testing.assert_close(first["log_alpha"], alone.gated.gates.log_alpha.detach(), atol=0.3, rtol=0)
