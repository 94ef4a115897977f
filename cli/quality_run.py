"""A search for the cheapest network that keeps a quality: run after run, decided on rows held out, scored once in the end."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, NoReturn

from l0prune.cli.case import Case
from l0prune.cli.finetune_run import (
    noting_how_the_whole_ends,
    require_one_process,
    require_typed_calls,
    train_or_resume,
)
from l0prune.cli.opened_run import OpenedRun, gated_model
from l0prune.cli.output import note, score_text
from l0prune.cli.prepared import DenseWeights, Shared, calls_of, share
from l0prune.cli.request import FinetuneRequest
from l0prune.cli.trust import remember
from l0prune.errors import ConfigError, QualityMissedError
from l0prune.files import draft_folder, remove, write_whole
from l0prune.quality.bound import Quality
from l0prune.quality.search import Search, Try, cheapest_kept, next_cheaper
from l0prune.reading import reading

if TYPE_CHECKING:
    from l0prune.run_directory import RunDirectory

__all__ = ["begin_search", "is_search", "resume_search"]

PLACES = {"train": "training", "test": "test"}
ERRORS_APART = 2.0


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """A search that can be made.

    Args:
        request: What all runs have in common, with all defaults written out.
        shared: Model, flow, and data whose test rows are those held out.
        judging: The same on the test data that decide nothing.
        search: Chooses the budgets.
        weights: Of the dense network.
    """

    request: FinetuneRequest
    shared: Shared
    judging: Case
    search: Search
    weights: DenseWeights

    @property
    def n_held(self) -> int:
        """Rows that decide."""
        return self.shared.case.n_test or 0

    def told(self, score: float) -> str:
        """A score as people read it."""
        return score_text(score, self.shared.case.described())


def begin_search(out: Path, request: FinetuneRequest, *, argv: Sequence[str], overwrite: bool) -> dict[str, Any]:
    """Look for the cheapest network that keeps a quality.

    Args:
        out: Directory of the run; the runs of the search are in its folder `tries`.
        request: What to do; its quality is given.
        argv: The command line, for the record.
        overwrite: Replace a run that is there.

    Returns:
        The figures of the network that was found, as plain data.

    Raises:
        ConfigError: the quality cannot be read, is of another metric, or the dense network itself does not have it; nothing was
            written.
        QualityMissedError: no network that was tried keeps it; the runs stay, and more of them can follow.
        L0PruneError: as `begin` of a run.
        Interrupted: Ctrl-C; the message says how to continue.
    """
    from l0prune.run_directory import RunDirectory

    require_one_process("a search for a quality")
    RunDirectory(out).require_free(overwrite=overwrite)
    plan = look_over(request)
    for call in calls_of(request.model, request.run):
        remember(call)
    out.mkdir(parents=True, exist_ok=True)
    with RunDirectory(out).locked():
        run = RunDirectory.create(out, argv=argv, overwrite=overwrite, **plan.request.to_record())
        return follow(run, plan)


def is_search(out: Path) -> bool:
    """Whether a search has begun in a directory and not ended."""
    from l0prune.run_directory import RunDirectory

    run = RunDirectory(out)
    if not run.record_path.exists():
        return False
    record = run.read()
    return bool(record.config.get("quality")) and record.status != "finished"


def resume_search(out: Path, typed: Mapping[str, Any], *, trust: bool = False) -> dict[str, Any]:
    """Continue a search to the same result it would have had, or with more runs than it was given.

    Args:
        out: Its directory.
        typed: Options of the command line by name, which may repeat what the search began with.
        trust: Whether factories may run that only its run.json names.

    Returns:
        As `begin_search`.

    Raises:
        UntrustedCodeError: if it takes code that the user has not typed.
        ConfigError: if something typed differs from what the search began with.
        L0PruneError: as `begin_search`.
    """
    from l0prune.run_directory import RunDirectory

    require_one_process("a search for a quality")
    run = RunDirectory(out)
    request = FinetuneRequest.from_record(run.read())
    n_runs = typed.get("quality_runs", request.run.quality_runs)
    request.require_same({name: value for name, value in typed.items() if name != "quality_runs"})
    require_typed_calls(request, typed, run.record_path, trust=trust)
    plan = look_over(replace(request, run=replace(request.run, quality_runs=n_runs)))
    with run.locked():
        run.set_status("running", config={"quality_runs": n_runs})
        return follow(run, plan)


def look_over(request: FinetuneRequest) -> SearchPlan:
    """Load and check everything a search needs; writes nothing.

    Raises:
        ConfigError: the quality cannot be read, is of another metric, or the dense network itself does not have it.
        L0PruneError: names what else cannot work.
    """
    from l0prune.cost.kinds import Costs
    from l0prune.cost.widths import Floor

    quality, seed = Quality.parse(request.run.quality), request.training.seed
    whole = share(with_budget(replace(request, run=replace(request.run, held_out=None)), 1.0))
    model = whole.case.loaded.model
    quality.require_fits(whole.case.task.metric)
    place = request.run.held_out or place_to_hold_out(whole.case, seed=seed)
    deciding, judging = whole.case.apart(place, seed=seed)
    request = replace(request, run=replace(request.run, held_out=place))
    shared = Shared(request, deciding, whole.flow)
    dense, error = shared.dense_score, deciding.error(model)
    least = Floor.of(Costs(whole.flow)("macs"), whole.flow.dimensions).fraction
    search = Search(quality, dense, least, error)
    first = shared.prepare(with_budget(request, search.next_keep([]) or 1.0)).request
    written_out = replace(first, run=replace(first.run, budget="", quality=str(quality)))
    plan = SearchPlan(written_out, shared, judging, search, DenseWeights.of(model))
    known = "" if error is None else f" (standard error {error:.2g})"
    where = f"{plan.n_held} rows held out of the {PLACES[place]} data"
    if not quality.kept_by(dense):
        raise ConfigError(
            f"{quality} cannot be kept: the dense network itself has {plan.told(dense)}{known} on {where}; set a bound"
            " that it keeps"
        )
    note(f"{quality} is decided on {where}, on which the dense network has {plan.told(dense)}{known}")
    return plan


def with_budget(request: FinetuneRequest, keep: float) -> FinetuneRequest:
    """The request of a run within a share of the dense MACs."""
    return replace(request, run=replace(request.run, budget=f"macs={keep:g}", quality=""))


def place_to_hold_out(case: Case, *, seed: int) -> str:
    """Where rows can be held out that say something about new data: the training data, unless the dense network has learned it.

    A network that has been trained on rows is better on them than on others, and so is what is cut out of it. This is seen on
    rows of both kinds; the test data that decide nothing are not looked at.

    Raises:
        DataError: there are too few rows.
    """
    model, better = case.loaded.model, case.task.metric.higher_is_better
    seen, unseen = (case.apart(place, seed=seed)[0] for place in ("train", "test"))
    scores = seen.score(model), unseen.score(model)
    gain = scores[0] - scores[1] if better else scores[1] - scores[0]
    errors = seen.error(model), unseen.error(model)
    if None in errors or not gain > ERRORS_APART * (errors[0] ** 2 + errors[1] ** 2) ** 0.5:  # type: ignore[operator]
        return "train"
    about = case.described()
    note(
        f"the dense network has learned the training data: {about['metric']} {score_text(scores[0], about)} on"
        f" {seen.n_test} rows of them, {score_text(scores[1], about)} on {unseen.n_test} of the test data."
        " So the latter decide, and the other test data judge; --held-out train insists on training data"
    )
    return "test"


def follow(run: "RunDirectory", plan: SearchPlan) -> dict[str, Any]:
    """Try one budget after another, whatever has been tried before included; then make the answer the run's own."""
    again = f"l0prune finetune --out {quote(str(run.path))} --resume"
    argv, most = run.read().argv, plan.request.run.quality_runs
    quality, metric = plan.search.quality, plan.shared.case.task.metric.name
    tries: list[Try] = []
    figures: list[dict[str, Any]] = []
    with noting_how_the_whole_ends(run, again):
        while len(tries) < most and (keep := plan.search.next_keep(tries)) is not None:
            request = with_budget(plan.request, keep)
            note(f"run {len(tries) + 1} of at most {most}: {request.run.budget}")
            plan.weights.restore_(plan.shared.case.loaded.model)
            directory = directory_of(run, request)
            found = train_or_resume(directory, plan.shared.prepare(request), argv=argv, part_of=again)
            with reading(
                directory.record_path, "description of a finished run", remedy="remove its folder, and resume"
            ):
                tries.append(Try(keep, float(found["final"])))
            figures.append(found)
            kept = "is kept" if quality.kept_by(tries[-1].score) else "is not kept"
            note(f"{request.run.budget}: {metric} {plan.told(tries[-1].score)} on the rows held out, {quality} {kept}")
        best = cheapest_kept(quality, tries)
        if best is None:
            raise_missed(plan, tries, again)
        result = conclude(run, plan, tries, figures, tries.index(best))
    return {"run": str(run.path), "model": plan.request.model.spec, **result}


