"""A command outlasts the readers of its streams; a result that cannot be written is an error."""

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from l0prune.cli.output import working
from l0prune.cli.process import LastingStream
from l0prune.errors import L0PruneWarning

pytestmark = pytest.mark.skipif(os.name != "posix", reason="uses a shell")
L0PRUNE = f"exec {sys.executable} -m l0prune.cli.main"
FINETUNE = (
    "finetune tiny_task:network --data tiny_task:data --budget macs=0.6 --epochs 2 --batch-size 16 --align 1 --out run"
)
FULL = "/dev/full"


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    paths = {"PYTHONPATH": str(Path(__file__).parents[1] / "helpers"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=folder,
        env=os.environ | paths | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def stream_without_reader() -> LastingStream:
    reader, writer = os.pipe()
    os.close(reader)
    return LastingStream(os.fdopen(writer, "w"), forgiving=False)


def test_a_stream_whose_reader_is_gone_goes_quiet():
    stream = stream_without_reader()

    for _ in range(3):
        assert stream.write("text") == 4
        stream.flush()

    stream.close()


@pytest.mark.skipif(not Path(FULL).exists(), reason="no device that is always full")
def test_what_is_said_may_be_lost_and_a_result_may_not():
    with Path(FULL).open("w") as file:
        stream = LastingStream(file, forgiving=True)
        stream.write("text")
        stream.flush()
    with Path(FULL).open("w") as file:
        stream = LastingStream(file, forgiving=False)
        stream.write("text")
        with pytest.raises(OSError, match="standard output") as caught:
            stream.flush()
        assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["--help", "inspect --help"])
def test_help_that_nobody_reads_is_no_failure(tmp_path, arguments, unbuffered):
    for where in ("| true", ">&-", "<&- >&-"):
        done = shell(f"({L0PRUNE} {arguments}) {where}", tmp_path, PYTHONUNBUFFERED=unbuffered)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path(FULL).exists(), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_that_cannot_be_written_is_an_error(tmp_path, unbuffered):
    done = shell(f"{L0PRUNE} --help >{FULL}", tmp_path, PYTHONUNBUFFERED=unbuffered)

    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot use 'standard output': No space left on device")
    assert len(done.stderr.splitlines()) == 1


def test_wrong_usage_keeps_its_code_where_nobody_reads_why(tmp_path):
    assert shell(f"({L0PRUNE} inspect) 2>&-", tmp_path).returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("where", ["2>&1 | head -1", ">&- 2>&- <&-", "2>&-", "2>/dev/full"])
def test_a_training_outlasts_its_readers(tmp_path, where):
    done = shell(f"({L0PRUNE} {FINETUNE} --json) {where}", tmp_path)

    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


def test_warnings_of_our_own_are_said_on_stderr_and_others_are_not(capsys):
    with working():
        warnings.warn("the graph was not saved", L0PruneWarning, stacklevel=1)
        warnings.warn("a library's own business", UserWarning, stacklevel=1)
        sys.stdout.write("printed by a library\n")

    assert capsys.readouterr() == ("", "the graph was not saved\nprinted by a library\n")
