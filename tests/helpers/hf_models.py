"""Small models of transformers, cut: what is written as folders and read back."""

import sys
from pathlib import Path

import pytest
import torch
from flow_case import gated_at, random_gates
from torch import nn

import l0prune

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def dense(name: str) -> tuple[nn.Module, dict]:
    """A model of the coverage table and its inputs."""
    pytest.importorskip("transformers")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from coverage_models import case
    finally:
        sys.path.remove(str(BENCHMARKS))
    found = case(name)
    model = found.build()
    return model, found.inputs(model)


def cut(model: nn.Module, inputs: dict, *, closed: float = 0.3, seed: int = 1) -> tuple[nn.Module, nn.Module]:
    """The gated model and the compact one, a random share of its units closed."""
    flow = l0prune.trace(model, inputs)
    gated = gated_at(model, flow, random_gates(flow, closed=closed, seed=seed))
    return gated, l0prune.shrink(gated)


def tiny_bert(**options) -> nn.Module:
    """BERT with a head for three classes."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 32, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=40, num_labels=3, max_position_embeddings=32, **sizes, **options)
    return transformers.BertForSequenceClassification(config).eval()


def token_inputs() -> dict:
    """Two rows of tokens, the second one shorter."""
    ids = torch.randint(1, 40, (2, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask}
