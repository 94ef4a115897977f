"""Tables fitted to times of blocked kernels predict them at widths that were not timed; drift of the machine is taken out."""

import numpy as np
import pytest

from l0prune.latency.profile import Table
from l0prune.latency.tables import ReadTable
from l0prune.profiling.cuts import random_cuts
from l0prune.profiling.fit import Blocks, Observations, closed_piece, pieces
from l0prune.profiling.measure import without_drift
from l0prune.profiling.outline import Moment, Sample

BLOCK, MULTIPLE = 16, 4


def kernel_us(n_in, n_out):
    """Blocks of 16 times blocks of 16; linear below a block; and off the multiples of 4 plain, with every channel counted."""
    blocks_out = -(-n_out // BLOCK)
    if n_in < BLOCK:
        return 3.0 + 0.4 * n_in * blocks_out
    if n_in % MULTIPLE == 0:
        return 2.0 + 5.0 * -(-n_in // BLOCK) * blocks_out
    return 20.0 + 0.05 * n_in * n_out


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 129, (400, 2))
    counts[::2] = np.maximum(counts[::2] // 4 * 4, 4)
    us = np.array([kernel_us(*pair) for pair in counts]) * rng.normal(1, 0.02, len(counts))
    us[::40] *= 3  # interrupted
    observed = Observations(counts, us, np.zeros(len(counts), np.int64))
    (made,) = pieces(observed, (128, 128), Blocks(BLOCK, MULTIPLE, knows_blocks=True), 1)
    return ReadTable(Table("Conv", made), (128, 128), block=BLOCK, multiple=MULTIPLE)


@pytest.mark.parametrize("region", ["small", "whole", "odd"])
def test_a_table_predicts_kernels_at_widths_that_were_not_timed(table, region):
    rng = np.random.default_rng(1)
    pick = {
        "small": lambda: rng.integers(2, 16),
        "whole": lambda: 4 * rng.integers(4, 33),
        "odd": lambda: 4 * rng.integers(4, 32) + 1,
    }
    counts = np.array([(pick[region](), rng.integers(4, 129)) for _ in range(200)])
    errors = table(counts[:, 0], counts[:, 1]) / [kernel_us(*pair) for pair in counts] - 1

    assert np.median(np.abs(errors)) < 0.03
    assert np.quantile(np.abs(errors), 0.9) < 0.10


def test_what_follows_a_layer_is_in_its_time_alone_whichever_comes_first():
    """Three tails of which the dearest is the first, as `Add, Pad, Relu, Slice` is of `Relu`; it grows with what is written."""
    rng = np.random.default_rng(0)
    counts, tail = 4 * rng.integers(1, 17, (300, 2)), rng.integers(0, 3, 300)
    extra = np.array([[6.0, 0.0, 4.0], [0.4, 0.0, 0.0]])
    us = np.array([kernel_us(*pair) for pair in counts]) + extra[0][tail] + extra[1][tail] * counts[:, 1]

    made = pieces(Observations(counts, us, tail), (64, 64), Blocks(BLOCK, MULTIPLE, knows_blocks=True), 3)

    for at, one in enumerate(made):
        read = ReadTable(Table(str(at), one), (64, 64), block=BLOCK, multiple=MULTIPLE)
        wanted = np.array([kernel_us(*pair) for pair in counts]) + extra[0][at] + extra[1][at] * counts[:, 1]
        assert np.median(np.abs(read(counts[:, 0], counts[:, 1]) / wanted - 1)) < 0.04


def test_nothing_that_goes_in_or_comes_out_takes_no_time(table):
    assert table(np.array([0, 5, 0]), np.array([7, 0, 0])).tolist() == [0, 0, 0]


def test_what_a_dropped_branch_leaves_is_a_constant_and_a_slope():
    counts = np.array([16, 32, 64, 128])
    piece = closed_piece(counts, 3.0 + 0.5 * counts, 128)

    assert piece.axes[0].knots == (1, 128)
    assert piece.us == pytest.approx((3.5, 67.0), rel=1e-3)


def test_drift_of_the_machine_is_taken_out():
    speed = np.linspace(1.0, 1.5, 61)

    def moment(at):
        us = speed[at] * (100.0 if at % 10 == 0 else 50.0)
        return Moment(np.zeros(1, np.int64), at % 10 == 0, Sample(us, {"kernel": us / 2}, {}, ""))

    steady = without_drift([moment(at) for at in range(61)])

    others = [one.sample.total_us for one in steady if not one.is_whole]
    assert np.ptp(others) < 0.05 * np.median(others)
    assert steady[5].sample.nodes["kernel"] == pytest.approx(steady[5].sample.total_us / 2)


def test_random_cuts_are_in_blocks_and_off_them_with_branches_gone():
    from profile_example import branching_net

    import l0prune

    model, x = branching_net()
    flow = l0prune.trace(model, x)
    cuts = [cut for _, cut in zip(range(120), random_cuts(flow, block=8, multiple=2), strict=False)]
    inner, stream = (
        np.array([cut[flow.tensors[f"{name}.weight"][0]].sum() for cut in cuts]) for name in ("first", "second")
    )

    assert all(cut.all() for cut in cuts[::10])
    assert (inner == 0).any()
    assert (stream >= 1).all()
    assert 0.4 < (stream % 8 == 0).mean() < 0.9
    assert set(range(1, 17)) - set(inner.tolist()) <= {5, 7, 9, 11, 13, 15}
