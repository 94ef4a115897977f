"""Where a run computes: device, precision and the processes that share the work, as accelerate has set them up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.errors import ConfigError
from l0prune.randomness import left_alone

__all__ = ["Runtime", "in_float32", "send_home"]

PRECISION_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Runtime:
    """Device, mixed precision and process group of this run.

    Started plainly it is one process on the GPU, or on the CPU without one; under `accelerate launch` or `torchrun` it is
    what the launcher says. Processes hold the same weights and gates; each takes its rows of every batch, and gradients are
    averaged, so that a step means the same whatever the number of processes (BatchNorm statistics excepted: each
    process normalises its own rows, running statistics are averaged).

    Args:
        mixed_precision: "no", "bf16" or "fp16".

    Attributes:
        channels_last: Whether 4-dimensional weights and inputs are kept in channels-last memory order.

    Raises:
        ConfigError: "fp16" without a GPU.
    """

    channels_last = False

    def __init__(self, mixed_precision: str) -> None:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        self._state = PartialState(cpu=on_cpu)
        self.device: torch.device = self._state.device
        self.rank: int = self._state.process_index
        self.n_processes: int = self._state.num_processes
        self.is_main: bool = self._state.is_main_process
        if mixed_precision == "fp16" and self.device.type == "cpu":
            raise ConfigError("mixed_precision='fp16' needs a GPU: choose 'bf16' or 'no' on a CPU")
        self._dtype = PRECISION_DTYPES.get(mixed_precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=mixed_precision == "fp16")

    def take_(self, model: nn.Module) -> None:
        """Bring a model to the device, and its 4-dimensional tensors into the memory order of this run."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        model.to(self.device)
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dim() == 4:  # those of volumes have five, which `Module.to` cannot order
                tensor.data = tensor.data.to(memory_format=order)

    def place(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        """All tensors of a batch on the device, 4-dimensional inputs in the memory order of this run."""

        def placed(leaf: Any) -> Any:
            return leaf.to(self.device, non_blocking=True) if isinstance(leaf, Tensor) else leaf

        def ordered(leaf: Any) -> Any:
            is_map = self.channels_last and isinstance(leaf, Tensor) and leaf.dim() == 4
            return leaf.to(memory_format=torch.channels_last) if is_map else leaf

        inputs, targets = pytree.tree_map(placed, (inputs, targets))
        return pytree.tree_map(ordered, inputs), targets

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a forward pass."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    @contextmanager
    def own_randomness(self) -> Iterator[None]:
        """Leave the caller's default random generators as they were."""
        with left_alone(self.device):
            yield

    def wait(self) -> None:
        """Until all processes are here."""
        if self.n_processes > 1:
            self._state.wait_for_everyone()

    def average_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes."""
        if self.n_processes > 1:
            self._average_([p.grad for p in parameters if p.grad is not None])

    def average_(self, tensor: Tensor) -> None:
        """Replace the tensor by its mean over the processes."""
        if self.n_processes > 1:
            self._average_([tensor])

    def average_buffers_(self, model: nn.Module) -> None:
        """Replace each floating-point buffer (running statistics) by its mean over the processes; gates are the same in all."""
        if self.n_processes > 1:
            self._average_([b for b in model.buffers() if b.is_floating_point() and not b.requires_grad])

    def broadcast_(self, model: nn.Module) -> None:
        """Give all processes the main one's parameters and buffers."""
        if self.n_processes > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def from_main(self, value: Any) -> Any:
        """The main process's value of something that each process has found for itself; plain data."""
        values = [value]
        if self.n_processes > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def _average_(self, tensors: list[Tensor]) -> None:
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for group in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            flat /= self.n_processes
            pieces = flat.split([tensor.numel() for tensor in group])
            for tensor, piece in zip(group, pieces, strict=True):
                tensor.copy_(piece.view(tensor.shape))


def send_home(model: nn.Module, device: torch.device | str = "cpu") -> None:
    """Bring a model to a device, in the memory order that models have."""
    model.to(device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def in_float32(outputs: Any) -> Any:
    """A model's output with half-precision tensors widened, so that losses are computed exactly."""

    def widened(leaf: Any) -> Any:
        half = isinstance(leaf, Tensor) and leaf.dtype in (torch.bfloat16, torch.float16)
        return leaf.float() if half else leaf

    return pytree.tree_map(widened, outputs)
