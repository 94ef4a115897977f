"""The root search behind the mixtures."""

import pytest
import torch

from l0prune.gates.numerics import find_root


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_smooth_functions_are_solved_to_rounding(dtype):
    target = torch.linspace(-5, 5, 41, dtype=dtype)

    def excess(x):
        return torch.sinh(x) - target, torch.cosh(x), torch.sinh(x)

    found = find_root(excess, torch.zeros_like(target), torch.full_like(target, -9), torch.full_like(target, 9))
    torch.testing.assert_close(found, torch.asinh(target), rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-6)


def test_steps_that_lead_nowhere_end_in_the_bracketing_search():
    """A step function with a little slope: Newton's and Halley's steps jump from end to end."""
    target = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)

    def excess(x):
        sigmoid = torch.sigmoid((x - 3.3) * 400)
        slope = 400 * sigmoid * (1 - sigmoid) + 1e-9
        return sigmoid + 1e-9 * x - target, slope, torch.full_like(x, 1e6)

    found = find_root(excess, torch.full_like(target, 9.0), torch.full_like(target, -9), torch.full_like(target, 10))
    torch.testing.assert_close(found, 3.3 + torch.logit(target) / 400, rtol=1e-7, atol=0)


def test_nothing_to_solve_is_nothing_found():
    empty = torch.zeros(0)
    assert find_root(lambda x: (x, x, x), empty, empty, empty).shape == (0,)
