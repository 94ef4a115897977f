"""What a network is trained and judged by: classes by cross-entropy and accuracy, numbers by squared error."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from l0prune.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from l0prune.sources.batches import Batches
    from l0prune.sources.datasets import DataSource
    from l0prune.sources.model_spec import LoadedModel

__all__ = ["Task"]

EVALUATION_BATCH = 250
PADDED_SHARE = 16  # a crop moves an image by up to a sixteenth of its height: 2 of 32 pixels


@dataclass(frozen=True)
class Task:
    """A model together with its data.

    Args:
        loaded: The dense model.
        data: What it is trained and tested on.
    """

    loaded: "LoadedModel"
    data: "DataSource"

    @property
    def metric(self) -> str:
        """Name of the score: "accuracy" (per cent, higher is better) or "mse" (lower is better)."""
        return "accuracy" if self.data.has_classes else "mse"

    @property
    def augments(self) -> bool:
        """Whether training images are changed at random unless the user says: colour images are."""
        return self.data.has_images and self._n_channels > 1

    @property
    def _n_channels(self) -> int:
        shape: tuple[int, ...] = getattr(self.data.x_train, "shape", ())
        return shape[3] if len(shape) == 4 else 1

    def train_batches(self, *, batch_size: int, augment: bool, seed: int) -> "Batches":
        """Shuffled training batches of full size.

        Args:
            batch_size: Inputs a batch; a smaller data set is one batch.
            augment: Crop images at random, and mirror them where they are in colour.
            seed: Seed of order and augmentation.

        Raises:
            DataError: if the data does not fit the model, or augmentation is asked of what are no images.
        """
        from l0prune.sources.augmentation import Augmentation
        from l0prune.sources.batches import make_batches

        if augment and not self.data.has_images:
            raise DataError(f"{self.data.name} holds no images, so there is nothing to augment; leave out --augment")
        change = None
        if augment and self.loaded.preprocessing is not None:
            height = self.loaded.preprocessing.image_size[0]
            change = Augmentation(pad=height // PADDED_SHARE, flip=self._n_channels > 1)
        n = len(self.data.y_train)
        return make_batches(
            self.loaded,
            self.data.x_train,
            self.data.y_train,
            batch_size=min(batch_size, n),
            augment=change,
            shuffle=True,
            seed=seed,
            drop_last=True,
        )

    def test_batches(self, *, batch_size: int = EVALUATION_BATCH, device: Any = None) -> "Batches":
        """Test batches in the order of the data.

        Raises:
            DataError: if the data does not fit the model.
        """
        from l0prune.sources.batches import make_batches

        return make_batches(
            self.loaded, self.data.x_test, self.data.y_test, batch_size=batch_size, shuffle=False, device=device
        )

    def loss(self, outputs: Any, targets: "Tensor") -> "Tensor":
        """Mean over the batch."""
        from torch.nn import functional as F

        from l0prune.model_call import logits_of

        predicted = logits_of(outputs)
        if self.data.has_classes:
            return F.cross_entropy(predicted, targets)
        if predicted.numel() != targets.numel():
            raise DataError(
                f"the targets of {self.data.name} have shape {tuple(targets.shape[1:])} each, and the model gives"
                f" {tuple(predicted.shape[1:])}: give targets, or a model, of the same size"
            )
        return F.mse_loss(predicted.reshape(targets.shape), targets)

    def score(self, model: "nn.Module | Callable[..., Any]", *, batch_size: int = EVALUATION_BATCH) -> float:
        """Accuracy in per cent, or mean squared error, on the test data, wherever the model lives."""
        from torch import nn

        from l0prune.sources.evaluation import accuracy

        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        batches = self.test_batches(batch_size=batch_size, device=None if parameter is None else parameter.device)
        return accuracy(model, batches) if self.data.has_classes else self._mean_loss(model, batches)

    def doubts(self, score: float) -> str | None:
        """What to look at where a trained network scores no better than chance; None where it does."""
        from l0prune.sources.evaluation import is_chance, most_frequent

        if not self.data.has_classes or not is_chance(score, self.data):
            return None
        return (
            f"CAREFUL: the dense network is right on {score:.2f} % of {self.data.name}, no more than chance: one class alone is "
            f"{most_frequent(self.data):.2f} % of it. Before you trust what follows, look at the order of the labels against its "
            "outputs, at the normalisation (--mean, --std) and at the weights (--weights)"
        )

    def evaluate(self, model: "nn.Module") -> dict[str, float]:
        """The score by its name, as `l0prune.finetune` wants it."""
        return {self.metric: self.score(model)}

    def _mean_loss(self, model: Callable[..., Any], batches: "Iterable[tuple[Any, Tensor]]") -> float:
        import torch

        from l0prune.model_call import call

        total = n = 0.0
        with torch.no_grad():
            for inputs, targets in batches:
                total += float(self.loss(call(model, inputs), targets)) * len(targets)
                n += len(targets)
        return total / n
