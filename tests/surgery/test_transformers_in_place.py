"""Architectures of transformers keep their class; with weights so large that no mistake in any tensor stays unseen."""

import sys
from pathlib import Path

import pytest
import torch
from flow_case import gated_at, random_gates
from torch import nn

import l0prune
from l0prune.model_call import call, output_tensors
from l0prune.surgery.shrink import shrink, surgery_of

pytestmark = pytest.mark.models

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = (
    *("bert", "roberta", "distilbert", "mpnet", "deberta-v2", "modernbert", "vit", "gpt2"),
    *("llama", "qwen2", "qwen3", "mistral", "gemma2"),
)
SINGLE = {"llama", "qwen2", "qwen3", "mistral", "gemma2"}
"""Their norms are computed in float32 whatever the weights are."""
VISIBLE = 1e-5


def built(name: str):
    pytest.importorskip("transformers")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from coverage_models import case
    finally:
        sys.path.remove(str(BENCHMARKS))
    found = case(name)
    model = found.build().double()
    inputs = found.inputs(model)
    return model, {key: t.double() if t.is_floating_point() else t for key, t in inputs.items()}


@torch.no_grad()
def first_output(model: nn.Module, inputs) -> torch.Tensor:
    return output_tensors(call(model, inputs))[0]


@torch.no_grad()
def least_visible(model: nn.Module, inputs) -> float:
    """Change the matrices by a hundredth, one at a time: the least that the output moves, relative to its largest value."""
    expected = first_output(model, inputs)
    moved = []
    for parameter in model.parameters():
        if parameter.dim() > 1:
            before = parameter.clone()
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise, alpha=0.01 * float(before.std()))
            moved.append(float((first_output(model, inputs) - expected).abs().max() / expected.abs().max()))
            parameter.copy_(before)
    return min(moved)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_it_stays_in_its_class_and_every_tensor_is_seen(name, seed):
    model, inputs = built(name)
    flow = l0prune.trace(model, inputs)
    gated = gated_at(model, flow, random_gates(flow, seed=seed))

    compact = shrink(gated, form="in-place")

    record = surgery_of(compact)
    assert [type(module) for module in compact.modules()] == [type(module) for module in model.modules()]
    assert not record.plan.calls
    assert sum(p.numel() for p in compact.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())
    assert record.difference.max_rel < (1e-6 if name in SINGLE else 1e-12)
    assert least_visible(compact, inputs) > VISIBLE
