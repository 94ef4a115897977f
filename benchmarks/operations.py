"""Which operations networks are made of, and what becomes of units that meet them: the page docs/operations.md.

Usage: python benchmarks/operations.py [--collect] [NAME ...]

With --collect, models of the coverage table, and small ones of kinds that it does not hold, are exported with random weights;
which has which operations is kept in benchmarks/results/operations.json. The page is written from that file, from the rules
themselves, and from what `WITHOUT_RULE` says of the others; a test compares it with both.
"""

import inspect
import json
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import click
import torch
from operations_models import OWN_CASES

import l0prune.ops as families
from l0prune.ops.node import op_name
from l0prune.ops.operation import UNKNOWN, operation_of, operations

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "operations.json", ROOT / "docs" / "operations.md"

WITHOUT_RULE = {
    "as_strided": "reads elements of the underlying memory, whatever the dimensions are",
    "cdist": "distances between rows use all features at once",
    "cosine_similarity": "a product over all features, divided by their norms",
    "diag_embed": "one dimension becomes two",
    "diagonal": "two dimensions become one",
    "eye": "created by the code, at full size",
    "arange": "positions, created by the code",
    "linspace": "positions, created by the code",
    "scalar_tensor": "a number",
    "nonzero": "the length of the result depends on data",
    "nonzero_numpy": "the length of the result depends on data",
    "one_hot": "created from data",
    "rand": "another cut would draw other random numbers",
    "randn": "another cut would draw other random numbers",
    "randint": "another cut would draw other random numbers",
    "bernoulli": "another cut would draw other random numbers",
    "meshgrid": "positions",
    "searchsorted": "positions in a sorted list",
    "stft": "windows of a signal, before there are any units",
    "linalg_inv": "every entry depends on the whole matrix",
    "linalg_solve": "every entry depends on the whole matrix",
    "linalg_householder_product": "every entry of the orthogonal weight depends on the whole matrix",
    "matrix_exp": "every entry of the orthogonal weight depends on the whole matrix",
    "conv_tbc": "an outdated form of convolution; `conv1d` has a rule",
    "unique_consecutive": "the length of the result depends on data",
}
"""Operations without a rule, and why they have none. Units that meet them stay; most of these operations meet no units at all."""

_OF_SIZES = frozenset({"_assert_scalar", "_assert_async", "sym_constrain_range_for_size"})
"""Operations on numbers, not on tensors."""


def operations_of(program: torch.export.ExportedProgram) -> set[str]:
    """Names of all operations on tensors of a program, without the underscore of those in place."""
    found = set()
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            name = op_name(node.target)
            if name not in _OF_SIZES:
                found.add(name if name.startswith("_") or not name.endswith("_") else name[:-1])
    return found


def rules_by_family() -> dict[str, dict[str, list[str]]]:
    """Family -> name of a rule -> operations that are registered for it."""
    found: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in families.__all__}
    for name, known in operations():
        found[known.rule.__module__.rpartition(".")[2]][known.rule.__name__].append(name)
    return found


