"""Recovery in closed form: layers that lose inputs come as near to the dense layers as what is left allows."""

import copy

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, Net, difference, gated_at, inputs, n_parameters, random_gates, ready
from hypothesis import HealthCheck, Phase, assume, given, settings
from small_nets import small_nets
from torch import Tensor, nn

import l0prune
from l0prune.errors import ConfigError, DataError
from l0prune.surgery.compensation import compensate_
from l0prune.surgery.shrink import shrink


def calls(*batches):
    return [lambda model, x=x: model(x) for x in batches]


def halved(net: nn.Module, x: Tensor):
    """Gates of the second half of every width closed."""
    flow = l0prune.trace(net, x)
    values = torch.ones(flow.n_gates)
    for dimension in flow.dimensions:
        members = torch.from_numpy(dimension.gates)
        values[members[len(members) // 2 :]] = 0.0
    return gated_at(net, flow, values)


def redundant(make: nn.Module, take: nn.Module, between=F.relu) -> nn.Module:
    """The second half of what `make` gives is twice the first half; `take` consumes it."""
    net = ready(Net(lambda net, x: net.take(between(net.make(x))), make=make, take=take))
    half = make.weight.shape[0] // 2
    with torch.no_grad():
        make.weight[half:] = 2 * make.weight[:half]
        make.bias[half:] = 2 * make.bias[:half]
    return net


class Product(nn.Module):
    """A matrix product with a parameter that stands as (inputs, outputs)."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


TAKERS = {
    "linear": (nn.Linear(3, 8), nn.Linear(8, 4), (60, 3)),
    "linear without bias": (nn.Linear(3, 8), nn.Linear(8, 4, bias=False), (60, 3)),
    "tokens": (nn.Linear(3, 8), nn.Linear(8, 4), (12, 5, 3)),
    "matmul": (nn.Linear(3, 8), Product(8, 4, bias=False), (60, 3)),
    "addmm": (nn.Linear(3, 8), Product(8, 4, bias=True), (60, 3)),
    "conv": (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, stride=2, padding=1), (12, 3, 9, 9)),
    "dilated": (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, (3, 2), padding=2, dilation=2, bias=False), (12, 3, 7, 7)),
    "conv1d": (nn.Conv1d(3, 8, 3), nn.Conv1d(8, 4, 3), (24, 3, 12)),
    "transposed": (nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1), (12, 3, 6, 6)),
}


@pytest.mark.parametrize("kind", TAKERS)
def test_what_kept_units_can_say_of_closed_ones_is_not_lost(kind):
    make, take, shape = TAKERS[kind]
    net = redundant(make, take)
    x = inputs(*shape)
    expected, before = net(x).detach(), n_parameters(net)
    gated = halved(net, x)
    assert difference(gated(x), expected) > 1e-2

    done = compensate_(gated, calls(*x.split(len(x) // 2)))

    new = inputs(*shape, seed=5)
    assert done.n_fitted == 1
    assert n_parameters(shrink(gated)) < before
    torch.testing.assert_close(gated(x), expected, atol=1e-8, rtol=0)
    torch.testing.assert_close(gated(new), redundant(make, take)(new), atol=1e-8, rtol=0)


def test_a_batch_norm_takes_the_mean_of_what_reaches_it():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.take, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.take(self.make(x).relu()))

    net, x = ready(Normed()), inputs(16, 3, 6, 6)
    expected = net(x).detach()
    gated = halved(net, x)

    compensate_(gated, calls(x))

    dims = (0, 2, 3)
    torch.testing.assert_close(gated(x).mean(dims), expected.mean(dims), atol=1e-9, rtol=0)
    torch.testing.assert_close(gated(x).var(dims), expected.var(dims), atol=1e-9, rtol=0)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(recipe=small_nets(2))
def test_cutting_keeps_the_function_after_compensation(recipe):
    net = recipe.build()
    flow = l0prune.trace(net, recipe.example)
    assume(flow.n_gates > 0)
    gated = gated_at(net, flow, random_gates(flow, seed=recipe.seed))
    x = inputs(6, 3, 8, 8, seed=recipe.seed + 1)

    compensate_(gated, calls(x))
    compact = shrink(gated)

    assert difference(compact(x), gated(x)) < EXACT
    assert n_parameters(compact) < n_parameters(net)


class Blocks(nn.Module):
    """Two residual blocks behind an embedding of tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.up1, self.down1 = nn.Linear(6, 16), nn.Linear(16, 6)
        self.norm = nn.LayerNorm(6)
        self.up2, self.down2 = nn.Linear(6, 16), nn.Linear(16, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.down1(F.gelu(self.up1(x)))
        x = x + self.down2(F.gelu(self.up2(self.norm(x))))
        return self.head(x)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(seed))


def blocks_with_closed_units():
    net = ready(Blocks())
    flow = l0prune.trace(net, tokens(2, 5), ignore=["embed"])
    gated = gated_at(net, flow, random_gates(flow).ne(0).double())
    return net, gated


def test_outputs_come_nearer_to_those_of_the_dense_network():
    net, gated = blocks_with_closed_units()
    seen, new = tokens(64, 5), tokens(64, 5, seed=1)
    dense = copy.deepcopy(net)
    before = (gated(new) - dense(new)).square().mean()

    compensate_(gated, calls(*seen.split(16)))

    assert (gated(new) - dense(new)).square().mean() < 0.5 * before


def test_parameters_that_consume_no_units_stay_as_they_are():
    net, gated = blocks_with_closed_units()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    compensate_(gated, calls(tokens(64, 5)))

    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"down1.weight", "down1.bias", "down2.weight", "down2.bias"}


def test_closed_units_of_a_consumer_stay_as_they_are():
    net, gated = blocks_with_closed_units()
    before = net.down1.weight.clone()
    (consumer,) = (c for c in gated.flow.consumers if c.parameter == "down1.weight")
    closed = gated.gate_values()[torch.from_numpy(consumer.gates)] == 0

    compensate_(gated, calls(tokens(64, 5)))

    assert closed.any()
    assert torch.equal(net.down1.weight[:, closed], before[:, closed])
    assert not torch.equal(net.down1.weight[:, ~closed], before[:, ~closed])


def test_gates_between_zero_and_one_are_taken_into_account():
    make, take, shape = TAKERS["conv"]
    net, x = redundant(make, take), inputs(*shape)
    expected = net(x).detach()
    gated = halved(net, x)
    gated.freeze(0.4 * gated.gate_values())

    compensate_(gated, calls(x))

    torch.testing.assert_close(gated(x), expected, atol=1e-8, rtol=0)


def test_a_teacher_of_its_own_says_what_the_outputs_should_be():
    make, take, shape = TAKERS["linear"]
    net, x = redundant(make, take), inputs(*shape)
    teacher = copy.deepcopy(net)
    with torch.no_grad():
        teacher.take.weight.mul_(3)
    gated = halved(net, x)

    compensate_(gated, calls(x), teacher=teacher)

    torch.testing.assert_close(gated(x), teacher(x), atol=1e-8, rtol=0)


def test_networks_that_run_at_one_batch_size_only_are_fitted_in_batches_of_that():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.take = nn.Linear(3, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.take(F.relu(self.make(x)).reshape(2, 8))

    net = ready(Fixed())
    flow = l0prune.trace(net, inputs(2, 3))
    assert not flow.captured.dynamic_batch
    gated = gated_at(net, flow, random_gates(flow).ne(0).double())

    assert compensate_(gated, calls(inputs(41, 3))).n_fitted == 1


def test_a_seed_gives_the_same_weights_again_and_another_seed_others(monkeypatch):
    monkeypatch.setattr("l0prune.surgery.fitting.LEAST_ROWS", 64)
    found = []
    for seed in (0, 0, 1):
        net, gated = blocks_with_closed_units()
        compensate_(gated, calls(tokens(256, 5)), seed=seed)
        found.append(net.down1.weight.clone())

    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_shared_weights_are_left_alone():
    def twice(net: nn.Module, x: Tensor) -> Tensor:
        return net.take(F.relu(net.one(x))) + net.take(F.relu(net.two(x)))

    net = ready(Net(twice, one=nn.Linear(3, 8), two=nn.Linear(3, 8), take=nn.Linear(8, 4)))
    x = inputs(40, 3)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    done = compensate_(halved(net, x), calls(x))

    assert dict(done.skipped) == {"shared by several layers": 1}
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_padding_is_not_fitted():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.take = nn.Linear(3, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.take(F.relu(self.make(x))) * attention_mask.unsqueeze(-1)

    def weight(padding: float) -> Tensor:
        net = ready(Masked())
        x, mask = inputs(40, 6, 3), torch.ones(40, 6, dtype=torch.int64)
        mask[:, 4:] = 0
        x[:, 4:] = padding
        flow = l0prune.trace(net, {"x": x[:2], "attention_mask": mask[:2]})
        gated = gated_at(net, flow, random_gates(flow).ne(0).double())
        compensate_(gated, [lambda model: model(x, attention_mask=mask)])
        return net.take.weight.detach()

    torch.testing.assert_close(weight(0.0), weight(100.0), atol=EXACT, rtol=0)


def test_random_gates_are_refused():
    net = ready(Blocks())
    gated = l0prune.inject(net, l0prune.trace(net, tokens(2, 5)))

    with pytest.raises(ConfigError, match="gates are still random: freeze"):
        compensate_(gated, calls(tokens(8, 5)))


@pytest.mark.parametrize(
    ("given_calls", "message"),
    [
        ([], "there are no calibration inputs"),
        (
            calls(inputs(4, 7, 9)),
            r"calibration inputs of shapes \[\(4, 7, 9\)\] do not fit the traced ones of \[\(2, 5\)\]",
        ),
        ([lambda model: None], "did not call the model"),
    ],
)
def test_nothing_changes_where_inputs_do_not_fit(given_calls, message):
    _, gated = blocks_with_closed_units()
    before = copy.deepcopy(gated.state_dict())

    with pytest.raises(DataError, match=message):
        compensate_(gated, given_calls)

    assert all(torch.equal(value, before[name]) for name, value in gated.state_dict().items())
