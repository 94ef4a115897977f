"""Laws of cutting that hold for every network: random compositions of blocks, random gates, float64."""

import copy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from flow_case import EXACT, closing, difference, gated_at, inputs, n_parameters, random_gates
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from small_nets import PICTURE_BLOCKS, SEQUENCE_BLOCKS, Recipe, small_nets
from torch import nn

import l0prune
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.gated.model import GatedModel
from l0prune.surgery.shrink import absorb_, shrink, surgery_of

repeatable = partial(settings, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
SHARES = st.sampled_from([0.2, 0.5, 0.9])


def traced(recipe: Recipe) -> tuple[nn.Module, ChannelFlow]:
    net = recipe.build()
    return net, l0prune.trace(net, recipe.example)


def half_open(recipe: Recipe, closed: float = 0.5) -> GatedModel:
    net, flow = traced(recipe)
    return gated_at(net, flow, random_gates(flow, closed=closed, seed=recipe.seed))


def check_that_cutting_keeps_the_gated_function(recipe: Recipe, closed: float = 0.5) -> ChannelFlow:
    gated = half_open(recipe, closed)
    x = inputs(3, 3, 8, 8, seed=recipe.seed + 1)
    expected = gated(x)

    for form in (None, "graph"):
        compact = shrink(gated, form=form)
        assert difference(compact(x), expected) < EXACT
        assert n_parameters(compact) < n_parameters(gated.model) or gated.flow.n_gates == 0
        assert n_parameters(compact) == round(gated.flow.dense_cost("params") * gated.hard_cost("params"))
    return gated.flow


@repeatable(max_examples=16)
@given(recipe=small_nets(2), closed=SHARES)
def test_cutting_keeps_the_gated_function(recipe, closed):
    flow = check_that_cutting_keeps_the_gated_function(recipe, closed)
    assume(flow.n_gates > 0)  # else nothing was removed


@pytest.mark.slow
@repeatable(max_examples=500)
@given(recipe=small_nets(4), closed=SHARES)
def test_cutting_keeps_the_gated_function_of_larger_networks(recipe, closed):
    flow = check_that_cutting_keeps_the_gated_function(recipe, closed)
    assume(flow.n_gates > 0)


PINNING = {"Turned"}


@pytest.mark.parametrize("name", [*PICTURE_BLOCKS, *SEQUENCE_BLOCKS])
def test_every_kind_of_block_can_be_cut(name):
    pictures, sequences = ((name,), ()) if name in PICTURE_BLOCKS else ((), (name,))

    flow = check_that_cutting_keeps_the_gated_function(Recipe(6, pictures, sequences, "flat", seed=1))

    assert flow.prunable_fraction > 0.9 or name in PINNING
    assert flow.unknown_ops.keys() == ({"aten.rot90.default"} if name == "Turned" else set())


def check_that_the_compact_model_trains(recipe: Recipe) -> None:
    gated = half_open(recipe)
    x = inputs(4, 3, 8, 8, seed=recipe.seed)

    for form in (None, "graph"):
        compact = shrink(gated, form=form)
        before = compact(x)
        compact.train()
        compact(x).square().mean().backward()
        assert all(parameter.grad is not None for parameter in compact.parameters())
        assert all(torch.isfinite(parameter.grad).all() for parameter in compact.parameters())
        torch.optim.SGD(compact.parameters(), lr=0.01).step()
        assert difference(compact.eval()(x), before) > 0


@repeatable(max_examples=6)
@given(recipe=small_nets(2))
def test_the_compact_model_trains(recipe):
    check_that_the_compact_model_trains(recipe)


@pytest.mark.slow
@repeatable(max_examples=200)
@given(recipe=small_nets(4))
def test_larger_compact_models_train(recipe):
    check_that_the_compact_model_trains(recipe)


def check_that_absorbing_makes_gated_and_compact_equal_again(recipe: Recipe) -> None:
    gated = half_open(recipe)
    x = inputs(2, 3, 8, 8, seed=recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)

    for form in ("graph", None):
        compact = shrink(gated, form=form)
        with torch.no_grad():
            for tensor in compact.state_dict().values():
                if tensor.is_floating_point():
                    tensor.mul_(0.8 + 0.4 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
        absorb_(gated, compact)
        assert difference(gated(x), compact(x)) < EXACT


@repeatable(max_examples=8)
@example(recipe=Recipe(8, ("Dropped", "Listed"), (), "map", 38757))
@given(recipe=small_nets(2))
def test_absorbing_makes_gated_and_compact_equal_again(recipe):
    check_that_absorbing_makes_gated_and_compact_equal_again(recipe)


@pytest.mark.slow
@repeatable(max_examples=200)
@given(recipe=small_nets(4))
def test_absorbing_larger_networks_makes_gated_and_compact_equal_again(recipe):
    check_that_absorbing_makes_gated_and_compact_equal_again(recipe)


def check_that_a_saved_model_is_the_same_when_loaded(recipe: Recipe) -> None:
    gated = half_open(recipe)

    for form in (None, "graph"):
        compact = shrink(gated, form=form)
        with TemporaryDirectory() as folder:
            l0prune.save(compact, Path(folder) / "compact")
            models = [l0prune.load(Path(folder) / "compact")]
            if surgery_of(compact).form == "in-place":
                # The rest of a base is as its class makes it: what is not saved is not part of a checkpoint.
                models.append(l0prune.load(Path(folder) / "compact", base=recipe.build()))
        for model in models:
            assert model.state_dict().keys() == compact.state_dict().keys()
            for batch in (1, 3, 7):
                x = inputs(batch, 3, 8, 8, seed=recipe.seed)
                assert difference(model(x), compact(x)) < EXACT
                assert difference(model(x), gated(x)) < EXACT


@repeatable(max_examples=3)
@example(recipe=Recipe(6, ("Tables",), ("MlpWithoutAffine", "FusedAttention"), "flat", 0))
@given(recipe=small_nets(2))
def test_a_saved_model_is_the_same_when_loaded(recipe):
    check_that_a_saved_model_is_the_same_when_loaded(recipe)


@pytest.mark.slow
@repeatable(max_examples=100)
@given(recipe=small_nets(4))
def test_larger_saved_models_are_the_same_when_loaded(recipe):
    check_that_a_saved_model_is_the_same_when_loaded(recipe)


def check_that_removable_branches_may_close(recipe: Recipe) -> None:
    net, flow = traced(recipe)
    removable = [dimension.name for dimension in flow.dimensions if dimension.removable]
    generator = torch.Generator().manual_seed(recipe.seed)
    x = inputs(2, 3, 8, 8, seed=recipe.seed)

    chosen = [name for name in removable if torch.rand(1, generator=generator) < 0.5]
    for names in (removable, chosen):
        values = torch.minimum(random_gates(flow, closed=0.3, seed=recipe.seed), closing(flow, *names))
        for dimension in flow.dimensions:  # closing several may have emptied one that must not be
            members = torch.from_numpy(dimension.gates)
            if not dimension.removable and dimension.n_ungated == 0 and not values[members].any():
                return
        gated = gated_at(net, flow, values)
        assert difference(shrink(gated)(x), gated(x)) < EXACT


@repeatable(max_examples=6)
@example(recipe=Recipe(6, ("Residual", "InvertedResidual"), ("Mlp", "FusedAttention"), "flat", 0))
@example(recipe=Recipe(6, ("Written", "ConvNext", "ResidualInPlace"), ("GatedMlp", "SharedKeys"), "pooled", 0))
@given(recipe=small_nets(3))
def test_removable_branches_may_close(recipe):
    check_that_removable_branches_may_close(recipe)


@pytest.mark.slow
@repeatable(max_examples=300)
@given(recipe=small_nets(5))
def test_removable_branches_of_larger_networks_may_close(recipe):
    check_that_removable_branches_may_close(recipe)


@repeatable(max_examples=5)
@given(recipe=small_nets(2))
def test_open_gates_and_tracing_leave_the_model_bit_identical(recipe):
    net = recipe.build()
    tensors = {name: (id(tensor), tensor.clone()) for name, tensor in net.state_dict(keep_vars=True).items()}
    names = [name for name, _ in net.named_modules()]
    expected = net(recipe.example)

    flow = l0prune.trace(net, recipe.example)
    gated = gated_at(net, flow, torch.ones(flow.n_gates))
    for gates in (torch.ones(flow.n_gates), random_gates(flow)):
        gated.freeze(gates)
        shrink(gated)
        shrink(gated, form="graph")
    gated.freeze(torch.ones(flow.n_gates))

    found = net.state_dict(keep_vars=True)
    assert found.keys() == tensors.keys()
    assert all(
        id(found[name]) == identity and torch.equal(found[name], value) for name, (identity, value) in tensors.items()
    )
    assert [name for name, _ in net.named_modules()] == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert torch.equal(net(recipe.example), expected)
    if not flow.norms:  # masked statistics add in another order
        assert torch.equal(gated(recipe.example), expected)
        assert torch.equal(shrink(gated)(recipe.example), expected)


@repeatable(max_examples=5)
@given(recipe=small_nets(2))
def test_a_gated_model_trains_in_either_mode_and_copies(recipe):
    net, flow = traced(recipe)
    gated = copy.deepcopy(l0prune.inject(net, flow, seed=recipe.seed))

    for mode in (True, False):
        gated.train(mode)
        gated.zero_grad()
        gated(recipe.example).square().mean().backward()
        assert all(parameter.grad is not None for parameter in gated.parameters())
    assert all(parameter.grad is None for parameter in net.parameters())
    if flow.n_gates:
        assert gated.gates.log_alpha.grad is not None
