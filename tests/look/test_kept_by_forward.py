"""Modules that keep anchors, grids or masks for the shape they were made for: no size is frozen, and nothing is lost."""

import onnx
import pytest
import torch
from flow_case import EXACT, difference, gated_at, inputs, n_parameters, random_gates, ready, traced
from torch import Tensor, nn

from l0prune.look.capture import capture
from l0prune.onnx.export import export_onnx, onnx_difference
from l0prune.surgery.shrink import shrink


def anchors_of(levels: list[Tensor], strides: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of the cells of every level, (cells, 2), and their strides, (cells, 1)."""
    points, sizes = [], []
    for level, stride in zip(levels, strides, strict=True):
        height, width = level.shape[2:]
        y, x = (torch.arange(n, dtype=level.dtype) + 0.5 for n in (height, width))
        y, x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((x, y), -1).view(-1, 2))
        sizes.append(torch.full((height * width, 1), stride, dtype=level.dtype))
    return torch.cat(points), torch.cat(sizes)


class Detect(nn.Module):
    """The head of a one-stage detector: boxes as distributions over distances, anchors kept for the last shape."""

    shape: torch.Size | None = None
    anchors = torch.empty(0)
    strides = torch.empty(0)

    def __init__(self, widths: tuple[int, ...], n_classes: int = 3, n_bins: int = 4) -> None:
        super().__init__()
        self.n_classes, self.n_bins = n_classes, n_bins
        self.stride = torch.tensor([2.0, 4.0], dtype=torch.float64)
        self.boxes = nn.ModuleList(self.branch(width, 4 * n_bins) for width in widths)
        self.classes = nn.ModuleList(self.branch(width, n_classes) for width in widths)
        self.bins = nn.Conv2d(n_bins, 1, 1, bias=False)

    @staticmethod
    def branch(width: int, n_out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, n_out, 1))

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        for i, level in enumerate(levels):
            levels[i] = torch.cat((self.boxes[i](level), self.classes[i](level)), 1)
        shape = levels[0].shape
        x = torch.cat([level.view(shape[0], 4 * self.n_bins + self.n_classes, -1) for level in levels], 2)
        if self.shape != shape:
            self.anchors, self.strides = (part.transpose(0, 1) for part in anchors_of(levels, self.stride))
            self.shape = shape
        boxes, classes = x.split((4 * self.n_bins, self.n_classes), 1)
        distances = self.bins(boxes.view(shape[0], 4, self.n_bins, -1).transpose(2, 1).softmax(1)).view(shape[0], 4, -1)
        near, far = distances.chunk(2, 1)
        corners = torch.cat((self.anchors.unsqueeze(0) - near, self.anchors.unsqueeze(0) + far), 1)
        return torch.cat((corners * self.strides, classes.sigmoid()), 1), levels


class Detector(nn.Module):
    """Two levels and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.detect = Detect((8, 12))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        first = self.first(x).relu()
        return self.detect([first, self.second(first).relu()])


@pytest.mark.parametrize("was_used", [False, True])
def test_anchors_kept_for_a_shape_freeze_no_batch(was_used):
    net, x = ready(Detector()), inputs(2, 3, 16, 16)
    if was_used:
        net(x)
    captured = capture(net, x)

    assert captured.dynamic_batch
    assert captured.program.module(check_guards=False)(inputs(5, 3, 16, 16))[0].shape == (5, 7, 80)


def test_a_detector_is_cut_exactly_at_every_size():
    net = Detector()
    flow = traced(net, inputs(2, 3, 16, 16))
    gated = gated_at(net, flow, random_gates(flow))
    compact = shrink(gated)

    assert n_parameters(compact) < n_parameters(net)
    for sizes in ((2, 3, 16, 16), (3, 3, 24, 8)):
        assert difference(compact(inputs(*sizes)), gated(inputs(*sizes))) < EXACT


def test_a_module_has_what_it_kept_back_after_a_capture():
    net, x = ready(Detector()), inputs(2, 3, 16, 16)
    net(x)
    kept = dict(vars(net.detect))

    capture(net, x)

    assert vars(net.detect).keys() == kept.keys()
    assert all(vars(net.detect)[name] is value for name, value in kept.items())
    assert "forward" not in vars(net)


class Grids(nn.Module):
    """Keeps a list of grids, changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.grid = [torch.empty(0)]

    def forward(self, x: Tensor) -> Tensor:
        rows, _, height, width = x.shape
        if self.grid[0].shape[-2:] != x.shape[-2:] or self.grid[0].shape[0] != rows:
            cells = torch.arange(height * width, dtype=x.dtype).view(1, 1, height, width)
            self.grid[0] = cells.expand(rows, 1, -1, -1)
        return self.conv(x) + self.grid[0]


def test_a_list_that_is_changed_in_place_freezes_no_batch_either_and_stays():
    net, x = ready(Grids()), inputs(2, 3, 4, 4)
    net(x)
    grid, held = net.grid, net.grid[0]

    assert capture(net, x).dynamic_batch
    assert net.grid is grid
    assert net.grid[0] is held


class Stubborn(nn.Module):
    """Cannot do without what it kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.table = torch.arange(4.0, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.table.numel():
            self.table = self.table[:1].expand(x.shape[-1])
        return self.conv(x) + self.table


def test_a_module_that_needs_what_it_keeps_is_captured_with_it():
    net, x = ready(Stubborn()), inputs(2, 3, 4, 4)
    table = net.table

    program = capture(net, x).program.module(check_guards=False)

    assert net.table is table
    assert difference(program(x), net(x)) < EXACT


def test_a_file_of_a_detector_takes_other_batches_and_images(tmp_path):
    torch.manual_seed(0)
    net = Detector()
    net.detect.stride = net.detect.stride.float()
    net.eval()(torch.randn(1, 3, 16, 16))
    path = export_onnx(net, torch.randn(1, 3, 16, 16), tmp_path / "detector.onnx")

    sizes = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in sizes] == ["batch", 3, "height", "width"]
    assert onnx_difference(path, net, torch.randn(3, 3, 24, 12)).max_rel < 1e-4
