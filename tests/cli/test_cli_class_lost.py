"""What the commands say of a network that does not keep its class."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from l0prune.cli.main import cli

SPEC = "test_cli_class_lost:network"
REASON = "in place, outputs differ by "


class ScaledByItsWidth(nn.Module):
    """Divides by the root of its width, which in place would be another one."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).relu()
        return self.head(y.mean((2, 3)) / y.shape[1])


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return ScaledByItsWidth(), torch.zeros(2, 1, 8, 8)


def output_of(*args: object) -> str:
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, and what `finetune` printed."""
    out = tmp_path_factory.mktemp("class") / "run"
    options = ("--budget", "macs=0.6", "--epochs", 2, "--batch-size", 16, "--align", 1)
    return out, output_of("finetune", SPEC, "--data", "tiny_task:data", *options, "--out", out)


def test_finetune_and_shrink_print_why_the_class_was_not_kept(run):
    out, printed = run

    assert f"Its class was not kept: {REASON}" in printed
    assert f"Its class was not kept: {REASON}" in output_of("shrink", out)
    assert json.loads((out / "run.json").read_text())["result"]["not_in_place_because"].startswith(REASON)


def test_shrink_gives_the_form_and_the_reason_as_json(run):
    result = json.loads(output_of("shrink", run[0], "--json"))

    assert result["form"] == "graph"
    assert result["not_in_place_because"].startswith(REASON)


def test_verify_prints_the_reason_beside_the_form():
    assert f"graph: {REASON}" in " ".join(output_of("verify", SPEC, "--no-onnx").replace("│", " ").split())


def test_verify_of_a_class_that_is_kept_gives_no_reason():
    result = json.loads(output_of("verify", "tiny_task:network", "--no-onnx", "--json"))

    assert (result["form"], result["not_in_place_because"]) == ("in-place", "")


class OfSeveralWidths(nn.Module):
    """Keeps an integer that may be either of two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.planes = 32
        self.a, self.b, self.c = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


def of_several_widths() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return OfSeveralWidths(), torch.zeros(2, 6)


def test_verify_names_integers_that_were_left():
    command = ("verify", "test_cli_class_lost:of_several_widths", "--no-onnx", "--seed", 1)

    assert "integers left as they were planes 32" in " ".join(output_of(*command).split())
    assert json.loads(output_of(*command, "--json"))["integers_left"] == {"planes": 32}


class PicturesOfSeveralWidths(nn.Module):
    """The same on images."""

    def __init__(self) -> None:
        super().__init__()
        self.planes = 32
        self.a, self.b, self.c = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu().mean((2, 3)))


def pictures_of_several_widths() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return PicturesOfSeveralWidths(), torch.zeros(2, 1, 8, 8)


def test_finetune_and_shrink_name_integers_that_were_left(tmp_path):
    options = ("--budget", "macs=0.5", "--epochs", 1, "--batch-size", 32, "--align", 1, "--out", tmp_path / "run")
    spec = "test_cli_class_lost:pictures_of_several_widths"

    printed = output_of("finetune", spec, "--data", "tiny_task:data", *options)

    result = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert result["integers_left"] == {"planes": 32}
    assert "Integers left as they were: planes 32" in printed
    assert "Integers left as they were: planes 32" in output_of("shrink", tmp_path / "run")
