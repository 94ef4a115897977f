"""`l0prune inspect`: what could be cut, what each layer costs, what is pinned and why."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from l0prune.cli.loading import load
from l0prune.cli.options import GroupedCommand, ModelOptions, common_options, flag_of, model_options, threads_option
from l0prune.cli.output import console, print_table, show, size, working
from l0prune.cli.request import RunOptions
from l0prune.cli.trust import model_call, remember

if TYPE_CHECKING:
    from l0prune.flow.channel_flow import ChannelFlow
    from l0prune.flow.costs import CostTerm, Side

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
        params: Parameters of the layer.
        macs: Multiply-accumulates at batch 1.
    """

    name: str
    inputs: int | None
    gated_inputs: int
    outputs: int
    gated_outputs: int
    params: float
    macs: float


@click.command("inspect", cls=GroupedCommand)
@model_options()
@flag_of(RunOptions, "ignore", group="")
@threads_option
@common_options
def inspect_command(model: ModelOptions, ignore: tuple[str, ...], as_json: bool) -> None:
    """Show a model's units, the cost of its layers, and what is pinned and why."""
    with working():
        result = inspect_model(model, ignore)
    show(result, as_json, lambda: print_inspection(result))


def inspect_model(model: ModelOptions, ignore: Iterable[str] = ()) -> dict[str, Any]:
    """Trace a model and say what was found, as plain data."""
    import l0prune

    loaded = load(model)
    remember(model_call(model))
    flow = l0prune.trace(loaded.model, loaded.example_inputs, ignore=ignore)
    return {
        "model": model.spec,
        "tracer": flow.tracer,
        "refusal": flow.refusal,
        "n_gates": flow.n_gates,
        "n_widths": len(set(flow.gate_group.tolist())),
        "params": int(flow.dense_cost("params")),
        "macs": int(flow.dense_cost("macs")),
        "prunable_fraction": flow.prunable_fraction,
        "smallest_reachable": smallest_reachable(flow),
        "pinned": flow.pinned,
        "unknown_ops": flow.unknown_ops,
        "layers": [asdict(row) for row in layer_rows(flow)],
    }


def smallest_reachable(flow: "ChannelFlow") -> dict[str, float]:
    """The least cost any choice of gates can reach, by metric, as a fraction of dense."""
    from l0prune.cost.products import ProductCost

    return {
        metric: ProductCost(flow.terms(metric), flow.n_gates).floor(flow.dimensions).fraction
        for metric in ("macs", "params")
    }


def layer_rows(flow: "ChannelFlow") -> list[LayerRow]:
    """One row for each module that owns a parameter, in the order of the model."""
    params: dict[str, float] = {}
    weights: dict[str, str] = {}
    for term in flow.terms("params"):
        module, _, _ = term.name.rpartition(".")
        params[module] = params.get(module, 0.0) + dense_cost(term)
        widest = weights.get(module)
        if widest is None or len(flow.sizes[term.name]) > len(flow.sizes[widest]):
            weights[module] = term.name
    macs: dict[str, float] = {}
    for term in flow.terms("macs"):
        macs[term.name] = macs.get(term.name, 0.0) + dense_cost(term)
    rows = [layer_row(flow, module, weights[module], params[module], macs.pop(module, 0.0)) for module in params]
    rows += [LayerRow(name, None, 0, 0, 0, 0.0, cost) for name, cost in macs.items()]  # products without a parameter
    return rows


def layer_row(flow: "ChannelFlow", module: str, weight: str, params: float, macs: float) -> LayerRow:
    """Read widths off the labels of a module's largest-dimensional parameter."""
    shape, gates = flow.sizes[weight], flow.tensors[weight]
    gated = [0 if labels is None else int((labels >= 0).sum()) for labels in gates]
    has_inputs = len(shape) > 1
    return LayerRow(
        name=module or weight,
        inputs=shape[1] if has_inputs else None,
        gated_inputs=gated[1] if has_inputs else 0,
        outputs=shape[0] if shape else 1,
        gated_outputs=gated[0] if shape else 0,
        params=params,
        macs=macs,
    )


def dense_cost(term: "CostTerm") -> float:
    """What a term costs with all gates open."""
    cost = term.coefficient
    for side in term.sides:
        cost *= width(side)
    return cost


def width(side: "Side") -> int:
    """Indices of one side of a layer."""
    return side.n_ungated + len(side.gates)


def print_inspection(result: dict[str, Any]) -> None:
    """Three tables: layers, what is pinned, and the model as a whole."""
    from l0prune.cost.floor import rounded_up

    out = console()
    shown = [layer for layer in result["layers"] if layer["macs"] or layer["inputs"] is not None]
    rows = [
        (
            layer["name"],
            "-" if layer["inputs"] is None else f"{layer['gated_inputs']}/{layer['inputs']}",
            f"{layer['gated_outputs']}/{layer['outputs']}",
            f"{layer['macs'] / result['macs']:.1%}" if layer["macs"] else "-",
            f"{layer['params'] / result['params']:.1%}" if layer["params"] else "-",
        )
        for layer in shown
    ]
    others = [layer for layer in result["layers"] if layer not in shown]
    if others:
        share = sum(layer["params"] for layer in others) / result["params"]
        rows.append((f"{len(others)} norms and biases", "", "", "", f"{share:.1%}"))
    print_table(out, result["model"], ("layer", "inputs gated", "outputs gated", "MACs", "parameters"), rows)
    if result["pinned"]:
        pinned = sorted(result["pinned"].items(), key=lambda item: -item[1])
        print_table(out, "Pinned", ("why", "units"), [(why, str(n)) for why, n in pinned])
    if result["refusal"]:
        from l0prune.flow.channel_flow import FOLLOWED_BY

        out.print(f"Followed by {FOLLOWED_BY[result['tracer']]}, because {result['refusal']}.", markup=False)
    floor = {metric: rounded_up(share, digits=2) for metric, share in result["smallest_reachable"].items()}
    out.print(
        f"{result['n_gates']} units in {result['n_widths']} widths; "
        f"{result['prunable_fraction']:.1%} of {size(result['params'])} parameters in reach, "
        f"{size(result['macs'])} MACs; smallest budget: macs={floor['macs']:g}, params={floor['params']:g}"
    )
