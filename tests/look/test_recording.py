"""Models with conditions on numbers, which torch.export refuses: recorded on every path that inputs are found to take."""

import json

import pytest
import torch
import torch.nn.functional as F
from branching_task import Routed
from click.testing import CliRunner
from flow_case import EXACT, Net, difference, gated_at, gates, inputs, n_parameters, random_gates, ready, traced
from torch import Tensor, nn

import l0prune
from l0prune.cli.main import cli
from l0prune.errors import ConfigError, EquivalenceError, PlanMismatchError, TraceError
from l0prune.flow.trace import trace_program
from l0prune.look.capture import capture
from l0prune.look.recording import number_of_paths, record, variations
from l0prune.model_call import ModelCall
from l0prune.surgery.shrink import shrink


class Attending(nn.Module):
    """Heads in a view, a residual stream through layer norms, and a layer that some inputs skip."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.n_heads = 4
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        if x.mean() > -0.5:
            q, k, v = self.qkv(self.norm(y)).view(*y.shape[:2], 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
            y = y + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(self.last(y).mean(1))


def routed(**options):
    """The network, its trace, and the network gated at random values."""
    net = Routed()
    flow = traced(net, inputs(2, 3, 8, 8), **options)
    return net, flow, gated_at(net, flow, random_gates(flow))


def test_the_network_cannot_be_captured():
    with pytest.raises(TraceError, match="data-dependent"):
        capture(Routed(), torch.zeros(2, 3, 8, 8))


def test_every_path_is_recorded_once():
    x = inputs(2, 3, 8, 8)
    program = record(ready(Routed()), ModelCall.of(x)).program

    used = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert number_of_paths(program) == 2
    assert used.count(torch.ops.aten.linear.default) == 2


def test_recording_leaves_the_model_as_it_was():
    net = ready(Routed()).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    record(net, ModelCall.of(inputs(2, 3, 8, 8)))

    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_layers_on_either_way_belong_together():
    net, flow, _ = routed()

    assert flow.n_gates == 8 + 12
    assert gates(flow, "norm.running_var", 0) == gates(flow, "stem.weight", 0) == gates(flow, "wide.weight", 1)
    assert gates(flow, "wide.weight", 0) == gates(flow, "narrow.bias", 0) == gates(flow, "mix.weight", 0)
    assert gates(flow, "head.weight", 1) == [unit for unit in gates(flow, "mix.bias", 0) for _ in range(4)]
    assert gates(flow, "head.weight", 0) is None
    assert flow.dense_cost("params") == n_parameters(net)
    assert flow.dense_cost("macs") == 64 * 3 * 8 * 9 + 64 * 8 * 12 + 36 * 12 * 9 + 48 * 5  # the way of the example


def test_the_trace_says_that_it_is_none_of_torch_export():
    flow = routed()[1]

    assert flow.tracer == "recording"
    assert "torch.export cannot capture Routed" in flow.refusal
    assert "a recording of the paths" in flow.summary()
    assert not flow.captured.dynamic_batch


def test_the_cut_network_takes_both_ways():
    net, _, gated = routed()

    compact = shrink(gated)

    assert isinstance(compact, Routed)
    assert n_parameters(compact) < n_parameters(net)
    ways = set()
    for call in variations(ModelCall.of(inputs(2, 3, 8, 8))):
        ways.add(bool(call.args[0].mean() > 0))
        assert difference(compact(*call.args), gated(*call.args)) < EXACT
    assert ways == {True, False}


@pytest.mark.parametrize("mean", [1.0, -1.0])
def test_heads_and_the_residual_stream_are_cut_on_whichever_path_the_example_takes(mean):
    net, x = Attending(), inputs(2, 5, 6) + mean
    flow = traced(net, x)
    gated = gated_at(net, flow, random_gates(flow))

    compact = shrink(gated)

    assert flow.prunable_fraction > 0.95
    assert gates(flow, "embed.weight", 0) == gates(flow, "norm.bias", 0) == gates(flow, "head.weight", 1)
    assert compact.embed.out_features < 16
    for shift in (0.0, -2.0):
        assert difference(compact(x + shift), gated(x + shift)) < EXACT


def test_there_is_no_graph_to_cut():
    with pytest.raises(ConfigError, match=r"no graph to cut: torch\.export cannot capture"):
        shrink(routed()[2], form="graph")


def test_it_is_verified_and_saved_without_a_graph(tmp_path):
    net, _, gated = routed()
    compact = shrink(gated)
    folder = l0prune.save(compact, tmp_path / "compact")
    report = l0prune.verify(net, inputs(2, 3, 8, 8), double=True)

    assert not (folder / "model.pt2").exists()
    with pytest.raises(PlanMismatchError, match="base="):
        l0prune.load(folder)
    x = inputs(3, 3, 8, 8, seed=5)
    assert torch.equal(l0prune.load(folder, base=net)(x), compact(x))
    assert report.exact
    assert report.params_after < report.params_before


READ = {
    "a list": lambda y: y * y.flatten().tolist()[0],
    "an array": lambda y: y * float(y.numpy().sum()),
    "a comparison": lambda y: y if torch.equal(y, y.abs()) else -y,
}


@pytest.mark.parametrize("read", READ)
def test_units_that_code_reads_stay(read):
    net = Net(lambda net, x: net.head(READ[read](net.up(x))), up=nn.Linear(4, 8), head=nn.Linear(8, 2))
    captured = record(ready(net), ModelCall.of(inputs(3, 2, 4)))

    assert trace_program(captured, refusal="it is not asked").n_gates == 0


def test_a_unit_whose_number_is_read_stays_alone():
    net = Net(lambda net, x: net.head((y := net.up(x)) * y[0, 0, :1].item()), up=nn.Linear(4, 8), head=nn.Linear(8, 2))

    flow = trace_program(record(ready(net), ModelCall.of(inputs(3, 2, 4))), refusal="it is not asked")

    assert gates(flow, "up.weight", 0) == [-1, 0, 1, 2, 3, 4, 5, 6]


def test_a_layer_that_no_input_reaches_pins_what_is_as_wide():
    net = Net(
        lambda net, x: net.head(net.up(x).relu()) if bool((x.abs() < 1e6).all()) else net.head(net.other(x)),
        up=nn.Linear(4, 8),
        other=nn.Linear(4, 8),
        head=nn.Linear(8, 2),
    )

    assert traced(net, inputs(3, 4)).n_gates == 0
    assert traced(net, inputs(3, 4), ignore=["other"]).n_gates == 8


def test_what_cannot_be_cut_in_place_stays():
    """A tensor that is no parameter, and one that the code makes at full size."""
    for made in (torch.ones(8, dtype=torch.float64), None):
        net = Net(
            lambda net, x, made=made: net.head(
                (net.up(x) + (x.new_ones(8) if made is None else made)) * (1 if x.sum() > 0 else 2)
            ),
            up=nn.Linear(4, 8),
            head=nn.Linear(8, 2),
        )
        assert traced(net, inputs(3, 4)).n_gates == 0


class Padded(nn.Module):
    """Adds a tensor whose size is an integer of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.up, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x) + x.new_ones(len(x), self.width)
        return self.head(y if x.sum() > 0 else -y)


