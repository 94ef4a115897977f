"""Ridge regression from sums over rows, judged by rows that were held out."""

import pytest
import torch
from flow_case import EXACT, inputs

from l0prune.surgery.least_squares import Affine, Moments, fitted


def rows(n: int, *, noise: float = 0.0, seed: int = 0, columns: int = 5):
    """Columns that are correlated and not centred, and outputs by a map with a shift."""
    x = inputs(n, columns, seed=seed) @ inputs(columns, columns, seed=1) + 1
    weight, shift = inputs(columns, 3, seed=2), inputs(3, seed=3)
    return x, x @ weight + shift + noise * inputs(n, 3, seed=seed + 10), Affine(weight, shift)


@pytest.mark.parametrize("shifted", [True, False])
def test_the_error_from_sums_is_that_of_the_rows(shifted):
    x, y, _ = rows(30)
    tried = Affine(inputs(5, 3, seed=7), inputs(3, seed=8) if shifted else None)

    expected = (y - x @ tried.weight - (tried.shift if shifted else 0)).square().sum()

    assert Moments.of(x, y).error(tried) == pytest.approx(float(expected), rel=1e-9)


def test_sums_of_parts_are_the_sums_of_all_rows():
    x, y, _ = rows(30)

    parts = Moments.of(x[:11], y[:11]) + Moments.of(x[11:], y[11:])

    for name, value in vars(Moments.of(x, y)).items():
        torch.testing.assert_close(getattr(parts, name), value, atol=EXACT, rtol=0)


@pytest.mark.parametrize("shifted", [True, False])
def test_outputs_of_an_affine_map_give_that_map_back(shifted):
    x, y, true = rows(40)
    start = Affine(torch.zeros_like(true.weight), torch.zeros_like(true.shift) if shifted else None)
    y = y if shifted else y - true.shift

    found = fitted(Moments.of(x[:30], y[:30]), Moments.of(x[30:], y[30:]), start)

    torch.testing.assert_close(found.weight, true.weight, atol=1e-7, rtol=0)
    assert (found.shift is None) == (not shifted)
    if shifted:
        torch.testing.assert_close(found.shift, true.shift, atol=1e-7, rtol=0)


def test_the_best_map_is_left_alone_where_rows_are_noisy_and_few():
    x, y, true = rows(16, noise=3.0)

    assert fitted(Moments.of(x[:8], y[:8]), Moments.of(x[8:], y[8:]), true) is None


def test_no_fit_predicts_the_held_out_rows_worse_than_the_start():
    for seed in range(20):
        x, y, true = rows(24, noise=1.0, seed=100 + seed, columns=12)
        start = Affine(true.weight + 0.3 * inputs(12, 3, seed=seed), true.shift)
        train, held_out = Moments.of(x[:16], y[:16]), Moments.of(x[16:], y[16:])

        found = fitted(train, held_out, start)

        assert found is None or held_out.error(found) < held_out.error(start)


def test_directions_without_data_keep_the_weights_they_have():
    x, y, true = rows(40)
    x = torch.cat([x, torch.zeros(40, 2, dtype=torch.float64)], 1)
    start = Affine(inputs(7, 3, seed=9), true.shift)

    found = fitted(Moments.of(x[:30], y[:30]), Moments.of(x[30:], y[30:]), start)

    torch.testing.assert_close(found.weight[5:], start.weight[5:], atol=EXACT, rtol=0)
    torch.testing.assert_close(found.weight[:5], true.weight, atol=1e-6, rtol=0)
