"""`l0prune bench --int8`: beside each ONNX file one in int8, and of a run the scores of all."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0prune.cli.evaluate import case_of_run
from l0prune.cli.opened_run import open_finished
from l0prune.cli.output import note
from l0prune.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from l0prune.cli.case import Case

__all__ = ["int8_of_files", "int8_of_run"]

CALIBRATION_ROWS, ROWS_A_BATCH = 512, 32


def int8_of_run(
    path: Path, files: Mapping[str, Path], *, trust: bool, seed: int
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Write a file in int8 beside each file of a run, calibrated on its training data.

    Args:
        path: The run.
        files: Name -> its ONNX file.
        trust: Whether factories may run that only its run.json names.
        seed: Which rows calibrate.

    Returns:
        All files by name, and what a `BenchReport` says of their scores.
    """
    from l0prune.onnx.int8 import quantize_onnx, way_of
    from l0prune.onnx.onnx_model import OnnxModel

    case, _ = case_of_run(open_finished(path, trust=trust))
    pairs: dict[str, Path] = {}
    for name, file in files.items():
        feeds = list(calibration(case, file, seed=seed)) if way_of(file) == "static" else []
        pairs |= {name: file, f"{name} int8": quantize_onnx(file, int8_name(file), feeds)}
        note(f"wrote {int8_name(file)}")
    about = case.described()
    scores = {name: case.score(OnnxModel(file)) for name, file in pairs.items()}
    return pairs, {"scores": scores, "metric": about["metric"], "unit": about["unit"]}


def int8_of_files(files: Mapping[str, Path]) -> dict[str, Path]:
    """Write a file in int8 beside each ONNX file; its ranges are measured at each run, for nobody knows its data.

    Raises:
        ConfigError: a file has convolutions, whose ranges have to be measured beforehand, on data.
    """
    from l0prune.onnx.int8 import quantize_onnx, way_of

    for file in files.values():
        if way_of(file) == "static":
            raise ConfigError(
                f"{file} has convolutions, which are calibrated on data before they compute in int8: name the run it belongs to, "
                "`l0prune bench RUN --int8`, or call l0prune.onnx.int8.quantize_onnx with inputs of yours"
            )
    pairs: dict[str, Path] = {}
    for name, file in files.items():
        pairs |= {name: file, f"{name} int8": quantize_onnx(file, int8_name(file))}
        note(f"wrote {int8_name(file)}")
    return pairs


def int8_name(file: Path) -> Path:
    """Beside the file itself."""
    return file.with_name(f"{file.stem}.int8.onnx")


def calibration(case: "Case", file: Path, *, seed: int) -> "Iterator[dict[str, np.ndarray]]":
    """Inputs of a file, of training data in an order drawn at random."""
    import torch

    from l0prune.onnx.onnx_model import OnnxModel

    model, seen = OnnxModel(file), []

    def noting(*args: Any, **kwargs: Any) -> Any:
        seen.append(model.feeds(*args, **kwargs))
        return model(*args, **kwargs)

    rows = model.static_batch or ROWS_A_BATCH
    batches = case.train_batches(batch_size=rows, augment=False, epochs=1.0, seed=seed)
    for batch in islice(batches, max(1, CALIBRATION_ROWS // rows)):
        inputs, targets = case.task.split(batch)
        with torch.no_grad():
            case.task.call(noting, inputs, targets)
        yield seen.pop()
