"""The README keeps its word: its code runs, its commands exist, and so do the names it lists."""

import re
import shlex
from pathlib import Path

import click
import pytest
import torch
from tiny_task import data, network
from torch.nn import functional as F

import l0prune
from l0prune.cli.main import cli
from l0prune.models import names

README = (Path(__file__).parents[2] / "README.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^    l0prune (.+)$", README, re.MULTILINE)


def test_the_code_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    arrays = data()
    images = torch.from_numpy(arrays["x_train"]).float().div(255).unsqueeze(1)
    loader = list(zip(images.split(16), torch.from_numpy(arrays["y_train"]).split(16), strict=True))
    model = network(width=32)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    names_at_hand = {"l0prune": l0prune, "F": F, "model": model, "x": loader[0][0], "loader": loader, "epochs": 2}
    names_at_hand["optimizer"] = optimizer

    assert len(CODE) == 3
    for block in CODE:
        exec(compile(block, "README.md", "exec"), names_at_hand)
        if block is CODE[0]:
            assert_the_loop_kept_its_promise(names_at_hand["gated"], names_at_hand["compact"], images)

    printed = capsys.readouterr().out
    assert "Speedup(ratio=" in printed
    assert "True" in printed
    assert (tmp_path / "compact" / "surgery.json").exists()


def assert_the_loop_kept_its_promise(gated, compact, images):
    """As printed, without a call of `eval()`: equal outputs, that react, and the budget met and filled."""
    with torch.no_grad():
        outputs = compact(images)
        torch.testing.assert_close(gated(images), outputs, atol=1e-6, rtol=0)
    assert outputs.std(0).min() > 1e-4
    assert 0.49 < gated.hard_cost() <= 0.5
    assert compact.surgery.difference.max_rel < 1e-4
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in gated.parameters())


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_can_be_read(line):
    name, *args = shlex.split(line)

    command = cli.commands[name]
    while isinstance(command, click.Group):
        name, *args = args
        command = command.commands[name]

    assert command.make_context(name, args).params


def test_every_command_is_shown():
    assert {line.split()[0] for line in COMMANDS} == set(cli.commands)


def test_the_models_named_exist():
    listed = re.search(r"\*\*MODEL\*\* is a name from the package \((.*?)\)", README, re.DOTALL)

    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) <= set(names())
