"""A model with its data and its task: batches to train and test on, and what a network scores there."""

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from l0prune.errors import ConfigError, DataError, L0PruneWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from l0prune.finetuning.passes import Batches
    from l0prune.sources.datasets import DataSource
    from l0prune.sources.loaders import Loaders
    from l0prune.sources.model_spec import LoadedModel
    from l0prune.tasks.task import Task

__all__ = ["EVALUATION_BATCH", "Case"]

EVALUATION_BATCH = 250
MOST_GROUPS, FEWEST_ROWS = 20, 5
"""Groups that the error of a score is estimated from, and rows that each of them has at least."""
PADDED_SHARE, PADDED_EPOCHS = 8, 12
"""A crop moves an image by up to an eighth of its height, 4 of 32 pixels, in runs of so many epochs; in shorter ones by less."""


@dataclass(frozen=True, eq=False)
class Case:
    """What a command works on.

    Args:
        loaded: The dense model.
        data: What it is trained and tested on: arrays, or loaders of a user's.
        task: What it is for.
        task_spec: What the task was loaded from.
        dense: A copy of the dense model that stays as it is, where the task's score compares with it.
    """

    loaded: "LoadedModel"
    data: "DataSource | Loaders"
    task: "Task"
    task_spec: str
    dense: "nn.Module | None" = None

    @classmethod
    def of(
        cls, loaded: "LoadedModel", data: "DataSource | Loaders", task: str | None, task_args: "Mapping[str, Any]"
    ) -> "Case":
        """See that the three fit each other.

        Args:
            loaded: As in the class.
            data: As in the class.
            task: Specification of the task; None takes what such data is for.
            task_args: Its arguments.

        Raises:
            DataError: they do not.
            ConfigError: there is no such task.
        """
        from l0prune.sources.datasets import DataSource
        from l0prune.tasks.registry import UNLABELLED, default_task, is_factory, load_task
        from l0prune.tasks.teaching import frozen_copy

        sample = data if isinstance(data, DataSource) else data.sample
        if task is None and sample is None and data.labelled:
            raise DataError(f"{data.name}: it cannot be told what its batches are for: say it with --task")
        spec = task or (UNLABELLED if sample is None else default_task(sample))
        if not isinstance(data, DataSource) and not is_factory(spec):
            _require_pairs(loaded, data)
        if not data.labelled and spec not in (UNLABELLED, "embeddings") and not is_factory(spec):
            raise DataError(f"{data.name} has no targets, which task {spec!r} needs: give them, or --task {UNLABELLED}")
        fitted = load_task(spec, **task_args)
        with warnings.catch_warnings():
            if sample is not data:  # what a batch does not hold says nothing
                warnings.simplefilter("ignore", L0PruneWarning)
            fitted = fitted if sample is None else fitted.for_data(loaded, sample)
        if fitted.compares and loaded.runs_only:
            raise ConfigError(
                f"task {spec!r} compares with the dense network, which {loaded.spec} does not tell: score the run that it belongs"
                " to, or give data with targets and their --task"
            )
        return cls(loaded, data, fitted, spec, frozen_copy(loaded.model) if fitted.compares else None)

    @property
    def augments(self) -> bool:
        """Whether training images are changed at random unless the user says: colour images of one target are."""
        arrays = self._arrays
        return arrays is not None and arrays.has_images and _n_channels(arrays) > 1 and arrays.y_train.ndim == 1

    @property
    def _arrays(self) -> "DataSource | None":
        from l0prune.sources.datasets import DataSource

        return self.data if isinstance(self.data, DataSource) else None

    @property
    def n_test(self) -> int | None:
        """Entries that it is scored on; None where the data do not say."""
        return None if self._arrays is None else len(self._arrays.y_test)

    def n_train(self, batches: "Batches") -> int:
        """Entries that it is trained on.

        Args:
            batches: That it is trained on; where the data do not say, all are taken to be as large as the first.
        """
        from l0prune.finetuning.passes import count_samples

        return count_samples(batches, self.task) if self._arrays is None else len(self._arrays.y_train)

    def train_batches(self, *, batch_size: int, augment: bool, epochs: float, seed: int) -> "Batches":
        """Shuffled training batches of full size; those of loaders as they come.

        Args:
            batch_size: Inputs a batch; a smaller data set is one batch.
            augment: Crop images at random, and mirror them where they are in colour.
            epochs: How often an image is seen: the less often, the less it is moved by a crop.
            seed: Seed of order and augmentation.

        Raises:
            DataError: if the data does not fit the model, or augmentation is asked of what are no images, or of images whose
                targets would have to move with them.
        """
        from l0prune.sources.augmentation import Augmentation
        from l0prune.sources.batches import make_batches

        data = self._arrays
        if data is None:
            if augment:
                raise DataError(f"{self.data.name} makes its batches itself: leave out --augment")
            return cast("Loaders", self.data).train  # type: ignore[return-value]  # to be counted
        if augment and not (data.has_images and data.y_train.ndim == 1):
            what = "target maps, which would not move with their images"
            what = what if data.has_images else "no images, so there is nothing to augment"
            raise DataError(f"{data.name} holds {what}; leave out --augment")
        change = None
        if augment and self.loaded.preprocessing is not None:
            height = self.loaded.preprocessing.image_size[0]
            most = height / PADDED_SHARE
            pad = max(most / 4, most * min(1.0, epochs / PADDED_EPOCHS))
            change = Augmentation(pad=round(pad), flip=_n_channels(data) > 1)
        return make_batches(
            self.loaded,
            data.x_train,
            data.y_train,
            batch_size=min(batch_size, len(data.y_train)),
            augment=change,
            shuffle=True,
            seed=seed,
            drop_last=True,
            pairs=self.task.pairs,
        )

    def score(self, model: "nn.Module | Callable[..., Any]", *, batch_size: int = EVALUATION_BATCH) -> float:
        """Score on the test data, in their order, wherever the model lives.

        Raises:
            DataError: if the data does not fit the model.
        """
        from torch import nn

        from l0prune.sources.batches import make_batches
        from l0prune.sources.loaders import Loaders, Placed

        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = None if parameter is None else parameter.device
        if isinstance(self.data, Loaders):
            return self.task.evaluate(model, Placed(self.data.test, device), dense=self.dense)
        batches = make_batches(
            self.loaded,
            self.data.x_test,
            self.data.y_test,
            batch_size=batch_size,
            device=device,
            pairs=self.task.pairs,
        )
        return self.task.evaluate(model, batches, dense=self.dense)

    def error(self, model: "nn.Module | Callable[..., Any]") -> float | None:
        """Standard error of the score: the data in a few groups, and how their scores spread. None for few rows."""
        import numpy as np

        from l0prune.sources.held_out import take

        data = self._arrays
        n = 0 if data is None else len(data.y_test)
        n_groups = min(MOST_GROUPS, n // FEWEST_ROWS)
        if data is None or n_groups < 2:
            return None
        groups = [np.arange(start, n, n_groups) for start in range(n_groups)]
        parts = [replace(data, x_test=take(data.x_test, g), y_test=data.y_test[g]) for g in groups]
        scores = np.array([replace(self, data=part).score(model) for part in parts])
        error = float(scores.std(ddof=1) / n_groups**0.5)
        return error if np.isfinite(error) else None

    def apart(self, place: str, *, seed: int) -> "tuple[Case, Case]":
        """The same with rows set apart: a case that trains on the rest and is scored on them, and one on the test data left.

        Args:
            place: Where the rows are taken from: "train" or "test".
            seed: Decides which.

        Raises:
            DataError: there are too few, or they come from loaders.
        """
        from l0prune.sources.held_out import set_apart

        if self._arrays is None:
            raise DataError(
                f"{self.data.name} returns loaders, of which no rows can be held out: have it return arrays"
            )
        data = set_apart(self._arrays, place, seed=seed)
        return replace(self, data=data.deciding), replace(self, data=data.judging)

    def evaluate(self, model: "nn.Module") -> dict[str, float]:
        """The score by its name, as `l0prune.finetune` wants it."""
        return {self.task.metric.name: self.score(model)}

    def doubts(self, score: float) -> str | None:
        """What to look at where a trained network scores no better than chance; None where it does."""
        return None if self._arrays is None else self.task.doubts(score, self._arrays)

    def described(self) -> dict[str, Any]:
        """What its score is, as commands print it and runs keep it."""
        metric = self.task.metric
        return {"metric": metric.name, "unit": metric.unit, "higher_is_better": metric.higher_is_better}


def _n_channels(data: "DataSource") -> int:
    shape: tuple[int, ...] = getattr(data.x_train, "shape", ())
    return shape[3] if len(shape) == 4 else 1


def _require_pairs(loaded: "LoadedModel", data: "Loaders") -> None:
    """See that a batch that is no pair is what the model takes.

    Raises:
        DataError: it is a sequence of more, as loaders make of several inputs and targets.
    """
    from l0prune.model_call import signature_of

    signature = signature_of(loaded.model)
    if data.n_parts <= 2 or signature is None:
        return
    try:
        signature.bind(*range(data.n_parts))
    except TypeError as error:
        raise DataError(
            f"{data.name}: a batch is a sequence of {data.n_parts}, which {loaded.spec} does not take as its inputs ({error}): "
            "expected pairs of inputs and targets, as in ((first, second), targets); a loader's collate_fn makes them"
        ) from error
