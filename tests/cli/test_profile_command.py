"""`l0prune profile` and `--profile`: what goes together, and what is shown."""

import json

import pytest
from click.testing import CliRunner
from profile_example import branching_net, hand_made_profile

import l0prune
from l0prune.cli.gating import price_by_profile
from l0prune.cli.main import cli
from l0prune.cost.kinds import Costs
from l0prune.errors import ConfigError

SPEC = "tests.helpers.profile_example:branching_net"


@pytest.fixture
def profile_file(tmp_path):
    model, x = branching_net()
    return hand_made_profile(l0prune.trace(model, x)).save(tmp_path / "profile.json")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--out", "p.json"], "MODEL is missing"),
        (["lenet5"], "--out is missing"),
        (["lenet5", "--out", "p.json", "--kit", "kit"], "leave out --out"),
        (["lenet5", "--out", "p.json", "--from-kit", "results.json"], "leave out MODEL"),
        (["--kit", "kit", "--from-kit", "results.json"], "give one of them"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, what):
    result = CliRunner().invoke(cli, ["profile", *arguments])

    assert result.exit_code == 2
    assert what in result.output


def test_inspect_shows_milliseconds_beside_macs(profile_file):
    shown = CliRunner().invoke(cli, ["inspect", SPEC, "--profile", str(profile_file), "--json"])
    result = json.loads(shown.stdout)
    layers = {layer["name"]: layer["latency"] for layer in result["layers"]}

    assert sum(layers.values()) == pytest.approx(result["latency"])
    assert layers["first"] > layers["stem"] > 0
    assert 0 < result["smallest_reachable"]["latency"] < 1
    table = CliRunner().invoke(cli, ["inspect", SPEC, "--profile", str(profile_file)]).stdout
    assert "time / MACs" in table


def test_a_profile_that_has_changed_is_not_taken_for_the_one_of_the_run(profile_file):
    model, x = branching_net()
    costs = Costs(l0prune.trace(model, x))
    digest = price_by_profile(costs, profile_file).digest

    assert "latency" in costs.names
    assert price_by_profile(costs, profile_file, digest=digest).digest == digest
    with pytest.raises(ConfigError, match="has changed since the run began"):
        price_by_profile(costs, profile_file, digest="another")


def test_a_profile_of_a_noisy_machine_is_warned_of_where_it_is_used(tmp_path):
    model, x = branching_net()
    noisy = hand_made_profile(l0prune.trace(model, x), noise=0.06).save(tmp_path / "noisy.json")

    said = CliRunner().invoke(cli, ["inspect", SPEC, "--profile", str(noisy)]).stderr

    assert "noisy when branching was profiled: the dense network takes 1 ms, between 0.97 and 1.03" in said
