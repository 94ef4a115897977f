"""Shrinking as a whole: what counts as equal, what is refused, what the result carries."""

import math

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, Net, difference, gated_at, inputs, n_parameters, random_gates, ready, traced
from torch import nn

import l0prune
from l0prune.errors import CaptureError, CheckpointError, ConfigError, EquivalenceError, TraceError
from l0prune.model_call import output_tensors
from l0prune.surgery.equivalence import Difference, difference_between, random_like, require_equal
from l0prune.surgery.shrink import absorb_, shrink, surgery_of


def half_open(net: nn.Module, x):
    flow = traced(net, x)
    return gated_at(net, flow, random_gates(flow))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def constant(*values: float) -> nn.Module:
    return Net(lambda net, x: torch.tensor(values, dtype=torch.float64))


def compared(reference: nn.Module, other: nn.Module) -> Difference:
    x = inputs(2, 3)
    return difference_between(output_tensors(reference(x)), output_tensors(other(x)))


def test_the_difference_is_relative_to_the_largest_value():
    assert compared(constant(1.0, -4.0), constant(1.5, -4.0)) == Difference(0.5, 0.125, 0)


def test_equal_infinities_are_equal_and_others_are_infinitely_far():
    masked = constant(1.0, -math.inf)

    assert compared(masked, constant(1.0, -math.inf)).max_rel == 0.0
    assert compared(masked, constant(1.25, -math.inf)).max_rel == 0.25
    assert compared(masked, constant(1.0, math.inf)).max_rel == math.inf
    assert compared(masked, constant(1.0, 0.0)).max_rel == math.inf
    assert compared(constant(1.0, 0.0), masked).max_rel == math.inf
    assert compared(constant(-math.inf), constant(-math.inf)).max_rel == 0.0


def test_nan_is_never_equal():
    assert compared(constant(1.0, 2.0), constant(1.0, math.nan)).max_rel == math.inf
    assert math.isnan(compared(constant(1.0, math.nan), constant(1.0, math.nan)).max_rel)
    with pytest.raises(EquivalenceError, match="output 0 of the gated model holds NaN"):
        require_equal(Difference(math.nan, math.nan, 0), 1e-9, "shrunk and gated")


def test_outputs_of_other_shapes_or_numbers_are_infinitely_far():
    assert compared(constant(1.0, 2.0), constant(1.0)).max_rel == math.inf
    assert compared(Net(lambda net, x: (x, x)), Net(lambda net, x: x)).max_rel == math.inf


def test_the_worst_output_is_named():
    reference, other = Net(lambda net, x: {"a": x, "b": x}), Net(lambda net, x: {"a": x, "b": x + 1})

    assert compared(reference, other).output == 1


def test_complex_outputs_are_compared_in_both_parts():
    reference, other = Net(lambda net, x: torch.complex(x, x)), Net(lambda net, x: torch.complex(x, x + 1))

    assert compared(reference, other).max_abs == pytest.approx(1.0)


def test_noise_replaces_floating_point_inputs_however_deep():
    x, tokens = torch.ones(2, 3), torch.ones(2, dtype=torch.int64)

    (pair, words), options = random_like(([x, x], tokens), {"mask": x}, seed=0)

    assert not torch.equal(pair[0], x)
    assert torch.equal(words, tokens)
    assert options["mask"].shape == x.shape


def test_a_model_for_positive_inputs_is_compared_on_the_inputs_it_was_traced_with():
    net = Net(lambda net, x: net.head(torch.relu(net.up(x.log()))), up=nn.Linear(6, 8), head=nn.Linear(8, 4))
    x = inputs(2, 6).exp()
    gated = half_open(net, x)

    assert difference(shrink(gated)(x), gated(x)) < EXACT
    with pytest.raises(EquivalenceError, match=r"holds NaN on the example inputs, .* pass example_inputs"):
        shrink(gated, example_inputs=-x)


