"""`l0prune inspect`: what could be cut, what each layer costs, what is pinned and why."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l0prune.cli.flags import GroupedCommand, common_options, flag_of, threads_option
from l0prune.cli.gating import calls_at, price_by_profile
from l0prune.cli.loading import load
from l0prune.cli.model_options import ModelOptions, model_options
from l0prune.cli.output import console, print_table, show, size, working
from l0prune.cli.request import RunOptions
from l0prune.cli.trust import model_call, remember

if TYPE_CHECKING:
    from l0prune.cost.kinds import Costs
    from l0prune.flow.channel_flow import ChannelFlow

__all__ = ["LayerRow", "inspect_command", "layer_rows"]


@dataclass(frozen=True)
class LayerRow:
    """One layer as `inspect` shows it.

    Args:
        name: Dotted module name.
        inputs: Indices of the contracted dimension of its weight, or None where it has none.
        gated_inputs: How many of them a gate can remove.
        outputs: Indices of the first dimension of its weight.
        gated_outputs: How many of them a gate can remove.
        costs: Metric -> what the layer costs.
    """

    name: str
    inputs: int | None
    gated_inputs: int
    outputs: int
    gated_outputs: int
    costs: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """A JSON object; each metric is a key of its own."""
        return {key: value for key, value in asdict(self).items() if key != "costs"} | self.costs


@click.command("inspect", cls=GroupedCommand)
@model_options()
@flag_of(RunOptions, "ignore", group="")
@flag_of(RunOptions, "profile", group="")
@flag_of(RunOptions, "length", group="")
@threads_option
@common_options
def inspect_command(
    model: ModelOptions, ignore: tuple[str, ...], profile: Path | None, length: tuple[int, ...] | None, as_json: bool
) -> None:
    """Show a model's units, layer costs, and what is pinned and why.

    With several lengths, costs are the mean over them, and a table has those of each.
    """
    with working():
        result = inspect_model(model, ignore, profile=profile, lengths=length or ())
    show(result, as_json, lambda: print_inspection(result))


def inspect_model(
    model: ModelOptions, ignore: Iterable[str] = (), *, profile: Path | None = None, lengths: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Trace a model and say what was found, as plain data.

    Args:
        model: Which.
        ignore: Modules and parameters whose units are kept.
        profile: Of the model, for what its layers take.
        lengths: Of sequences, at which it costs something of its own.
    """
    import l0prune
    from l0prune.cost.kinds import Costs, metric_named
    from l0prune.cost.widths import Floor
    from l0prune.flow.mixture import with_mean_costs

    loaded = load(model)
    remember(model_call(model))
    flows = [l0prune.trace(loaded.model, call, ignore=ignore) for call in calls_at(loaded, lengths)]
    flow = with_mean_costs(flows[0], flows[1:])
    costs = Costs(flow)
    if profile is not None:
        price_by_profile(costs, profile, lengths=lengths)
    return {
        "model": model.spec,
        "tracer": flow.tracer,
        "refusal": flow.refusal,
        "n_gates": flow.n_gates,
        "n_widths": len(set(flow.gate_group.tolist())),
        **costs.amounts(),
        "prunable_fraction": flow.prunable_fraction,
        "smallest_reachable": {
            m: Floor.of(costs(m), flow.dimensions, flow.branches if metric_named(m).in_steps else ()).fraction
            for m in costs.names
        },
        "at_lengths": {
            str(length): {
                "macs": round(at.dense_cost("macs")),
                "smallest_reachable": Floor.of(Costs(at)("macs"), at.dimensions).fraction,
            }
            for length, at in zip(lengths, flows, strict=False)
        },
        "pinned": flow.pinned,
        "unknown_ops": flow.unknown_ops,
        "layers": [row.to_json() for row in layer_rows(flow, costs)],
    }


def layer_rows(flow: "ChannelFlow", costs: "Costs") -> list[LayerRow]:
    """One row for each module that owns a parameter, in the order of the model; then what else costs anything."""
    weights: dict[str, str] = {}
    for name in flow.tensors:
        if name in flow.parameters:
            module, _, _ = name.rpartition(".")
            if module not in weights or len(flow.sizes[name]) > len(flow.sizes[weights[module]]):
                weights[module] = name
    spent: dict[str, dict[str, float]] = {module: {} for module in weights}
    for metric in costs.names:
        for name, cost in zip(costs(metric).layers, costs(metric).dense_layers.tolist(), strict=True):
            layer = spent.setdefault(name.rpartition(".")[0] if name in flow.sizes else name, {})
            layer[metric] = layer.get(metric, 0.0) + cost
    return [
        layer_row(flow, layer, weights.get(layer), {metric: found.get(metric, 0.0) for metric in costs.names})
        for layer, found in spent.items()
    ]


