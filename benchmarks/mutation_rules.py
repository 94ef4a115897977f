"""Break the rules of the channel flow, one change at a time, and see which test notices.

Usage: python benchmarks/mutation_rules.py [--only views] [--jobs 1]

First the tests of the flow and the laws of cutting run once with the sound rules; the lines of the rules that each test runs
are written down. Then every mutant (a tie, pin, consumer or cost left out, another axis, a refusal left out, a condition
reversed) is put in place in a forked process, where the tests that run its lines are repeated until one fails: first the one
that did so in an earlier run, then the shortest. Exported graphs do not depend on the rules and are kept from the first run.
Results are kept in build/mutations.jsonl and hold while neither the broken file nor the test that caught it changes (of
survivors: no test); the table is docs/mutations.md. Ends with exit code 1 where a mutant survives that `EXPLAINED` has no word
for.
"""

import contextlib
import gc
import hashlib
import io
import json
import os
import signal
import sys
import time
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from hypothesis import Phase, settings
from mutation_table import EXPLAINED, table
from mutations import RULES, UNCHANGED, Mutant, mutants, put_in_place, rule_files
from torch.utils import _pytree as pytree

from l0prune.flow import trace

ROOT = Path(__file__).parent.parent
RESULTS, TABLE = ROOT / "build" / "mutations.jsonl", ROOT / "docs" / "mutations.md"
LIMIT_SECONDS = 1800
"""A mutant whose tests take longer does not end: that is noticed too."""


class Observer:
    """A pytest plugin: which lines of the rules each test runs, what it exports, how long it takes, and what failed first."""

    def __init__(self) -> None:
        self.lines: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self.seconds: dict[str, float] = {}
        self.failed = ""
        self._test, self._n_captures = "", 0
        self._captures: dict[Any, Any] = {}
        self._rules = str(RULES)
        self._capture, self._follow = trace.capture, trace.follow  # type: ignore[attr-defined]
        trace.capture, trace.follow = self.capture, self.follow  # type: ignore[assignment, attr-defined]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        """Time a test."""
        self._test, self._n_captures = item.nodeid, 0
        self.lines[item.nodeid] |= set()
        start = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.process_time() - start

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember the first that fails."""
        self.failed = self.failed or (report.nodeid if report.failed else "")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember a file that cannot be read."""
        self.failed = self.failed or (report.nodeid if report.failed else "")

    def capture(self, model: Any, inputs: Any) -> Any:
        """The graph that the same call of the same test gave before."""
        self._n_captures += 1
        shapes = [
            tuple(leaf.shape) for leaf in pytree.tree_leaves((model.state_dict(), inputs)) if hasattr(leaf, "shape")
        ]
        key = (self._test, self._n_captures, type(model).__name__, *shapes)
        if key not in self._captures:
            self._captures[key] = self._capture(model, inputs)
        return self._captures[key]

    def follow(self, *args: Any, **kwargs: Any) -> Any:
        """Walk the graph, noting lines."""
        found, rules = self.lines[self._test], self._rules

        def local(frame: Any, event: str, argument: Any) -> Any:
            found.add((Path(frame.f_code.co_filename).name, frame.f_lineno))
            return local

        def called(frame: Any, event: str, argument: Any) -> Any:
            return local(frame, event, argument) if frame.f_code.co_filename.startswith(rules) else None

        sys.settrace(called)
        try:
            return self._follow(*args, **kwargs)
        finally:
            sys.settrace(None)


