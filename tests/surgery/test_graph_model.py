"""Models in graph form: their mode, their buffers, their copies."""

import copy

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, Net, difference, gated_at, inputs, random_gates, traced
from torch import nn

import l0prune
from l0prune.surgery.shrink import shrink, surgery_of


def in_graph(net: nn.Module, x) -> nn.Module:
    flow = traced(net, x)
    return shrink(gated_at(net, flow, random_gates(flow)), form="graph")


@pytest.mark.parametrize("dropout", [nn.Dropout(), nn.Dropout(inplace=True), nn.AlphaDropout()], ids=str)
def test_dropout_follows_the_mode(dropout):
    x = inputs(4, 6)
    compact = in_graph(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), dropout, nn.Linear(32, 4)), x)

    assert torch.equal(compact(x), compact(x))
    compact.train()
    assert not torch.equal(compact(x), compact(x))
    compact.eval()
    assert torch.equal(compact(x), compact(x))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True, track_running_stats=True)], ids=str
)
def test_norms_train_as_they_do_in_place(norm):
    net, x = nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.ReLU(), nn.Conv2d(8, 4, 1)), inputs(2, 3, 4, 4)
    flow = traced(net, x)
    gated = gated_at(net, flow, random_gates(flow))
    one, other = shrink(gated, form="graph").train(), shrink(gated, form="in-place").train()
    before = one.get_buffer("1.running_mean").clone()

    assert difference(one(x), other(x)) < EXACT
    assert difference(one.get_buffer("1.running_mean"), other[1].running_mean) < EXACT
    assert difference(one.get_buffer("1.running_var"), other[1].running_var) < EXACT
    assert not torch.equal(one.get_buffer("1.running_mean"), before)
    assert difference(one.eval()(x), other.eval()(x)) < EXACT


def test_a_norm_that_always_uses_its_batch_still_does():
    net = Net(
        lambda net, x: net.last(F.batch_norm(net.first(x), net.mean, net.var, net.scale, training=True).relu()),
        first=nn.Conv2d(3, 8, 1),
        scale=nn.Parameter(torch.empty(8)),
        last=nn.Conv2d(8, 4, 1),
    )
    net.register_buffer("mean", torch.empty(8))
    net.register_buffer("var", torch.ones(8))
    x = inputs(3, 3, 4, 4)
    flow = traced(net, x)
    gated = gated_at(net, flow, random_gates(flow))

    compact = shrink(gated, form="graph")

    assert difference(compact.train().eval()(x), gated(x)) < EXACT


def test_only_buffers_that_were_saved_before_are_saved():
    net = Net(lambda net, x: net.head(net.up(x) * net.kept * net.made), up=nn.Linear(6, 8), head=nn.Linear(8, 4))
    net.register_buffer("kept", torch.empty(8))
    net.register_buffer("made", torch.empty(8), persistent=False)

    compact = in_graph(net, inputs(2, 6))

    assert compact.state_dict().keys() == net.state_dict().keys()
    assert copy.deepcopy(compact).state_dict().keys() == net.state_dict().keys()
    assert dict(compact.named_buffers()).keys() == {"kept", "made"}


class Shifted(nn.Module):
    """A table written in the code, along the units."""

    def __init__(self):
        super().__init__()
        self.up, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(x) + torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=x.dtype))


def test_a_constant_of_the_code_is_cut_and_no_part_of_the_state_dict(tmp_path):
    net, x = Shifted(), inputs(2, 6)
    compact = in_graph(net, x)

    assert [len(b) for b in compact.buffers()] == [len(compact.get_parameter("up.bias"))]
    assert len(compact.get_parameter("up.bias")) < 4
    loaded = l0prune.load(l0prune.save(compact, tmp_path / "compact"))
    for model in (compact, copy.deepcopy(compact), loaded):
        assert model.state_dict().keys() == net.state_dict().keys()
        assert difference(model(x), compact(x)) == 0


def test_a_copy_is_independent_and_complete():
    x = inputs(4, 6)
    compact = in_graph(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 4)), x)

    copied = copy.deepcopy(compact)
    copied.train()
    with torch.no_grad():
        copied.get_parameter("0.weight").zero_()

    assert surgery_of(copied) is surgery_of(compact)
    assert torch.equal(compact(x), compact(x))
    assert not torch.equal(copied(x), copied(x))
    assert compact.get_parameter("0.weight").abs().sum() > 0


def test_a_copy_in_training_mode_can_leave_it():
    x = inputs(4, 6)
    compact = in_graph(nn.Sequential(nn.Linear(6, 32), nn.Dropout(), nn.Linear(32, 4)), x)
    expected = compact(x)

    copied = copy.deepcopy(compact.train()).eval()

    assert torch.equal(copied(x), expected)


def test_other_sizes_of_batch_and_picture_are_accepted():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    flow = traced(net, inputs(1, 3, 6, 6))
    gated = gated_at(net, flow, random_gates(flow))
    compact = shrink(gated, form="graph")

    for batch in (1, 2, 3, 7):
        x = inputs(batch, 3, 6, 6)
        assert difference(compact(x), gated(x)) < EXACT
    assert difference(compact(inputs(3, 3, 9, 5)), gated(inputs(3, 3, 9, 5))) < EXACT
