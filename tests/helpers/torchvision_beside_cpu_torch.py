"""Let a torchvision that was built for CUDA be imported beside a CPU build of torch.

The package index carries torchvision built for CUDA only. Beside a CPU torch its compiled library does not load, and the
import fails where torchvision registers fake versions of operators that library would have defined. Declaring these operators
first is enough for classification models, which call none of them.

Importing this module, before torchvision, does it; nothing else is imported until torchvision is.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["declare_operators"]

POOL = "SymInt pooled_height, SymInt pooled_width"
IMAGE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
CONV = (
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, "
    "SymInt groups, SymInt offset_groups, bool use_mask"
)
TENSORS = {n: "(" + ", ".join(["Tensor"] * n) + ")" for n in (2, 5)}
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align(Tensor input, Tensor rois, float spatial_scale, {POOL}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, {POOL}, {IMAGE}, "
    "int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool(Tensor input, Tensor rois, float spatial_scale, {POOL}) -> {TENSORS[2]}",
    f"_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, float spatial_scale, {POOL}, {IMAGE}) -> Tensor",
    f"ps_roi_align(Tensor input, Tensor rois, float spatial_scale, {POOL}, int sampling_ratio) -> {TENSORS[2]}",
    "_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, "
    f"{POOL}, int sampling_ratio, {IMAGE}) -> Tensor",
    f"ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, {POOL}) -> {TENSORS[2]}",
    "_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, "
    f"{POOL}, {IMAGE}) -> Tensor",
    f"deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, {CONV}) -> Tensor",
    "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
    f"{CONV}) -> {TENSORS[5]}",
)
KEPT_ALIVE = []  # operators vanish with the library object that declared them


def declare_operators() -> None:
    """Declare torchvision's compiled operators where torch is a CPU build; elsewhere torchvision brings its own."""
    import torch

    if torch.version.cuda is not None or KEPT_ALIVE:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    KEPT_ALIVE.append(library)
    for schema in OPERATORS:
        library.define(schema)


class BeforeTorchvision(MetaPathFinder):
    """Finds nothing, but notices the first import of torchvision."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Declare the operators once torchvision is about to be imported; the other finders find it."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            declare_operators()
        return None


if not any(type(finder).__name__ == BeforeTorchvision.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, BeforeTorchvision())
