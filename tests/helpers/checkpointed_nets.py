"""A small network whose blocks can be computed again in the backward pass, by every kind of activation checkpoint."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

WIDTH = 12

Again = Callable[[nn.Module, Tensor], Tensor]
"""Calls a block on its input, now and in the backward pass."""


class Block(nn.Module):
    """Weighted, unweighted and hand-written norms, dropout, and a parameter that belongs to no layer."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.mix = nn.Parameter(torch.randn(width, width) / width**0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(F.gelu(self.up(self.norm(x))), 0.3, self.training)
        x = x + self.down(hidden)
        x = F.layer_norm(x, x.shape[-1:])
        x = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)
        return x + F.linear(x, self.mix).tanh()


class Net(nn.Module):
    """Blocks between two layers; `again` says how each of them is called."""

    def __init__(self, n_blocks: int = 3) -> None:
        super().__init__()
        self.again: Again | None = None
        self.inner: Again | None = None
        self.stem, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.Sequential(*[Block() for _ in range(n_blocks)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.layer_norm(x, x.shape[-1:])
        for block in self.blocks:
            x = block(x) if self.again is None else self.again(block, x)
        return self.head(x)


def reentrant(block: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=True)


def not_reentrant(block: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=False)


def of_a_function(block: nn.Module, x: Tensor) -> Tensor:
    """The region is no module: its code reads the parameters of one."""
    return checkpoint(lambda x: Block.forward(block, x), x, use_reentrant=False)


def nested(outer: Again, inner: Again) -> Again:
    """Regions within regions."""

    class Inner(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.held = [block]

        def forward(self, x: Tensor) -> Tensor:
            return 1.0 * inner(self.held[0], 1.0 * x)

    return lambda block, x: outer(Inner(block), x)


class Own(torch.autograd.Function):
    """A checkpoint as other libraries write them: the inner graph is differentiated down to its leaves."""

    @staticmethod
    def forward(ctx, run, x):
        ctx.run = run
        ctx.state = torch.get_rng_state()
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.random.fork_rng(), torch.enable_grad():
            torch.set_rng_state(ctx.state)
            out = ctx.run(x)
        torch.autograd.backward(out, gradient)
        return None, x.grad


bound_early = Own.apply


class OfParameters(torch.autograd.Function):
    """A checkpoint that takes the parameters as inputs, and returns their gradients."""

    @staticmethod
    def forward(ctx, run, x, *parameters):
        ctx.run = run
        ctx.x, ctx.parameters = x, parameters
        ctx.state = torch.get_rng_state()
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.x.detach().requires_grad_()
        with torch.random.fork_rng(), torch.enable_grad():
            torch.set_rng_state(ctx.state)
            out = ctx.run(x.view_as(x))
        return None, *torch.autograd.grad(out, (x, *ctx.parameters), gradient, allow_unused=True)


def of_parameters(block: nn.Module, x: Tensor) -> Tensor:
    return OfParameters.apply(block, x, *block.parameters())


class Sequence(Net):
    """The blocks go through torch's own loop over segments."""

    use_reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.layer_norm(x, x.shape[-1:])
        if self.again is None:
            return self.head(self.blocks(x))
        return self.head(checkpoint_sequential(self.blocks, 2, x, use_reentrant=self.use_reentrant))


KINDS: dict[str, Again] = {
    "not reentrant": not_reentrant,
    "reentrant": reentrant,
    "of a function": of_a_function,
    "own function": lambda block, x: Own.apply(block, x),
    "own function, bound early": lambda block, x: bound_early(block, x),
    "with parameters as inputs": of_parameters,
    "reentrant in reentrant": nested(reentrant, reentrant),
    "not reentrant in not reentrant": nested(not_reentrant, not_reentrant),
    "reentrant in not reentrant": nested(not_reentrant, reentrant),
    "not reentrant in reentrant": nested(reentrant, not_reentrant),
    "own function in reentrant": nested(reentrant, lambda block, x: Own.apply(block, x)),
}
