"""From a model to its units, and to the gates that a run asks for, at the costs that it is held to."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from l0prune.cli.output import note
from l0prune.cli.request import FinetuneRequest, RunOptions
from l0prune.errors import ConfigError, L0PruneWarning

if TYPE_CHECKING:
    from l0prune.cost.kinds import Costs
    from l0prune.flow.channel_flow import ChannelFlow
    from l0prune.gated.initial import DropRate
    from l0prune.gated.model import GatedModel
    from l0prune.latency.profile import Profile
    from l0prune.model_call import ExampleInputs
    from l0prune.sources.model_spec import LoadedModel

__all__ = ["calls_at", "gated_model_of", "price_by_profile", "traced"]


def traced(loaded: "LoadedModel", run: RunOptions) -> "ChannelFlow":
    """The units of a model, but for those that a run ignores.

    Raises:
        L0PruneError: as `l0prune.trace`.
    """
    import l0prune
    from l0prune.goals.budget import Budgets

    if run.length and run.budget and Budgets.parse(run.budget).knows_widths:
        raise ConfigError(
            "--length is a mean over lengths, and a profile is of one: leave it out of a budget of latency, and measure the"
            " profile at the length that counts (`l0prune profile --length`)"
        )
    first, *others = calls_at(loaded, run.length)
    return l0prune.trace(loaded.model, first, ignore=run.ignore, also=others)


def calls_at(loaded: "LoadedModel", lengths: tuple[int, ...]) -> "list[ExampleInputs]":
    """The example at each length; as it is where none is asked for.

    Raises:
        ConfigError: the model takes no tokens.
    """
    from l0prune.look.free_sizes import at_length
    from l0prune.model_call import ModelCall

    if not lengths:
        return [loaded.example_inputs]
    example = ModelCall.of(loaded.example_inputs, loaded.model)
    found = [at_length(example, length) for length in lengths]
    calls: list[ExampleInputs] = [call for call in found if call is not None]
    if len(calls) < len(lengths):
        raise ConfigError(f"--length is for models that take tokens, and {loaded.spec} takes none")
    return calls


def gated_model_of(
    loaded: "LoadedModel", request: "FinetuneRequest", *, flow: "ChannelFlow", droprate: "DropRate | None" = None
) -> "GatedModel":
    """The model with the gates that a run asks for.

    Args:
        loaded: The model.
        request: The run.
        flow: Of the model.
        droprate: Where the gates start; None for the gate's own place.

    Raises:
        L0PruneError: as `l0prune.inject`.
    """
    import l0prune

    run = request.run
    gated = l0prune.inject(
        loaded.model, flow, gate=run.gate, gate_args=run.gate_args, droprate=droprate, seed=request.training.seed
    )
    if run.profile is not None:
        price_by_profile(gated.costs, run.profile, digest=run.profile_digest, lengths=run.length)
    return gated


def price_by_profile(
    costs: "Costs",
    path: Path,
    *,
    digest: str = "",
    profile: "Profile | None" = None,
    lengths: tuple[int, ...] | None = None,
) -> "Profile":
    """Let costs that have to be measured be those of a profile; say where it was measured, if not here.

    Args:
        costs: Of the network.
        path: File of the profile.
        digest: Of the profile that a run began with, where one has.
        profile: What is in the file, where that has been read already.
        lengths: Of sequences, that the other costs are the mean over; None leaves them to the example.

    Raises:
        ConfigError: the profile is of another network, length or size of images, or is not the one that the run began with.
        FileFormatError: the file is no profile.
    """
    from l0prune.cost.kinds import metric_named, metric_names
    from l0prune.latency.profile import Profile

    profile = profile or Profile.load(path)
    if digest and profile.digest != digest:
        raise ConfigError(f"{path} has changed since the run began: put the profile back that it began with")
    profile.require_lengths(lengths or ())
    for metric in metric_names():
        if metric_named(metric).cost is None:
            costs(metric, profile)
    elsewhere = profile.elsewhere()
    if elsewhere:
        note(f"{path} {elsewhere}: what it says holds there")
    if profile.doubts:
        warnings.warn(profile.doubts, L0PruneWarning, stacklevel=2)
    return profile