def test_a_tensor_whose_size_is_an_integer_of_the_module_is_cut_with_that():
    net, x = Padded(), inputs(3, 4)
    flow = traced(net, x)
    gated = gated_at(net, flow, random_gates(flow))
    compact = shrink(gated)

    assert flow.n_gates == 8
    assert compact.width < 8
    assert difference(compact(x), gated(x)) < EXACT


AS_LARGE = {
    "sizes": lambda y: y.new_zeros(y.shape[0], y.size(1)),
    "a shape": lambda y: torch.ones(y.shape),
    "all sizes": lambda y: y.new_empty(y.size()).fill_(2),
    "by name": lambda y: torch.zeros(size=(1, y.shape[-1])),
}


@pytest.mark.parametrize("made", AS_LARGE)
def test_a_tensor_that_is_made_as_large_as_another_is_cut_with_it(made):
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        y = net.up(x)
        return net.head((y + AS_LARGE[made](y)) * (1 if x.sum() > 0 else 2))

    net, x = Net(forward, up=nn.Linear(4, 8), head=nn.Linear(8, 2)), inputs(3, 4)
    flow = traced(net, x)
    gated = gated_at(net, flow, random_gates(flow))

    assert flow.n_gates == 8
    assert difference(shrink(gated)(x), gated(x)) < EXACT


def test_statistics_in_another_order_on_each_path_pin():
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        y = net.up(x)
        if x.sum() > 0:
            y = y - net.side(x).mean(-1, keepdim=True)
        return net.head(y / y.square().mean(-1, keepdim=True).add(1).sqrt())

    net = Net(forward, up=nn.Linear(4, 8), side=nn.Linear(4, 6), head=nn.Linear(8, 2))

    assert traced(net, inputs(3, 4)).n_gates == 0


def test_statistics_on_the_only_path_are_taken_over_open_units():
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        y = net.up(x) if bool(x.isfinite().all()) else net.up(x.nan_to_num())
        return net.head(y / y.square().mean(-1, keepdim=True).add(1).sqrt())

    net, x = Net(forward, up=nn.Linear(4, 8), head=nn.Linear(8, 2)), inputs(3, 4)
    flow = traced(net, x)
    gated = gated_at(net, flow, random_gates(flow))

    assert flow.n_gates == 8
    assert difference(shrink(gated)(x), gated(x)) < EXACT


def test_a_difference_on_a_path_is_an_error_that_names_the_way_out():
    """The gated model is another one than was traced: on one path, weights are not what they were."""
    net, x = Routed(), inputs(2, 3, 8, 8)
    flow = traced(net, x)
    gated = gated_at(net, flow, random_gates(flow))
    net.forward = lambda x: Routed.forward(net, x) if x.mean() > 0 else Routed.forward(net, x) + net.mix.bias.sum()

    with pytest.raises(EquivalenceError, match=r"differ by .* There is no graph to cut instead.* ignore"):
        shrink(gated)


def test_where_neither_way_works_one_error_says_so():
    @torch.no_grad()
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        padded = torch.nested.to_padded_tensor(torch.nested.nested_tensor([x]), 0.0)
        return net.up(x) if padded.sum() > 0 else -net.up(x)

    with pytest.raises(TraceError) as caught:
        l0prune.trace(ready(Net(forward, up=nn.Linear(4, 8))), inputs(3, 4))

    for said in (
        "torch.export cannot capture Net",
        "Net cannot be recorded while it runs",
        "torch-pruning cannot follow Net either",
    ):
        assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_inspect_names_the_tracer():
    result = CliRunner().invoke(cli, ["inspect", "test_recording:Routed", "--input-shape", "3,8,8", "--json"])

    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["tracer"] == "recording"
    assert "data-dependent" in shown["refusal"]
