"""Numbers rounded as a quantised network will have them, while it is trained: with one scale, or one for each channel."""

from __future__ import annotations

from l0prune.ops.op import Op, register
from l0prune.ops.tracker import Labels

__all__: list[str] = []

OBSERVED = "an observer looks at all of it; torch.ao.quantization.disable_observer ends that"


@register("fake_quantize_per_tensor_affine")
def one_scale(op: Op) -> Labels:
    """Every element alone; scale and zero point are single numbers."""
    return op.labels(op.arg("self"))


@register("fake_quantize_per_channel_affine")
def scale_of_each_channel(op: Op) -> Labels:
    """Scales and zero points lie along `axis`."""
    return _along(op, op.arg("axis"), "scale", "zero_point")


@register("fused_moving_avg_obs_fake_quant")
def observed(op: Op) -> Labels:
    """The same with an observer, which moves the scales by the extremes of all that it sees, as long as it is on."""
    is_on = op.value(op.arg("observer_on"))
    if is_on is None or bool(is_on.any()):
        op.tracker.pin_all(op.labels(op.arg("self")), OBSERVED)
    if op.arg("per_row_fake_quant"):
        return _along(op, op.arg("ch_axis"), "running_min", "running_max", "scale", "zero_point")
    return op.labels(op.arg("self"))


def _along(op: Op, axis: int, *names: str) -> Labels:
    labels = op.labels(op.arg("self"))
    for name in names:
        for ids in op.labels(op.arg(name)):
            op.tracker.tie(labels[axis], ids)
    return labels
