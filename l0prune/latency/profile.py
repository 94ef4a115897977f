"""What onnxruntime takes for the layers of one network at any widths, on one machine: a file of tables."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0prune.errors import ConfigError, FileFormatError
from l0prune.files import write_whole
from l0prune.measuring.hardware import Environment
from l0prune.plain_data import FileKind
from l0prune.reading import read_json, reading

if TYPE_CHECKING:
    from l0prune.flow.channel_flow import ChannelFlow
    from l0prune.latency.cost import LatencyCost

__all__ = ["Axis", "Check", "Piece", "Profile", "ProfiledLayer", "Table", "Where", "network_fingerprint"]

REMEDY = "make it again with `l0prune profile MODEL --out PROFILE`"
KIND = FileKind("l0prune.profile", 1, "a profile of a network", REMEDY)

NOISY = 0.05
"""Relative width of the interval of the dense network's time from which on a profile is called noisy."""

_OF_TOKENS, _OF_IMAGES = 2, 4
"""Dimensions of an input of sequences: rows and their length; and of one of images: rows, channels, height and width."""

REGIONS = ("small", "whole", "odd")
"""Of counts: below a block; multiples of what the blocked kernels take; others."""


@dataclass(frozen=True)
class Axis:
    """Counts of one side at which a table has values; between them it is linear.

    Attributes:
        region: One of `REGIONS`.
        step: Counts are rounded up to a multiple of this, but not beyond the last knot.
        knots: Ascending, >= 1; beyond the ends the values at the ends stand.
    """

    region: str
    step: int
    knots: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check what a file may have got wrong."""
        ascending = all(a < b for a, b in zip(self.knots, self.knots[1:], strict=False))
        if self.region not in REGIONS or self.step < 1 or not self.knots or not ascending or self.knots[0] < 1:
            raise FileFormatError(f"an axis of a profile has knots {self.knots[:4]} of {self.region!r}; {REMEDY}")


@dataclass(frozen=True)
class Piece:
    """Times for counts in one region each.

    Attributes:
        axes: One or two.
        us: Microseconds at the knots; of two axes, those of the first one after another.
    """

    axes: tuple[Axis, ...]
    us: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check what a file may have got wrong."""
        if not 1 <= len(self.axes) <= 2 or len(self.us) != math.prod(len(axis.knots) for axis in self.axes):
            raise FileFormatError(f"a table of a profile has {len(self.us)} times on {len(self.axes)} axes; {REMEDY}")


@dataclass(frozen=True)
class Table:
    """Times of one kind of layer over its counts: what it reads, and what it writes.

    Attributes:
        kind: For people: the operator and its sizes.
        pieces: One for each combination of regions.
        closed: Piece for the second count (or one time, without axes that matter) where nothing comes in: what a residual
            branch leaves behind that is dropped. None where nothing is left.
    """

    kind: str
    pieces: tuple[Piece, ...]
    closed: Piece | None = None

    @property
    def n_sides(self) -> int:
        """Number of counts it depends on."""
        return len(self.pieces[0].axes)

    def __post_init__(self) -> None:
        """Check what a file may have got wrong."""
        if not self.pieces or len({len(piece.axes) for piece in self.pieces}) != 1:
            raise FileFormatError(
                f"table {self.kind!r} of a profile has no pieces, or pieces of several kinds; {REMEDY}"
            )


@dataclass(frozen=True)
class Where:
    """A dimension of the traced network.

    Attributes:
        name: Of a tensor, or of a node of the graph; empty for a constant.
        place: Dimension of it; of a node with several outputs, output and dimension.
        size: Of the dense network.
    """

    name: str
    place: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class ProfiledLayer:
    """A layer, with what onnxruntime does between it and the next one.

    Attributes:
        name: For people.
        table: Number of its table.
        sides: The counts that the table is read at.
        needs: Dimensions without which it is dropped, beside its sides.
    """

    name: str
    table: int
    sides: tuple[Where, ...]
    needs: tuple[Where, ...] = ()


