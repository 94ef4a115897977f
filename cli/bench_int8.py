"""`l0prune bench --int8`: beside each ONNX file one in int8, and the scores of all where the data is known."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0prune.cli.case_data import load_case
from l0prune.cli.evaluate import case_of_run, load_file
from l0prune.cli.model_options import ModelOptions
from l0prune.cli.opened_run import open_finished
from l0prune.cli.output import note
from l0prune.cli.request import RunOptions
from l0prune.cli.trust import data_call, remember, task_call
from l0prune.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from l0prune.cli.case import Case
    from l0prune.onnx.network import OnnxNetwork

__all__ = ["DataOfFiles", "with_int8"]

CALIBRATION_ROWS, ROWS_A_BATCH = 512, 32


def with_int8(
    files: Mapping[str, Path], data: "DataOfFiles | None", *, seed: int
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Write a file in int8 beside each ONNX file.

    Args:
        files: Name -> ONNX file.
        data: What calibrates those with convolutions; None where nothing is known of it.
        seed: Which rows calibrate.

    Returns:
        All files by name, and what a `BenchReport` says of their scores; nothing without data.

    Raises:
        ConfigError: a file has convolutions, whose ranges have to be measured beforehand, and there is no data.
    """
    from l0prune.onnx.int8 import quantize_onnx, way_of

    for file in files.values():
        if data is None and way_of(file) == "static":
            raise ConfigError(
                f"{file} has convolutions, which are calibrated on data before they compute in int8: give --data, or name the"
                " run it belongs to, `l0prune bench RUN --int8`"
            )
    pairs: dict[str, Path] = {}
    for name, file in files.items():
        feeds = []
        if data is not None and way_of(file) == "static":
            feeds = list(calibration(data.case, data.network(file), seed=seed))
        pairs |= {name: file, f"{name} int8": quantize_onnx(file, int8_name(file), feeds)}
        note(f"wrote {int8_name(file)}")
    return pairs, {} if data is None else data.scores(pairs)


@dataclass(frozen=True)
class DataOfFiles:
    """Data that ONNX files are scored and calibrated on.

    Attributes:
        case: The data with the task.
        network: A file as a network that the task can call.
    """

    case: "Case"
    network: "Callable[[Path], OnnxNetwork]"

    @classmethod
    def of_run(cls, path: Path, *, trust: bool) -> "DataOfFiles":
        """The data of a run, whose files take its inputs as they are.

        Args:
            path: The run.
            trust: Whether factories may run that only its run.json names.

        Raises:
            L0PruneError: its model or its data cannot be brought back.
        """
        from l0prune.onnx.network import OnnxNetwork
        from l0prune.onnx.onnx_model import OnnxModel

        case, _ = case_of_run(open_finished(path, trust=trust))
        return cls(case, lambda file: OnnxNetwork(OnnxModel(file)))

    @classmethod
    def of(cls, file: Path, asked: Mapping[str, Any]) -> "DataOfFiles":
        """Data that fits a file which belongs to no run.

        Args:
            file: The first.
            asked: Options of data and task.

        Raises:
            L0PruneError: the data cannot be used, or not with this file.
        """

        def network(file: Path) -> "OnnxNetwork":
            return load_file(ModelOptions(str(file))).model  # type: ignore[return-value]

        model, run = ModelOptions(str(file)), RunOptions(**asked)
        case = load_case(load_file(model), model, run)
        for call in (data_call(run.data, run.data_args), task_call(run.task, run.task_args)):
            remember(call)
        return cls(case, network)

    def scores(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """What a `BenchReport` says of the scores of these files."""
        about = self.case.described()
        scores = {name: self.case.score(self.network(file)) for name, file in files.items()}
        return {"scores": scores, "metric": about["metric"], "unit": about["unit"]}


def int8_name(file: Path) -> Path:
    """Beside the file itself."""
    return file.with_name(f"{file.stem}.int8.onnx")


def calibration(case: "Case", network: "OnnxNetwork", *, seed: int) -> "Iterator[dict[str, np.ndarray]]":
    """Inputs of a file, of training data in an order drawn at random."""
    import torch

    seen = []

    def noting(*args: Any, **kwargs: Any) -> Any:
        seen.append(network.feeds(*args, **kwargs))
        return network(*args, **kwargs)

    rows = network.file.static_batch or ROWS_A_BATCH
    batches = case.train_batches(batch_size=rows, augment=False, epochs=1.0, seed=seed)
    for batch in islice(batches, max(1, CALIBRATION_ROWS // rows)):
        inputs, targets = case.task.split(batch)
        with torch.no_grad():
            case.task.call(noting, inputs, targets)
        yield seen.pop()
