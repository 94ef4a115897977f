"""What a dropped branch leaves is added by a batch norm, which computes the same."""

import onnx
import torch
from torch import nn

import l0prune
from l0prune.onnx.onnx_model import onnx_difference


class Sums(nn.Module):
    """An image plus a number a channel, on either side, plus one a pixel, and a row plus a number an entry."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.register_buffer("channels", torch.randn(1, 8, 1, 1))
        self.register_buffer("pixels", torch.randn(1, 1, 6, 6))
        self.register_buffer("row", torch.randn(1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.channels + torch.relu(self.conv(x)) + self.pixels)
        return (x + 2 * self.channels).mean((2, 3)) + self.row


def test_numbers_added_to_channels_become_norms_and_other_sums_stay(tmp_path):
    torch.manual_seed(0)
    model, x = Sums().eval(), torch.randn(2, 3, 6, 6)

    path = l0prune.export_onnx(model, x, tmp_path / "net.onnx")

    written = onnx.load(str(path))
    kinds = [node.op_type for node in written.graph.node]
    assert kinds.count("BatchNormalization") >= 1
    assert kinds.count("Add") >= 2
    assert onnx_difference(path, model, x).max_rel < 1e-6
    read = {name for node in written.graph.node for name in node.input}
    assert {tensor.name for tensor in written.graph.initializer} <= read
