"""An ONNX file, whoever wrote it, in the place of a network that is scored."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.errors import ConfigError, FileFormatError
from l0prune.onnx.feeds import random_feeds
from l0prune.onnx.image_file import PREPROCESSING, described_images
from l0prune.onnx.onnx_model import EXAMPLE_KEY, OnnxModel, sizes_of
from l0prune.reading import is_file, read_json
from l0prune.sources.libraries import image_processing
from l0prune.sources.model_spec import EXAMPLE_BATCH, LoadedModel
from l0prune.sources.preprocessing import Preprocessing

__all__ = ["OnnxNetwork", "load_onnx"]

CHANNELS = (1, 3, 4)
CONFIG = "config.json"
EXAMPLE_LENGTH = 16
"""Tokens of an example, where the file does not say."""


class OnnxNetwork(nn.Module):
    """An ONNX file as a module without parameters.

    Args:
        file: The file.
        channels_last: Whether its images have their channels last, as those of TensorFlow do; it is called as if they were first.

    Attributes:
        folder: The folder of transformers that it lies in, or None.
        config: What the configuration there says, or None.
    """

    def __init__(self, file: OnnxModel, *, channels_last: bool = False) -> None:
        super().__init__()
        self.file, self.channels_last = file, channels_last
        self.folder: Path | None
        self.config: Any
        found = [(folder, _configuration(folder / CONFIG)) for folder in (file.path.parent, file.path.parent.parent)]
        self.folder, self.config = next((pair for pair in found if pair[1] is not None), (None, None))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `OnnxModel`; pixels are rounded for a file that takes whole ones."""
        args, kwargs = self._taken(args, kwargs)
        return self.file(*args, **kwargs)

    def feeds(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What goes into the file, by the names of its inputs."""
        args, kwargs = self._taken(args, kwargs)
        return self.file.feeds(*args, **kwargs)

    def _taken(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs as the file takes them."""
        return tuple(map(self._as_image, args)), {name: self._as_image(value) for name, value in kwargs.items()}

    @property
    def fixed_length(self) -> int | None:
        """The only number of tokens that it takes; None where it takes any, or none at all."""
        node = next((node for node in self.file.session.get_inputs() if _is_of_tokens(node)), None)
        length = None if node is None else sizes_of(node)[1]
        return length if isinstance(length, int) else None

    def _as_image(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() != 4:
            return value
        if self.channels_last:
            value = value.permute(0, 2, 3, 1)
        whole = self.file.session.get_inputs()[0].type == "tensor(uint8)"
        return value.round().clamp(0, 255).to(torch.uint8) if whole and value.is_floating_point() else value


def load_onnx(
    path: Path | str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: tuple[int, int] | None = None,
    input_shape: Sequence[int] | None = None,
    threads: int = 1,
) -> LoadedModel:
    """An ONNX file as a model, with an example of its inputs.

    Images become its input as preprocessing.json beside it says; without that, as they are asked to; else pixels are divided by
    255, or stay whole where the file takes whole ones.

    Args:
        path: The file.
        mean: Normalisation of images, one value or one a channel, in units of pixel / 255.
        std: Likewise.
        image_size: (height, width), where the file takes several.
        input_shape: One input without the batch, where a file with one input of numbers leaves its sizes open.
        threads: onnxruntime's.

    Raises:
        ConfigError: there is no such file, or a size that it leaves open is not given, or one that it fixes is given otherwise.
        FileFormatError: it is not an ONNX file, or the preprocessing.json beside it cannot be read.
        ExportError: onnxruntime cannot run it.
    """
    file = OnnxModel(path, threads=threads)
    nodes = file.session.get_inputs()
    if not nodes:
        raise ConfigError(f"{path} has no inputs, so there is nothing to score.")
    shape = sizes_of(nodes[0])
    is_image = len(nodes) == 1 and len(shape) == 4 and ("float" in nodes[0].type or nodes[0].type == "tensor(uint8)")
    last = is_image and shape[3] in CHANNELS and shape[1] not in CHANNELS
    network = OnnxNetwork(file, channels_last=last)
    asked = None if input_shape is None else tuple(input_shape)
    if asked is not None and len(nodes) > 1:
        raise ConfigError(f"{path} takes {len(nodes)} inputs, and one shape is given: leave out --input-shape")
    preprocessing = None
    if is_image:
        channels, *size = [shape[at] for at in ((3, 1, 2) if last else (1, 2, 3))]
        if asked is not None:
            if len(asked) != 3 or (isinstance(channels, int) and asked[0] != channels):
                raise ConfigError(f"{path} takes images of {_text((channels, *size))}, not of {_text(asked)}")
            image_size = image_size or (asked[1], asked[2])
        preprocessing = _preprocessing(network, channels, size, image_size, mean, std)
        channels, height, width = preprocessing.input_shape
        asked = (height, width, channels) if last else (channels, height, width)
    elif mean is not None or std is not None or image_size is not None:
        raise ConfigError(f"{path} takes no images: leave out --mean, --std and --image-size")
    example = {name: torch.from_numpy(value) for name, value in _example(file, asked).items()}
    if preprocessing is not None:
        example = {nodes[0].name: torch.zeros(len(example[nodes[0].name]), *preprocessing.input_shape)}
    return LoadedModel(network.eval(), example, preprocessing, str(path), runs_only=True)


def _example(file: OnnxModel, asked: tuple[int, ...] | None) -> dict[str, Any]:
    """Inputs of the file at random.

    Args:
        file: The file.
        asked: Shape of its only input without the batch.
    """
    nodes = file.session.get_inputs()
    sizes: dict[str, int] = {}
    known = file.session.get_modelmeta().custom_metadata_map
    for node in nodes:
        shape = sizes_of(node)
        if asked is not None and len(nodes) == 1:
            if len(asked) != len(shape) - 1 or any(
                isinstance(s, int) and s != a for s, a in zip(shape[1:], asked, strict=True)
            ):
                raise ConfigError(f"{file.path} takes inputs of {_text(shape[1:])}, not of {_text(asked)}")
            sizes |= {s: a for s, a in zip(shape[1:], asked, strict=True) if isinstance(s, str)}
            continue
        for size in shape[1:]:
            if isinstance(size, str) and f"{EXAMPLE_KEY}{size}" not in known:
                if not _is_of_tokens(node):
                    raise ConfigError(
                        f"{file.path}: input {node.name!r} of {_text(shape[1:])} leaves {size!r} open: give the shape of one"
                        " input without the batch (--input-shape)"
                    )
                sizes[size] = EXAMPLE_LENGTH
    rows = file.static_batch or EXAMPLE_BATCH
    return random_feeds(str(file.path), file.session, rows, sizes, seed=0)


def _preprocessing(
    network: OnnxNetwork,
    channels: int | str,
    size: Sequence[int | str],
    asked: tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Preprocessing:
    """How images become the input of a file."""
    file = network.file
    whole = file.session.get_inputs()[0].type == "tensor(uint8)"
    if whole and (mean is not None or std is not None):
        raise ConfigError(f"{file.path} takes whole pixels and normalises them itself: leave out --mean and --std")
    stated = None if whole else described_images(file.path.with_name(PREPROCESSING))
    if stated is None and network.folder is not None and hasattr(network.config, "image_size") and not whole:
        stated = image_processing(network.folder, network.config)
    known = file.session.get_modelmeta().custom_metadata_map
    sides = []
    for at, side in enumerate(size):
        fixed = side if isinstance(side, int) else None
        wanted = asked[at] if asked is not None else None
        if fixed is not None and wanted is not None and fixed != wanted:
            raise ConfigError(f"{file.path} takes images of {_text(size)} alone; leave out --image-size")
        usual = stated.image_size[at] if stated is not None else int(known.get(f"{EXAMPLE_KEY}{side}", 0))
        sides.append(fixed or wanted or usual)
    if not all(sides):
        raise ConfigError(f"{file.path} takes images of any size: say which, with --image-size")
    number = channels if isinstance(channels, int) else len(stated.mean) if stated is not None else 3
    if stated is not None and stated.channels == number:
        base = stated
    else:
        base = Preprocessing((1, 1), (0.0,) * number, (1 / 255 if whole else 1.0,) * number)
    return base.override(image_size=(sides[0], sides[1]), mean=mean, std=std)


def _configuration(path: Path) -> Any:
    """What stands in the configuration of a folder of transformers, as attributes; None for what is none."""
    if not is_file(path):
        return None
    try:
        content = read_json(path, "configuration of a model")
    except FileFormatError:  # a file of that name is anybody's
        return None
    if not isinstance(content, dict) or "model_type" not in content:
        return None
    names = content.get("id2label")
    if isinstance(names, dict):
        content["id2label"] = {int(key) if key.isdecimal() else key: name for key, name in names.items()}
    return SimpleNamespace(**content)


def _is_of_tokens(node: Any) -> bool:
    """Whether an input holds whole numbers (N, T)."""
    return len(node.shape) == 2 and node.type in ("tensor(int64)", "tensor(int32)")


def _text(shape: Sequence[Any]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
