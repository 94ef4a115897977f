"""Diagnostics of other libraries stay out of the output of the commands."""

import os
import subprocess
import sys

import pytest

from l0prune.onnx.silence import silenced

WITHOUT_OUTPUT = """
import sys
from pathlib import Path
from l0prune.onnx.silence import silenced
with silenced():
    Path(sys.argv[1]).write_text("went on")
"""


def test_what_is_written_meanwhile_does_not_get_out(capfd):
    sys.stdout.write("before ")
    with silenced():
        sys.stdout.write("Python ")
        os.write(1, b"the process ")
        os.write(2, b"its errors ")
        subprocess.run(["echo", "a child"], check=True)
    sys.stdout.write("after")

    assert capfd.readouterr() == ("before after", "")


def test_the_output_is_back_after_an_error(capfd):
    with pytest.raises(ValueError, match="wrong"), silenced():
        raise ValueError("wrong")
    os.write(1, b"back")

    assert capfd.readouterr().out == "back"


def test_nothing_stays_open():
    first = os.dup(0)
    os.close(first)
    for _ in range(3):
        with silenced():
            pass
    second = os.dup(0)
    os.close(second)

    assert first == second


def test_a_process_without_output_goes_on(tmp_path):
    command = [sys.executable, "-c", WITHOUT_OUTPUT, str(tmp_path / "said")]
    subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *command], check=True)

    assert (tmp_path / "said").read_text() == "went on"
