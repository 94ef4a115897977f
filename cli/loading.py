"""From options to a model with its inputs, and to data that fits it."""

from dataclasses import replace
from typing import TYPE_CHECKING

from l0prune.cli.options import ModelOptions
from l0prune.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from l0prune.sources.datasets import DataSource
    from l0prune.sources.model_spec import LoadedModel

__all__ = ["load", "load_data_for"]


def load(options: ModelOptions) -> "LoadedModel":
    """Build the model that the options describe and load its weights.

    Raises:
        ConfigError: if the image size has more than two numbers.
        L0PruneError: as `l0prune.sources.model_spec.load_model`.
    """
    from l0prune.sources.model_spec import load_model

    size = options.image_size
    if size is not None and len(size) > 2:
        raise ConfigError(f"image size has {len(size)} numbers; give one side, or HEIGHT,WIDTH")
    loaded = load_model(
        options.spec,
        weights=None if options.weights is None else str(options.weights),
        model_args=options.model_args,
        input_shape=options.input_shape,
        mean=options.mean,
        std=options.std,
        image_size=None if size is None else (size[0], size[-1]),
        pretrained=options.pretrained,
    )
    return replace(loaded, model=trainable(loaded.model))


def trainable(model: "nn.Module") -> "nn.Module":
    """The model; if it is an exported graph, one whose dropout and batch norms follow its mode."""
    from torch.fx import GraphModule

    from l0prune.surgery.graph_model import GraphModel

    return GraphModel(model, model.graph).eval() if isinstance(model, GraphModule) else model


def load_data_for(loaded: "LoadedModel", spec: str) -> "DataSource":
    """Load a data set and see that the model has an output for each of its classes.

    Raises:
        DataError: if the data cannot be used, or not with this model.
    """
    from l0prune.sources.datasets import load_data
    from l0prune.sources.evaluation import check_classes

    data = load_data(spec, image_size=None if loaded.preprocessing is None else loaded.preprocessing.image_size)
    check_classes(loaded, data)
    return data
