"""Fourier transforms: they mix the indices of some dimensions and leave the others alone; and complex numbers as pairs."""

from l0prune.ops.op import Op, register
from l0prune.ops.tracker import NO_UNIT, Labels

__all__: list[str] = []

_ONE = ["fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft"]
_SEVERAL = [f"fft_{inverse}{real}fft{dims}" for dims in ("2", "n") for real in ("", "r") for inverse in ("", "i")]


@register(*_ONE, *_SEVERAL, "fft_fftshift", "fft_ifftshift")
def fourier(op: Op) -> Labels:
    """Every output along the transformed dimensions depends on all inputs along them; of the others each stays what it was."""
    labels = op.labels(op.arg("self"))
    dims = op.arg("dim")
    if dims is None:
        sizes = op.arg("s") if op.name in _SEVERAL else None
        dims = range(-len(sizes), 0) if sizes else range(len(labels))
    for d in [dims] if isinstance(dims, int) else dims:
        op.tracker.pin(labels[d], f"{op.name} mixes along it")
        labels[d] = None
    return labels


@register("view_as_real")
def pairs(op: Op) -> Labels:
    """One more dimension: the real part and the imaginary one."""
    return [*op.labels(op.arg("self")), None]


@register("view_as_complex")
def complex_numbers(op: Op) -> Labels:
    """The last dimension is the real part and the imaginary one."""
    *labels, parts = op.labels(op.arg("self"))
    op.tracker.pin(parts, NO_UNIT)
    return labels
