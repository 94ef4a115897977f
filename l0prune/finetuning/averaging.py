"""The moving average of weights and gates: what is evaluated, decided by and handed back, while training goes on beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from l0prune.gated.model import GatedModel

__all__ = ["MovingAverage"]


class MovingAverage:
    """Exponential moving average of a model's floating-point parameters and buffers, and of a gated model's locations.

    It is corrected for its start: after t updates the values of step i weigh decay^(t - i) * (1 - decay) / (1 - decay^t).

    Args:
        model: What is averaged, from its next update on.
        decay: Weight of the past, in (0, 1).

    Source: the correction, Kingma, Ba (2015), arXiv:1412.6980, section 3; averaged weights and gates for the test, Louizos,
    Welling, Kingma (2018), arXiv:1712.01312, section 4.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.n_updates = 0
        self._average = {name: tensor.detach().clone() for name, tensor in _averaged(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the present state of `model`."""
        self.n_updates += 1
        weight = (1.0 - self.decay) / (1.0 - self.decay**self.n_updates)
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, tensor in _averaged(model).items():
            if tensor.is_floating_point():
                averages.append(self._average[name])
                values.append(tensor)
            else:
                self._average[name].copy_(tensor)
        torch._foreach_lerp_(averages, values, weight)

    @torch.no_grad()
    def copy_to_(self, model: nn.Module) -> None:
        """Write the average into `model`; before the first update that changes nothing."""
        if self.n_updates:
            for name, tensor in _averaged(model).items():
                tensor.copy_(self._average[name])

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Let `model` have the averages for a while."""
        present = {name: tensor.detach().clone() for name, tensor in _averaged(model).items()}
        self.copy_to_(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in _averaged(model).items():
                    tensor.copy_(present[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name, and the number of updates."""
        return {**self._average, "n_updates": torch.tensor(self.n_updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        self.n_updates = int(state["n_updates"])
        for name, tensor in self._average.items():
            tensor.copy_(state[name])


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model that are averaged, as it holds them; of its gates the locations alone."""
    if not isinstance(model, GatedModel):
        return dict(model.state_dict())
    return {**model.model.state_dict(prefix="model."), "gates.log_alpha": model.gates.locations}
