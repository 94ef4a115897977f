"""Activation checkpoints under gates: what is computed again in the backward pass is what was computed before it."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from checkpointed_nets import KINDS, Net, Own, Sequence, not_reentrant, reentrant
from torch import nn
from torch.utils.checkpoint import checkpoint

import l0prune
from l0prune.finetuning.metrics import read_metrics
from l0prune.surgery.shrink import surgery_of

BUDGET = l0prune.Budget("macs", 0.5)


@cache
def traced(cls, *, tied):
    torch.manual_seed(0)
    net = cls().double().eval()
    for block in net.blocks if tied else ():
        block.mix = net.blocks[0].mix
    x = torch.randn(5, 6, dtype=torch.float64)
    return net, x, l0prune.trace(net, x)


def gated_net(again=None, cls=Net, *, tied=False):
    """A gated network in training, its blocks called through `again`, and inputs; always the same but for `again`."""
    net, x, flow = traced(cls, tied=tied)
    net = copy.deepcopy(net)
    net.again = again
    gated = l0prune.inject(net, flow, budget=BUDGET, steps=9, droprate=0.5, seed=1)
    gated.gates.double()
    return gated.train(), x.clone().requires_grad_()


def gradients(gated, x, backward=torch.Tensor.backward, n_calls=2):
    """Of gates, inputs and weights after several calls, each with other gates and other dropout."""
    torch.manual_seed(2)
    backward(sum(gated(x * scale).square().sum() for scale in range(1, n_calls + 1)))
    return [gated.gates.log_alpha.grad, x.grad, *[parameter.grad for parameter in gated.model.parameters()]]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_gradients_are_those_without_a_checkpoint(kind):
    gated, x = gated_net(KINDS[kind])
    before = copy.deepcopy(gated.model.state_dict())

    found = gradients(gated, x)

    assert {site.weight is None for site in gated.flow.norms} == {True, False}
    assert_same(found, gradients(*gated_net()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in gated.model.state_dict().items())
    assert all(isinstance(parameter, nn.Parameter) for parameter in gated.model.parameters())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_of_a_checkpointed_sequence_are_those_without(use_reentrant):
    gated, x = gated_net(reentrant, cls=Sequence)
    gated.model.use_reentrant = use_reentrant

    assert_same(gradients(gated, x), gradients(*gated_net()))


@pytest.mark.parametrize(
    "kind", ["not reentrant", "reentrant", "with parameters as inputs", "own function in reentrant"]
)
def test_a_graph_can_be_differentiated_twice(kind):
    def twice(loss):
        loss.backward(retain_graph=True)
        loss.backward()

    found = gradients(*gated_net(KINDS[kind]), backward=twice)

    assert_same(found, [2 * gradient for gradient in gradients(*gated_net())])


@pytest.mark.parametrize("kind", ["not reentrant", "reentrant", "with parameters as inputs"])
def test_a_weight_that_a_region_shares_with_other_code_gets_both_gradients(kind):
    def second_only(block, x):
        return KINDS[kind](block, x) if block is gated.model.blocks[1] else block(x)

    gated, x = gated_net(second_only, tied=True)

    assert gated.model.blocks[0].mix is gated.model.blocks[1].mix
    assert_same(gradients(gated, x), gradients(*gated_net(tied=True)))


def test_gradients_through_a_checkpoint_can_be_differentiated():
    def of_gradient(gated, x):
        torch.manual_seed(2)
        (gradient,) = torch.autograd.grad(gated(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        return [gated.gates.log_alpha.grad, *[p.grad for p in gated.model.parameters() if p.grad is not None]]

    assert_same(of_gradient(*gated_net(not_reentrant)), of_gradient(*gated_net()))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_around_the_gated_model_is_refused_while_gates_are_drawn(use_reentrant):
    gated, x = gated_net()

    with pytest.raises(l0prune.L0PruneError, match=r"in a backward pass.*put checkpoints inside.*freeze"):
        checkpoint(gated, x, use_reentrant=use_reentrant).sum().backward()


def test_a_checkpoint_around_a_gated_model_with_frozen_gates_is_as_good_as_none():
    found = []
    for call in (lambda gated, x: checkpoint(gated, x, use_reentrant=True), lambda gated, x: gated(x)):
        gated, x = gated_net()
        gated.freeze()
        torch.manual_seed(2)
        call(gated, x).square().sum().backward()
        found.append([x.grad, *[parameter.grad for parameter in gated.model.parameters()]])

    assert_same(*found)


@pytest.mark.slow
def test_a_compiled_gated_model_has_the_same_gradients():
    torch.compiler.reset()
    gated, x = gated_net()
    gated.model.eval()  # compiled dropout draws other numbers
    compiled = torch.compile(gated, backend="aot_eager")
    compiled(x).square().sum().backward()

    plain, again = gated_net()
    plain.model.eval()
    plain(again).square().sum().backward()
    assert_same([gated.gates.log_alpha.grad, x.grad], [plain.gates.log_alpha.grad, again.grad])


class Rescaled(torch.autograd.Function):
    """Not a checkpoint; its backward formula has a mean of its own."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient + gradient.square().mean(-1, keepdim=True)


