"""Gates against every criterion: the same network, budget, epochs, recovery and teachers, each at its best learning rate.

    python benchmarks/compare.py --data CIFAR10.npz --checkpoints DIR --out benchmarks/results/compare.jsonl
    python benchmarks/compare.py ... --only resnet20 --budgets 0.5,0.35,0.2 --methods gates,magnitude --seeds 0,1,2
    python benchmarks/compare.py ... --list

A row is `l0prune finetune --method NAME`, `l0prune shrink` and `l0prune bench`, each a process with one thread. Its learning rate
is the best of three in runs a third as long (two epochs at most) on nine tenths of the training data, scored on the tenth that is
left; the test data chooses nothing. Results are lines of JSON: a row that has one for the same network, data, options and code is
not run again, and a run that was stopped goes on at its last checkpoint. Afterwards the table is written. `dense_networks.py`
trains the networks that nobody has published.
"""

from __future__ import annotations

import itertools
import json
import signal
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from compare_case import NETWORKS, Case, choose_rate, newest, of_rows, row_key, tuning_cases
from compare_plan import STUDIES, best_baselines, rows
from compare_run import Files, inputs_of, missing_files, run_row, stop_running
from compare_table import render
from results_file import read

from l0prune.criteria.registry import method_names
from l0prune.measuring.alignment import resolve_alignment

FIXED_SECONDS = 60  # of a row beside its epochs: loading, cutting, exporting, timing


def numbers(kind: type) -> Any:
    """An option that takes values of a kind, separated by commas."""

    def read_all(ctx: click.Context, param: click.Parameter, text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(",") if part)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return read_all


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), help="CIFAR-10 as npz.")
@click.option("--mnist", type=click.Path(path_type=Path), help="MNIST as npz.")
@click.option(
    "--checkpoints", multiple=True, type=click.Path(path_type=Path), help="Folder of dense networks; repeatable."
)
@click.option("--out", default="benchmarks/results/compare.jsonl", show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--work", default="build/compare", show_default=True, type=click.Path(path_type=Path), help="Of the runs."
)
@click.option(
    "--study", "studies", multiple=True, type=click.Choice(tuple(STUDIES)), help="These rows; all if not given."
)
@click.option("--only", "networks", default="", callback=numbers(str), help=f"Networks, of {', '.join(NETWORKS)}.")
@click.option("--methods", default="", callback=numbers(str), help="gates, criteria, all, or best: the best criterion.")
@click.option("--budgets", default="", callback=numbers(float), help="Shares of the dense MACs.")
@click.option("--epochs", default="", callback=numbers(float), help="Lengths of the run.")
@click.option("--seeds", default="", callback=numbers(int), help="Of the run.")
@click.option(
    "--rates", default="", help="To choose from in place of each network's three; default leaves them to the product."
)
@click.option("--align", default="auto", show_default=True, help="What the kept widths of all rows are rounded to.")
@click.option("--any-code", is_flag=True, help="Rows that an earlier version of the code has run count as well.")
@click.option("--again", is_flag=True, help="Also rows that ended with an error.")
@click.option("--jobs", default=1, show_default=True, help="Rows at a time.")
@click.option("--list", "lists", is_flag=True, help="Say what is missing and about how long it takes, and stop.")
@click.option("--table", default="docs/benchmarks.md", show_default=True, type=click.Path(path_type=Path))
def main(
    data: Path | None,
    mnist: Path | None,
    checkpoints: tuple[Path, ...],
    out: Path,
    work: Path,
    studies: tuple[str, ...],
    rates: str,
    align: str,
    any_code: bool,
    again: bool,
    jobs: int,
    lists: bool,
    table: Path,
    **selected: Any,
) -> None:
    known = {name: path for name, path in (("cifar10", data), ("mnist", mnist)) if path is not None}
    files = Files(checkpoints, known, work, resolve_alignment(align))
    given = None if not rates else () if rates == "default" else tuple(float(rate) for rate in rates.split(","))
    comparison = Comparison(files, out, rates=given, any_code=any_code, again=again, jobs=jobs)
    for name in selected["networks"]:
        if name not in NETWORKS:
            raise click.BadParameter(f"{name!r}: expected some of {', '.join(NETWORKS)}", param_hint="--only")
    wanted = dict(selected, macs=selected.pop("budgets"))
    chosen = studies or tuple(STUDIES)
    asked = rows(chosen, **wanted, every=method_names(), best=best_baselines(comparison.records()))
    for network in dict.fromkeys(case.network for case in asked):
        if missing := missing_files(network, files):
            click.echo(f"{network}: left out, because there is no {' and no '.join(missing)}")
    asked = [case for case in asked if not missing_files(case.network, files)]
    if lists:
        comparison.show(asked)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    comparison.run(asked)
    if found := read(out):
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(render(found), encoding="utf-8")
        click.echo(f"wrote {table}")