def test_masked_scores_are_compared():
    net = Net(lambda net, x: net.body(x).masked_fill(torch.arange(4) > 1, -math.inf), body=plain())
    x = inputs(2, 6)

    assert shrink(half_open(net, x))(x)[:, 2:].isinf().all()


def test_a_wrong_cut_is_an_error_that_says_how_far_it_is_off(monkeypatch):
    gated = half_open(plain(), inputs(2, 6))
    monkeypatch.setattr("l0prune.surgery.plan.SurgeryPlan.fold", lambda self, name, tensor: tensor)

    with pytest.raises(EquivalenceError, match=r"shrunk and gated outputs differ by \d.*tolerance 1e-09.*at output 0"):
        shrink(gated)


def test_gates_that_are_not_frozen_take_their_test_time_values():
    net, x = plain(), inputs(2, 6)
    gated = l0prune.inject(net, traced(net, x))
    with torch.no_grad():
        gated.gates.log_alpha[:3] = -8

    compact = shrink(gated)

    assert compact[0].out_features == 5
    assert difference(compact(x), gated(x)) < EXACT
    assert gated.frozen
    assert not gated.training


def test_the_record_says_what_was_done():
    gated = half_open(plain(), inputs(2, 6))

    record = surgery_of(shrink(gated))

    assert record.form == "in-place"
    assert record.difference.max_rel < EXACT
    assert record.dynamic_batch
    assert torch.equal(torch.from_numpy(record.values).float(), gated.gate_values())
    assert record.plan.folds == {}


def test_a_model_without_a_record_is_refused():
    with pytest.raises(
        ConfigError, match=r"this Linear carries no surgery record; pass the model that l0prune.shrink returned"
    ):
        surgery_of(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("options", "message"), [({"form": "small"}, "form is 'small'"), ({"align": 0}, "align=0: expected")]
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        shrink(half_open(plain(), inputs(2, 6)), **options)


def test_widths_are_rounded_to_multiples():
    net, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), inputs(2, 6)
    flow = traced(net, x)
    gated = gated_at(net, flow, torch.tensor([0.5] * 9 + [0.0] * 7))

    compact = shrink(gated, align=4)

    assert compact[0].out_features in (8, 12)
    assert difference(compact(x), gated(x)) < EXACT
    assert int((gated.gate_values() != 0).sum()) == compact[0].out_features


def test_a_model_without_units_is_copied():
    net, x = nn.Linear(6, 4), inputs(2, 6)
    gated = half_open(net, x)

    compact = shrink(gated)

    assert gated.n_gates == 0
    assert n_parameters(compact) == n_parameters(net)
    assert torch.equal(compact(x), net(x))


def test_absorbing_writes_back_what_was_trained():
    net, x = plain(), inputs(2, 6)
    gated = half_open(net, x)
    kept = gated.gate_values() != 0
    compact = shrink(gated)
    with torch.no_grad():
        for parameter in compact.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))

    absorb_(gated, compact)

    assert difference(gated(x), compact(x)) < EXACT
    assert torch.equal(gated.gate_values(), kept.float())
    assert torch.equal(net[0].weight[kept], compact[0].weight)
    assert net[2].weight[:, ~kept].abs().sum() == 0
    assert difference(shrink(gated)(x), compact(x)) < EXACT  # the same cut again


def test_a_model_that_normalises_in_single_precision_is_held_to_single_precision():
    net = Net(
        lambda net, x: net.head(F.rms_norm(net.up(x).float(), (300,)).to(x)),
        up=nn.Linear(3, 300),
        head=nn.Linear(300, 2),
    )
    flow = traced(net, inputs(50, 3))

    compact = shrink(gated_at(net, flow, random_gates(flow)))

    assert 1e-9 < surgery_of(compact).difference.max_rel < 1e-5


