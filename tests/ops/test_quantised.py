"""Rules of fake quantisation: networks that are trained to be quantised."""

import pytest
import torch
from flow_case import EXACT, Net, assert_cut_exactly, difference, gated_at, gates, inputs, random_gates
from torch import Tensor, nn

import l0prune
from l0prune.surgery.shrink import shrink

quantization = pytest.importorskip("torch.ao.quantization")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Please use quant_min")
N_OUT = 6


class Rounded(nn.Module):
    """A layer between two others, whose inputs, outputs and weights are rounded."""

    def __init__(self):
        super().__init__()
        self.up, self.middle, self.tail = nn.Conv1d(3, 8, 1), nn.Conv1d(8, N_OUT, 1), nn.Conv1d(N_OUT, 2, 1)
        self.register_buffer("scale", torch.tensor(0.01))
        self.register_buffer("zero", torch.tensor(0, dtype=torch.int32))
        self.register_buffer("scales_in", 0.01 + 0.01 * torch.rand(8, generator=torch.Generator().manual_seed(0)))
        self.register_buffer("zeros_in", torch.arange(8, dtype=torch.int32))
        self.register_buffer("scales_out", 0.01 + 0.01 * torch.rand(N_OUT, generator=torch.Generator().manual_seed(1)))
        self.register_buffer("zeros_out", torch.zeros(N_OUT, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_channel_affine(self.up(x), self.scales_in, self.zeros_in, 1, 0, 255).relu()
        weight = torch.fake_quantize_per_channel_affine(
            self.middle.weight, self.scales_out, self.zeros_out, 0, -128, 127
        )
        x = nn.functional.conv1d(x, weight, self.middle.bias)
        return self.tail(torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, -128, 127).relu())


def test_scales_of_channels_go_with_their_channels():
    model, x = Rounded().eval(), inputs(2, 3, 5).float()

    flow = l0prune.trace(model, x)

    assert flow.n_gates == 8 + N_OUT
    for name in ("scales_in", "zeros_in"):
        assert gates(flow, name, 0) == gates(flow, "up.weight", 0) == gates(flow, "middle.weight", 1)
    for name in ("scales_out", "zeros_out"):
        assert gates(flow, name, 0) == gates(flow, "middle.weight", 0) == gates(flow, "tail.weight", 1)
    for seed in range(3):
        gated = gated_at(model, flow, random_gates(flow, seed=seed))
        assert difference(shrink(gated)(x), gated(x)) < 1e-5


def test_one_scale_of_the_code_is_no_unit():
    net = Net(
        lambda net, x: net.tail(torch.fake_quantize_per_tensor_affine(net.up(x).relu(), 0.1, 3, 0, 255)),
        up=nn.Linear(3, 8),
        tail=nn.Linear(8, 2),
    )

    assert assert_cut_exactly(net, inputs(5, 3), forms=["in-place"]).n_gates == 8


class ToQuantize(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.stem, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.middle, self.act2, self.head = nn.Conv2d(8, N_OUT, 3), nn.ReLU(), nn.Linear(N_OUT, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.middle(self.act(self.norm(self.stem(self.quant(x))))))
        return self.dequant(self.head(x.mean((2, 3))))


def prepared(backend: str, version: int, *, fused: bool, observed: bool) -> nn.Module:
    """After a few steps of training, the model with its observers on or off."""
    torch.manual_seed(0)
    model = ToQuantize().train()
    if fused:
        model = quantization.fuse_modules_qat(model, [["stem", "norm", "act"], ["middle", "act2"]])
    model.qconfig = quantization.get_default_qat_qconfig(backend, version=version)
    model = quantization.prepare_qat(model)
    for _ in range(3):
        model(torch.randn(4, 3, 8, 8))
    if not observed:
        model.apply(quantization.disable_observer)
    return model.eval()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("version", [0, 1])
def test_a_model_prepared_for_quantisation_is_cut_as_it_is_without(backend, version, fused):
    """Weights with a scale for each output or one for all; scales as one op with the observer, or on their own."""
    model, x = prepared(backend, version, fused=fused, observed=False), torch.randn(4, 3, 8, 8)

    flow = l0prune.trace(model, x)

    assert flow.n_gates == 8 + N_OUT
    gated = gated_at(model, flow, random_gates(flow))
    assert difference(shrink(gated, form="in-place")(x), gated(x)) < 1e-6


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_what_an_observer_looks_at_stays(backend):
    flow = l0prune.trace(prepared(backend, 1, fused=True, observed=True), torch.randn(4, 3, 8, 8))

    assert flow.n_gates == 0
    assert set(flow.pinned) == {"an observer looks at all of it; torch.ao.quantization.disable_observer ends that"}


def test_scales_beside_rows_of_an_observed_weight_are_cut():
    flow = l0prune.trace(prepared("fbgemm", 1, fused=True, observed=False), torch.randn(4, 3, 8, 8))

    rows = gates(flow, "stem.weight", 0)
    for name in ("scale", "zero_point", "activation_post_process.min_val", "activation_post_process.max_val"):
        assert gates(flow, f"stem.weight_fake_quant.{name}", 0) == rows == list(range(8))


def test_an_observer_whose_state_nobody_knows_may_be_on():
    with torch.device("meta"):
        model = prepared_on_meta()

    flow = l0prune.trace(model, torch.empty(4, 3, device="meta"))

    assert flow.n_gates == 0


def prepared_on_meta() -> nn.Module:
    return Net(
        lambda net, x: net.tail(
            torch.fused_moving_avg_obs_fake_quant(
                net.up(x), net.off, net.on, net.low, net.high, net.scale, net.zero, 0.01, 0, 255, 0
            )
        ),
        up=nn.Linear(3, 8),
        tail=nn.Linear(8, 2),
        off=nn.Parameter(torch.zeros(1, dtype=torch.long), requires_grad=False),
        on=nn.Parameter(torch.ones(1, dtype=torch.long), requires_grad=False),
        low=nn.Parameter(torch.zeros(1), requires_grad=False),
        high=nn.Parameter(torch.ones(1), requires_grad=False),
        scale=nn.Parameter(torch.ones(1), requires_grad=False),
        zero=nn.Parameter(torch.zeros(1, dtype=torch.int32), requires_grad=False),
    ).eval()


def test_a_cut_model_trained_for_quantisation_runs_on():
    model, x = prepared("fbgemm", 1, fused=True, observed=False), torch.randn(4, 3, 8, 8)
    flow = l0prune.trace(model, x)
    compact = shrink(gated_at(model, flow, random_gates(flow)))

    compact.train()
    compact(x).sum().backward()

    assert all(parameter.grad is not None for parameter in compact.parameters())
    assert difference(compact.eval()(x), compact(x)) < EXACT
