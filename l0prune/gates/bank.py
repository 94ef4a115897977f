"""All gates of a model in one flat vector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from l0prune.errors import ConfigError
from l0prune.gates.distribution import GateDistribution
from l0prune.gates.families.hard_concrete import HardConcrete

__all__ = ["LOCATION_BOUND", "GateBank"]

LOCATION_BOUND = 8.0
"""Locations stay within this, unless a bank says otherwise."""

_ROUNDING = 1e-6
"""How far from 0 or 1 the rounding of an average may be."""


class GateBank(nn.Module):
    """One trainable location a gate, sampled in one chain of operations whatever the number of layers.

    The state dict holds `log_alpha`, `frozen_values` and `is_frozen`, always with the same shapes, so it loads
    strictly whether the gates are frozen or not. The state of the noise generator is not part of it; save it
    with `get_rng_state` beside the state dict to resume with the same noise.

    All three are buffers, `log_alpha` one that takes a gradient: no optimizer over `parameters()` of a module that has gates
    somewhere moves them, and what averages or copies a module's buffers takes them along. They are floating-point
    numbers, so that they survive being averaged, and stay in at least single precision when the module is converted.

    Args:
        n_gates: number of gates, >= 0.
        distribution: gate family; hard concrete by default. What moves in it during training follows from `advance`
            and is not part of the state dict.
        initial: mean initial location, a number or one a gate, shape `(n_gates,)`; None is the family's start for
            trained networks (gates open).
        jitter: standard deviation of the initial locations, >= 0; breaks ties.
        bound: locations are clamped to [-bound, bound] by `clamp_`, > 0. 8 lets P(z != 0) of hard concrete gates range
            over [0.0017, 0.9999], so a closed gate hardly counts in the expected cost.
        seed: seed of both the initial jitter and the sampling noise.

    Attributes:
        is_placed: Whether somebody said where the gates start.

    Raises:
        ConfigError: if an argument is out of range.
    """

    log_alpha: Tensor
    frozen_values: Tensor
    is_frozen: Tensor

    def __init__(
        self,
        n_gates: int,
        *,
        distribution: GateDistribution | None = None,
        initial: float | Tensor | None = None,
        jitter: float = 0.01,
        bound: float = LOCATION_BOUND,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.distribution = HardConcrete() if distribution is None else distribution
        start = torch.as_tensor(
            self.distribution.initial_log_alpha if initial is None else initial, dtype=torch.float64
        )
        if n_gates < 0:
            raise ConfigError(f"n_gates is {n_gates}; expected 0 or more")
        furthest = float(start.abs().max()) if start.numel() else 0.0
        if not (bound > 0 and furthest <= bound):
            raise ConfigError(f"gates cannot start at +-{furthest:g} with bound {bound}; expected |initial| <= bound")
        if jitter < 0:
            raise ConfigError(f"jitter is {jitter}; expected 0 or more")
        self._present = self.distribution
        self.bound = float(bound)
        self.is_placed = initial is not None
        self._generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(n_gates, generator=self._generator, dtype=torch.float64)
        locations = (start + jitter * noise).clamp(-bound, bound).to(torch.float32)
        self.register_buffer("log_alpha", locations.requires_grad_())
        self.register_buffer("frozen_values", torch.ones(n_gates))
        self.register_buffer("is_frozen", torch.zeros(()))
        self._read: tuple[Tensor, int] | None = None
        self._frozen = False
        self.watched = False
        """Whether samples are to keep what they do to the loss, for `take_effects`."""
        self._probe: Tensor | None = None

    @property
    def n_gates(self) -> int:
        """Number of gates."""
        return self.log_alpha.numel()

    @property
    def frozen(self) -> bool:
        """Whether the gates are fixed numbers rather than random variables.

        Raises:
            ConfigError: `is_frozen` is neither 0 nor 1, so these gates are an average of random and of fixed ones.
        """
        buffer = self.is_frozen
        if buffer.is_meta:
            return self._frozen
        if buffer.device.type == "cpu" or buffer.is_inference():
            return self._is_frozen(buffer)
        # Read again only when it may have changed, so that a forward pass does not wait for a device.
        if self._read is None or self._read[0] is not buffer or self._read[1] != buffer._version:
            self._frozen = self._is_frozen(buffer)
            self._read = buffer, buffer._version
        return self._frozen

    @staticmethod
    def _is_frozen(buffer: Tensor) -> bool:
        share = buffer.item()
        if min(abs(share), abs(share - 1)) > _ROUNDING:
            raise ConfigError(
                f"these gates are {share:.2g} frozen: freeze() was called while they were being averaged; freeze the average"
                " as well, with averaged.freeze(gated.gate_values())"
            )
        return share > 0.5

    @property
    def locations(self) -> Tensor:
        """`log_alpha` as it is, shape `(n_gates,)`, without gradient."""
        return self.log_alpha.detach()

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """The rank of the gates, shape `(n_gates,)`: higher ones are kept first."""
        return self.locations.double().cpu().numpy()

    @property
    def trained(self) -> list[Tensor]:
        """What an optimizer of the gates moves."""
        return [self.log_alpha]

    def unscale_gradient_(self, scale: float) -> bool:
        """Bring the gradient back to its own scale; drop it, and return False, where it overflowed in any process."""
        held = [self.log_alpha] if self._probe is None else [self.log_alpha, self._probe]
        gradients = [tensor.grad for tensor in held if tensor.grad is not None]
        if scale == 1.0 or not gradients:
            return True
        for gradient in gradients:
            gradient.div_(scale)
        is_finite = torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all()
        if _true_everywhere(is_finite):
            return True
        for tensor in held:
            tensor.grad = None
        return False

    @torch.no_grad()
    def place_(self, locations: Tensor) -> None:
        """Put every gate at a location of shape `(n_gates,)`, or at the bound that is nearest."""
        self.log_alpha.copy_(locations)
        self.clamp_()

    @torch.no_grad()
    def decide_(self, is_open: Tensor, *, seed: int) -> None:
        """Go to the end of a gate phase, at random locations that open some gates and close the others.

        Args:
            is_open: Shape `(n_gates,)`, bool.
            seed: Seed of the locations.
        """
        share = torch.rand(is_open.shape, generator=torch.Generator().manual_seed(seed))
        self.log_alpha.copy_(torch.where(is_open, 4 * share + 0.05, -4 - 4 * share))
        self.advance(1.0, lambda: int(is_open.sum()))

    @property
    def threshold(self) -> float:
        """A value of `forward` above this stands for an open unit; 0, unless samples without an exact 0 are drawn."""
        return self._present.threshold if self.training and not self.frozen else 0.0

    def advance(self, progress: float, affordable: Callable[[], int]) -> None:
        """Bring the distribution to a moment of the gate phase.

        Args:
            progress: Share of the gate phase that is over, in [0, 1].
            affordable: How many gates, highest location first, the budget lets open now; called only by a family that
                fixes the number of open gates.
        """
        self._present = self.distribution.at(progress, affordable)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One value a gate for a training step, shape `(n_gates,)`, in [0, 1]; the frozen values once frozen.

        Args:
            generator: CPU generator of the noise; None is the bank's own, which moves on.
        """
        if self.frozen:
            return self._fixed()
        drawn = self._present.rsample(self.log_alpha, generator=self._generator if generator is None else generator)
        return (
            drawn * self._unit_probe(drawn) if self.watched and generator is None and torch.is_grad_enabled() else drawn
        )

    def take_effects(self) -> Tensor | None:
        """Z dL/dz of the samples since the last call, shape `(n_gates,)`; None if there was no backward pass through any."""
        probe, self._probe = self._probe, None
        return None if probe is None else probe.grad

    def _unit_probe(self, like: Tensor) -> Tensor:
        """Ones whose gradient is z dL/dz, summed over all samples that they multiply."""
        if self._probe is None or self._probe.device != like.device or self._probe.dtype != like.dtype:
            self._probe = torch.ones_like(like, requires_grad=True)
        return self._probe

    def values(self, *, estimator: str | None = None) -> Tensor:
        """Test-time value of every gate, shape `(n_gates,)`, in [0, 1]; the frozen values once frozen.

        Args:
            estimator: One of the distribution's `estimators`; None is its first.

        Raises:
            ConfigError: if the distribution does not know `estimator`.
        """
        if self.frozen:
            return self._fixed()
        return self._present.test_value(self.log_alpha, estimator=estimator)

    def forward(self) -> Tensor:
        """`sample()` in training mode, `values()` in evaluation mode."""
        return self.sample() if self.training else self.values()

    def open_probability(self, locations: Tensor | None = None) -> Tensor:
        """`prob_open` of every gate, shape `(n_gates,)`, differentiable in `log_alpha`; 0 or 1 once frozen.

        Args:
            locations: Others than `log_alpha`, shape `(n_gates,)`.
        """
        if locations is not None:
            return self._present.prob_open(locations)
        if self.frozen:
            return (self._fixed() != 0).to(self.log_alpha.dtype)
        return self._present.prob_open(self.log_alpha)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Put every location back into [-bound, bound]; call after each optimizer step."""
        self.log_alpha.clamp_(-self.bound, self.bound)

    @torch.no_grad()
    def freeze(self, values: Tensor | None = None) -> None:
        """Fix the gates.

        Args:
            values: shape `(n_gates,)`, in [0, 1], up to 1e-6 counts as 0; None fixes them at their current test-time values.

        Raises:
            ConfigError: if the shape is wrong or a value is not in [0, 1]; the bank is then unchanged.
        """
        fixed = self.values() if values is None else torch.as_tensor(values)
        if fixed.shape != self.log_alpha.shape:
            raise ConfigError(
                f"gate values have shape {tuple(fixed.shape)}; expected {tuple(self.log_alpha.shape)}, one per gate"
            )
        fixed = fixed.to(self.frozen_values)
        outside = ~((fixed >= 0) & (fixed <= 1))
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            raise ConfigError(f"gate {first} has value {float(fixed[first])}; expected a number in [0, 1]")
        self.frozen_values.copy_(fixed)
        self.is_frozen.fill_(1.0)

    @torch.no_grad()
    def unfreeze(self) -> None:
        """Make the gates random again, at the locations they had."""
        self.frozen_values.fill_(1.0)
        self.is_frozen.fill_(0.0)

    def get_rng_state(self) -> Tensor:
        """State of the noise generator, a uint8 tensor on the CPU, for `set_rng_state`."""
        return self._generator.get_state()

    def set_rng_state(self, state: Tensor) -> None:
        """Continue the noise from a state that `get_rng_state` returned."""
        self._generator.set_state(state.cpu())

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"n_gates={self.n_gates}, distribution={self.distribution!r}, frozen={self.frozen}"

    def _fixed(self) -> Tensor:
        """The frozen values; what an average has left of closed gates is closed."""
        return self.frozen_values.where(self.frozen_values > _ROUNDING, 0)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        """Load; locations that were put in the place of others take a gradient as well."""
        super()._load_from_state_dict(*args, **kwargs)
        self.log_alpha.requires_grad_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GateBank:
        """Move or convert the gates; the locations stay the tensor that an optimizer holds."""
        del recurse
        for name, held in dict(self.named_buffers(recurse=False)).items():
            before = held.detach()
            after = fn(before)
            if after.dtype.itemsize < torch.float32.itemsize:
                after = before.to(after.device)
            if name != "log_alpha" or held.is_meta != after.is_meta:
                self._buffers[name] = after.requires_grad_(held.requires_grad)
                continue
            gradient, held.grad = held.grad, None
            held.data = after
            held.grad = None if gradient is None else gradient.to(after)
        return self


def _true_everywhere(flag: Tensor) -> bool:
    """Whether a flag is set in all processes of a run, so that they agree on what they do next."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        flag = flag.to(torch.int32)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)
