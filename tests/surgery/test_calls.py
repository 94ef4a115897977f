"""Sizes that stand in the code of a forward pass, where no integer of the module can be changed with the cut."""

import copy
import inspect
import io

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, Net, difference, gated_at, inputs, n_parameters, random_gates, traced
from torch import nn

import l0prune
from l0prune.errors import ConfigError, EquivalenceError
from l0prune.surgery.shrink import shrink, surgery_of

WIDTH = 12


class Attention(nn.Module):
    """As most vision transformers write it: widths are taken from the input, which is as wide as all heads together."""

    def __init__(self, n_heads: int = 4):
        super().__init__()
        self.n_heads = n_heads
        self.scale = (WIDTH // n_heads) ** -0.5
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.n_heads, C // self.n_heads).permute(2, 0, 3, 1, 4)
        mixed = (q * self.scale @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.drop(self.proj(mixed.transpose(1, 2).reshape(B, N, C)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.attn(self.norm(x))
        return x + self.down(self.up(x).relu())


def transformer() -> nn.Module:
    return nn.Sequential(nn.Linear(5, WIDTH), Block(), Block(), nn.Linear(WIDTH, 3))


def half_open(net: nn.Module, x, seed: int = 0):
    flow = traced(net, x)
    assert flow.n_gates > 0
    return gated_at(net, flow, random_gates(flow, seed=seed))


def calls_of(compact: nn.Module) -> set[tuple[str, str]]:
    return {(call.module, call.kind) for call in surgery_of(compact).plan.calls}


def test_heads_as_wide_as_the_input_in_the_code_stay_in_their_class():
    net, x = transformer(), inputs(2, 7, 5)
    gated = half_open(net, x)

    compact = shrink(gated, form="in-place")

    assert [type(module) for module in compact.modules()] == [type(module) for module in net.modules()]
    assert calls_of(compact) == {("1.attn", "view"), ("2.attn", "view")}
    assert compact[1].attn.n_heads < 4
    assert compact[1].attn.scale == net[1].attn.scale
    assert compact[0].out_features < WIDTH
    assert difference(compact(x), gated(x)) < EXACT


def test_other_batches_and_lengths_are_computed_too():
    gated = half_open(transformer(), inputs(2, 7, 5))
    compact = shrink(gated, form="in-place")

    for shape in ((1, 7, 5), (3, 4, 5)):
        x = inputs(*shape)
        assert difference(compact(x), gated(x)) < EXACT


def test_a_module_with_given_sizes_is_called_on_its_own_too():
    compact = shrink(half_open(transformer(), inputs(2, 7, 5)), form="in-place")
    x = inputs(2, 7, compact[0].out_features)

    assert compact[1].attn(x).shape == x.shape


def halves_by_number(net, x):
    y = net.up(x)
    a, b = y.split(4, -1)
    return net.a(a.relu()) + net.b(b)


def parts_by_list(net, x):
    a, b, c = torch.split(net.up(x), [3, 4, 1], dim=-1)
    return net.head(torch.cat([a.relu(), b, c.tanh()], -1))


def uneven_chunks(net, x):
    a, b, c = net.up(x).chunk(3, dim=-1)
    return net.head(torch.cat([a.relu(), b, c.tanh()], -1))


def slices(net, x):
    y = net.up(x)
    return net.head(torch.cat([y[..., :3].relu(), y[:, None, 3:5].flatten(1).tanh(), y[:, 5:]], -1))


def expanded(net, x):
    return net.head(net.up(x).relu() * net.gain.expand(x.shape[0], 8))


def unflattened(net, x):
    return net.head((net.up(x).unflatten(-1, (4, 2)) * net.gain.view(1, 4, 2)).flatten(1))


def grouped(net, x):
    y = F.conv1d(net.up(x)[..., None].expand(-1, -1, 3), net.filters, groups=8)
    return net.head(y.flatten(1).relu())


def transposed(net, x):
    y = F.conv_transpose1d(net.up(x)[..., None], net.filters, None, 1, 0, 0, 8, 1)
    return net.head(y.flatten(1).relu())


def shuffled(net, x):
    return net.head(net.up(x).view(-1, 2, 4).transpose(1, 2).reshape(-1, 8).relu())


CODES = [halves_by_number, parts_by_list, uneven_chunks, slices, expanded, unflattened, grouped, transposed, shuffled]


def coded(code) -> nn.Module:
    parts = {"up": nn.Linear(6, 8), "head": nn.Linear(8, 3)}
    if code is halves_by_number:
        parts = {"up": nn.Linear(6, 8), "a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}
    if code in (expanded, unflattened):
        parts["gain"] = nn.Parameter(torch.empty(1, 8) if code is expanded else torch.empty(8))
    if code in (grouped, transposed):
        parts["filters"] = nn.Parameter(torch.empty(8, 1, 3 if code is grouped else 1))
    return Net(code, **parts)


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.__name__)
def test_sizes_in_code(code):
    net, x = coded(code), inputs(2, 6)
    gated = half_open(net, x)

    compact = shrink(gated)

    assert surgery_of(compact).form == "in-place"
    assert n_parameters(compact) < n_parameters(net)
    assert difference(compact(x), gated(x)) < EXACT
    assert difference(compact(inputs(5, 6)), gated(inputs(5, 6))) < EXACT


def test_a_copy_of_the_compact_model_is_a_model_of_its_own():
    compact, x = shrink(half_open(transformer(), inputs(2, 7, 5)), form="in-place"), inputs(2, 7, 5)
    expected = compact(x)

    for other in (copy.deepcopy(compact), unpickled(compact)):
        assert difference(other(x), expected) < EXACT
        with torch.no_grad():
            other[1].attn.proj.weight.zero_()
            other[1].attn.proj.bias.zero_()
        assert difference(other(x), expected) > 1e-3
        assert difference(compact(x), expected) < EXACT


def unpickled(model: nn.Module) -> nn.Module:
    """Saved whole and read back."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_the_compact_model_trains_in_its_class():
    compact, x = shrink(half_open(transformer(), inputs(2, 7, 5)), form="in-place"), inputs(2, 7, 5)
    compact.train()
    torch.manual_seed(0)

    first, second = compact(x), compact(x)
    first.square().sum().backward()

    assert not torch.equal(first, second)  # dropout
    assert all(parameter.grad.abs().max() > 0 for parameter in compact.parameters())


@pytest.mark.parametrize("with_base", [True, False])
def test_sizes_of_calls_are_saved_and_loaded(tmp_path, with_base):
    net, x = transformer(), inputs(2, 7, 5)
    compact = shrink(half_open(net, x), form="in-place")
    l0prune.save(compact, tmp_path / "compact")

    loaded = l0prune.load(tmp_path / "compact", base=copy.deepcopy(net) if with_base else None)

    assert difference(loaded(x), compact(x)) < EXACT
    assert not with_base or type(loaded[1].attn) is Attention


def test_a_compact_model_is_cut_again():
    x = inputs(2, 7, 5)
    once = shrink(half_open(transformer(), x), form="in-place")
    flow = l0prune.trace(once, x)
    again = gated_at(once, flow, random_gates(flow, seed=3))

    twice = shrink(again, form="in-place")

    assert calls_of(twice)
    assert n_parameters(twice) < n_parameters(once)
    assert difference(twice(x), again(x)) < EXACT


class Twice(nn.Module):
    """Calls its part twice, and has sizes in its code before, between and after."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, WIDTH)
        self.attn = Attention()
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        a, b = self.up(x).split(WIDTH // 2, -1)
        y = torch.cat([a, self.mix(b)], -1)
        for _ in range(2):
            y = y + self.attn(y)
            a, b = y.split(WIDTH // 2, -1)
            y = torch.cat([a.tanh(), b.relu()], -1)
        return self.head(y)


def test_sizes_in_a_module_and_in_its_parts():
    net, x = Twice(), inputs(2, 5, 6)
    gated = half_open(net, x)

    compact = shrink(gated, form="in-place")

    assert calls_of(compact) == {("", "split"), ("attn", "view")}
    assert {call.number for call in surgery_of(compact).plan.calls if call.module == ""} == {0, 1, 2}
    assert difference(compact(x), gated(x)) < EXACT


class Pooled(nn.Module):
    """Two integers are equal; only one of them is a number of units."""

    def __init__(self):
        super().__init__()
        self.stride = 4
        self.n_heads = 4
        self.up = nn.Linear(6, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        y = self.up(x).view(x.shape[0], self.stride, -1, self.n_heads, 2).amax(1)
        return self.head(y.flatten(2))


def test_an_integer_that_was_matched_by_mistake_keeps_its_value():
    net, x = Pooled(), inputs(2, 12, 6)
    gated = half_open(net, x)

    compact = shrink(gated, form="in-place")

    assert compact.stride == 4
    assert compact.n_heads < 4
    assert not calls_of(compact)
    assert difference(compact(x), gated(x)) < EXACT


def test_a_scale_that_is_computed_from_a_matched_integer_stays_that_of_the_dense_model():
    def forward(net, x):
        return net.head(net.up(x).view(-1, net.width).relu() * net.width**-0.5)

    net, x = Net(forward, up=nn.Linear(6, 8), head=nn.Linear(8, 3)), inputs(2, 6)
    net.width = 8
    gated = half_open(net, x)

    compact = shrink(gated, form="in-place")

    assert compact.width == 8
    assert calls_of(compact) == {("", "view")}
    assert difference(compact(x), gated(x)) < EXACT


def test_arguments_are_still_bound_by_name():
    net, x = Twice(), inputs(2, 5, 6)
    compact = shrink(half_open(net, x), form="in-place")

    assert inspect.signature(compact.forward) == inspect.signature(net.forward)
    assert difference(compact(x=x), compact(x)) < EXACT
    assert l0prune.trace(compact, {"x": x}).n_gates > 0


def test_sizes_of_calls_survive_onnx(tmp_path):
    x = inputs(2, 7, 5).float()
    compact = shrink(half_open(transformer(), inputs(2, 7, 5)), form="in-place").float()

    path = l0prune.export_onnx(compact, x, tmp_path / "compact.onnx", tolerance=1e-4)

    assert path.is_file()


def test_the_compiler_of_torchscript_is_told_what_to_use_instead():
    x = inputs(2, 7, 5)
    net = transformer().double().eval()
    compact = shrink(half_open(net, x))
    assert surgery_of(compact).form == "in-place"

    for model in (compact, copy.deepcopy(compact), nn.Sequential(compact)):
        with pytest.raises(ConfigError, match=r"given other sizes while it runs: use torch\.jit\.trace"):
            torch.jit.script(model)

    with torch.no_grad():
        assert difference(torch.jit.trace(compact, x)(x), compact(x)) < EXACT
    torch.save(compact, io.BytesIO())


def test_calls_inside_a_library_function_cannot_be_given_sizes():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(5, 8)
            self.attn = nn.MultiheadAttention(8, 4, batch_first=True, add_zero_attn=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            y = self.up(x)
            return self.head(y + self.attn(y, y, y, need_weights=False)[0])

    x = inputs(2, 7, 5)
    gated = half_open(Model(), x)

    compact = shrink(gated)

    assert surgery_of(compact).form == "graph"
    assert difference(compact(x), gated(x)) < EXACT
    with pytest.raises(EquivalenceError, match=r"the cut Model does not run \(.*\); leave form open"):
        shrink(gated, form="in-place")
