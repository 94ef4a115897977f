"""The commands of docs/recipes.md: what they set, and that they run."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from l0prune.cli import finetune
from l0prune.cli.main import cli
from l0prune.cli.request import FinetuneRequest
from l0prune.finetuning.schedule import plan_phases
from l0prune.finetuning.settings import Settings

TEXT = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
COMMANDS = re.findall(r"^    l0prune (.+)$", TEXT, re.MULTILINE)
STEPS = 50_000 // 128


@pytest.fixture
def asked(monkeypatch) -> list[FinetuneRequest]:
    """What the command line hands on, instead of training."""
    requests: list[FinetuneRequest] = []

    def note(_out: Path, request: FinetuneRequest, **_: object) -> None:
        requests.append(request)

    monkeypatch.setattr(finetune, "begin", note)
    return requests


def config_of(line: str, asked: list[FinetuneRequest]) -> Settings:
    """The resolved configuration of a command."""
    result = CliRunner().invoke(cli, shlex.split(line))
    assert result.exit_code == 0, result.stderr
    return asked[-1].settings


def test_there_is_a_penalty_and_a_budget():
    assert ["--penalty" in line for line in COMMANDS] == [True, False]
    assert ["--budget" in line for line in COMMANDS] == [False, True]


@pytest.mark.parametrize("line", COMMANDS, ids=["penalty", "budget"])
def test_training_is_that_of_the_paper(line, asked):
    config = config_of(line, asked)
    options, phases = asked[-1].run, plan_phases(config, STEPS)

    assert (asked[-1].model.spec, options.from_scratch, options.batch_size) == ("wrn28_10", True, 128)
    assert (config.optimizer, config.momentum, config.weight_decay) == ("sgd", 0.9, 5e-4)
    assert config.gated_weight_decay
    assert config.grad_clip == config.distillation == 0
    assert options.augment
    assert phases.total == 200 * STEPS
    rates = {epoch: phases.learning_rate(epoch * STEPS, config) for epoch in (0, 59, 60, 119, 120, 159, 160, 179)}
    expected = {0: 0.1, 59: 0.1, 60: 0.02, 119: 0.02, 120: 0.004, 159: 0.004, 160: 0.0008, 179: 0.0008}
    assert rates == pytest.approx(expected)


def test_the_penalty_is_that_of_the_paper(asked):
    config = config_of(COMMANDS[0], asked)
    options, phases = asked[-1].run, plan_phases(config, STEPS)

    assert (options.penalty, options.droprate_init) == ("lambda=0.001", "0.3")
    assert config.ema_decay == 0.99
    assert config.align == 1
    assert (phases.gate, phases.recovery) == (200 * STEPS, 0)


def test_the_budget_leaves_time_to_recover(asked):
    phases = plan_phases(config_of(COMMANDS[1], asked), STEPS)

    assert asked[-1].run.budget == "macs=0.5"
    assert (phases.gate, phases.recovery) == (180 * STEPS, 20 * STEPS)


@pytest.mark.parametrize("line", COMMANDS, ids=["penalty", "budget"])
def test_a_small_network_goes_through_the_recipe(line, tmp_path):
    short = {"cifar10:DIR": "tiny_task:data", "RUN": str(tmp_path / "run"), "60,120,160": "1", "200": "2", "180": "1"}
    small = (
        "--model-arg depth=10 --model-arg width=1 --model-arg in_channels=1 --input-shape 1,8,8 --mean 0.4 --std 0.2"
    )
    args = [short.get(word, word) for word in shlex.split(line)]

    result = CliRunner().invoke(cli, [*args, *shlex.split(small), "--log-every", "1", "--json"])

    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["params_after"] <= json.loads(result.stdout)["params_before"]
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["lr"] == 0.1
    if "--penalty" in line:
        assert lines[-1]["lr"] == pytest.approx(0.02)


def test_the_commands_parse_as_written():
    for line in COMMANDS:
        name, *args = shlex.split(line)
        command = cli.commands[name]
        assert isinstance(command, click.Command)
        assert command.make_context(name, args).params["spec"] == "wrn28_10"