class OfTwoTypes(nn.Module):
    """Its first parameter is more precise than what it works on."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.up, self.head = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.up(x).relu()) * self.scale.float()


def test_inputs_keep_the_type_they_were_traced_with():
    net, x = OfTwoTypes().eval(), torch.randn(2, 5)
    flow = l0prune.trace(net, x)

    compact = shrink(gated_at(net, flow, random_gates(flow)))

    assert surgery_of(compact).difference.max_rel < 1e-6
    assert compact.up.weight.shape[0] < 8


def test_inputs_follow_a_model_that_was_converted_after_the_trace():
    net, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(2, 5)
    flow = l0prune.trace(net, x)

    compact = shrink(gated_at(net.double(), flow, random_gates(flow)))

    assert surgery_of(compact).difference.max_rel < 1e-12


@pytest.mark.parametrize("form", ["in-place", "graph"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_cross_attention_of_a_decoder_is_cut_either_way(norm_first, form):
    layer = nn.TransformerDecoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    net = ready(
        Net(
            lambda net, x, m: net.out(net.layer(net.up(x), net.up(m))),
            up=nn.Linear(5, 8),
            layer=layer,
            out=nn.Linear(8, 2),
        )
    )
    x = (inputs(2, 6, 5), inputs(2, 3, 5, seed=1))
    flow = l0prune.trace(net, x)
    gated = gated_at(net, flow, random_gates(flow))

    assert surgery_of(shrink(gated, form=form)).difference.max_rel < EXACT


PARTS = {
    "slice": lambda w: w[:4],
    "narrow": lambda w: w.narrow(0, 2, 4),
    "split": lambda w: w.split([4, 4])[1],
    "tensor_split": lambda w: torch.tensor_split(w, 2)[0],
    "chunk": lambda w: w.chunk(2)[1],
}


@pytest.mark.parametrize("form", [None, "graph"])
@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_parameter_are_cut(name, form):
    def forward(net, x):
        return net.head(nn.functional.linear(x, PARTS[name](net.up.weight)).relu()) + net.other(net.up(x))

    net = ready(Net(forward, up=nn.Linear(5, 8), head=nn.Linear(4, 2), other=nn.Linear(8, 2)))
    x = inputs(3, 5)
    flow = l0prune.trace(net, x)
    values = torch.ones(flow.n_gates, dtype=torch.float64)
    values[1::2] = 0
    gated = gated_at(net, flow, values)

    assert flow.n_gates
    assert difference(shrink(gated, form=form)(x), gated(x)) < EXACT


@pytest.mark.parametrize("align", [None, 2])
def test_a_budget_is_kept_although_training_left_more_open(align):
    net, x = plain(), inputs(3, 6)
    flow = traced(net, x)
    gated = l0prune.inject(net, flow, budget=l0prune.Budget("macs", 0.5), steps=10)
    gated.gates.log_alpha.data = torch.linspace(0.5, 4.0, 8, dtype=torch.float64)  # all of them open
    assert gated.hard_cost() == gated.hard_cost("macs") == 1.0

    compact = shrink(gated, align=align)

    assert compact[0].out_features == 4
    assert not surgery_of(compact).values[:4].any()
    assert gated.hard_cost() == 0.5
    assert difference(compact(x), gated(x)) < EXACT


def test_a_graph_that_nothing_could_load_again_is_not_saved(tmp_path, monkeypatch):
    def refuse(model, inputs, **options):
        raise CaptureError("torch.export cannot capture it; remove the cause")

    compact = shrink(half_open(plain(), inputs(3, 6)), form="graph")
    monkeypatch.setattr("l0prune.look.capture.capture", refuse)

    with pytest.raises(CheckpointError, match="the saved model could not be loaded again: it was cut in its graph"):
        l0prune.save(compact, tmp_path / "compact")
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_data_parallel_is_refused():
    with pytest.raises(TraceError, match=r"pass what it wraps, model\.module"):
        l0prune.trace(nn.DataParallel(plain()), torch.randn(2, 6))


def test_the_module_of_an_exported_program_can_be_gated_in_either_mode():
    x = torch.randn(3, 6)
    module = torch.export.export(plain().eval(), (x,)).module()
    gated = l0prune.inject(module, l0prune.trace(module, x))

    assert gated.train().training
    assert not gated.eval().training
    assert gated(x).shape == (3, 4)