def directory_of(run: "RunDirectory", request: FinetuneRequest) -> "RunDirectory":
    """Where one of the runs of a search is."""
    from l0prune.run_directory import RunDirectory

    return RunDirectory(run.tries / request.run.budget)


def raise_missed(plan: SearchPlan, tries: Sequence[Try], again: str) -> NoReturn:
    """Say that nothing keeps the quality, and what to do."""
    quality = plan.search.quality
    closest = min(tries, key=lambda tried: quality.lost(tried.score, dense=plan.search.dense))
    raise QualityMissedError(
        f"{quality} is kept by none of {len(tries)} networks; macs={closest.keep:g} comes closest with"
        f" {plan.told(closest.score)}: train longer (--epochs), loosen the bound, or allow more runs, with"
        f" `{again} --quality-runs {2 * len(tries)}`"
    )


def doubts_of(plan: SearchPlan, score: float, final: float, errors: tuple[float | None, float | None]) -> str | None:
    """What to say where the answer does worse on the test data than on the rows held out, by more than chance explains.

    Args:
        plan: Of the search.
        score: Of the network on the rows held out.
        final: On the test data that decided nothing.
        errors: Standard errors of both.
    """
    quality, known = plan.search.quality, [error for error in errors if error is not None]
    worse = quality.lost(final, dense=score)
    if len(known) < 2 or quality.kept_by(final) or worse <= ERRORS_APART * math.hypot(*known):
        return None
    remedy = "" if plan.request.run.held_out == "test" else ", and search again with --held-out test"
    return (
        f"CAREFUL: the network has {plan.told(final)} on the test data, further from {plan.told(score)} on the rows held out than"
        f" chance explains: the dense network may have been trained on these, or the test data are of another kind; ask for more"
        f" than {quality}{remedy}"
    )


