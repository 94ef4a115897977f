"""Clipping: usual gradients pass untouched, long ones are shortened to a fixed norm or to a multiple of the usual one."""

import copy
import math

import pytest
import torch

from l0prune.finetuning.optimization import GradientClip


def clipped(clip: GradientClip, *norms: float) -> list[float]:
    """Norms of gradients of these norms, spread over two parameters, after clipping them one after another."""
    found = []
    for norm in norms:
        parameters = [torch.zeros(3, requires_grad=True), torch.zeros(2, 2, requires_grad=True)]
        parameters[0].grad = torch.full((3,), 0.6 * norm / 3**0.5)
        parameters[1].grad = torch.full((2, 2), 0.4 * norm)
        clip([*parameters, torch.zeros(1, requires_grad=True)])
        found.append(math.hypot(float(parameters[0].grad.norm()), float(parameters[1].grad.norm())))
    return found


def test_a_spike_is_shortened_to_a_multiple_of_the_median():
    found = clipped(GradientClip(0.0, 4.0), *[1.0, 3.0, 2.0], 100.0, 7.0)

    assert found == pytest.approx([1.0, 3.0, 2.0, 8.0, 7.0], rel=1e-5)


def test_no_gradient_is_longer_than_the_largest():
    assert clipped(GradientClip(5.0, 4.0), 30.0, 3.0, 30.0, 100.0) == pytest.approx([5.0, 3.0, 5.0, 5.0], rel=1e-5)


def test_usual_gradients_are_left_alone_to_the_bit():
    gradient = torch.randn(7, generator=torch.Generator().manual_seed(0))
    clip = GradientClip(50.0, 4.0)
    for _ in range(60):
        parameter = torch.zeros(7, requires_grad=True)
        parameter.grad = gradient.clone()
        clip([parameter])
        assert torch.equal(parameter.grad, gradient)


def test_a_lasting_change_becomes_usual():
    """A loss that grows by a new term is not held back for good."""
    found = clipped(GradientClip(0.0, 4.0), *[0.01] * 50, *[3.0] * 50)

    assert found[50] == pytest.approx(0.04, rel=1e-4)
    assert found[-1] == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize("first", [0.0, math.inf, math.nan])
def test_steps_without_a_gradient_or_a_finite_one_hold_nothing_back(first):
    found = clipped(GradientClip(0.0, 4.0), first, 2.0, first, 3.0)

    assert [found[1], found[3]] == pytest.approx([2.0, 3.0], rel=1e-5)


def test_nothing_is_clipped_without_bounds():
    assert clipped(GradientClip(0.0, 0.0), 1.0, 1e6) == pytest.approx([1.0, 1e6])


def test_a_restored_clip_goes_on_as_before():
    clip, other = GradientClip(0.0, 4.0), GradientClip(0.0, 4.0)
    clipped(clip, *[1.0 + i / 10 for i in range(70)])
    other.load_state_dict(copy.deepcopy(clip.state_dict()))

    assert clipped(clip, 1e3, 40.0, 9.0) == clipped(other, 1e3, 40.0, 9.0)
