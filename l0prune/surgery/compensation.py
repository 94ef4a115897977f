"""Recovery without training: what a cut takes from a layer, the inputs that it keeps make up for, in closed form.

The network as it will be cut and the dense one are run side by side, operation by operation, over some calibration inputs. Each
layer that loses inputs gets the weights with which what is left of its input, computed by the layers before it as they are by
then, comes closest to the dense layer's outputs; batch norms get the statistics of what reaches them. Labels are not needed.

Source: the least squares of He, Zhang, Sun (2017), arXiv:1707.06168, section 3.1, one layer after another; held near the old
weights as in Frantar, Alistarh (2022), arXiv:2208.11580.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from l0prune.errors import ConfigError, DataError, first_line
from l0prune.gated.model import GatedModel
from l0prune.kept import Kept
from l0prune.surgery.calibration import calibration_inputs
from l0prune.surgery.fitting import Compensation, Fitting
from l0prune.surgery.in_graph import cut_in_graph
from l0prune.surgery.plan import SurgeryPlan, make_plan, named_tensors

__all__ = ["Compensation", "compensate_"]


@torch.no_grad()
def compensate_(
    gated: GatedModel, calls: Iterable[Callable[[nn.Module], Any]], *, teacher: nn.Module | None = None, seed: int = 0
) -> Compensation:
    """Change the weights that consume units, so that the cut network's layers give what the dense network's give.

    To be called when the gates are frozen, before `shrink`, which cuts and verifies as ever. Parameters that consume no units
    stay as they are, but for the biases of layers whose weights do; so do weights that several layers share, weights that are
    computed from parameters when they are used, and all that only removed units use.

    Args:
        gated: Its gates are frozen. Weights, biases and running statistics of its model change; nothing does if an error is
            raised.
        calls: Each calls the model with a batch, on its device, some hundred inputs in all; they are held in memory together,
            and so are the values of both networks between two layers.
        teacher: The dense network; None takes the gated model's own weights with all gates open.
        seed: Seed of the choice of positions.

    Returns:
        What was done.

    Raises:
        ConfigError: the gates are not frozen, or there is no graph of the model.
        DataError: there are no calls, or their inputs are not of the kind that was traced.
    """
    flow, tensors = gated.flow, named_tensors(gated.model)
    if not gated.frozen:
        raise ConfigError("the gates are still random: freeze() them before the layers that are cut are fitted")
    if flow.refusal:
        raise ConfigError(f"there is no graph to fit layers in: {flow.refusal}")
    values = gated.gate_values().double().cpu().numpy()
    kept, whole = Kept(values != 0), Kept(np.ones(gated.n_gates, dtype=bool))
    plan = make_plan(flow, gated.model, values, kept)
    batches = calibration_inputs(gated.model, flow.captured, calls)
    taught = tensors if teacher is None else named_tensors(teacher)
    device = next((tensor.device for tensor in tensors.values()), None)
    taught = {name: tensor.to(device) for name, tensor in taught.items()}
    dense = cut_in_graph(flow, taught, SurgeryPlan(plan.fingerprint, {}), whole)
    compact = cut_in_graph(flow, tensors, plan, kept)
    fitting = Fitting(gated, kept, dense, compact, batches, seed)
    try:
        found = fitting.run()
    except (RuntimeError, IndexError, ValueError) as error:
        raise DataError(
            f"the calibration inputs do not run through the traced graph ({first_line(error, named=True)}); "
            "trace the model with inputs of their kind"
        ) from error
    for name, value in fitting.changed.items():
        known = flow.aliases.get(name, name)
        plan.write_back_(known, tensors[known], value)
    return found
