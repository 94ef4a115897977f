"""A kit is timed elsewhere by a script that needs numpy and onnxruntime alone, and makes the profile of that machine."""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from profile_example import branching_net

import l0prune
from l0prune.cost.kinds import Costs
from l0prune.errors import ConfigError, FileFormatError
from l0prune.latency.profile import Profile
from l0prune.profiling import kit, runner
from l0prune.profiling.kit import profile_from_kit, write_kit
from l0prune.profiling.measure import ProfileOptions


def test_the_script_of_a_kit_needs_numpy_and_onnxruntime_alone():
    tree = ast.parse(Path(runner.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


@pytest.mark.slow
def test_a_kit_gives_a_profile(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kit, "GRAPHS", 30)
    model, x = branching_net()
    flow = l0prune.trace(model, x)
    script = write_kit(model, x, tmp_path / "kit", flow=flow, name="branching", options=ProfileOptions(seconds=0.3))

    monkeypatch.setattr(runner, "__file__", str(script))
    runner.main(["--out", str(tmp_path / "results.json")])
    profile = profile_from_kit(tmp_path / "results.json")

    assert "30/30" in capsys.readouterr().out
    assert Profile.load(profile.save(tmp_path / "profile.json")) == profile
    cost = Costs(flow)("latency", profile)
    half = np.ones(flow.n_gates, bool)
    half[flow.tensors["first.weight"][0]] = False
    assert cost.hard(half) < 1
    assert cost.dense == pytest.approx(profile.dense_ms, rel=0.5)  # of a network of microseconds
    assert {layer.name for layer in profile.layers} >= {"stem", "first", "second", "head"}
    with pytest.raises(ConfigError, match="not empty"):
        write_kit(model, x, tmp_path / "kit", flow=flow)


@pytest.mark.parametrize(
    "damage", [{"format": "other"}, {"samples": []}, {"facts": {}}, {"about": {}}, {"threads": "1"}]
)
def test_damaged_results_say_to_run_the_script_again(tmp_path, damage):
    good = {
        "format": "l0prune.kit-results",
        "version": 1,
        "about": {
            "fingerprint": "",
            "model": "",
            "outline": {"graph": "", "sides": {}, "dimensions": []},
            "needs": {},
            "sizes": [[1]],
            "inputs": [],
            "batch_size": 1,
        },
        "threads": 1,
        "facts": runner.facts(),
        "seconds": 1.0,
        "samples": [],
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(good | damage))
    with pytest.raises(FileFormatError):
        profile_from_kit(path)


def test_missing_results_say_what_writes_them(tmp_path):
    with pytest.raises(ConfigError, match=r"Run the kit's run\.py"):
        profile_from_kit(tmp_path / "results.json")
