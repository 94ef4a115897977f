"""Networks whose weights take no gradient, all of them or some, and networks in other precisions."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from finetuning_case import BUDGET, QUICK, SmallBatches, SmallNet

import l0prune
from l0prune.finetuning.metrics import read_metrics


def small_net(dtype=torch.float32):
    torch.manual_seed(0)
    return SmallNet().eval().to(dtype)


def run(net, out, batches=None, **options):
    gated = l0prune.inject(net, l0prune.trace(net, torch.randn(2, 3, 6, 6).to(net.linear.weight.dtype)))
    batches = SmallBatches() if batches is None else batches
    options = {"loss": F.cross_entropy, "budget": BUDGET, "config": QUICK, "out": out, **options}
    return l0prune.finetune(gated, batches, **options)


@pytest.mark.parametrize("penalised", [False, True])
def test_the_gates_of_a_network_with_frozen_weights_are_trained_alone(tmp_path, penalised):
    net = small_net().requires_grad_(False)
    before = copy.deepcopy(net)
    goal = {"budget": None, "penalty": l0prune.Penalty(0.3)} if penalised else {}

    result = run(net, tmp_path, config=replace(QUICK, gate_lr=0.4 if penalised else None), **goal)

    assert {record["phase"] for record in read_metrics(tmp_path / "metrics.jsonl")} == {"gate"}
    assert 0 < result.n_open < result.gated.n_gates
    assert penalised or result.hard_cost <= BUDGET.keep
    assert not any(parameter.requires_grad for parameter in result.compact.parameters())
    assert torch.equal(net.conv1.weight, before.conv1.weight)


def test_a_run_with_frozen_weights_can_be_resumed(tmp_path):
    first = run(small_net().requires_grad_(False), tmp_path)
    again = run(small_net().requires_grad_(False), tmp_path, resume=True)

    assert again.steps == first.steps
    for one, other in zip(again.compact.parameters(), first.compact.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_what_is_left_of_a_frozen_weight_is_what_it_was(tmp_path, ema_decay):
    net = small_net()
    for layer in (net.conv1, net.conv2):
        layer.requires_grad_(False)
    before = copy.deepcopy(net)

    result = run(net, tmp_path, config=replace(QUICK, ema_decay=ema_decay, warmup_epochs=0.5))

    assert result.n_open < result.gated.n_gates
    for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
        now, then = net.get_parameter(name), before.get_parameter(name)
        assert torch.equal(now, then.where(now != 0, 0)), name
        assert not result.compact.get_parameter(name).requires_grad
    assert not torch.equal(net.linear.weight, before.linear.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_run_works_in_other_precisions(tmp_path, dtype):
    batches = [(inputs.to(dtype), targets) for inputs, targets in SmallBatches()]
    config = replace(QUICK, ema_decay=0.9)

    result = run(small_net(dtype), tmp_path, batches, config=config)

    assert result.budget_met
    assert {parameter.dtype for parameter in result.compact.parameters()} == {dtype}
    assert result.gated.gates.log_alpha.dtype == torch.float32
    again = run(small_net(dtype), tmp_path, batches, config=config, resume=True)
    for one, other in zip(again.compact.parameters(), result.compact.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_gated_model_may_be_converted_before_its_run():
    net = small_net()
    gated = l0prune.inject(net, l0prune.trace(net, torch.randn(2, 3, 6, 6))).bfloat16()
    batches = [(inputs.bfloat16(), targets) for inputs, targets in SmallBatches()]

    result = l0prune.finetune(gated, batches, loss=F.cross_entropy, budget=BUDGET, config=QUICK)

    assert result.budget_met
    assert gated.gates.log_alpha.dtype == torch.float32


def test_weights_in_float16_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(l0prune.L0PruneError, match=r"'conv1\.weight' is in float16.*float\(\).*mixed_precision"):
        run(small_net(torch.float16), tmp_path / "run")

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_loop_of_ones_own_works_in_half_precision(dtype):
    net = small_net(dtype)
    flow = l0prune.trace(net, torch.randn(2, 3, 6, 6).to(dtype))
    gated = l0prune.inject(net, flow, budget=BUDGET, steps=12).train()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    for _ in range(2):
        for inputs, targets in SmallBatches():
            (F.cross_entropy(gated(inputs.to(dtype)).float(), targets) + gated.penalty()).backward()
            optimizer.step()
            gated.step()
            optimizer.zero_grad()

    compact = l0prune.shrink(gated, align=1)

    assert gated.hard_cost() <= BUDGET.keep
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in net.parameters())