def overloads_of(name: str) -> list[torch._ops.OpOverload]:
    """All forms of an operation of torch."""
    packet = getattr(torch.ops.aten, name, None)
    return [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []


def has_rule(name: str) -> bool:
    """Whether some overload of an operation has a rule."""
    return name in dict(operations()) or any(operation_of(overload) is not UNKNOWN for overload in overloads_of(name))


def render(models_of: dict[str, list[str]]) -> str:
    """The page.

    Args:
        models_of: Operation -> names of the models that have it.
    """
    names = {model for models in models_of.values() for model in models}
    lines = [
        "# What becomes of units that meet an operation",
        "",
        "Every operation l0prune knows has a rule (`l0prune/ops/`, one file per family) that says which units pass through,",
        "which are tied to each other, and which are pinned, that is, never gated. An operation without a rule pins everything",
        "it is given. So does a rule that meets something it does not expect, such as a size that is not a number;",
        "`flow.pinned` gives the reason. This page is written by `benchmarks/operations.py`.",
        "",
        f"{len(models_of)} operations occur in {len(names)} networks (timm, torchvision, transformers, and small detectors,",
        "diffusion U-Nets, speech and text recognisers, mixtures of experts, recommenders): "
        f"{sum(map(has_rule, models_of))} have a rule;",
        "the others are listed at the end.",
        "",
    ]
    known = dict(operations())
    pointwise = sorted(name for name in models_of if _is_tagged(name) and has_rule(name))
    for family, rules in rules_by_family().items():
        if not rules:
            continue
        lines += [f"## {family}", "", _sentence(inspect.getdoc(getattr(families, family)) or ""), ""]
        lines += ["| operations | what happens |", "|---|---|"]
        for rule, registered in rules.items():
            described = _sentence(inspect.getdoc(known[registered[0]].rule) or "")
            if rule == "pointwise":
                others = _names(name for name in registered if not _is_tagged(name))
                shown = f"every operation that torch tags as pointwise, such as {_names(pointwise)}; and {others}"
            else:
                shown = _names(registered)
            lines.append(f"| {shown} | {described} |".replace("\n", " "))
        lines.append("")
    lines += [
        "## Without a rule",
        "",
        "Units that meet these operations stay.",
        "",
        "| operation | why | networks |",
        "|---|---|---:|",
    ]
    for name in sorted(n for n in {*models_of, *WITHOUT_RULE} if not has_rule(n)):
        lines.append(f"| `{name}` | {WITHOUT_RULE.get(name, '**nobody has said**')} | {len(models_of.get(name, ()))} |")
    return "\n".join(lines) + "\n"


def _is_tagged(name: str) -> bool:
    return any(torch.Tag.pointwise in overload.tags for overload in overloads_of(name))


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _sentence(docstring: str) -> str:
    """The first paragraph, in one line that a table can hold."""
    return " ".join(docstring.split("\n\n", maxsplit=1)[0].split()).replace("|", "\\|")


def read() -> dict[str, list[str]]:
    """Operation -> models, as collected."""
    found: dict[str, list[str]] = defaultdict(list)
    for model, names in json.loads(RESULTS.read_text(encoding="utf-8")).items():
        for name in names:
            found[name].append(model)
    return {name: sorted(found[name]) for name in sorted(found)}


def collect(wanted: tuple[str, ...]) -> None:
    """Export models one after another, adding to the file; those that are there already are left."""
    from coverage_case import all_cases

    warnings.simplefilter("ignore")
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for suite, case in [*(("own", case) for case in OWN_CASES), *all_cases()]:
        name = f"{suite}:{case.name}"
        if name in known or (wanted and suite not in wanted and case.name not in wanted):
            continue
        try:
            model = case.build()
            inputs = case.inputs(model)
            args, kwargs = (
                ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
            )
            with torch.no_grad():
                program = torch.export.export(model.eval(), args, kwargs, strict=False)
        except Exception as error:  # noqa: BLE001 - whatever a model raises; the next one may work
            click.echo(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:120]}", err=True)
            continue
        known[name] = sorted(operations_of(program))
        RESULTS.write_text(json.dumps(known, indent=0, sort_keys=True) + "\n", encoding="utf-8")
        click.echo(f"{name}: {Counter(map(has_rule, known[name]))}")


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--collect", "collecting", is_flag=True, help="Export models (or those of the suites or names given) first."
)
def main(names: tuple[str, ...], collecting: bool) -> None:
    """Write the page; exit code 1 where nobody has said what becomes of an operation."""
    if collecting:
        collect(names)
    models_of = read()
    PAGE.write_text(render(models_of), encoding="utf-8")
    silent = [name for name in models_of if not has_rule(name) and name not in WITHOUT_RULE]
    for name in silent:
        click.echo(f"{name}: no rule and no word, in {', '.join(models_of[name][:3])}")
    sys.exit(1 if silent else 0)


if __name__ == "__main__":
    main()
