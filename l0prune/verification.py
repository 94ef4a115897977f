"""Verify that a model can be cut exactly: random gates, cut, ONNX, all three compared; needs no data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from l0prune.errors import CaptureError, ConfigError, EquivalenceError
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.flow.trace import aliases_of, trace_program, trace_refused
from l0prune.gated.model import inject
from l0prune.goals.selection import align_open
from l0prune.look.capture import capture
from l0prune.measuring.alignment import resolve_alignment
from l0prune.model_call import ExampleInputs, ModelCall, copy_of
from l0prune.surgery.shrink import shrink, surgery_of
from l0prune.surgery.trial import COARSE, TOLERANCE, Trial

if TYPE_CHECKING:
    from l0prune.onnx.verdict import OnnxVerdict

__all__ = ["AtSize", "VerifyReport", "random_decision", "vary_constants_", "verify"]


@dataclass(frozen=True)
class AtSize:
    """How far networks are apart at inputs of one size, relative to the largest output.

    Attributes:
        shapes: Of the inputs.
        max_rel_diff: Of the gated and the compact one.
        onnx_max_rel_diff: Of onnxruntime and torch; None if nothing was compared, or the file does not take such inputs.
    """

    shapes: tuple[tuple[int, ...], ...]
    max_rel_diff: float
    onnx_max_rel_diff: float | None


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification.

    Attributes:
        exact: Whether gated, compact and (if exported) ONNX outputs agree within tolerance, and react to some gate. Also False if
            the compact model cannot be exported to ONNX although the dense one can.
        conclusive: Whether the outputs react to any gate: constant outputs are equal whatever was cut.
        not_compared: Units that changed no output, neither at the weights given nor at several drawn at random, so that
            nothing is known about them: the first dimension they are found in -> how many.
        draws_random_numbers: Whether the model draws random numbers in evaluation mode. Gated and compact were given the same.
        why_not: Why the cut is not exact; None if it is.
        max_abs_diff: Largest absolute difference between gated and compact outputs.
        max_rel_diff: The same, relative to the largest output.
        onnx_max_rel_diff: Largest relative difference between onnxruntime and torch; None if nothing was compared.
        onnx_error: Why nothing was compared although it was asked for; this does not affect the verdict on the cut.
        n_gates: Number of removable units.
        params_before: Parameters of the dense model.
        params_after: Parameters of the compact model.
        macs_before: Multiply-accumulates of the dense model at batch 1.
        macs_after: The same of the compact model.
        prunable_fraction: Share of the parameters some gate can remove, in [0, 1].
        form: "in-place" or "graph".
        not_in_place_because: Why the user's class was not kept, in one sentence; empty if it was.
        integers_left: Integers of modules that no forward pass reads and that may stand for a width that was cut, though it
            is unclear which: module and attribute -> value.
        pinned: Reason -> number of units that could not be gated.
        unknown_ops: Ops without a rule -> number of uses that touched units.
        elsewhere: What was found at inputs of other sizes, in the order in which they were given.
        seconds: Wall time in all.
        stage_seconds: Wall time of "export" (torch.export), "analysis", "shrink" and "onnx".
    """

    exact: bool
    max_abs_diff: float
    max_rel_diff: float
    onnx_max_rel_diff: float | None
    onnx_error: str | None
    conclusive: bool
    not_compared: dict[str, int]
    draws_random_numbers: bool
    why_not: str | None
    n_gates: int
    params_before: int
    params_after: int
    macs_before: float
    macs_after: float
    prunable_fraction: float
    form: str
    not_in_place_because: str
    integers_left: dict[str, int]
    pinned: dict[str, int]
    unknown_ops: dict[str, int]
    seconds: float
    stage_seconds: dict[str, float]
    elsewhere: tuple[AtSize, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def verify(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    closed: float = 0.5,
    seed: int = 0,
    align: int | Literal["auto"] | None = None,
    onnx: bool = True,
    double: bool = False,
    gate: str | None = None,
    also: Iterable[ExampleInputs] = (),
) -> VerifyReport:
    """Close random units of a copy of `model`, cut them out, export, and compare.

    Tensors that are still at a constant initial value (zeros, ones) would hide mistakes, so they are varied first.

    Args:
        model: Any module; it is not changed.
        example_inputs: A tensor, a tuple of positional or a dict of keyword tensors.
        closed: Share of the units to close, in [0, 1).
        seed: Seed of the units, gate values and variations.
        align: Round kept widths to multiples of this; "auto" for this machine's CPU, None or 1 for any width.
        onnx: Also export the compact model and compare onnxruntime with torch.
        double: Compute in float64, with a tolerance of 1e-9 instead of 1e-4 (relative).
        gate: Let gates of this family decide which units close, at random locations as at the end of a gate phase, and scale
            the others by their test-time values; None closes the same units and gives the open ones arbitrary values.
        also: Inputs of other sizes, at which the networks are compared as well.

    Returns:
        The report; `exact` is False if the cut disagrees or nothing could be compared, and `why_not` says which. Neither is
        raised as an error, nor is a failure of the ONNX exporter: `onnx_error` says what it was.

    Raises:
        ConfigError: an option out of range, an unknown gate, or the model does not run at one of the other sizes.
        TraceError: the model cannot be captured.
    """
    if not 0 <= closed < 1:
        raise ConfigError(f"closed is {closed}; expected a share of the units in [0, 1)")
    model, call = copy_of(model).eval(), ModelCall.of(example_inputs, model)
    if double:
        model, call = model.double(), call.to(dtype=torch.float64)
    calls = [ModelCall.of(inputs, model) for inputs in also]
    calls = [one.to(dtype=torch.float64) for one in calls] if double else calls
    vary_constants_(model, seed=seed)
    seconds: dict[str, float] = {}
    flow = _traced(model, call, seconds)
    gated = inject(model, flow, gate=gate or "hard-concrete", seed=seed).eval()
    values = torch.from_numpy(random_decision(flow, closed=closed, seed=seed, align=resolve_alignment(align)))
    if gate is not None:
        gated.gates.decide_(values > 0, seed=seed)
    gated.freeze(values if gate is None else None)
    trials = [Trial(gated, one, TOLERANCE[torch.float64] if double else COARSE) for one in calls]
    refused = next((one for one, trial in zip(calls, trials, strict=True) if not trial.is_accepted), None)
    if refused is not None:
        raise ConfigError(f"the model itself gives no numbers for inputs of {_shapes(refused)}: leave that size out")
    n_before = sum(p.numel() for p in model.parameters())
    report = {
        "n_gates": flow.n_gates,
        "params_before": n_before,
        "macs_before": flow.dense_cost("macs"),
        "macs_after": flow.dense_cost("macs") * gated.hard_cost("macs"),
        "prunable_fraction": flow.prunable_fraction,
        "pinned": flow.pinned,
        "unknown_ops": flow.unknown_ops,
    }
    try:
        with _timed(seconds, "shrink"):
            compact = shrink(gated)
    except EquivalenceError as error:
        return VerifyReport(
            exact=False,
            onnx_error=None,
            conclusive=True,
            not_compared={},
            draws_random_numbers=False,
            why_not=str(error),
            max_abs_diff=float("inf"),
            max_rel_diff=float("inf"),
            onnx_max_rel_diff=None,
            params_after=n_before,
            form="graph",
            not_in_place_because="no cut of it is exact",
            integers_left={},
            seconds=sum(seconds.values()),
            stage_seconds=seconds,
            **report,  # type: ignore[arg-type]
        )
    record = surgery_of(compact)
    outcomes = [trial.outcome(compact) for trial in trials]
    wrong = next((one for one, found in zip(calls, outcomes, strict=True) if not found.agrees), None)
    conclusive = flow.n_gates == 0 or sum(record.not_compared.values()) < flow.n_gates
    exported: OnnxVerdict | None = None
    if onnx:
        from l0prune.onnx.verdict import verify_onnx

        with _timed(seconds, "onnx"):
            exported = verify_onnx(compact, model, record, also=calls)
    in_onnx: tuple[float | None, ...] = (
        (None,) * len(calls) if exported is None or not exported.elsewhere else exported.elsewhere
    )
    return VerifyReport(
        exact=conclusive and wrong is None and (exported is None or exported.agrees),
        conclusive=conclusive,
        not_compared=record.not_compared,
        draws_random_numbers=record.draws_random_numbers,
        why_not=_why_not(conclusive, wrong),
        elsewhere=tuple(
            AtSize(_shapes(one), found.difference.max_rel, in_file)
            for one, found, in_file in zip(calls, outcomes, in_onnx, strict=True)
        ),
        max_abs_diff=record.difference.max_abs,
        max_rel_diff=record.difference.max_rel,
        onnx_max_rel_diff=None if exported is None else exported.max_rel_diff,
        onnx_error=None if exported is None else exported.error,
        params_after=sum(p.numel() for p in compact.parameters()),
        form=record.form,
        not_in_place_because=record.not_in_place_because,
        integers_left=record.integers_left,
        seconds=sum(seconds.values()),
        stage_seconds=seconds,
        **report,  # type: ignore[arg-type]
    )


def _why_not(conclusive: bool, wrong: ModelCall | None) -> str | None:
    if not conclusive:
        return "the outputs do not react to any gate, so that nothing could be compared"
    if wrong is not None:
        return f"the cut network differs from the gated one with inputs of {_shapes(wrong)}: report this as a bug"
    return None


def _shapes(call: ModelCall) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in call.tensors)


