"""`l0prune eval`: the score of a model, or of every form of a run."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l0prune.cli.case import EVALUATION_BATCH, Case
from l0prune.cli.case_data import load_case
from l0prune.cli.flags import GroupedCommand, common_options, flag, flags_of, given, threads_option, whole
from l0prune.cli.loading import has_random_weights, load, sides
from l0prune.cli.model_options import ModelOptions, model_options
from l0prune.cli.opened_run import OpenedRun, compact_model, dense_model, gated_model, open_finished
from l0prune.cli.output import console, metric_text, note, print_table, score_text, show, working
from l0prune.cli.request import RunOptions
from l0prune.cli.trust import data_call, model_call, remember, task_call, trust_option
from l0prune.errors import ConfigError

if TYPE_CHECKING:
    from l0prune.sources.model_spec import LoadedModel

__all__ = ["OF_DATA", "case_of_run", "eval_command", "evaluate_run", "load_file"]

OF_DATA = (
    *("data", "data_args", "task", "task_args", "class_map"),
    *("text", "text_pair", "label", "labels", "max_length", "tokenizer"),
)


@click.command("eval", cls=GroupedCommand)
@model_options(metavar="RUN|MODEL|FILE.onnx")
@flags_of(RunOptions, only=OF_DATA, group="")
@click.option(
    "--batch-size", type=whole("[1, inf)"), default=EVALUATION_BATCH, show_default=True, help="Inputs per call."
)
@trust_option
@threads_option
@common_options
def eval_command(model: ModelOptions, batch_size: int, trust: bool, as_json: bool, **options: Any) -> None:
    """Score a model, or every form of a run, on test data.

    The forms are dense, gated, compact and ONNX. --data and --task default to RUN's own. An ONNX file may be anybody's, also in
    int8; images become its input as preprocessing.json beside it says.
    """
    from l0prune.sources.compact_folder import is_compact_folder

    asked = given(options)
    with working():
        if Path(model.spec).is_dir() and not is_compact_folder(model.spec):
            require_no_options(model)
            result = evaluate_run(Path(model.spec), asked, batch_size=batch_size, trust=trust)
        elif "data" not in asked:
            what = "a compact model" if is_compact_folder(model.spec) else "there is no such run"
            raise ConfigError(f"{model.spec}: {what}; scoring a model needs --data SPEC")
        elif trust:
            raise click.UsageError(f"--trust is for runs; what you type runs without it, and {model.spec} is not a run")
        else:
            result = evaluate_model(model, RunOptions(**asked), batch_size=batch_size)
    show(result, as_json, lambda: print_scores(result))


def require_no_options(model: ModelOptions) -> None:
    """See that no option says how to build a model that a run describes already.

    Raises:
        ConfigError: names the first.
    """
    plain = asdict(ModelOptions(model.spec))
    for name, value in asdict(model).items():
        if value != plain[name]:
            raise ConfigError(f"{flag(name)} is for a model; {model.spec} is a run, which has its own")


def evaluate_model(model: ModelOptions, run: RunOptions, *, batch_size: int) -> dict[str, Any]:
    """Score of a model as it is loaded; plain data."""
    from l0prune.surgery.record import has_surgery

    loaded = load_file(model) if is_onnx(model.spec) else load(model, run=run)
    if has_random_weights(model):
        note(f"{model.spec} has random weights; load trained ones with --weights FILE")
    case = load_case(loaded, model, run)
    for call in (model_call(model), data_call(run.data, run.data_args), task_call(run.task, run.task_args)):
        remember(call)
    score = case.score(loaded.model, batch_size=batch_size)
    form = "onnx" if loaded.runs_only else "compact" if has_surgery(loaded.model) else "dense"
    return described(model.spec, run.data, case, {form: score}, trained=not has_random_weights(model))


def is_onnx(spec: str) -> bool:
    """Whether what is scored is an ONNX file."""
    return spec.endswith(".onnx")


def load_file(model: ModelOptions) -> "LoadedModel":
    """The ONNX file that the options name.

    Raises:
        ConfigError: they say how to build a model, which a file is already.
        L0PruneError: as `l0prune.onnx.network.load_onnx`.
    """
    from l0prune.onnx.network import load_onnx

    plain = ModelOptions(model.spec)
    for name in ("weights", "model_args", "num_labels", "pretrained"):
        if getattr(model, name) != getattr(plain, name):
            raise ConfigError(f"{flag(name)} is for a model that is built; {model.spec} is an ONNX file, as it is")
    return load_onnx(
        model.spec,
        mean=model.mean,
        std=model.std,
        image_size=sides(model.image_size),
        input_shape=model.input_shape,
    )


def evaluate_run(
    path: Path,
    asked: Mapping[str, Any] | None = None,
    *,
    batch_size: int = EVALUATION_BATCH,
    trust: bool = False,
) -> dict[str, Any]:
    """Scores of the forms of a finished run that exist; plain data.

    Args:
        path: The run.
        asked: Options of data and task that replace the run's own: arguments of a task are added to its own, and other data
            have no options but these.
        batch_size: Inputs per call.
        trust: Whether factories may run that only its run.json names.

    Raises:
        L0PruneError: if the run, its model or its data cannot be brought back.
    """
    run = open_finished(path, trust=trust)
    case, data = case_of_run(run, asked)
    loaded = case.loaded
    scores = {"dense": case.score(loaded.model, batch_size=batch_size)}
    compact = compact_forms(run, loaded)
    scores["gated"] = case.score(gated_model(run, loaded), batch_size=batch_size)
    for form, model in compact.items():
        scores[form] = case.score(model, batch_size=batch_size)
    if not compact:
        note(f"{path} has not been shrunk yet, so there is no compact form; run `l0prune shrink {path}`")
    return described(str(path), data, case, scores, trained=not run.request.run.from_scratch)


def case_of_run(run: OpenedRun, asked: Mapping[str, Any] | None = None) -> tuple[Case, str]:
    """The dense model of a run with what it is scored on, and the specification of the data.

    Args:
        run: A finished run.
        asked: As in `evaluate_run`.
    """
    own, asked = run.request.run, dict(asked or {})
    run.require_typed(data="data" not in asked, task="task" not in asked)
    if "task" not in asked:
        asked["task_args"] = {**own.task_args, **asked.get("task_args", {})}
    plain = RunOptions()
    anew = {name: getattr(plain, name) for name in OF_DATA if "data" in asked and name not in ("task", "task_args")}
    used = replace(own, **{**anew, **({"task_args": {}} if "task" in asked else {}), **asked})
    case = load_case(dense_model(run), run.request.model, used)
    if "data" not in asked and own.held_out is not None:
        _, case = case.apart(own.held_out, seed=run.request.training.seed)  # what has decided does not judge
    return case, used.data


def compact_forms(run: OpenedRun, loaded: "LoadedModel") -> dict[str, Callable[..., Any]]:
    """The compact network and its ONNX file, where the run has been shrunk and there is one."""
    from l0prune.onnx.onnx_model import OnnxModel

    directory = run.directory
    forms: dict[str, Callable[..., Any]] = {}
    if directory.compact.exists():
        forms["compact"] = compact_model(run, loaded)
    if (directory.onnx / "compact.onnx").exists():
        forms["onnx"] = OnnxModel(directory.onnx / "compact.onnx")
    return forms


def described(name: str, data_spec: str, case: Case, scores: dict[str, float], *, trained: bool) -> dict[str, Any]:
    """Scores with what they are scores of, and what speaks against them where the dense network is a trained one."""
    doubts = case.doubts(next(iter(scores.values()))) if trained else None
    if doubts:
        note(doubts)
    about = case.described()
    found = {about["metric"]: scores, "doubts": doubts}
    return {"model": name, "data": data_spec, "n": case.n_test, **about, **found}


def print_scores(result: dict[str, Any]) -> None:
    """One line a form."""
    metric = result["metric"]
    rows = [(form, score_text(score, result)) for form, score in result[metric].items()]
    counted = "" if result["n"] is None else f"{result['n']} of "
    title = f"{result['model']} on {counted}{result['data']}"
    print_table(console(), title, ("form", metric_text(result)), rows)
