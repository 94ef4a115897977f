"""Rules of ops that treat every element alone, with broadcasting; and of ops that create tensors."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import Net, assert_cut_exactly, gates, inputs, traced
from torch import nn

BROADCAST = "a single unit is broadcast over a dimension"
INERT = "meets a dimension without parameters (model input, positions, space)"


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


def net_with(function, **parts) -> Net:
    """`up` makes 4 channels of 3, `function` sees them, `head` consumes 4."""
    return Net(
        lambda net, x: net.head(function(net, net.up(x), x)), up=nn.Conv2d(3, 4, 1), head=nn.Conv2d(4, 2, 1), **parts
    )


IMAGE = inputs(2, 3, 3, 3)
ACTIVATIONS = {
    "relu_": lambda y: F.relu(y, inplace=True),
    "gelu": F.gelu,
    "silu_": lambda y: F.silu(y, inplace=True),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "mish": F.mish,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "rrelu": lambda y: F.rrelu(y, training=False),
    "clamp": lambda y: y.clamp(-0.5, 0.5),
    "clip": lambda y: y.clip(max=0.3),
    "pow": lambda y: y**2,
    "rsub": lambda y: 1 - y,
    "tanhshrink": F.tanhshrink,
    "dropout": lambda y: F.dropout(y, training=False),
    "dropout2d": lambda y: F.dropout2d(y, training=False),
    "masked_fill": lambda y: y.masked_fill(y < 0, 0.1),
    "where": lambda y: torch.where(y > 0, y, torch.exp(y)),
    "ones_like": lambda y: y + torch.ones_like(y),
    "addcmul": lambda y: torch.addcmul(y, y, y, value=0.5),
    "lerp": lambda y: torch.lerp(y, y.abs(), 0.25),
    "multiply": lambda y: torch.multiply(y, y.negative()),
    "subtract": lambda y: torch.subtract(y, torch.absolute(y)),
    "divide": lambda y: torch.divide(y, 2 + y.square()),
    "floor_divide": lambda y: torch.floor_divide(y, 0.3),
    "greater": lambda y: torch.greater(y, 0).to(y.dtype) + torch.less_equal(y, 1).to(y.dtype),
    "arctan": lambda y: torch.arctan(y) + torch.arcsinh(y) + torch.fix(y),
    "expit": lambda y: torch.special.expit(y) + torch.special.log1p(y.abs()),
    "isclose": lambda y: torch.isclose(y, y.round()).to(y.dtype),
    "and": lambda y: ((y > -0.5) & (y < 0.5)).to(y.dtype),
    "or": lambda y: ((y < -0.5) | (y > 0.5)).to(y.dtype),
    "xor": lambda y: ((y < -0.5) ^ (y > 0.5)).to(y.dtype),
    "complex": lambda y: torch.complex(y, y).conj().resolve_conj().imag + torch.complex(y, y).real,
    "cosine of sum": lambda y: torch.cos(y + y.exp().clamp(max=3.0)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_elementwise_functions_leave_units_alone(name):
    """Also those that do not send zero to zero: the gates are on the weights that consume."""
    flow = assert_cut_exactly(net_with(lambda net, y, x: ACTIVATIONS[name](y)), IMAGE, forms=["graph"])

    assert flow.n_gates == 4
    assert flow.unknown_ops == {}


@pytest.mark.parametrize(
    "add", [lambda a, b: a + b, lambda a, b: a.add_(b), lambda a, b: a * b, lambda a, b: a - 2 * b]
)
def test_operands_are_tied_index_by_index(add):
    net = net_with(lambda net, y, x: add(net.other(x), y), other=nn.Conv2d(3, 4, 1))

    flow = assert_cut_exactly(net, IMAGE)

    assert flow.n_gates == 4
    assert gates(flow, "up.weight", 0) == gates(flow, "other.weight", 0) == gates(flow, "head.weight", 1)


def test_a_residual_stream_is_one_width():
    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.up(x)
        return net.head(y + net.b(torch.relu(net.a(y))))

    net = Net(
        function,
        up=nn.Linear(3, 6),
        a=nn.Linear(6, 5),
        b=nn.Linear(5, 6),
        head=nn.Linear(6, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert flow.n_gates == 6 + 5
    assert gates(flow, "up.weight", 0) == gates(flow, "b.weight", 0) == gates(flow, "a.weight", 1)
    assert gates(flow, "a.weight", 0) == gates(flow, "b.weight", 1)


def test_the_model_input_added_to_units_pins_them():
    net = Net(lambda net, x: net.head(net.up(x) + x), up=nn.Linear(4, 4), head=nn.Linear(4, 2))

    flow = traced(net, inputs(2, 4))

    assert flow.n_gates == 0
    assert flow.pinned[INERT] == 4 + 4  # the units, and the indices of the weight that meets the input


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1)])
def test_a_parameter_along_channels_goes_with_them(shape):
    flow = assert_cut_exactly(net_with(lambda net, y, x: y * net.scale + net.scale, scale=weight(*shape)), IMAGE)

    assert gates(flow, "scale", len(shape) - 3) == gates(flow, "up.weight", 0) == [0, 1, 2, 3]


def test_a_position_embedding_loses_features_and_no_positions():
    net = Net(
        lambda net, x: net.head(net.up(x) + net.places),
        up=nn.Linear(3, 4),
        places=weight(1, 5, 4),
        head=nn.Linear(4, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 5, 3))

    assert gates(flow, "places", 2) == gates(flow, "up.weight", 0)
    assert gates(flow, "places", 1) is None


@pytest.mark.parametrize("persistent", [True, False])
def test_a_buffer_along_channels_is_cut_with_them(persistent):
    net = net_with(lambda net, y, x: y * net.table)
    net.register_buffer("table", torch.empty(4, 1, 1), persistent=persistent)

    flow = assert_cut_exactly(net, IMAGE)

    assert gates(flow, "table", 0) == [0, 1, 2, 3]


def test_a_single_channel_broadcast_over_units_is_pinned_and_they_are_not():
    net = net_with(
        lambda net, y, x: y * torch.sigmoid(net.map(net.inner(x).relu())),
        inner=nn.Conv2d(3, 5, 1),
        map=nn.Conv2d(5, 1, 1),
    )

    flow = assert_cut_exactly(net, IMAGE)

    assert flow.n_gates == 4 + 5


def test_one_of_the_units_broadcast_over_others_is_pinned():
    net = net_with(lambda net, y, x: y * net.other(x)[:, 1:2], other=nn.Conv2d(3, 6, 1))

    flow = assert_cut_exactly(net, IMAGE)

    assert flow.n_gates == 4
    assert gates(flow, "other.weight", 0) is None
    assert flow.pinned[BROADCAST] == 1


def test_squeeze_and_excite_ties_the_scale_to_its_channel():
    net = net_with(
        lambda net, y, x: y * torch.sigmoid(net.b(torch.relu(net.a(y.mean((2, 3), keepdim=True))))),
        a=nn.Conv2d(4, 3, 1),
        b=nn.Conv2d(3, 4, 1),
    )

    flow = assert_cut_exactly(net, IMAGE)

    assert flow.n_gates == 4 + 3
    assert gates(flow, "b.weight", 0) == gates(flow, "up.weight", 0) == gates(flow, "a.weight", 1)


def test_a_prelu_with_a_slope_a_channel_is_cut_and_one_with_a_single_slope_stays():
    each = assert_cut_exactly(net_with(lambda net, y, x: net.act(y), act=nn.PReLU(4)), IMAGE)
    one = assert_cut_exactly(net_with(lambda net, y, x: net.act(y), act=nn.PReLU()), IMAGE)

    assert gates(each, "act.weight", 0) == gates(each, "up.weight", 0) == [0, 1, 2, 3]
    assert one.n_gates == 4


def test_slopes_may_lie_along_any_dimension_in_the_op_behind_a_prelu():
    net = Net(
        lambda net, x: net.head(torch._prelu_kernel(net.up(x), net.slopes)),
        up=nn.Linear(3, 4),
        slopes=nn.Parameter(torch.empty(1, 1, 4)),
        head=nn.Linear(4, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 5, 3), forms=["graph"])

    assert gates(flow, "slopes", 2) == gates(flow, "up.weight", 0) == [0, 1, 2, 3]


def test_a_constant_of_the_code_is_cut_with_its_units():
    flow = assert_cut_exactly(net_with(lambda net, y, x: y + torch.full((1, 4, 1, 1), 0.5, dtype=y.dtype)), IMAGE)
    table = net_with(lambda net, y, x: y * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)[:, None, None])

    assert flow.n_gates == 4
    assert assert_cut_exactly(table, IMAGE).n_gates == 4


def test_a_constant_of_the_code_cannot_consume_units():
    net = Net(
        lambda net, x: torch.relu(net.up(x)) @ torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64),
        up=nn.Linear(3, 4),
    )

    assert traced(net, inputs(2, 3)).n_gates == 0


@pytest.mark.parametrize(
    "numbers", [lambda: torch.arange(4.0), lambda: torch.linspace(0, 1, 4), lambda: torch.eye(4)[1]]
)
def test_numbers_that_depend_on_the_place_pin_their_units(numbers):
    net = net_with(lambda net, y, x: y * numbers()[:, None, None])

    assert traced(net, IMAGE).n_gates == 0


def test_tensors_of_zeros_filled_in_place_hold_what_goes_into_them():
    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = x.new_zeros(x.shape[0], 6)
        y[:, :4] = net.up(x)
        y[:, 4:] = net.other(x)
        return net.head(torch.relu(y))

    net = Net(function, up=nn.Linear(3, 4), other=nn.Linear(3, 2), head=nn.Linear(6, 2))

    flow = assert_cut_exactly(net, inputs(2, 3), seeds=range(2))

    assert flow.unknown_ops == {}
    assert gates(flow, "head.weight", 1) == [*gates(flow, "up.weight", 0), *gates(flow, "other.weight", 0)]


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda y: y.renorm(2, 1, 1.0), "aten.renorm.default"),
        (lambda y: y.rot90(2, (1, 2)), "aten.rot90.default"),
        (lambda y: torch.linalg.matrix_exp(y), "aten.linalg_matrix_exp.default"),
    ],
    ids=["renorm", "rot90", "matrix_exp"],
)
def test_an_op_without_a_rule_pins_what_it_touches_and_the_rest_stays_exact(function, op):
    net = Net(
        lambda net, x: net.head(torch.relu(net.after(function(net.up(x))))),
        up=nn.Conv2d(3, 4, 1),
        after=nn.Conv2d(4, 5, 1),
        head=nn.Conv2d(5, 2, 1),
    )

    flow = assert_cut_exactly(net, IMAGE)

    assert flow.n_gates == 5
    assert gates(flow, "up.weight", 0) is None
    assert any(name.startswith(op.rpartition(".")[0]) for name in flow.unknown_ops)
    assert flow.pinned[f"no rule for {next(iter(flow.unknown_ops))}"] >= 4
