"""The command line, as a test calls it."""

import json

from click.testing import CliRunner, Result

from l0prune.cli.main import cli


def invoke(*args: object) -> Result:
    """What a command comes to."""
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def json_of(*args: object) -> dict:
    """What a command prints with --json, one object and nothing else on stdout; it must succeed."""
    result = invoke(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*args: object) -> str:
    """The line that a command which must fail ends with."""
    result = invoke(*args)
    assert result.exit_code == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]
