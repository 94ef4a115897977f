"""The page docs/mutations.md: which test catches which mutant."""

from collections import defaultdict

from mutations import Mutant

__all__ = ["EXPLAINED", "table"]

EXPLAINED: dict[str, str] = {}
"""Mutants that no test can catch, and why."""

_HEAD = """\
# Which test catches which broken rule

Every rule of the channel flow (`l0prune/ops/`) is broken in one place at a time: a tie, pin, consumer or cost is left out, an
axis is swapped, a refusal is left out, or a condition is reversed. The tests of the flow, and those that cut random networks,
then run until one fails. To repeat this:

    make mutation-rules

"""


def table(every: list[Mutant], results: dict[str, str]) -> str:
    """The page, for the mutants that have a result."""
    survivors = [m for m in every if not results[m.key]]
    unexplained = [m for m in survivors if m.key not in EXPLAINED]
    rules: dict[tuple[str, str], list[Mutant]] = defaultdict(list)
    for mutant in every:
        rules[mutant.file, mutant.rule].append(mutant)
    tests = {results[m.key] for m in every if results[m.key]}
    n_caught = len(every) - len(survivors)
    lines = [
        f"{len(every)} mutants of {len(rules)} functions: {n_caught} caught, first by one of {len(tests)} tests; "
        f"{len(survivors) - len(unexplained)} change nothing observable; {len(unexplained)} survive.\n"
    ]
    if survivors:
        lines += ["## What no test catches\n"]
        lines += [f"- `{m.key}`: {EXPLAINED.get(m.key, '**survives**')}" for m in survivors]
        lines.append("")
    for (file, rule), found in rules.items():
        caught = sum(bool(results[m.key]) for m in found)
        lines += [
            f"## {file[:-3]}.{rule}: {caught} of {len(found)}\n",
            "| line | change | caught by |",
            "|---|---|---|",
        ]
        for m in found:
            name = results[m.key].replace("tests/", "").replace("|", "\\|") or "nothing: see above"
            code = m.code.replace("|", "\\|")
            lines.append(f"| {m.lines[0]} | {m.kind}: `{code}` | {name} |")
        lines.append("")
    return _HEAD + "\n".join(lines)
