"""WRN-28-10: its published sizes, its gates, a training step, a cut."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import l0prune
from l0prune import models
from l0prune.cli.loading import load
from l0prune.cli.model_options import ModelOptions
from l0prune.errors import L0PruneError
from l0prune.flow.channel_flow import ChannelFlow

wrn28_10 = models.entry("wrn28_10").factory
IMAGE = torch.zeros(2, 3, 32, 32)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return wrn28_10().eval()


@pytest.fixture(scope="module")
def flow(model) -> ChannelFlow:
    return l0prune.trace(model, IMAGE)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 36_479_194),
        ({"num_classes": 100}, 36_536_884),
        ({"depth": 16, "width": 4}, 2_748_890),  # 2.7 M in table 5 of the paper, as the 8.9 M and 11.0 M below
        ({"depth": 40, "width": 4}, 8_949_210),
        ({"depth": 16, "width": 8}, 10_961_370),
    ],
    ids=str,
)
def test_sizes_are_the_published_ones(options, expected):
    with torch.device("meta"):
        network = wrn28_10(**options)

    assert sum(p.numel() for p in network.parameters()) == expected


def test_depth_is_the_number_of_convolutions():
    with torch.device("meta"):
        network = wrn28_10(depth=22, width=2)

    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 22


@pytest.mark.parametrize("depth", [3, 4, 27, 30])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match="expected 6n"):
        wrn28_10(depth=depth)


def test_a_wrong_depth_is_told_to_a_user():
    with pytest.raises(L0PruneError, match="depth is 29"):
        load(ModelOptions("wrn28_10", model_args={"depth": 29}))


def test_macs_are_those_that_torch_counts(model, flow):
    with torch.device("meta"):
        network = wrn28_10().eval()
    with FlopCounterMode(display=False) as counter:
        network(IMAGE[:1].to("meta"))

    assert flow.dense_cost("macs") == counter.get_total_flops() / 2 == 5_243_328_768


def test_every_block_has_gates_inside_and_almost_all_weights_are_in_reach(flow):
    widths = {name: flow.gate_names.count(name) for name in set(flow.gate_names)}

    for stage, channels in (("layer1", 160), ("layer2", 320), ("layer3", 640)):
        for block in range(4):
            assert widths[f"{stage}.{block}.conv1.weight[0]"] == channels
    assert flow.n_gates == 16 + 5 * (160 + 320 + 640)  # the stem, and of each stage four insides and the stream
    assert flow.prunable_fraction > 0.9999


def test_gates_inside_a_block_scale_what_comes_out_of_the_norm(flow):
    """Before it, the norm would divide them out again."""
    inner = [c for c in flow.consumers if c.parameter.endswith("conv2.weight")]
    names = np.array(flow.gate_names)

    assert len(inner) == 12
    for consumer in inner:
        assert consumer.dim == 1
        assert set(names[consumer.gates]) == {consumer.parameter.replace("conv2", "conv1") + "[0]"}


def test_dropout_zeroes_inside_the_blocks_in_training_alone():
    torch.manual_seed(0)
    plain, dropping = wrn28_10(depth=10, width=1), wrn28_10(depth=10, width=1, dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 16, 16)

    assert torch.equal(plain.eval()(x), dropping.eval()(x))
    assert not torch.equal(plain.train()(x), dropping.train()(x))


def test_one_training_step_moves_weights_and_gates(model, flow):
    gated = l0prune.inject(model, flow, budget=l0prune.Budget("macs", 0.5), steps=10).train()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(2, 3, 32, 32, generator=generator), torch.tensor([3, 7])
    before = {name: p.detach().clone() for name, p in gated.named_parameters()}
    locations = gated.gates.log_alpha.detach().clone()

    loss = F.cross_entropy(gated(images), labels) + gated.penalty()
    loss.backward()
    optimizer.step()
    gated.step()

    assert torch.isfinite(loss)
    assert all(torch.isfinite(p).all() and not torch.equal(p, before[n]) for n, p in gated.named_parameters())
    assert not torch.equal(gated.gates.log_alpha, locations)
    model.load_state_dict(before, strict=False)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_small_one_is_cut_exactly(dropout):
    torch.manual_seed(0)

    report = l0prune.verify(wrn28_10(depth=10, width=1, dropout=dropout), IMAGE, double=True, onnx=False)

    assert report.max_abs_diff < 1e-10
    assert report.params_after < report.params_before
    assert report.form == "in-place"
