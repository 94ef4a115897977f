"""Branches that close in a network that keeps its class: something small stands for their modules."""

import onnx
import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, difference, gated_at, inputs, n_parameters, traced
from torch import Tensor, nn

import l0prune
from l0prune.errors import FileFormatError
from l0prune.gated.decision import choose_open
from l0prune.goals.budget import Budgets
from l0prune.surgery.dropped import Dropped
from l0prune.surgery.plan import SurgeryPlan
from l0prune.surgery.shrink import shrink, surgery_of


class Basic(nn.Module):
    """A basic block that adds in place, and calls one activation twice, as torchvision writes it."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 5, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(5, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(width, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


class Inverted(nn.Module):
    """Everything on the branch is one module."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, 10, 1, bias=False),
            nn.BatchNorm2d(10),
            nn.ReLU6(),
            nn.Conv2d(10, 10, 3, padding=1, groups=10),
            nn.Conv2d(10, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Attention(nn.Module):
    """Returns its weights beside the result, and is called by name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        b, n, _ = hidden.shape
        q, k, v = self.qkv(hidden).reshape(b, n, 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, -1)), weights


class Encoder(nn.Module):
    """Attention and a feed-forward layer, apart."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.up, self.down = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(hidden=self.norm1(x), mask=None)
        x = x + y
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


CASES = {
    "basic": (
        nn.Sequential(nn.Conv2d(3, 8, 1), Basic(8, 8, 1), Basic(8, 6, 2), Pooled(), nn.Linear(6, 3)),
        inputs(2, 3, 7, 7),
    ),
    "inverted": (
        nn.Sequential(nn.Conv2d(3, 8, 1), Inverted(8), Inverted(8), Pooled(), nn.Linear(8, 3)),
        inputs(2, 3, 6, 6),
    ),
    "encoder": (nn.Sequential(nn.Linear(5, 8), Encoder(8), Encoder(8), nn.Linear(8, 3)), inputs(2, 4, 5)),
}


def closed(name: str, *numbers: int):
    """A network, its inputs, and the gated form in which these branches are closed and all other units are at 0.75."""
    net, x = CASES[name]
    flow = traced(net, x)
    values = torch.full((flow.n_gates,), 0.75)
    for number in numbers or range(len(flow.branches)):
        values[torch.from_numpy(flow.branches[number].gates)] = 0.0
    return net, x, gated_at(net, flow, values)


@pytest.mark.parametrize("name", CASES)
def test_a_network_without_branches_keeps_its_class_and_computes_what_the_gated_one_does(name):
    for numbers in ((0,), (1,), ()):
        net, x, gated = closed(name, *numbers)

        compact = shrink(gated)

        assert surgery_of(compact).form == "in-place"
        assert any(isinstance(module, Dropped) for module in compact.modules())
        assert n_parameters(compact) < n_parameters(net)
        assert len(compact.state_dict()) < len(net.state_dict())
        assert difference(compact(x), gated(x)) < EXACT


def test_without_depth_a_branch_goes_all_the_same_where_the_selection_closes_each_of_its_units():
    net, x = CASES["inverted"]
    flow = traced(net, x)
    gated = l0prune.inject(net, flow).eval()
    locations = torch.linspace(1.0, 2.0, flow.n_gates)
    locations[torch.from_numpy(flow.branches[0].gates)] -= 5.0
    gated.gates.place_(locations)

    kept = choose_open(gated, Budgets((l0prune.Budget("macs", 0.4),), depth=False), align=1)
    gated.freeze(kept.float())
    compact = shrink(gated)

    assert not kept[flow.branches[0].gates].any()
    assert kept[flow.branches[1].gates].any()
    assert gated.hard_cost("macs") <= 0.4
    assert sum(isinstance(module, Dropped) for module in compact.modules()) == 1
    assert difference(compact(x), gated(x)) < EXACT


SOME = ["basic", *(pytest.param(name, marks=pytest.mark.slow) for name in ("inverted", "encoder"))]


@pytest.mark.parametrize("name", SOME)
def test_it_is_read_back_cut_again_and_read_back_again(name, tmp_path):
    net, x, gated = closed(name, 0)
    compact = shrink(gated)

    again = l0prune.load(l0prune.save(compact, tmp_path / "once"), base=net)
    assert type(again) is type(net)
    assert difference(again(x), compact(x)) < EXACT

    flow = l0prune.trace(compact, x)
    values = torch.full((flow.n_gates,), 0.5)
    values[torch.from_numpy(flow.branches[0].gates)] = 0.0
    values[::3] = 0.0
    second = shrink(gated_at(compact, flow, values))
    assert surgery_of(second).form == "in-place"
    assert n_parameters(second) < n_parameters(compact)
    assert len(surgery_of(second).plan.drops) > len(surgery_of(compact).plan.drops)
    again = l0prune.load(l0prune.save(second, tmp_path / "twice"), base=net)
    assert difference(again(x), second(x)) < EXACT


@pytest.mark.parametrize("name", ["basic", "inverted"])
def test_it_is_scripted_traced_and_trained(name):
    _, x, gated = closed(name)
    compact = shrink(gated)

    assert difference(torch.jit.script(compact)(x), compact(x)) < EXACT
    assert difference(torch.jit.trace(compact, x)(x), compact(x)) < EXACT
    compact.train()(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in compact.parameters())


def test_in_mixed_precision_what_follows_a_constant_is_as_narrow_as_what_came_before():
    net, x, gated = closed("inverted", 0)
    compact = shrink(gated).float()
    assert any(isinstance(module, Dropped) for module in compact.modules())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        stem = compact[0](x.float())
        after = compact[1](stem)

    assert stem.dtype == after.dtype == torch.bfloat16
    assert compact[1](compact[0](x.float())).dtype == torch.float32
    net.double()


@pytest.mark.parametrize("name", SOME)
def test_the_file_for_onnxruntime_has_the_operations_of_the_graph_form(name, tmp_path):
    net, x, gated = closed(name, 0)
    kinds = []
    for form in ("in-place", "graph"):
        compact = shrink(gated, form=form).float()
        path = l0prune.export_onnx(compact, x.float(), tmp_path / f"{form}.onnx")
        kinds.append(sorted(node.op_type for node in onnx.load(str(path)).graph.node))

    assert kinds[0] == kinds[1]
    net.double()


def test_nothing_runs_where_a_branch_was():
    _, x, gated = closed("encoder")
    compact = shrink(gated)

    with torch.profiler.profile() as profile:
        compact(x)

    assert sum(event.count for event in profile.key_averages() if event.key == "aten::addmm") == 2
    assert "aten::native_layer_norm" not in {event.key for event in profile.key_averages()}


def test_what_is_returned_has_the_shape_that_the_module_returned():
    net, x, gated = closed("basic")
    shapes = {}
    for which, model in (("dense", net), ("compact", shrink(gated))):
        block = model[2]
        handle = block.bn2.register_forward_hook(lambda _, __, y, which=which: shapes.update({which: y.shape}))
        model(x)
        handle.remove()

    assert shapes["compact"] == shapes["dense"] == (2, 6, 4, 4)


def test_a_level_of_a_u_net_that_closes_leaves_a_constant_of_the_size_that_it_is_joined_at(tmp_path):
    """What was enlarged by a transposed convolution is as large as before, at every size of the image."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.down = nn.Conv2d(3, 5, 1), nn.Sequential(nn.Conv2d(5, 7, 3, 2, 1), nn.ReLU())
            self.up, self.head = nn.ConvTranspose2d(7, 5, 2, stride=2), nn.Conv2d(10, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(torch.cat((x, self.up(self.down(x))), 1))

    net = Joined().double().eval()
    flow = traced(net, inputs(2, 3, 8, 8))
    values = torch.full((flow.n_gates,), 0.75)
    values[torch.from_numpy(flow.branches[0].gates)] = 0.0
    gated = gated_at(net, flow, values)

    compact = shrink(gated)

    assert surgery_of(compact).form == "in-place"
    assert isinstance(compact.down, Dropped)
    assert isinstance(compact.up, Dropped)
    for size in (8, 12, 20):
        x = inputs(3, 3, size, size)
        assert difference(compact(x), gated(x)) < EXACT
    again = l0prune.load(l0prune.save(compact, tmp_path / "once"), base=net)
    assert difference(again(x), compact(x)) < EXACT


class Lower(nn.Module):
    """What is computed at another size, and brought back beside what was there, which may be brought to one size."""

    def __init__(self, up: nn.Module, size: int | None = None, *, in_code: bool = False) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 5, 1), nn.Sequential(nn.Conv2d(5, 7, 3, 2, 1), nn.ReLU())
        self.up, self.head, self.size, self.in_code = up, nn.Conv2d(10, 4, 3), size, in_code

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.up(self.down(x))
        x = x if self.size is None else F.interpolate(x, self.size)
        return self.head(torch.cat((x, F.interpolate(y, x.shape[2:]) if self.in_code else y), 1))


ENLARGED = {
    "to a size": Lower(nn.Sequential(nn.Upsample(size=16), nn.Conv2d(7, 5, 1)), 16),
    "to a size at the end": Lower(nn.Sequential(nn.Conv2d(7, 5, 1), nn.Upsample(size=16)), 16),
    "by a factor": Lower(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(7, 5, 1))),
    "by windows": Lower(nn.ConvTranspose2d(7, 5, 4, 2, 1)),
    "by windows without padding": Lower(nn.Sequential(nn.ConvTranspose2d(7, 5, 3, 2), nn.ZeroPad2d((0, -1, 0, -1)))),
    "by shuffling": Lower(nn.Sequential(nn.Conv2d(7, 20, 1), nn.PixelShuffle(2))),
    "by pooling to a size": Lower(nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Conv2d(7, 5, 1)), in_code=True),
    "in code": Lower(nn.Conv2d(7, 5, 1), in_code=True),
}


@pytest.mark.parametrize("form", [None, "graph"])
@pytest.mark.parametrize("name", ENLARGED)
def test_what_was_brought_to_a_size_has_it_at_every_size_of_the_image(name, form):
    """A fixed size is not taken for a factor, nor a factor for a fixed size."""
    net = ENLARGED[name]
    flow = traced(net, inputs(2, 3, 16, 16))
    values = torch.full((flow.n_gates,), 0.75)
    values[torch.from_numpy(flow.branches[0].gates)] = 0.0
    gated = gated_at(net, flow, values)

    compact = shrink(gated, form=form)

    assert n_parameters(compact) < n_parameters(net)
    if form is None:
        assert surgery_of(compact).form == "in-place", surgery_of(compact).not_in_place_because
        for size in (16, 8, 12, 20):
            x = inputs(3, 3, size, size)
            assert difference(compact(x), gated(x)) < EXACT
    else:
        assert difference(compact(inputs(3, 3, 16, 16)), gated(inputs(3, 3, 16, 16))) < EXACT


class UNet(nn.Module):
    """Three levels, between which code pools; what is enlarged is joined to what was there."""

    def __init__(self, pool, enlarge) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 1, 1), nn.ReLU()) for a, b in ((3, 4), (4, 6), (6, 8))
        )
        self.up = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in ((8, 6), (6, 4)))
        self.join = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * b, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU()) for b in (6, 4)
        )
        self.head, self.pool, self.enlarge = nn.Conv2d(4, 2, 1), pool, enlarge

    def forward(self, x: Tensor) -> Tensor:
        passed, x = [], self.down[0](x)
        for down in self.down[1:]:
            passed.append(x)
            x = down(self.pool(x))
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat((passed.pop(), self.enlarge(up(x))), 1))
        return self.head(x)


def halves(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


def doubles(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")


POOLS = {
    "largest and linear": (halves, doubles),
    "mean and nearest": (lambda x: F.avg_pool2d(x, 2), lambda x: F.interpolate(x, scale_factor=2)),
}


def lower_levels_closed(name: str, *numbers: int):
    """A U-Net, and its gated form in which these branches are closed, or all."""
    net = UNet(*POOLS[name]).double().eval()
    flow = traced(net, inputs(2, 3, 16, 16))
    values = torch.full((flow.n_gates,), 0.75)
    for number in numbers or range(len(flow.branches)):
        values[torch.from_numpy(flow.branches[number].gates)] = 0.0
    return net, gated_at(net, flow, values)


@pytest.mark.parametrize("numbers", [(), (0,), (1,)], ids=str)
@pytest.mark.parametrize("name", POOLS)
def test_a_u_net_that_loses_its_lower_levels_keeps_its_class(name, numbers, tmp_path):
    net, gated = lower_levels_closed(name, *numbers)

    compact = shrink(gated)

    assert surgery_of(compact).form == "in-place", surgery_of(compact).not_in_place_because
    assert n_parameters(compact) < n_parameters(net)
    for size in (16, 8, 24):
        x = inputs(3, 3, size, size)
        assert difference(compact(x), gated(x)) < EXACT
    again = l0prune.load(l0prune.save(compact, tmp_path / "compact"), base=net)
    assert difference(again(x), compact(x)) < EXACT
    compact.train()(x).square().mean().backward()


@pytest.mark.slow
def test_a_u_net_without_its_lower_levels_becomes_a_file_for_onnxruntime(tmp_path):
    _, gated = lower_levels_closed("largest and linear")
    compact, x = shrink(gated).float(), inputs(2, 3, 16, 16).float()

    path = l0prune.export_onnx(compact, x, tmp_path / "compact.onnx")

    assert "MaxPool" not in {node.op_type for node in onnx.load(str(path)).graph.node}


def test_a_module_that_is_called_for_two_branches_is_left_to_run():
    """What it returns is another constant for each."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Inverted(8).conv, Inverted(8).conv
            self.act = nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.act(self.a(x))
            return x + self.act(self.b(x))

    net = nn.Sequential(nn.Conv2d(3, 8, 1), Two(), Pooled(), nn.Linear(8, 3))
    x = inputs(2, 3, 6, 6)
    flow = traced(net, x)
    values = torch.full((flow.n_gates,), 0.75)
    for branch in flow.branches:
        values[torch.from_numpy(branch.gates)] = 0.0
    gated = gated_at(net, flow, values)

    compact = shrink(gated)

    assert surgery_of(compact).form == "in-place"
    assert isinstance(compact[1].act, nn.Tanh)
    assert difference(compact(x), gated(x)) < EXACT


def test_memory_that_only_a_closed_branch_was_written_into_does_not_tell_of_the_input():
    """Without the shortcut too, the output would be a constant: the last way from the input has to stay."""
    _, x, gated = closed("basic", 1)
    compact = shrink(gated)

    flow = l0prune.trace(compact, x)

    stems = {dimension.name for dimension in flow.dimensions if not dimension.removable}
    assert any(name.startswith("0.weight") for name in stems)


def test_numbers_that_make_no_sense_are_refused_when_a_plan_is_read():
    _, _, gated = closed("basic")
    plan = surgery_of(shrink(gated)).plan
    assert SurgeryPlan.from_json(plan.to_json()).drops == plan.drops

    for key, wrong in {
        "size": -1,
        "strides": [0, 1],
        "factors": [2, 1],
        "offsets": [0],
        "dim": 9,
        "position": 3,
        "module": "",
    }.items():
        data = plan.to_json()
        data["drops"] = [{**data["drops"][0], key: wrong}]
        with pytest.raises(FileFormatError, match="damaged"):
            SurgeryPlan.from_json(data)
