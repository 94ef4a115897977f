import json
import time

import pytest

from l0prune.errors import ConfigError, FileFormatError
from l0prune.measuring import alignment
from l0prune.measuring.alignment import (
    CANDIDATES,
    AlignmentReport,
    measure_alignment,
    preferred_alignment,
    resolve_alignment,
)


@pytest.fixture(scope="module")
def measured():
    start = time.process_time()  # what other processes take is not its own
    report = measure_alignment()
    return report, time.process_time() - start


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("L0PRUNE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "alignment.json"


@pytest.fixture
def counted(measured, monkeypatch):
    """The measurement replaced by its known result; the list grows with every call."""
    calls = []

    def fake(*, threads=1):
        calls.append(threads)
        return measured[0]

    monkeypatch.setattr(alignment, "measure_alignment", fake)
    return calls


def test_this_machine_is_measured_in_seconds(measured):
    report, seconds = measured
    assert report.alignment in CANDIDATES
    assert min(report.relative_cost.values()) == 1.0
    assert seconds < 10  # about one


@pytest.mark.parametrize("step", [1, 4, 8, 16, 32])
def test_a_pure_staircase_prefers_its_own_step(step):
    curve = {width: float(-(-width // step)) for width in range(33, 65)}
    costs = alignment._relative_costs({"1x1": curve, "3x3": curve})
    assert max(n for n, cost in costs.items() if cost <= 1.03) == step


def test_a_cliff_at_odd_widths_rules_out_any_width():
    curve = {width: float(-(-width // 16)) * (1.0 if width % 4 == 0 else 1.4) for width in range(33, 65)}
    costs = alignment._relative_costs({"1x1": curve, "3x3": curve})
    assert costs[1] > 1.2
    assert costs[4] == pytest.approx(costs[16])


def test_the_choice_is_remembered_per_thread_count(cache, counted, measured):
    assert preferred_alignment() == preferred_alignment() == measured[0].alignment
    assert preferred_alignment(threads=2) == measured[0].alignment
    assert counted == [1, 2]
    assert len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"x": {}}', '{"x": 3}', "\x00\xff"])
def test_a_damaged_cache_is_measured_again_and_replaced(cache, counted, damage):
    cache.parent.mkdir()
    cache.write_text(damage)
    preferred_alignment()
    preferred_alignment()
    assert counted == [1]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, counted, measured):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("L0PRUNE_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert preferred_alignment() == measured[0].alignment
    assert counted == [1]


def test_a_report_survives_json_and_refuses_unknown_keys(measured):
    value = json.loads(json.dumps(measured[0].to_json()))
    assert AlignmentReport.from_json(value) == measured[0]
    with pytest.raises(FileFormatError):
        AlignmentReport.from_json({**value, "colour": "red"})
    with pytest.raises(FileFormatError):
        AlignmentReport.from_json({**value, "version": 7})


def test_an_alignment_is_auto_a_number_or_nothing(cache, counted, measured):
    assert resolve_alignment("auto") == measured[0].alignment
    assert [resolve_alignment(align) for align in (None, 4, "8")] == [1, 4, 8]
    for wrong in ("wide", 0, "-4", "1.5", 2.5, True, [], "²"):
        with pytest.raises(ConfigError, match=r"expected 'auto' or a whole number"):
            resolve_alignment(wrong)