def conclude(
    run: "RunDirectory", plan: SearchPlan, tries: Sequence[Try], figures: Sequence[Mapping[str, Any]], chosen: int
) -> dict[str, Any]:
    """Score the network that was found on the test data, and make its run the search's own; run.json is written last."""
    case, model = plan.judging, plan.shared.case.loaded.model
    request = with_budget(plan.request, tries[chosen].keep)
    best = directory_of(run, request)
    plan.weights.restore_(model)
    dense = case.score(model)
    gated = gated_model(OpenedRun(best, request), plan.shared.case.loaded)
    final, error = case.score(gated), plan.shared.case.error(gated)
    score, elsewhere = tries[chosen].score, case.error(gated)
    cheaper = next_cheaper(tries, tries[chosen])
    result = {
        **figures[chosen],
        "dense": dense,
        "final": final,
        "doubts": case.doubts(dense),
        "n_scored": case.n_test,
        "quality": {
            "asked": str(plan.search.quality),
            "held_out": plan.request.run.held_out,
            "n": plan.n_held,
            "dense": plan.search.dense,
            "score": score,
            "error": error,
            "doubts": doubts_of(plan, score, final, (error, elsewhere)),
            "next_cheaper": None if cheaper is None else f"macs={cheaper.keep:g}",
            "at_the_limit_of_runs": len(tries) == plan.request.run.quality_runs
            and plan.search.next_keep(tries) is not None,
            "runs": [
                {
                    "budget": f"macs={tried.keep:g}",
                    "hard_cost": found["hard_cost"],
                    "score": tried.score,
                    "kept": plan.search.quality.kept_by(tried.score),
                }
                for tried, found in zip(tries, figures, strict=True)
            ],
        },
    }
    with draft_folder(run.checkpoint) as draft:
        shutil.copytree(best.checkpoint, draft / run.checkpoint.name)
        remove(run.checkpoint)
        (draft / run.checkpoint.name).replace(run.checkpoint)
    if best.metrics.exists():  # nothing is written down where nothing is trained
        write_whole(run.metrics, best.metrics.read_bytes())
    run.set_status("finished", result=result, config={"budget": request.run.budget})
    return result
