"""What is asked of a run: read from the command line, written to run.json, read back."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0prune.cli.flags import flag
from l0prune.cli.model_options import ModelOptions, recorded
from l0prune.errors import ConfigError, FileFormatError
from l0prune.finetuning.config import OPEN, FinetuneConfig
from l0prune.finetuning.settings import Settings, resolve
from l0prune.gates.registry import family_names
from l0prune.options import GATES, MODEL, MOST_USED, RUN, Options, documented, option, options_of, plain
from l0prune.reading import shortened
from l0prune.tasks.registry import task_names

if TYPE_CHECKING:
    from l0prune.run_directory import RunRecord
    from l0prune.sweep_directory import SweepRecord

__all__ = ["FinetuneRequest", "RunOptions"]

REMEDY = "start the run again"


@documented
@dataclass(frozen=True)
class RunOptions(Options):
    """What a run takes beside its model and how it is trained."""

    data: str = option(
        "",
        "Data to train and score on: digits, npz:FILE, mnist:DIR, cifar10:DIR, folder:DIR, or package.module:factory, of arrays"
        " or loaders; or texts, as csv:, tsv:, jsonl: or txt: with TRAIN,TEST (or one file, or a folder), or hf-datasets:DIR.",
        group=MOST_USED,
        metavar="SPEC",
    )
    data_args: dict[str, Any] = option(
        {}, "Keyword argument of the data's factory; repeatable.", group=MODEL, flag="--data-arg"
    )
    text: str | None = option(
        None, "Column of the texts.", group=MODEL, metavar="COLUMN", shown="text, sentence, sentence1 ..."
    )
    text_pair: str | None = option(
        None, "Column of the second texts of pairs.", group=MODEL, metavar="COLUMN", shown="sentence2 beside sentence1"
    )
    label: str | None = option(
        None, "Column of the targets of texts.", group=MODEL, metavar="COLUMN", shown="label, labels, score ..."
    )
    labels: str = option(
        "given",
        "Whether texts have targets; with none, the dense network alone teaches.",
        group=MODEL,
        choices=("given", "none"),
    )
    length: tuple[int, ...] = option(
        (),
        "Lengths of sequences, in tokens, that the network is for: what it costs in MACs is the mean over them.",
        group=MODEL,
        within="[1, inf)",
        shown="that of the example",
    )
    max_length: int | None = option(
        None, "Most tokens of a text.", group=MODEL, within="[1, inf)", shown="what the model takes, at most 512"
    )
    class_map: Path | None = option(
        None,
        "JSON file of the classes' names and the numbers of the outputs that they are.",
        group=MODEL,
        metavar="FILE",
        shown="by their names, where the model knows them",
    )
    tokenizer: Path | None = option(
        None, "Folder of the tokenizer.", group=MODEL, metavar="DIR", shown="that of the model"
    )
    task: str | None = option(
        None,
        f"What the network is for: {', '.join(task_names())}, or package.module:factory.",
        group=MODEL,
        shown="by the data",
        metavar="NAME",
    )
    task_args: dict[str, Any] = option(
        {},
        "Argument of the task, as in ignore=255 or output=logits; repeatable.",
        group=MODEL,
        flag="--task-arg",
    )
    budget: str = option(
        "",
        "Cost to keep: a share of the dense cost, as in macs=0.5, or an amount, as in params=300k; repeatable, and all hold.",
        group=MOST_USED,
        joined=True,
        metavar="METRIC=KEEP",
    )
    profile: Path | None = option(
        None,
        "What onnxruntime takes for this model, from `l0prune profile`: a budget of latency needs it.",
        group=GATES,
        metavar="FILE",
    )
    profile_digest: str = option("", "Hash of the profile, noted when a run begins.", group=RUN, flag=None)
    quality: str = option(
        "",
        "Score to keep instead of a cost, as in 'accuracy>=91' or 'loss<=0.3': the cheapest network that keeps it on data held"
        " out is looked for, in several runs.",
        group=MOST_USED,
        metavar="'METRIC>=X'",
    )
    penalty: str = option(
        "",
        "Lambda of the L0 paper, instead of a budget, as in lambda=0.1, or for the inputs of a layer, as in fc1=10; repeatable.",
        group=GATES,
        joined=True,
        metavar="NAME=NUMBER",
    )
    batch_size: int = option(128, "Inputs per step.", group=MOST_USED, within="[1, inf)")
    from_scratch: bool = option(
        False, "Start with random weights, drawn with --seed, and without a teacher.", group=MODEL
    )
    augment: bool | None = option(
        None,
        "Crop and mirror training images at random; the fewer epochs, the less they are moved.",
        group=MODEL,
        shown="images in colour only",
    )
    gate: str = option(
        "hard-concrete",
        f"Distribution of the gates: {', '.join(family_names())}. With -st appended, samples are rounded and gradients pass"
        " straight through; with -stretched, the mixtures (mdr) reach 0 and 1.",
        group=GATES,
        metavar="NAME",
    )
    gate_args: dict[str, Any] = option(
        {}, "Parameter of this distribution, as in temperature=0.5; repeatable.", group=GATES, flag="--gate-arg"
    )
    ignore: tuple[str, ...] = option(
        (), "Module or parameter whose units are kept; repeatable.", group=GATES, metavar="NAME"
    )
    droprate_init: str = option(
        "",
        "Start the gates at log((1 - RATE) / RATE): all, or those of one layer, as in fc1=0.2; repeatable.",
        group=GATES,
        joined=True,
        metavar="RATE|NAME=RATE",
        shown="nearly open",
    )
    quality_runs: int = option(5, "Runs that a search for a quality may take.", group=RUN, within="[1, inf)")
    held_out: str | None = option(
        None,
        "Rows that judge the network while it is made, 5000 at most: a tenth of the training data, which are not trained on, or"
        " half of the test data.",
        group=RUN,
        choices=("train", "test"),
        shown="none: the test data; in a search, train, or test where the dense network has learned the training data",
    )
    device: str = option("auto", "Where to train.", group=RUN, choices=("auto", "cpu", "cuda"))


PARTS: tuple[type[Options], ...] = (ModelOptions, RunOptions, FinetuneConfig)


@dataclass(frozen=True)
class FinetuneRequest:
    """A run as it is asked for, or with all that was left open written out.

    Args:
        model: The dense model.
        run: Data, what may be kept, gates.
        training: How it is trained; `Settings` once it is resolved.
    """

    model: ModelOptions
    run: RunOptions
    training: FinetuneConfig

    @classmethod
    def asked(cls, typed: Mapping[str, Any]) -> "FinetuneRequest":
        """The request that options, by their names, make; those that are missing have their defaults.

        Raises:
            ConfigError: if a value is out of its range, or options do not go together.
        """
        if typed.get("from_scratch") or typed.get("num_labels"):
            typed = {"distillation": 0.0, **typed}
        return cls(*(kind(**{name: typed[name] for name in options_of(kind) if name in typed}) for kind in PARTS))  # type: ignore[arg-type]

    @property
    def initial_seed(self) -> int:
        """Seed of the weights that the model is built with."""
        return self.training.seed if self.run.from_scratch else 0

    @property
    def starts_untrained(self) -> bool:
        """Whether the network cannot do its task yet, all of its weights or those of its head being random."""
        return self.run.from_scratch or self.model.num_labels is not None

    @property
    def asked_training(self) -> FinetuneConfig:
        """How it is to be trained, together with what the options of the run say about that.

        Raises:
            ConfigError: options of how it is trained do not go with those of the run.
        """
        training = self.training
        if not self.run.droprate_init:
            return training
        if training.gate_start not in (None, OPEN) or not training.trains_gates:
            other = "--gate-start" if training.trains_gates else f"--method {training.chosen_by}"
            why = "says as well where gates start" if training.trains_gates else "trains no gates"
            raise ConfigError(f"{other} {why}: leave it or --droprate-init out")
        return replace(training, gate_start=OPEN)

    @property
    def settings(self) -> Settings:
        """How it is trained, all numbers written out but for what follows from the network and the number of batches.

        Raises:
            ConfigError: options of how it is trained do not go with those of the run.
        """
        knows_widths = False
        if self.run.budget:
            from l0prune.goals.budget import Budgets

            knows_widths = Budgets.parse(self.run.budget).knows_widths
        return resolve(self.asked_training, penalised=bool(self.run.penalty), knows_widths=knows_widths)

    def resolved(self, *, augment: bool, task: str | None, settings: Settings) -> "FinetuneRequest":
        """The same with every default written out.

        Args:
            augment: What to do where the user did not say.
            task: What the network is for, as the data says where the user did not.
            settings: How it is trained, as a look at network and data leaves it.
        """
        augment = augment if self.run.augment is None else self.run.augment
        run = replace(self.run, augment=augment, task=task)
        if run.profile is not None:
            from l0prune.latency.profile import Profile

            run = replace(run, profile_digest=Profile.load(run.profile).digest)
        return replace(self, run=run, training=settings)

    def to_record(self) -> dict[str, Any]:
        """The parts of run.json that describe it: config, seed, model and data, plain JSON values."""
        of_run = {name: recorded(name, value) for name, value in self.run.to_json().items() if name != "data"}
        config = {**of_run, "data": self.run.to_json()["data"], **self.training.to_json()}
        data = config.pop("data")
        model = self.model.to_json()
        return {
            "config": config,
            "seed": self.training.seed,
            "model": {name: recorded(name, value) for name, value in model.items()},
            "data": {"spec": recorded("data", data)},
        }

    @classmethod
    def from_record(cls, record: "RunRecord | SweepRecord") -> "FinetuneRequest":
        """What a run, or each of a sweep, was asked for. Options that came after it have their defaults.

        Raises:
            FileFormatError: if a part has unknown keys or values of another kind.
        """
        if set(record.data) != {"spec"} or not isinstance(record.data["spec"], str):
            raise FileFormatError(f"run.json, data, is not a specification; {REMEDY}")
        if "spec" not in record.model:
            raise FileFormatError(f"run.json, model, has no spec; {REMEDY}")
        of_run = {known.key for known in options_of(RunOptions).values()}
        run = {key: value for key, value in record.config.items() if key in of_run}
        training = {key: value for key, value in record.config.items() if key not in of_run}
        parts = (("model", record.model), ("config", {**run, "data": record.data["spec"]}), ("config", training))
        return cls(*(read_part(kind, data, part) for kind, (part, data) in zip(PARTS, parts, strict=True)))  # type: ignore[arg-type]

    def require_same(self, typed: Mapping[str, Any]) -> None:
        """See that what is typed with `--resume` is what the run began with.

        Args:
            typed: Options that were typed, by name; the others do not count.

        Raises:
            ConfigError: names the first difference.
        """
        parts = (self.model, self.run, self.training)
        began = {name: plain(getattr(part, name)) for part in parts for name in options_of(type(part))}
        for name in sorted(typed.keys() & began.keys()):
            now, before = (plain(recorded(name, value)) for value in (typed[name], began[name]))
            if now != before and (name, now) != ("align", "auto"):
                raise ConfigError(
                    f"{flag(name)} is {as_typed(now)} and was {as_typed(before)} when the run began; "
                    "leave it out to resume, or begin another run with --out or --overwrite"
                )


def read_part(kind: type[Options], data: Mapping[str, Any], part: str) -> Options:
    """The options of a class from a part of run.json.

    Raises:
        FileFormatError: a key is unknown, or a value of another kind or out of range.
    """
    try:
        return kind.from_json(data)
    except ConfigError as error:
        raise FileFormatError(f"run.json, {part}: {shortened(str(error))}; {REMEDY}") from error


def as_typed(value: Any) -> str:
    """The value of an option as it is typed."""
    if value is None or (value in ({}, [], "") and not isinstance(value, bool | int | float)):
        return "not given"
    if isinstance(value, dict):
        return " ".join(f"{key}={inner}" for key, inner in value.items())
    if isinstance(value, list):
        return ",".join(map(str, value))
    return repr(value)