@dataclass(frozen=True)
class Check:
    """A network of random widths that was measured and took no part in the tables.

    Attributes:
        predicted_ms: What the tables say.
        measured_ms: What onnxruntime took.
    """

    predicted_ms: float
    measured_ms: float


@dataclass(frozen=True)
class Profile:
    """What a network takes in onnxruntime at any widths.

    Attributes:
        fingerprint: Of the names and shapes of its tensors.
        model: What it was called when it was measured.
        processor: That it was measured on.
        environment: Machine, versions, threads and batch.
        provider: Execution provider of onnxruntime.
        inputs: Shapes of what went in, by name.
        block: Channels of a block of onnxruntime's kernels.
        multiple: Counts of a block and more are fast where they are multiples of this.
        dense_ms: Time of the dense network.
        dense_interval_ms: Between these it lies in 95 of 100 repetitions of the measurement.
        fixed_us: What depends on no width.
        tables: Times.
        layers: What the network is made of.
        checks: How well the tables predict.
        seconds: That the measurement took.
        whole: What all layers add up to -> what the network takes as a whole, microseconds, both ascending: the same layers
            take less time in a small network, whose weights stay in the processor's cache from one run to the next. Linear
            between, in proportion beyond; without entries the sum stands.
    """

    fingerprint: str
    model: str
    processor: str
    environment: Environment
    provider: str
    inputs: dict[str, tuple[int, ...]]
    block: int
    multiple: int
    dense_ms: float
    dense_interval_ms: tuple[float, float]
    fixed_us: float
    tables: tuple[Table, ...]
    layers: tuple[ProfiledLayer, ...]
    checks: tuple[Check, ...]
    seconds: float
    whole: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        """Check what a file may have got wrong."""
        before = (0.0, 0.0)
        for knot in self.whole:
            if not (knot[0] > before[0] and knot[1] > 0 and knot[1] >= before[1]):
                raise FileFormatError(
                    f"a profile says that layers of {knot[0]} us take {knot[1]} us together; {REMEDY}"
                )
            before = knot
        for layer in self.layers:
            if not 0 <= layer.table < len(self.tables) or len(layer.sides) != self.tables[layer.table].n_sides:
                raise FileFormatError(f"layer {layer.name!r} of a profile has no table that fits; {REMEDY}")
        if self.block < 1 or self.multiple < 1 or not self.dense_ms > 0:
            raise FileFormatError(f"a profile has blocks of {self.block} and takes {self.dense_ms} ms; {REMEDY}")

    def __repr__(self) -> str:
        """One line: what of, and where."""
        return f"<Profile of {self.model}: {self.dense_ms:.3g} ms dense on {self.processor}, {self.threads} threads>"

    @property
    def threads(self) -> int:
        """Threads of onnxruntime."""
        return self.environment.threads

    @property
    def noise(self) -> float:
        """Width of the interval of the dense time, relative to it."""
        low, high = self.dense_interval_ms
        return (high - low) / self.dense_ms

    @property
    def doubts(self) -> str:
        """What a noisy machine means for what it predicts, for a message; empty where the machine was quiet."""
        if self.noise <= NOISY:
            return ""
        low, high = self.dense_interval_ms
        return (
            f"the machine was noisy when {self.model or 'this network'} was profiled: the dense network takes"
            f" {self.dense_ms:.3g} ms, between {low:.3g} and {high:.3g}, and what the profile predicts is no better;"
            " stop other work and profile again"
        )

    @property
    def error(self) -> float:
        """Half of the checks are predicted at least this well, relative; 0 without checks."""
        errors = sorted(abs(check.predicted_ms / check.measured_ms - 1) for check in self.checks)
        return errors[len(errors) // 2] if errors else 0.0

    @property
    def digest(self) -> str:
        """Hash of all of it, which says in run.json which profile a run was made with."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return KIND.stamped(asdict(self))

    @classmethod
    def from_json(cls, value: Mapping[str, Any], source: str = "profile") -> Profile:
        """From the object `to_json` made.

        Raises:
            FileFormatError: another format or version, missing or unknown keys, or tables that make no sense.
        """
        return KIND.read(cls, value, source, optional=("whole",))

    def save(self, path: Path | str) -> Path:
        """Write the file; returns its path."""
        path = Path(path)
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: the directory {path.parent} does not exist. Create it first.")
        write_whole(path, json.dumps(self.to_json()) + "\n")
        return path

    @classmethod
    def load(cls, path: Path | str) -> Profile:
        """Read the file.

        Raises:
            ConfigError: there is none.
            FileFormatError: it is no profile.
        """
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"{path}: no such file. Make it with `l0prune profile MODEL --out PROFILE`.")
        with reading(path, "profile"):
            return cls.from_json(read_json(path, "profile"), str(path))

    def cost(self, flow: ChannelFlow) -> LatencyCost:
        """The latency of a traced network as a cost.

        Raises:
            ConfigError: the profile is of another network.
        """
        from l0prune.latency.cost import LatencyCost

        return LatencyCost(flow, self)

    def require_network(self, flow: ChannelFlow) -> None:
        """See that it speaks of this network, and of images as large as those it was traced with.

        Raises:
            ConfigError: it was made for another one, or other images.
        """
        if network_fingerprint(flow) != self.fingerprint:
            raise ConfigError(
                f"this profile is of another network ({self.model}), whose layers have other names or sizes; {REMEDY}"
            )
        self.require_image_sizes([shape[1:] for shape in flow.captured.row_shapes if len(shape) == _OF_IMAGES - 1])

    def elsewhere(self) -> str:
        """In what it was measured that is not here, for a message; empty where there is nothing."""
        import onnxruntime

        from l0prune.measuring.hardware import processor

        here = {"processor": processor().key, "onnxruntime": onnxruntime.__version__}
        there = {"processor": self.processor, "onnxruntime": self.environment.onnxruntime}
        other = [f"{what} {value}, here is {here[what]}" for what, value in there.items() if value != here[what]]
        return f"was measured with {'; '.join(other)}" if other else ""

    def require_terms(self, *, threads: int, batch_size: int) -> None:
        """See that it was measured with these threads and this batch.

        Raises:
            ConfigError: it was not.
        """
        there = {"threads": self.threads, "batch_size": self.environment.batch_size}
        for what, value in {"threads": threads, "batch_size": batch_size}.items():
            if value != there[what]:
                raise ConfigError(
                    f"this profile was measured with {what}={there[what]}, and {what}={value} is asked for; {REMEDY}"
                )

    def require_lengths(self, lengths: Collection[int]) -> None:
        """See that it was measured at these lengths of sequences.

        Args:
            lengths: What is asked for; nothing asks for none.

        Raises:
            ConfigError: it was measured at another one, or there are several.
        """
        there = sorted({shape[1] for shape in self.inputs.values() if len(shape) == _OF_TOKENS})
        if there and set(lengths) - set(there):
            at, asked = ", ".join(map(str, there)), ",".join(map(str, lengths))
            raise ConfigError(
                f"this profile was measured at a length of {at}, and lengths of {asked} are asked for: a profile is of one"
                f" length, so give --length {at}, or make one at another with `l0prune profile MODEL --length N --out PROFILE`"
            )

    def require_image_sizes(self, sizes: Collection[Sequence[int]]) -> None:
        """See that it was measured with images of this size.

        Args:
            sizes: What is asked for, (height, width) each; nothing asks for none.

        Raises:
            ConfigError: it was measured with images of another size, or there are several.
        """
        there = {tuple(shape[2:]) for shape in self.inputs.values() if len(shape) == _OF_IMAGES}
        wanted = {tuple(size) for size in sizes}
        if there and wanted - there:
            at, asked = (", ".join("x".join(map(str, size)) for size in sorted(known)) for known in (there, wanted))
            raise ConfigError(
                f"this profile was measured with images of {at}, and {asked} is asked for: a profile is of one size, so leave it"
                " at that, or make one of another with `l0prune profile MODEL --image-size N --out PROFILE`"
            )


def network_fingerprint(flow: ChannelFlow) -> str:
    """Hash of the names and shapes of a traced network's tensors."""
    lines = sorted(f"{name} {tuple(shape)}" for name, shape in flow.sizes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
