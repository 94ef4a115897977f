"""Small explicit networks, and what tests of the flow and of surgery ask about them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import l0prune
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.gated.model import GatedModel
from l0prune.model_call import call, output_tensors
from l0prune.surgery.shrink import shrink

EXACT = 1e-10


class Net(nn.Module):
    """A network written as a function of its inputs, and its parts."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | nn.Parameter):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def both(function: Callable[..., Any], width: int = 4, n_in: int = 3, n_out: int = 0) -> Net:
    """`up` makes units along the last dimension; `function` sees them, and `tail` consumes them.

    What the function gives is an output of the model, or, of length `n_out`, consumed too.
    """
    parts = {"up": nn.Linear(n_in, width), "tail": nn.Linear(width, 2)}
    if n_out:
        parts["out"] = nn.Linear(n_out, 2)

    def forward(net: nn.Module, x: Tensor) -> tuple[Any, Tensor]:
        y = net.up(x)
        found = function(net, y)
        return net.out(found) if n_out else found, net.tail(y)

    return Net(forward, **parts)


def ready(net: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and evaluation mode, every tensor random: none is at an initial value that would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise)
            elif tensor.dim() > 1 and tensor.numel() > tensor.shape[0]:
                tensor.copy_((2 * noise - 1) * (3 / (tensor.numel() / tensor.shape[0])) ** 0.5)
            else:
                tensor.copy_((0.3 + noise) * torch.where(noise > 0.2, 1.0, -1.0))
    return net


def inputs(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def traced(net: nn.Module, x: Any, **options: Any) -> ChannelFlow:
    """Trace of a network after making it ready."""
    return l0prune.trace(ready(net), x, **options)


def gates(flow: ChannelFlow, name: str, dim: int) -> list[int] | None:
    """Gate of every index of a dimension, -1 where pinned; None where the whole dimension is."""
    found = flow.tensors[name][dim]
    return None if found is None else found.tolist()


def random_gates(flow: ChannelFlow, *, closed: float = 0.5, seed: int = 0) -> Tensor:
    """A share `closed` of the gates at zero, one at least, the others in [0.3, 1), float32; no dimension is closed entirely."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(flow.n_gates, generator=generator)
    opened = scores >= closed
    opened[scores.argsort()[:1]] = False
    for dimension in flow.dimensions:
        members = torch.from_numpy(dimension.gates)
        if dimension.n_ungated == 0 and not opened[members].any():
            opened[members[scores[members].argmax()]] = True
    return torch.where(opened, 0.3 + 0.7 * torch.rand(flow.n_gates, generator=generator), 0.0)


def gated_at(net: nn.Module, flow: ChannelFlow, values: Tensor) -> GatedModel:
    """The gated network with its gates fixed, in evaluation mode."""
    gated = l0prune.inject(net, flow).eval()
    gated.freeze(values)
    return gated


def closing(flow: ChannelFlow, *names: str) -> Tensor:
    """Gate values: all open but those of the named dimensions, such as `a.weight[0]`."""
    values = torch.full((flow.n_gates,), 0.75)
    for dimension in flow.dimensions:
        if dimension.name in names:
            values[torch.from_numpy(dimension.gates)] = 0.0
    return values


def difference(one: Any, other: Any) -> float:
    """Largest absolute difference between all tensors of two outputs."""
    pairs = zip(output_tensors(one), output_tensors(other), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def assert_cut_exactly(
    net: nn.Module, x: Any, *, forms: Iterable[str | None] = (None, "graph"), seeds: Iterable[int] = (0,)
) -> ChannelFlow:
    """Random gates, cut, compare; gated and compact agree and something is gone. Returns the flow."""
    flow = traced(net, x)
    assert flow.n_gates > 0
    for seed in seeds:
        gated = gated_at(net, flow, random_gates(flow, seed=seed))
        for form in forms:
            compact = shrink(gated, form=form)
            assert n_parameters(compact) < n_parameters(net)
            assert difference(call(compact, x), call(gated, x)) < EXACT
    return flow


def n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
