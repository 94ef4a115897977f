"""What a profile says of the layers of a run: in its file, and on the page."""

import json

import numpy as np
import pytest
from profile_example import branching_net, hand_made_profile, times_of

import l0prune
from l0prune.cost.kinds import Costs
from l0prune.errors import FileFormatError
from l0prune.files import write_json
from l0prune.latency.predicted import PredictedLayers
from l0prune.report.layer_plot import draw_layers
from l0prune.report.page import _predicted, _read_predicted
from l0prune.run_directory import RunDirectory


@pytest.fixture(scope="module")
def predicted():
    """8 of 16 units of the branch stay."""
    model, x = branching_net()
    flow = l0prune.trace(model, x)
    is_open = np.ones(flow.n_gates, bool)
    is_open[flow.tensors["first.weight"][0][8:]] = False
    return PredictedLayers.of(Costs(flow)("latency", hand_made_profile(flow)), is_open)


def test_each_layer_has_its_times_and_widths_dense_and_compact(predicted):
    stem, first, second, head = predicted.layers

    assert (first.dense_ms, first.compact_ms) == pytest.approx((times_of(16, 16) / 1000, times_of(16, 8) / 1000))
    assert (second.dense_ms, second.compact_ms) == pytest.approx((times_of(16, 16) / 1000, times_of(8, 16) / 1000))
    assert [(one.kept_width, one.dense_width) for one in (stem, first, second)] == [(16, 16), (8, 16), (16, 16)]
    assert head.dense_ms == head.compact_ms
    assert predicted.dense_ms == pytest.approx((times_of(3, 16) + 2 * times_of(16, 16) + 4 + 7) / 1000)
    saved = sum(one.dense_ms - one.compact_ms for one in (first, second))
    assert predicted.dense_ms - predicted.compact_ms == pytest.approx(saved)


def test_the_picture_has_two_bars_of_time_a_layer_and_colours_by_the_time_saved(predicted):
    times, widths, scale = draw_layers(predicted).axes

    assert [bar.get_width() for bar in times.patches] == pytest.approx(
        [*(one.dense_ms for one in predicted.layers), *(one.compact_ms for one in predicted.layers)]
    )
    stem, first, _, head = (bar.get_facecolor() for bar in widths.patches[4:])
    assert stem == head != first
    assert scale.get_ylabel() == "ms saved"


def test_bars_are_what_was_measured_where_that_is_known_with_marks_at_what_was_predicted(predicted):
    measured = {
        "dense": {"before the first layer": 0.5, "stem": 1.0, "first": 2.0, "second": 3.0, "head": 4.0},
        "compact": {"stem": 0.1, "second": 0.3, "head": 0.4},
    }

    times, widths, _ = draw_layers(predicted, measured).axes

    assert [bar.get_width() for bar in times.patches] == [0.5, 1.0, 2.0, 3.0, 4.0, 0.0, 0.1, 0.0, 0.3, 0.4]
    (marks,) = times.lines
    assert sorted(marks.get_xdata()) == pytest.approx(
        sorted(ms for one in predicted.layers for ms in (one.dense_ms, one.compact_ms))
    )
    assert [round(bar.get_y() + bar.get_height() / 2) for bar in widths.patches[:4]] == [1, 2, 3, 4]
    (alone,) = draw_layers(None, measured).axes
    assert alone.get_xlabel() == "measured, ms"
    assert not alone.lines


def test_the_page_reads_the_file_of_a_run(predicted, tmp_path):
    run = RunDirectory(tmp_path)
    assert _predicted(_read_predicted(run), None) == []
    write_json(run.latency, predicted.to_json())

    assert PredictedLayers.read(run.latency) == predicted
    assert (
        f"predicts {predicted.dense_ms:.3f} ms dense and {predicted.compact_ms:.3f} ms"
        in _predicted(_read_predicted(run), None)[0]
    )
    run.latency.write_text(json.dumps(predicted.to_json() | {"version": 2}))
    with pytest.raises(FileFormatError, match="run shrink again"):
        PredictedLayers.read(run.latency)
