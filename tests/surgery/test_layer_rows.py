"""Layers as rows times matrices: what a convolution multiplies to make one position of its output."""

import pytest
import torch
from flow_case import EXACT, Net, inputs, ready
from torch import nn
from torch.export import export

from l0prune.ops.node import op_name
from l0prune.surgery.layer_rows import layer_of

LAYERS = {
    "linear": (nn.Linear(6, 4), (3, 5, 6)),
    "conv1d": (nn.Conv1d(6, 4, 3, stride=2, padding=1), (3, 6, 9)),
    "conv2d": (nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False), (2, 6, 7, 8)),
    "conv3d": (nn.Conv3d(6, 4, 2, stride=2, padding=1, dilation=2), (2, 6, 5, 6, 5)),
    "same padding": (nn.Conv2d(6, 4, (4, 3), padding="same", dilation=(1, 2)), (2, 6, 6, 7)),
    "no padding by name": (nn.Conv2d(6, 4, 3, padding="valid"), (2, 6, 6, 7)),
    "groups": (nn.Conv2d(6, 4, 3, padding=1, groups=2), (2, 6, 5, 5)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), (2, 6, 5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1), (2, 6, 4, 5)),
    "transposed groups": (nn.ConvTranspose2d(6, 4, (2, 3), stride=(1, 3), dilation=2, groups=2), (2, 6, 4, 5)),
    "transposed 1d": (nn.ConvTranspose1d(6, 4, 5, stride=2, padding=2), (2, 6, 7)),
}


def held_layer(net: nn.Module, x: torch.Tensor):
    """The one layer in the graph of a network."""
    module = export(net, (x,), strict=False).module()
    found = [layer for node in module.graph.nodes if (layer := layer_of(node)) is not None]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_times_matrices_are_the_outputs_of_a_layer(kind):
    net, shape = LAYERS[kind]
    x = inputs(*shape)
    expected = ready(net)(x).detach()
    layer = held_layer(net, x)
    places = torch.randperm(layer.n_positions(expected), generator=torch.Generator().manual_seed(1))[:40]

    rows = layer.rows_at(x, expected, net.weight, places)
    matrices = layer.matrices(net.weight)
    products = torch.cat([row @ matrix for row, matrix in zip(rows, matrices, strict=True)], 1)

    wanted = torch.cat(layer.outputs_at(expected, places), 1)
    bias = 0 if net.bias is None else net.bias
    torch.testing.assert_close(products + bias, wanted, atol=EXACT, rtol=0)
    assert {row.shape[1] for row in rows} == {layer.n_columns(net.weight)}


@pytest.mark.parametrize("kind", LAYERS)
def test_matrices_are_put_together_to_the_weight_they_came_from(kind):
    net, shape = LAYERS[kind]
    layer = held_layer(ready(net), inputs(*shape))

    assert torch.equal(layer.weight_of(layer.matrices(net.weight), net.weight), net.weight)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda net, x: torch.addmm(net.bias, x, net.weight), "addmm"),
        (lambda net, x: x @ net.weight, "matmul"),
        (lambda net, x: torch.nn.functional.linear(x, net.weight), "linear"),
    ],
)
def test_products_with_parameters_are_layers_too(function, kind):
    net = ready(Net(function, weight=nn.Parameter(torch.zeros(4, 4)), bias=nn.Parameter(torch.zeros(4))))
    x = inputs(5, 4)
    layer = held_layer(net, x)

    (row,), (matrix,) = layer.rows_at(x, net(x), net.weight, torch.arange(5)), layer.matrices(net.weight)
    bias = 0 if layer.bias is None else net.bias

    assert op_name(layer.node.target) == kind
    torch.testing.assert_close(row @ matrix + bias, net(x), atol=EXACT, rtol=0)


def test_a_product_of_two_activations_is_no_layer():
    net = Net(lambda net, x: (x @ x.mT) * net.scale, scale=nn.Parameter(torch.ones(1)))

    module = export(net, (inputs(2, 3, 4),), strict=False).module()

    assert not any(layer_of(node) for node in module.graph.nodes)
