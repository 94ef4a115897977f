"""Benchmark of torch modules on the CPU, for models that no ONNX file can hold."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from l0prune.bench.benchmark import BLOCK_S, Facts, report_of, require_counts
from l0prune.bench.processes import Sessions
from l0prune.bench.report import BenchReport
from l0prune.errors import ConfigError
from l0prune.measuring.hardware import Environment
from l0prune.measuring.timing import interleave
from l0prune.model_call import ExampleInputs, ModelCall

__all__ = ["benchmark_modules"]


def benchmark_modules(
    models: Mapping[str, nn.Module],
    inputs: ExampleInputs,
    *,
    threads: int = 1,
    batch_size: int = 1,
    warmup_s: float = 0.3,
    min_samples: int = 100,
    min_seconds: float = 2.0,
    max_seconds: float = 60.0,
    seed: int = 0,
) -> BenchReport:
    """Time torch modules against each other, eagerly and in evaluation mode, as `l0prune.benchmark` times ONNX files.

    Args:
        models: Name -> module; the first is the baseline.
        inputs: What to call them with; a batch of another size is cut off, or filled up with noisy copies.
        threads: Of torch, from 1 to as many as this machine has processors, or 64.
        batch_size: Rows of the inputs, >= 1.
        warmup_s: Seconds of untimed runs of each model.
        min_samples: Minimum number of timed runs of each model.
        min_seconds: Minimum seconds of timing in total.
        max_seconds: The timing ends after this.
        seed: Of the order and the bootstrap of the interval.

    Raises:
        ConfigError: no models, a number out of range, or a model that does not run on the inputs.
    """
    require_counts(models, "module", threads=threads, batch_size=batch_size, min_samples=min_samples)
    with _threads(threads), torch.inference_mode():
        times = interleave(
            [_run(name, model.eval(), inputs, batch_size) for name, model in models.items()],
            one_thread=threads == 1,
            warmup_s=warmup_s,
            min_samples=min_samples,
            min_seconds=min_seconds,
            max_seconds=max_seconds,
            block_s=BLOCK_S,
            seed=seed,
        )
    environment = Environment.here(threads=threads, batch_size=batch_size)
    facts = {name: _facts(model) for name, model in models.items()}
    return report_of(Sessions((times,), ()), facts, environment, seed=seed, runtime=f"torch {torch.__version__}")


def _run(name: str, model: nn.Module, inputs: ExampleInputs, batch_size: int) -> Callable[[], object]:
    """One run; tried before it is returned."""
    call = ModelCall.of(inputs, model).with_batch(batch_size)
    try:
        call(model)
    except (RuntimeError, IndexError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"model {name!r}: does not run on these inputs ({reason}).") from error
    return lambda: call(model)


def _facts(model: nn.Module) -> Facts:
    tensors = [*model.parameters(), *model.buffers()]
    return Facts(
        n_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        n_parameters=sum(tensor.numel() for tensor in tensors if tensor.is_floating_point()),
    )


@contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