@dataclass(frozen=True)
class Comparison:
    """Runs rows and keeps their records.

    Attributes:
        files: Where networks and data are.
        out: The records, one a line.
        rates: Learning rates to choose from in place of each network's; none at all leaves it to the product.
        any_code: Whether records of another version of the code count.
        again: Whether those of rows that ended with an error do not.
        jobs: Rows at a time.
    """

    files: Files
    out: Path
    rates: tuple[float, ...] | None = None
    any_code: bool = False
    again: bool = False
    jobs: int = 1

    def records(self) -> list[Mapping[str, Any]]:
        """What there is, the last record of each row, whatever its rate and the code."""
        return of_rows(read(self.out))

    def run(self, asked: Sequence[Case]) -> None:
        """Choose the rates that are not chosen, then run the rows that have no record."""
        for cases_of in (self.trials_of, self.with_rates):  # the rates are known once the trials have run
            cases = cases_of(asked)
            todo = self.missing(cases)
            click.echo(f"{len(todo)} of {len(cases)} to run")
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with self.out.open("a", encoding="utf-8") as sink:
                for record in self.run_all(todo):
                    sink.write(json.dumps(record) + "\n")
                    sink.flush()
                    click.echo(line(record))

    def run_all(self, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
        """Records of rows as they end, `jobs` at a time."""
        with ThreadPoolExecutor(self.jobs) as pool:
            running = [pool.submit(run_row, case, self.files, n_jobs=self.jobs) for case in cases]
            try:
                for future in as_completed(running):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                stop_running()
                raise

    def rates_of(self, case: Case) -> tuple[float, ...]:
        """What a row's rate is chosen from; nothing leaves it to the product."""
        return NETWORKS[case.network].rates if self.rates is None else self.rates

    def trials_of(self, asked: Sequence[Case]) -> list[Case]:
        """The runs that choose rates."""
        found = (tuning_cases(case, self.rates_of(case)) for case in asked)
        return list(dict.fromkeys(itertools.chain.from_iterable(found)))

    def with_rates(self, asked: Sequence[Case]) -> list[Case]:
        """The rows with the rates that were chosen; where none was, the product's own."""
        return [replace(case, lr=self.rate_of(case)) for case in asked]

    def rate_of(self, case: Case) -> float | None:
        """The rate of a row."""
        rates = self.rates_of(case)
        if not case.epochs or len(rates) < 2:
            return rates[0] if case.epochs and rates else None
        done = self.done()
        tried = [done.get(self.key(trial)) for trial in tuning_cases(case, rates)]
        return choose_rate(record for record in tried if record is not None)

    def done(self) -> dict[str, Mapping[str, Any]]:
        """The records that count, by their key."""
        kept = newest(read(self.out), any_code=self.any_code)
        return {key: record for key, record in kept.items() if not (self.again and "error" in record)}

    def key(self, case: Case) -> str:
        """The key of a row."""
        inputs = inputs_of(case, self.files)
        return row_key(case, replace(inputs, code="") if self.any_code else inputs)

    def missing(self, cases: Sequence[Case]) -> list[Case]:
        """Rows without a record."""
        done = self.done()
        return [case for case in cases if self.key(case) not in done]

    def show(self, asked: Sequence[Case]) -> None:
        """What is missing, and about how long it takes."""
        trials, due = self.missing(self.trials_of(asked)), self.missing(self.with_rates(asked))
        records = self.records()
        seconds = [estimate(case, records) for case in trials + due]
        for case, each in zip(trials + due, seconds, strict=True):
            click.echo(f"{each / 60:6.1f} min  {case}")
        total = sum(seconds) / 3600
        click.echo(
            f"{len(due)} of {len(asked)} rows and {len(trials)} trials of rates are missing: about {total:.1f} hours of one core,"
            f" {total / self.jobs:.1f} hours with --jobs {self.jobs}"
        )


def estimate(case: Case, records: Sequence[Mapping[str, Any]]) -> float:
    """Seconds a row takes, by those of its network that were measured, or as its network says."""
    own = [
        r for r in records if r["case"]["network"] == case.network and r.get("cpu_seconds") and r["case"]["epochs"] >= 1
    ]
    of_epoch = [r["cpu_seconds"] / r["case"]["epochs"] for r in own]
    each = statistics.median(of_epoch) if of_epoch else 60 * NETWORKS[case.network].minutes
    return FIXED_SECONDS + each * case.epochs


def line(record: Mapping[str, Any]) -> str:
    """A result for people."""
    case = Case(**record["case"])
    if "error" in record:
        return f"{case}: {record['error']}"
    freeze = next((f"{score:.2f} at the freeze, " for when, _, score, _ in record["history"] if when == "freeze"), "")
    faster = f", {record['speedup']['ratio']:.2f}x" if "speedup" in record else ""
    return f"{case}: {freeze}{record['final']:.2f} at the end, MACs {record['hard_cost']:.4f}{faster}, {record['wall_seconds']} s"


if __name__ == "__main__":
    main()
