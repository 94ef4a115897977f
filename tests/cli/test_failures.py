"""Failures of the command line: one line on stderr, the right exit code, a traceback only when asked for."""

import click
import pytest
from click.testing import CliRunner

from l0prune.cli.flags import debug_option
from l0prune.cli.main import CommandLine, cli
from l0prune.cli.process import Interrupted
from l0prune.errors import CheckpointError


def run_failing(error: BaseException, *args: str):
    """Run a command that raises `error`."""

    @click.group(cls=CommandLine)
    def group() -> None:
        pass

    @group.command()
    @debug_option
    def fail() -> None:
        raise error

    return CliRunner().invoke(group, ["fail", *args])


def test_a_deliberate_error_is_one_line_and_exit_code_1():
    result = run_failing(CheckpointError("weights 'a.pt' do not exist;\ncheck the path"))

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: weights 'a.pt' do not exist; check the path\n"


def test_an_unexpected_error_names_its_type_and_how_to_see_more():
    result = run_failing(ZeroDivisionError("division\nby zero"))

    assert result.exit_code == 1
    assert result.stderr == (
        "error: unexpected ZeroDivisionError: division by zero (run again with --debug to see where)\n"
    )


def test_an_endless_message_is_cut():
    result = run_failing(RuntimeError("x" * 10_000))

    assert len(result.stderr) < 600


def test_debug_shows_the_traceback_above_the_line():
    result = run_failing(CheckpointError("no weights"), "--debug")

    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: no weights\n")


def test_a_file_that_cannot_be_used_is_named():
    result = run_failing(PermissionError(13, "Permission denied", "run/run.json"))

    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot use 'run/run.json': Permission denied;")


def test_ctrl_c_exits_with_130_and_says_how_to_go_on():
    result = run_failing(Interrupted("continue with --resume"))

    assert result.exit_code == 130
    assert result.stderr == "interrupted: continue with --resume\n"


def test_wrong_usage_exits_with_2():
    result = CliRunner().invoke(cli, ["verify"])

    assert result.exit_code == 2
    assert "MODEL" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model-arg", "width"],
        ["--input-shape", "3,a"],
        ["--input-shape", "0,2"],
        ["--mean", "x"],
        ["--align", "0"],
        ["--align", "most"],
        ["--closed", "1.5"],
        ["--threads", "0"],
        ["--threads", "100000"],
        ["--seed", str(2**63)],
        ["--seed", "-1"],
        ["--closed", "nan"],
        ["--mean", "nan"],
        ["--std", "1,inf,1"],
    ],
)
def test_an_option_that_cannot_be_read_is_wrong_usage(arguments):
    result = CliRunner().invoke(cli, ["verify", "lenet5", *arguments])

    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def test_help_lists_the_commands_in_the_order_of_use():
    result = CliRunner().invoke(cli, ["--help"])

    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.output.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == [
        "inspect",
        "verify",
        "profile",
        "vocabulary",
        "finetune",
        "sweep",
        "shrink",
        "bench",
        "eval",
        "report",
        "plot",
        "study",
        "demo",
    ]


def runnable(group, *path):
    """Every command that does something, with the names that lead to it."""
    for name, command in group.commands.items():
        yield from runnable(command, *path, name) if isinstance(command, click.Group) else [((*path, name), command)]


@pytest.mark.parametrize(
    ("path", "command"), runnable(cli), ids=lambda part: "-".join(part) if type(part) is tuple else ""
)
def test_every_command_explains_itself(path, command):
    result = CliRunner().invoke(cli, [*path, "--help"])

    assert result.exit_code == 0
    assert command.get_short_help_str(limit=120).endswith(".")
    undocumented = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert not undocumented
    assert {"as_json", "debug"} <= {p.name for p in command.params}
