"""Masked statistics against the norm of the smaller width."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, difference, inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from l0prune.errors import TraceError
from l0prune.gated.open_norms import MaskedNorms
from l0prune.look.capture import RecordNorms
from l0prune.ops.norms import masked_norm

masked_layer_norm, masked_group_norm = partial(masked_norm, -1), partial(masked_norm, 1)


def masked_rms_norm(x, mask, weight, eps):
    return masked_norm(-1, x, mask, weight, None, eps, centred=False)


MASKS = st.lists(st.booleans(), min_size=1, max_size=9).filter(any).map(torch.tensor)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(mask=MASKS, affine=st.booleans(), seed=st.integers(0, 99))
def test_a_masked_layer_norm_is_the_layer_norm_of_the_open_units(mask, affine, seed):
    x, width = inputs(2, 3, len(mask), seed=seed), int(mask.sum())
    weight, bias = inputs(2, len(mask), seed=seed + 1) if affine else (None, None)

    out = masked_layer_norm(x, mask.double(), weight, bias, 1e-5)

    cut = (weight[mask], bias[mask]) if affine else (None, None)
    assert difference(out[..., mask], F.layer_norm(x[..., mask], (width,), *cut)) < EXACT
    assert torch.equal(out[..., ~mask], (bias[~mask] if affine else out.new_zeros(len(mask) - width)).expand(2, 3, -1))


@settings(deadline=None, derandomize=True, max_examples=25)
@given(mask=MASKS, affine=st.booleans(), seed=st.integers(0, 99))
def test_a_masked_rms_norm_is_the_rms_norm_of_the_open_units(mask, affine, seed):
    x, width = inputs(2, 3, len(mask), seed=seed), int(mask.sum())
    weight = inputs(len(mask), seed=seed + 1) if affine else None

    out = masked_rms_norm(x, mask.double(), weight, None)

    assert difference(out[..., mask], F.rms_norm(x[..., mask], (width,), weight[mask] if affine else None)) < EXACT
    assert (out[..., ~mask] == 0).all()


@settings(deadline=None, derandomize=True, max_examples=25)
@given(mask=MASKS, affine=st.booleans(), seed=st.integers(0, 99))
def test_a_masked_group_norm_is_the_group_norm_of_the_open_channels(mask, affine, seed):
    x = inputs(2, len(mask), 2, 3, seed=seed)
    weight, bias = inputs(2, len(mask), seed=seed + 1) if affine else (None, None)

    out = masked_group_norm(x, mask.double(), weight, bias, 1e-3)

    cut = (weight[mask], bias[mask]) if affine else (None, None)
    assert difference(out[:, mask], F.group_norm(x[:, mask], 1, *cut, eps=1e-3)) < EXACT


def test_closed_units_get_no_gradient_and_open_ones_that_of_the_smaller_norm():
    mask = torch.tensor([True, False, True, True])
    x, small = inputs(3, 4).requires_grad_(), inputs(3, 4)[:, mask].requires_grad_()

    masked_layer_norm(x, mask.double(), None, None, 1e-5)[:, mask].pow(3).sum().backward()
    F.layer_norm(small, (3,)).pow(3).sum().backward()

    assert difference(x.grad[:, mask], small.grad) < EXACT
    assert (x.grad[:, ~mask] == 0).all()


@pytest.mark.parametrize("closed", [0, 1])
def test_all_units_closed_is_finite(closed):
    mask = torch.zeros(4) + (0.0 if closed else 1.0)

    assert torch.isfinite(masked_layer_norm(torch.zeros(2, 4), mask, None, None, 1e-5)).all()
    assert torch.isfinite(masked_group_norm(torch.zeros(2, 4, 3), mask, None, None, 1e-5)).all()
    assert torch.isfinite(masked_rms_norm(torch.zeros(2, 4), mask, None, 1e-5)).all()


OPEN = torch.tensor([True, True, False, True, False, True])
X = inputs(2, 6)
WEIGHT = inputs(6, seed=1)
LAYER = masked_layer_norm(X, OPEN.double(), WEIGHT, None, 1e-5)


@pytest.mark.parametrize(
    "norm",
    [
        lambda: F.layer_norm(X, (6,), WEIGHT),
        lambda: F.layer_norm(X, [6], weight=WEIGHT, eps=1e-5),
        lambda: F.layer_norm(input=X, normalized_shape=(6,), weight=WEIGHT),
        lambda: torch.layer_norm(X, (6,), WEIGHT, None, 1e-5, True),
    ],
)
def test_calls_are_replaced_however_their_arguments_are_written(norm):
    with MaskedNorms({id(WEIGHT): OPEN}, {}, {}):
        assert difference(norm(), LAYER) < EXACT


def test_every_option_reaches_the_masked_norm():
    bias, picture = inputs(6, seed=2), inputs(2, 6, 3)
    with MaskedNorms({id(WEIGHT): OPEN}, {("rms_norm", 0): OPEN}, {"rms_norm": 1}):
        layer = F.layer_norm(X, (6,), WEIGHT, bias, 0.1)
        group = F.group_norm(picture, 1, WEIGHT, bias, 0.2)
        rms = F.rms_norm(X, (6,), None, 0.3)

    assert difference(layer, masked_layer_norm(X, OPEN.double(), WEIGHT, bias, 0.1)) < EXACT
    assert difference(group, masked_group_norm(picture, OPEN.double(), WEIGHT, bias, 0.2)) < EXACT
    assert difference(rms, masked_rms_norm(X, OPEN.double(), None, 0.3)) < EXACT


def test_other_norms_are_left_alone():
    other = inputs(6, seed=5)
    with MaskedNorms({id(WEIGHT): OPEN, id(other): None}, {("layer_norm", 1): OPEN}, {"layer_norm": 2}):
        assert torch.equal(F.layer_norm(X, (6,), other), F.layer_norm(X, (6,), other))
        first, second = F.layer_norm(X, (6,)), F.layer_norm(X, (6,))

    assert torch.equal(first, F.layer_norm(X, (6,)))
    assert difference(second, masked_layer_norm(X, OPEN.double(), None, None, 1e-5)) < EXACT
    assert torch.equal(F.layer_norm(X, (6,), WEIGHT), F.layer_norm(X, (6,), WEIGHT))  # the block is over


@pytest.mark.parametrize("n_calls", [1, 3])
def test_norms_known_by_their_order_must_be_as_many_as_were_traced(n_calls):
    masked = MaskedNorms({}, {("layer_norm", 1): OPEN}, {"layer_norm": 2})
    masked.__enter__()
    for _ in range(n_calls):
        F.layer_norm(X, (6,))

    with pytest.raises(TraceError, match=f"calls layer_norm without a weight {n_calls} times, the traced one 2 times"):
        masked.__exit__(None, None, None)


def test_a_norm_of_another_width_is_another_path():
    with (
        pytest.raises(TraceError, match="a layer_norm of the forward pass normalises 5 units, the traced one 6"),
        MaskedNorms({id(WEIGHT): OPEN}, {}, {}),
    ):
        F.layer_norm(X[:, :5], (5,), WEIGHT)


def test_an_error_of_the_model_is_not_hidden_by_the_count():
    with pytest.raises(KeyError), MaskedNorms({}, {("layer_norm", 1): OPEN}, {"layer_norm": 2}):
        raise KeyError("of the model")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision_numbers_are_taken_in_single_precision(dtype):
    """771 units: their number itself is not a half precision number."""
    x = (inputs(16, 771) * 3 + 20).to(dtype)
    expected = F.layer_norm(x.double(), (771,))
    with MaskedNorms({}, {("layer_norm", 0): torch.ones(771, dtype=torch.bool)}, {"layer_norm": 1}):
        masked = F.layer_norm(x, (771,))

    assert masked.dtype == dtype
    assert difference(masked.double(), expected) <= 1.01 * difference(F.layer_norm(x, (771,)).double(), expected)


def test_what_is_called_is_written_down_by_the_names_of_the_weights():
    norm = torch.nn.LayerNorm(6).double()
    model = torch.nn.Sequential(norm, torch.nn.LayerNorm(6, elementwise_affine=False), norm)

    with RecordNorms() as recorded:
        model(X)
        F.rms_norm(X, (6,), WEIGHT)

    calls = recorded.calls(model)
    assert calls.weights == {"0.weight"}
    assert calls.n_others == {"layer_norm": 1, "rms_norm": 1}