def _traced(model: nn.Module, example_inputs: ModelCall, seconds: dict[str, float]) -> ChannelFlow:
    refusal: CaptureError | None = None
    with _timed(seconds, "export"):
        try:
            captured = capture(model, example_inputs)
        except CaptureError as error:
            refusal = error
    with _timed(seconds, "analysis"):
        if refusal is not None:
            return trace_refused(model, example_inputs, refusal=refusal)
        return trace_program(captured, aliases=aliases_of(model))


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    clock = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - clock


def random_decision(
    flow: ChannelFlow, *, closed: float, seed: int, align: int | None = None
) -> npt.NDArray[np.float64]:
    """Random gate values: a share `closed` at zero, the others in [0.3, 1); no dimension is closed entirely.

    Args:
        flow: Trace of the model.
        closed: Share of the units to close.
        seed: Seed.
        align: Round kept widths to multiples of this.

    Returns:
        Shape `(n_gates,)`, float64 (values exact in float32).
    """
    generator = np.random.default_rng(seed)
    scores = generator.random(flow.n_gates)
    opened = scores >= closed
    for dimension in flow.dimensions:
        if dimension.n_ungated == 0 and not opened[dimension.gates].any():
            opened[dimension.gates[np.argmax(scores[dimension.gates])]] = True
    if align is not None and align > 1:
        opened = align_open(opened, scores, flow.dimensions, flow.gate_group, align=align)
    values = generator.uniform(0.3, 1.0, flow.n_gates).astype(np.float32).astype(np.float64)
    return np.where(opened, values, 0.0)


@torch.no_grad()
def vary_constants_(model: nn.Module, *, seed: int) -> None:
    """Give every floating-point parameter or buffer whose entries are all equal (an initial value) some noise.

    Positive constants stay positive, so that variances remain variances. Trained tensors are not constant and stay.
    """
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
            first = tensor.flatten()[0].clone()
            if first == 0:
                tensor.copy_((noise - 0.5) * 0.6)
            else:
                tensor.mul_(0.5 + noise)
