"""Heights, widths and other sizes in ONNX files: free where torch takes others and the file agrees with it there, else fixed."""

from typing import Any

import onnx
import pytest
import torch
from flow_case import Net
from torch import Tensor, nn
from torch.nn import functional as F

from l0prune.bench.benchmark import benchmark
from l0prune.model_call import ModelCall
from l0prune.onnx.export import export_onnx, onnx_difference
from l0prune.onnx.freedom import freedoms
from l0prune.onnx.onnx_model import EXAMPLE_KEY, OnnxModel


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net_of(function: Any, **parts: nn.Module) -> Net:
    """A network with random weights."""
    torch.manual_seed(0)
    for part in parts.values():
        for module in part.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return Net(function, **parts).eval()


def shapes(path: Any) -> dict[str, list[str | int]]:
    """Sizes of the inputs and outputs of a file."""
    graph = onnx.load(path).graph
    return {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }


def upscaler() -> Net:
    return net_of(
        lambda net, x: F.pixel_shuffle(net.last(net.first(x).relu()), 2),
        first=nn.Conv2d(3, 8, 3, padding=1),
        last=nn.Conv2d(8, 12, 3, padding=1),
    )


@pytest.fixture(scope="module")
def upscaled(tmp_path_factory):
    net = upscaler()
    return net, export_onnx(net, drawn(1, 3, 12, 16), tmp_path_factory.mktemp("onnx") / "upscaler.onnx")


def test_a_file_of_a_fully_convolutional_network_takes_images_of_any_size(upscaled):
    net, path = upscaled

    assert shapes(path) == {
        "input_0": ["batch", 3, "height", "width"],
        "output": ["batch", 3, "2*height", "2*width"],
    }
    for sizes in ((1, 5, 31), (4, 40, 8)):
        rows, height, width = sizes
        assert onnx_difference(path, net, drawn(rows, 3, height, width)).max_rel < 1e-5


def test_a_file_says_how_large_the_example_was_and_is_measured_there(upscaled):
    _, path = upscaled
    known = {entry.key: entry.value for entry in onnx.load(path).metadata_props}

    report = benchmark({"upscaler": path}, warmup_s=0, min_samples=2, min_seconds=0.01, processes=1)

    assert (known[f"{EXAMPLE_KEY}height"], known[f"{EXAMPLE_KEY}width"]) == ("12", "16")
    assert report["upscaler"].samples >= 2


def test_image_sizes_are_fixed_on_request(tmp_path):
    path = export_onnx(upscaler(), drawn(2, 3, 12, 16), tmp_path / "fixed.onnx", dynamic_size=False)

    assert shapes(path)["input_0"] == ["batch", 3, 12, 16]


def doubled_where_wide(net: nn.Module, x: Tensor) -> Tensor:
    y = net.conv(x)
    return y * 2 if x.shape[-1] > 10 else y


def in_windows(net: nn.Module, x: Tensor) -> Tensor:
    y = net.conv(x)
    height, width = y.shape[2:]
    if height % 4 or width % 4:
        y = F.pad(y, (0, -width % 4, 0, -height % 4))
    windows = y.unflatten(2, (-1, 4)).unflatten(4, (-1, 4))
    return (y * windows.mean((3, 5)).repeat_interleave(4, 2).repeat_interleave(4, 3))[:, :, :height, :width]


def flattened(net: nn.Module, x: Tensor) -> Tensor:
    return net.head(net.conv(x).flatten(1))


@pytest.mark.parametrize(
    ("function", "sizes"),
    [(doubled_where_wide, [12, 12]), (in_windows, [12, 12]), (flattened, [12, 12])],
)
def test_a_size_on_which_the_code_depends_stays_fixed(function, sizes, tmp_path):
    net = net_of(function, conv=nn.Conv2d(3, 4, 3, padding=1), head=nn.Linear(576, 2))
    path = export_onnx(net, drawn(2, 3, 12, 12), tmp_path / "fixed.onnx")

    assert shapes(path)["input_0"] == ["batch", 3, *sizes]
    assert onnx_difference(path, net, drawn(3, 3, 12, 12)).max_rel < 1e-5


def test_sizes_that_a_graph_has_as_numbers_stay_fixed():
    net = net_of(lambda net, x: net.conv(x).flatten(2).sum(-1), conv=nn.Conv2d(3, 4, 1))
    x = drawn(2, 3, 8, 8)
    rows = {0: torch.export.Dim.AUTO}
    program = torch.export.export(net, (x,), dynamic_shapes=((rows,),), strict=False).module(check_guards=False)

    assert max(freedoms(net, ModelCall.of(x), images=True), key=lambda f: len(f.dims)).dims == {(0, 1), (0, 2), (0, 3)}
    assert next((f.batch, f.dims) for f in freedoms(program, ModelCall.of(x), images=True)) == (True, frozenset())


class GraphNetwork(nn.Module):
    """Messages along edges, summed at the nodes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.message, self.out = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        message = self.message(torch.cat([x[edges[0]], x[edges[1]]], -1)).relu()
        return self.out(x.new_zeros(x.shape[0], 12).index_add(0, edges[1], message))


def test_a_graph_network_takes_graphs_of_other_sizes_and_its_nodes_are_no_batch(tmp_path):
    net, edges = GraphNetwork(), torch.tensor([[0, 5, 3, 2, 1], [1, 4, 5, 0, 2]])
    path = export_onnx(net, (drawn(6, 8), edges), tmp_path / "graph.onnx")
    larger = torch.randint(9, (2, 20), generator=torch.Generator().manual_seed(0))

    assert "batch" not in str(shapes(path))
    assert onnx_difference(path, net, (drawn(9, 8), larger)).max_rel < 1e-5
    assert benchmark({"graph": path}, warmup_s=0, min_samples=2, min_seconds=0.01, processes=1)["graph"].samples >= 2


def test_the_batch_is_the_first_size_of_most_inputs(tmp_path):
    net = net_of(lambda net, prior, x, y: net.head(x * y) + prior.sum(), head=nn.Linear(6, 2))
    path = export_onnx(net, (drawn(3), drawn(2, 6), drawn(2, 6, seed=1)), tmp_path / "prior.onnx")

    assert shapes(path) == {"input_0": [3], "input_1": ["batch", 6], "input_2": ["batch", 6], "output": ["batch", 2]}
    assert OnnxModel(path)(drawn(3), drawn(5, 6), drawn(5, 6)).shape == (5, 2)
    assert benchmark({"prior": path}, warmup_s=0, min_samples=2, min_seconds=0.01, processes=1)["prior"].samples >= 2
