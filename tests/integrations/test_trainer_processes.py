"""Two processes of the Trainer of transformers prune alike."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")

IN_EACH = """
import sys
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from test_transformers_trainer import gated_bert, trained
trainer, pruning = trained(sys.argv[1], gated_bert(), per_device_train_batch_size=2)
found = {**pruning.compact.state_dict(), "gates": trainer.model.gates.locations, "n": torch.tensor(trainer.args.world_size)}
found["cost"] = torch.tensor(trainer.model.hard_cost("macs"))
save_file({k: v.contiguous() for k, v in found.items()}, f"{sys.argv[1]}/{trainer.args.process_index}.safetensors")
"""


@pytest.mark.slow
def test_processes_end_with_the_same_network_within_the_budget(tmp_path):
    (tmp_path / "each.py").write_text(IN_EACH)
    paths = ":".join(str(Path(__file__).parent / part) for part in (".", "../helpers"))
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-port=0",
        "--rdzv-backend=c10d",
    ]
    launch += ["--rdzv-endpoint=localhost:0", str(tmp_path / "each.py"), str(tmp_path)]
    import os

    done = subprocess.run(launch, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))

    assert int(first["n"]) == 2
    assert float(first["cost"]) <= 0.5
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
