"""Trace a model: capture it, follow its units, and write down what each costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
from torch import nn
from torch.export import ExportedProgram

from l0prune.errors import CaptureError, ConfigError, TraceError
from l0prune.flow.branches import Branch, find_branches
from l0prune.flow.channel_flow import ChannelFlow, Consumer, NormSite, gate_groups
from l0prune.flow.costs import dimensions_of, macs_terms, params_terms
from l0prune.flow.follow import Followed, follow, restrict_to_recorded
from l0prune.flow.mixture import with_mean_costs
from l0prune.flow.removable import Closing, removable_dimensions
from l0prune.flow.units import Units, solve, unreached_parameters
from l0prune.look.capture import Captured, NormCalls, capture, without_graph
from l0prune.look.program import open_contexts_
from l0prune.look.recording import record
from l0prune.model_call import ExampleInputs, ModelCall
from l0prune.ops.tracker import INERT, Split

__all__ = ["aliases_of", "trace", "trace_modules", "trace_program", "trace_refused"]

MAX_PASSES = 12
"""Times the graph is walked again with other axes for views that pinned everything."""


def trace(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    ignore: Iterable[str] = (),
    gqa: Literal["groups", "queries"] = "groups",
    also: Iterable[ExampleInputs] = (),
) -> ChannelFlow:
    """Find the units of `model`: indices of its tensors that can only be removed together.

    Args:
        model: Any module that torch.export can capture. It is not changed.
        example_inputs: A tensor, a tuple of positional tensors or a dict of keyword tensors.
        ignore: Names of modules or parameters, as in `model.named_modules()`, whose units must not be gated.
        gqa: What counts as a unit of grouped-query attention: "groups", a key and value head with the query heads that share
            it; or "queries", the query heads at the same place of every group, so that all groups keep equally many. If the
            code repeats key heads one by one (`repeat_interleave`), units are groups either way.
        also: Inputs of other sizes that the model is for as well: what it costs, and so its budget, is the mean over all of them.

    Returns:
        The channel flow: units, consumers, costs, and what is pinned with the reason.

    Raises:
        ConfigError: `gqa` is something else.
        TraceError: the model fails on the inputs, neither torch.export nor torch-pruning can follow it, a name in `ignore` is
            not in it, or it has other units at some of the inputs.
    """
    if gqa not in ("groups", "queries"):
        raise ConfigError(f"gqa is {gqa!r}; expected 'groups' or 'queries'")
    if isinstance(model, nn.DataParallel):
        raise TraceError("the model is wrapped in nn.DataParallel: pass what it wraps, model.module")
    ignored = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    others = [trace(model, inputs, ignore=ignored, gqa=gqa) for inputs in also]
    if others:
        return with_mean_costs(trace(model, example_inputs, ignore=ignored, gqa=gqa), others)
    known = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    for name in ignored:
        if name not in known:
            raise TraceError(f"ignore names {name!r}, which is not a module or parameter of {type(model).__name__}")
    try:
        captured = capture(model, example_inputs)
    except CaptureError as refusal:
        return trace_refused(model, example_inputs, refusal=refusal, ignore=ignored, gqa=gqa)
    return trace_program(captured, aliases=aliases_of(model), ignore=ignored, gqa=gqa)


def trace_refused(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    refusal: CaptureError,
    ignore: Iterable[str] = (),
    gqa: Literal["groups", "queries"] = "groups",
) -> ChannelFlow:
    """The analysis of a model that torch.export refuses: of its paths as they are recorded; else by torch-pruning.

    Raises:
        TraceError: that does not work either.
    """
    reason = str(refusal).partition(";")[0]
    try:
        captured = record(model, ModelCall.of(example_inputs, model))
    except TraceError as error:
        unrecorded = error
    else:
        return trace_program(captured, aliases=aliases_of(model), ignore=ignore, refusal=reason, gqa=gqa)
    try:
        return trace_modules(model, example_inputs, refusal=reason, ignore=ignore)
    except TraceError as error:
        raise TraceError(f"{refusal}. {unrecorded}. {error}") from error


def trace_modules(
    model: nn.Module, example_inputs: ExampleInputs, *, refusal: str, ignore: Iterable[str] = ()
) -> ChannelFlow:
    """The analysis of a model by torch-pruning's dependency graph, which knows its layers and needs no graph of its ops.

    Raises:
        TraceError: that does not work either.
    """
    from l0prune.flow.fallback import follow_modules

    call, aliases = ModelCall.of(example_inputs, model), aliases_of(model)
    followed = follow_modules(model, call, aliases=aliases, ignore=ignore)
    parameters = frozenset(name for name, _ in model.named_parameters())
    tensors = [*model.named_parameters(), *model.named_buffers()]
    sizes = {name: tuple(int(size) for size in tensor.shape) for name, tensor in tensors}
    return _assemble(without_graph(call), followed, solve(followed), aliases, parameters, sizes, refusal=refusal)


def trace_program(
    captured: Captured,
    *,
    aliases: dict[str, str] | None = None,
    ignore: Iterable[str] = (),
    refusal: str = "",
    gqa: Literal["groups", "queries"] = "groups",
) -> ChannelFlow:
    """The analysis alone, on a program that is captured already; its graph is opened where it wraps regions.

    Args:
        captured: The program.
        aliases: Other names of shared tensors.
        ignore: Names whose units are not to be gated.
        refusal: Why torch.export cannot capture the model; the program is a recorded one then.
        gqa: As in `trace`.
    """
    aliases = aliases or {}
    open_contexts_(captured.program)
    choices: dict[str, int] = {}
    for _ in range(MAX_PASSES):
        followed = follow(
            captured.program,
            aliases=aliases,
            ignore=ignore,
            choices=choices,
            query_heads=gqa == "queries",
            sealed=captured.sealed,
        )
        if not captured.norms.observed:
            captured = replace(captured, norms=_norms_of_graph(followed))
        _pin_uncalled_norms(followed, captured.norms)
        if refusal:
            restrict_to_recorded(followed, captured, ignore)
        units = solve(followed)
        stuck = [
            split
            for split in followed.tracker.splits
            if split.key in units.pinned_splits and choices.get(split.key, 0) < split.n_choices
        ]
        if not stuck:
            break
        for split in _causes(stuck, units):
            choices[split.key] = choices.get(split.key, 0) + 1
    inputs = captured.program.graph_signature.inputs_to_parameters.values()
    parameters = frozenset(aliases.get(name, name) for name in inputs) & frozenset(followed.tensors)
    sizes = _sizes(captured.program, aliases)
    return _assemble(captured, followed, units, aliases, parameters, sizes, refusal=refusal)


def _causes(stuck: list[Split], units: Units) -> list[Split]:
    """Views whose axis is wrong by itself; only if there are none, those that met a tensor without units where they went.

    That tensor may have lost its units by the choice of another view: keys that are split along the wrong axis leave the
    heads of the queries without a partner.
    """
    inert = np.array([reason.startswith(INERT) for reason in units.reasons], dtype=bool)
    causes = [split for split in stuck if not inert[units.reason_of_id[split.ids]].all()]
    return causes or stuck


def _pin_uncalled_norms(followed: Followed, called: NormCalls) -> None:
    """Norms of the graph that an ordinary forward pass does not show (compiled code) cannot get masked statistics."""
    tracker = followed.tracker
    for use in tracker.norms:
        n_others = tracker.n_other_norms.get(use.kind, 0)
        seen = n_others == called.n_others.get(use.kind, 0) if use.weight is None else use.weight in called.weights
        if not seen:
            tracker.pin(use.ids, "normalised inside compiled code")


def _norms_of_graph(followed: Followed) -> NormCalls:
    """The normalisations in the graph, for those of a forward pass that could not be made."""
    tracker = followed.tracker
    return NormCalls(frozenset(tracker.norm_weights), dict(tracker.n_other_norms), observed=False)


def aliases_of(model: nn.Module) -> dict[str, str]:
    """Other names of shared parameters and buffers -> the name that comes first."""
    first: dict[int, str] = {}
    aliases = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
    return aliases


def _assemble(
    captured: Captured,
    followed: Followed,
    units: Units,
    aliases: dict[str, str],
    parameters: frozenset[str],
    sizes: dict[str, tuple[int, ...]],
    *,
    refusal: str = "",
) -> ChannelFlow:
    program = captured.program
    tensors = {name: units.label_gates(labels) for name, labels in followed.tensors.items()}
    nodes = {
        node.name: [units.label_gates(part) for part in result]
        if result and isinstance(result[0], list)
        else list(units.label_gates(result))  # type: ignore[arg-type]
        for node, result in followed.nodes.items()
    }
    consumers: dict[tuple[str, int], Consumer] = {}
    for use in followed.tracker.consumptions:
        gates = units.gates(use.ids)
        if gates is not None:
            consumers[use.parameter, use.dim] = Consumer(use.parameter, use.dim, gates)
    norms = []
    for norm in followed.tracker.norms:
        gates = units.gates(norm.ids)
        if gates is not None:
            norms.append(NormSite(norm.node, norm.kind, norm.weight, norm.order, gates))
    dimensions = dimensions_of(tensors)
    groups = gate_groups(dimensions, units.n_gates)
    branches: tuple[Branch, ...] = ()
    if not refusal:
        signature = program.graph_signature
        closing = Closing(program.graph, nodes, groups, frozenset(signature.user_inputs))
        dimensions = removable_dimensions(closing, dimensions)
        branches = find_branches(closing, dimensions, groups)
    return ChannelFlow(
        captured=captured,
        n_gates=units.n_gates,
        tensors=tensors,
        nodes=nodes,
        consumers=tuple(consumers.values()),
        norms=tuple(norms),
        cost_terms={
            "macs": macs_terms(captured, followed, units),
            "params": params_terms(tensors, parameters, sizes),
        },
        dimensions=dimensions,
        gate_group=groups,
        pinned=units.pinned,
        unreached=unreached_parameters(
            {name: labels for name, labels in followed.tensors.items() if name in parameters}, sizes, units
        ),
        unknown_ops=followed.unknown,
        aliases=aliases,
        parameters=parameters,
        sizes={name: sizes[name] for name in tensors},
        refusal=refusal,
        branches=branches,
    )


def _sizes(program: ExportedProgram, aliases: dict[str, str]) -> dict[str, tuple[int, ...]]:
    sizes: dict[str, tuple[int, ...]] = {}
    for name, tensor in {**program.constants, **program.state_dict}.items():
        if hasattr(tensor, "shape"):
            sizes[aliases.get(name, name)] = tuple(int(s) for s in tensor.shape)
    return sizes