def test_a_mean_in_a_backward_formula_is_over_all_units():
    passed = []

    def rescaled(block, x):
        passed.append(block(x))
        passed.append(Rescaled.apply(passed[-1]))
        return passed[-1]

    gated, x = gated_net(rescaled)
    gated.freeze((torch.arange(gated.n_gates) % 2).double())
    out = gated(x)
    for tensor in passed:
        tensor.retain_grad()
    out.square().sum().backward()

    before, after = passed[:2]
    torch.testing.assert_close(before.grad, 2 * after.grad + after.grad.square().mean(-1, keepdim=True))


def test_a_failing_backward_pass_leaves_the_model_its_own_tensors():
    class Failing(Own):
        @staticmethod
        def backward(ctx, gradient):
            Own.backward(ctx, gradient)
            raise RuntimeError("out of memory")

    gated, x = gated_net(lambda block, x: Failing.apply(block, x))
    with pytest.raises(RuntimeError, match="out of memory"):
        gated(x).sum().backward()

    assert all(isinstance(parameter, nn.Parameter) for parameter in gated.model.parameters())
    gated.model.again = None
    gated.zero_grad()
    gated.gates.log_alpha.grad, x.grad = None, None
    gated.gates.set_rng_state(gated_net()[0].gates.get_rng_state())
    assert_same(gradients(gated, x), gradients(*gated_net()))


class Attention(nn.Module):
    """Its code has no integer for its width but that of its input; a part of it can be computed again."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.again = None

    def attend(self, x):
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 3, width // 3).permute(2, 0, 3, 1, 4)
        weights = F.dropout((q @ k.transpose(-1, -2)).softmax(-1), 0.2, self.training)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, length, width))

    def forward(self, x):
        n, length, width = x.shape
        x = x.reshape(n, length, width)
        return self.attend(x) if self.again is None else self.again(self.attend, x)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.attention, self.head = nn.Linear(5, 12), Attention(), nn.Linear(12, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.attention(x)).mean(1))


@pytest.mark.parametrize("again", [not_reentrant, reentrant, lambda block, x: Own.apply(block, x)])
def test_a_compact_model_whose_calls_got_sizes_recomputes_with_them(again):
    torch.manual_seed(0)
    net, x = Attending().double().eval(), torch.randn(3, 4, 5, dtype=torch.float64)
    gated = l0prune.inject(net, l0prune.trace(net, x))
    gated.freeze((torch.rand(gated.n_gates, generator=torch.Generator().manual_seed(1)) > 0.4).float())
    compact = l0prune.shrink(gated, form="in-place").train()
    assert surgery_of(compact).plan.calls

    found = []
    for used in (None, again):
        compact.attention.again = used
        compact.zero_grad()
        torch.manual_seed(2)
        compact(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in compact.parameters()])

    assert_same(*found)


def run(again, out, **changes):
    """A whole run, and its feature losses in the recovery."""
    net, x, flow = traced(Net, tied=False)
    net = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(3)
    batches = [(torch.randn(8, *x.shape[1:], generator=generator).to(x), torch.arange(8) % 3) for _ in range(3)]
    net.again = again
    config = l0prune.FinetuneConfig(
        epochs=5, align=1, gate_epochs=2, settle_epochs=1, warmup_epochs=1, log_every=1, **changes
    )
    gated = l0prune.inject(net, flow)
    gated.gates.double()
    result = l0prune.finetune(gated, batches, loss=F.cross_entropy, budget=BUDGET, config=config, out=out)
    assert type(result.compact) is Net
    records = read_metrics(out / "metrics.jsonl")
    return list(result.compact.parameters()), [r.get("feature_loss") for r in records if r["phase"] == "recovery"]


def test_a_run_with_checkpoints_ends_where_one_without_ends(tmp_path):
    plain, features = run(None, tmp_path / "plain")
    found, same_features = run(not_reentrant, tmp_path / "again")

    assert_same(found, plain)
    assert min(features) > 0
    assert features == pytest.approx(same_features)


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_a_run_goes_without_the_features_of_blocks_that_a_reentrant_checkpoint_hides(tmp_path):
    plain, _ = run(None, tmp_path / "plain", feature_distillation=0)
    found, features = run(reentrant, tmp_path / "again")

    assert set(features) == {None}
    assert_same(found, plain)