def layer_row(flow: "ChannelFlow", layer: str, weight: str | None, costs: dict[str, float]) -> LayerRow:
    """Read widths off the labels of a layer's largest-dimensional parameter, where it has one."""
    shape, gates = ((), ()) if weight is None else (flow.sizes[weight], flow.tensors[weight])
    gated = [0 if labels is None else int((labels >= 0).sum()) for labels in gates]
    has_inputs = len(shape) > 1
    return LayerRow(
        name=layer or weight or "",
        inputs=shape[1] if has_inputs else None,
        gated_inputs=gated[1] if has_inputs else 0,
        outputs=shape[0] if shape else int(weight is not None),
        gated_outputs=gated[0] if shape else 0,
        costs=costs,
    )


def disagreement(layer: dict[str, Any], result: dict[str, Any]) -> tuple[str, ...]:
    """The layer's milliseconds, and how many times its share of the MACs its share of the time is; nothing without a profile."""
    if "latency" not in result:
        return ()
    work = layer["macs"] / result["macs"]
    times = f"{layer['latency'] / result['latency'] / work:.2f}x" if work and layer["latency"] else "-"
    return (f"{layer['latency']:.3f}", times)


def print_inspection(result: dict[str, Any]) -> None:
    """Three tables: layers, what is pinned, and the model as a whole."""
    from l0prune.cost.kinds import metric_named, metric_names, rounded_up

    out, metrics = console(), [name for name in metric_names() if name in result]
    shown = [layer for layer in result["layers"] if layer[metrics[0]] or layer["inputs"] is not None]
    rows = [
        (
            layer["name"],
            "-" if layer["inputs"] is None else f"{layer['gated_inputs']}/{layer['inputs']}",
            f"{layer['gated_outputs']}/{layer['outputs']}",
            *(f"{layer[metric] / result[metric]:.1%}" if layer[metric] else "-" for metric in metrics),
            *disagreement(layer, result),
        )
        for layer in shown
    ]
    others = [layer for layer in result["layers"] if layer not in shown]
    if others:
        shares = {metric: sum(layer[metric] for layer in others) / result[metric] for metric in metrics}
        spent = [f"{sum(layer['latency'] for layer in others):.3f}", ""] if "latency" in result else []
        rows.append((f"{len(others)} others", "", "", *(f"{s:.1%}" if s else "" for s in shares.values()), *spent))
    titles = [metric_named(metric).title for metric in metrics]
    titles += ["ms", "time / MACs"] if "latency" in result else []
    print_table(out, result["model"], ("layer", "inputs gated", "outputs gated", *titles), rows)
    if len(result["at_lengths"]) > 1:
        rows = [
            (f"{length} tokens", size(at["macs"]), f"macs={rounded_up(at['smallest_reachable'], digits=2):g}")
            for length, at in result["at_lengths"].items()
        ]
        print_table(out, "At each length", ("", "MACs", "smallest budget"), rows)
    if result["pinned"]:
        pinned = sorted(result["pinned"].items(), key=lambda item: -item[1])
        print_table(out, "Pinned", ("why", "units"), [(why, str(n)) for why, n in pinned])
    if result["refusal"]:
        from l0prune.flow.channel_flow import FOLLOWED_BY

        out.print(f"Followed by {FOLLOWED_BY[result['tracer']]}, because {result['refusal']}.", markup=False)
    floor = (f"{metric}={rounded_up(share, digits=2):g}" for metric, share in result["smallest_reachable"].items())
    dense = (f"{metric_named(m).short_text(result[m])} {metric_named(m).title}" for m in metrics if m != "params")
    out.print(
        f"{result['n_gates']} units in {result['n_widths']} widths; "
        f"{result['prunable_fraction']:.1%} of {size(result['params'])} parameters in reach, "
        f"{', '.join(dense)}; smallest budget: {', '.join(floor)}"
    )
