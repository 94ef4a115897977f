"""A gated model looks from outside like the model it holds."""

import copy
import inspect

import pytest
import torch
from flow_case import ready
from torch import nn

import l0prune


class Scored(nn.Module):
    """With arguments of its own, and what trainers ask for."""

    accepts_loss_kwargs = False

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)
        self.config = {"width": 8}

    def forward(self, pixels, labels=None, *, scale: float = 1.0):
        return self.second(torch.relu(self.first(pixels))) * scale

    def generate(self, pixels):
        return self(pixels)


def gated():
    return l0prune.inject(net := ready(Scored()), l0prune.trace(net, torch.randn(2, 3).double()))


def test_its_call_takes_what_the_model_takes_also_in_a_copy():
    expected = inspect.signature(Scored().forward)
    for model in (gated(), copy.deepcopy(gated())):
        assert inspect.signature(model.forward) == expected
        assert inspect.signature(model) == expected
    assert "labels" in inspect.signature(l0prune.GatedModel.forward).parameters


def test_a_copy_calls_its_own_weights():
    model = gated()
    other = copy.deepcopy(model)
    x = torch.randn(4, 3).double()
    with torch.no_grad():
        other.model.second.weight.zero_()
        other.model.second.bias.zero_()
    assert torch.equal(other.forward(x), torch.zeros(4, 2).double())
    assert model.forward(x, scale=2.0).abs().min() > 0


def test_it_has_what_trainers_ask_for_where_the_model_has_it_and_nothing_that_goes_past_the_gates():
    model = gated()
    assert model.config == {"width": 8}
    assert model.accepts_loss_kwargs is False
    assert not hasattr(model, "device")
    with pytest.raises(AttributeError):
        model.generate(torch.zeros(2, 3).double())


def test_a_network_that_stands_in_is_called_and_trained_until_it_goes():
    model = gated()
    model.freeze(torch.tensor([1.0, 0.0] * 4))
    dense, compact, x = model.model, l0prune.shrink(model, align=None), torch.randn(4, 3).double()
    expected = model(x)
    model.stand_for_(compact)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)
    assert {p.data_ptr() for p in model.parameters()} == {p.data_ptr() for p in compact.parameters()}
    model.stand_for_(None)
    assert model.model is dense