def run(tests: list[str], observer: Observer) -> int:
    """Run tests in this process, quietly, until one fails."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        options = ["-x", "-q", "--tb=no", "--show-capture=no", "-p", "no:cacheprovider", "-p", "no:xdist"]
        options += [
            "--randomly-seed=0",
            "--randomly-dont-reorganize",
            "--hypothesis-seed=0",
        ]  # the same test notices first
        return int(pytest.main([*options, f"--rootdir={ROOT}", *tests], plugins=[observer]))


def start(mutant: Mutant, batches: list[list[str]], observer: Observer, answer: Path) -> int:
    """Fork a process that puts the mutant in place and writes the first failing test to `answer`; returns its process id."""
    child = os.fork()
    if child:
        return child
    signal.alarm(LIMIT_SECONDS)
    gc.freeze()  # else every session of pytest would search the exported graphs for garbage, several times
    try:
        put_in_place(mutant)
        code = next((code for tests in batches if tests and (code := run(tests, observer))), 0)
        answer.write_text(observer.failed or (f"pytest ends with code {code}" if code else ""))
    finally:
        os._exit(0 if answer.exists() else 1)


def examine(todo: list[Mutant], observer: Observer, jobs: int) -> dict[str, str]:
    """Key -> test that caught the mutant, "" for a survivor."""
    results: dict[str, str] = {}
    earlier = {key: entry["caught"] for key, entry in entries().items()}
    running: dict[int, tuple[Mutant, Path]] = {}
    waiting = list(todo)
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            begin, end = mutant.lines
            tests = [
                test
                for test, lines in observer.lines.items()
                if any(fnmatch(file, mutant.file) and begin <= line <= end for file, line in lines)
            ]
            tests.sort(key=lambda test: observer.seconds[test])
            answer = RESULTS.with_suffix(f".{mutant.file}.{mutant.position}")
            first = [test for test in tests if test == earlier.get(mutant.key)]
            running[start(mutant, [first, tests], observer, answer)] = (mutant, answer)
        process, status = os.wait()
        mutant, answer = running.pop(process)
        caught = answer.read_text() if status == 0 else f"does not end well (status {status})"
        answer.unlink(missing_ok=True)
        results[mutant.key] = caught
        entry = {"key": mutant.key, "caught": caught, "state": state_of(mutant.file, caught)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        click.echo(f"{len(results):4d}/{len(todo)}  {mutant.key}  ->  {caught or 'SURVIVES'}")
    return results


def state_of(file: str, caught: str) -> str:
    """Fingerprint of what a result hangs on: the rules' file, and the test that caught the mutant, or all of them."""
    test = ROOT / caught.partition("::")[0]
    tests = [test] if caught and test.is_file() else sorted((ROOT / "tests").rglob("*.py"))
    digest = hashlib.sha256()
    for path in [*sorted(RULES.glob(file)), *tests]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def entries() -> dict[str, dict[str, str]]:
    """Key -> the last entry of that mutant, of earlier runs."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {entry["key"]: entry for entry in map(json.loads, lines)}


def known_results(every: list[Mutant]) -> dict[str, str]:
    """Key -> test that caught the mutant, where an earlier run still holds."""
    found = entries()
    return {
        m.key: found[m.key]["caught"]
        for m in every
        if m.key in found and found[m.key]["state"] == state_of(m.file, found[m.key]["caught"])
    }


@click.command()
@click.option("--only", default="", help="Mutants whose name, such as `views.view: ...`, contains this.")
@click.option("--jobs", default=1, show_default=True, help="Processes at a time.")
@click.option("--fresh", is_flag=True, help="Take no results from earlier runs.")
def main(only: str, jobs: int, fresh: bool) -> None:
    """Break every rule and list the tests that notice."""
    torch.set_num_threads(1)
    settings.register_profile("unshrunk", phases=(Phase.explicit, Phase.generate))
    settings.load_profile("unshrunk")
    os.chdir(ROOT)
    RESULTS.parent.mkdir(exist_ok=True)
    folders = (Path("tests") / name for name in ("ops", "look", "flow"))
    tests = [
        *sorted(str(file) for folder in folders for file in folder.glob("test_*.py")),
        "tests/surgery/test_properties.py",
    ]
    every = [m for path in rule_files() for m in mutants(path)]
    known = {} if fresh else known_results(every)
    todo = [m for m in every if m.key not in known and only in m.key]
    if todo:
        observer = Observer()
        if run(tests, observer):
            raise click.ClickException(f"the sound rules fail {observer.failed}; mend that first")
        click.echo(f"{len(observer.lines)} tests pass with the sound rules; {len(todo)} mutants")
        if failing := examine([UNCHANGED], observer, 1)[UNCHANGED.key]:
            raise click.ClickException(f"{failing} fails when it is repeated without any change")
        known |= examine(todo, observer, jobs)
    TABLE.write_text(table([m for m in every if m.key in known], known))
    survivors = [m.key for m in every if known.get(m.key) == "" and m.key not in EXPLAINED]
    for key in survivors:
        click.echo(f"survives: {key}")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
