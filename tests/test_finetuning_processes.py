"""Several processes train one network on shared batches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finetuning_case import QUICK, accuracy, run
from safetensors.torch import load_file

TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate import PartialState
from finetuning_case import accuracy, run
from safetensors.torch import save_file

out = Path(sys.argv[1])
result = run(out=out / "run", evaluate=accuracy)
state = PartialState()
tensors = {**result.compact.state_dict(), "log_alpha": result.gated.gates.log_alpha.detach()}
tensors["n_processes"] = torch.tensor(state.num_processes)
save_file({k: v.contiguous() for k, v in tensors.items()}, out / f"rank{state.process_index}.safetensors")
"""


@pytest.mark.slow
def test_two_processes_agree_and_come_close_to_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    here = str(Path(__file__).parent)
    environment = {"PYTHONPATH": here, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}

    done = subprocess.run(
        [*launch, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240
    )

    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2))
    assert int(first["n_processes"]) == 2
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=0, rtol=0, msg=name)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
    alone = run(evaluate=accuracy, config=QUICK)
    assert [line["evaluation"]["accuracy"] for line in lines if "evaluation" in line][-1] > 0.9
    assert alone.evaluation["accuracy"] > 0.9
    # BatchNorm normalises each process's rows by themselves, so the two runs drift apart a little.
    torch.testing.assert_close(first["log_alpha"], alone.gated.gates.log_alpha.detach(), atol=0.3, rtol=0)
