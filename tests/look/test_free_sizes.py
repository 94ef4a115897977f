"""Batch and sequence length stay free: in the captured graph, in both forms of the cut, in its files, in ONNX."""

import onnx
import pytest
import torch
from flow_case import EXACT, Net, difference, gated_at, inputs, random_gates, ready, traced
from torch import Tensor, nn

import l0prune
from l0prune.bench.benchmark import benchmark
from l0prune.look.capture import capture
from l0prune.model_call import call
from l0prune.onnx.export import export_onnx, onnx_difference
from l0prune.surgery.shrink import shrink

WIDTH, HEADS, VOCABULARY, POSITIONS = 16, 4, 23, 12
OTHER_SIZES = [(1, 4), (3, 9), (5, POSITIONS)]


class Encoder(nn.Module):
    """Tokens, a table of positions, masked attention of four heads, a wide layer; a dict of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.randn(POSITIONS, WIDTH))
        self.norm, self.final_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        rows, length = input_ids.shape
        x = self.tokens(input_ids) + self.positions[:length]
        q, k, v = self.qkv(self.norm(x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / 2 + (attention_mask[:, None, None] - 1) * 1e4
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, length, -1))
        x = self.final_norm(x + self.down(self.up(x).relu()))
        return {"hidden": x, "logits": self.head(x[:, 0])}


def tokens(rows: int, length: int) -> dict[str, Tensor]:
    """Random tokens; the last ones of every other row are masked."""
    generator = torch.Generator().manual_seed(rows * 100 + length)
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[::2, length - length // 3 :] = 0
    return {
        "input_ids": torch.randint(VOCABULARY, (rows, length), generator=generator),
        "attention_mask": mask,
    }


@pytest.fixture(scope="module")
def gated():
    """An encoder traced at two rows of seven tokens, half of its units closed."""
    torch.manual_seed(0)
    net = Encoder()
    flow = traced(net, tokens(2, 7))
    return gated_at(net, flow, random_gates(flow))


@pytest.mark.parametrize("form", ["in-place", "graph"])
def test_a_cut_encoder_takes_other_batches_and_lengths(gated, form):
    compact = shrink(gated, form=form)

    for sizes in OTHER_SIZES:
        assert difference(call(compact, tokens(*sizes)), call(gated, tokens(*sizes))) < EXACT


@pytest.mark.parametrize("form", ["in-place", "graph"])
def test_a_saved_encoder_takes_other_batches_and_lengths(gated, form, tmp_path):
    compact = shrink(gated, form=form)

    loaded = l0prune.load(l0prune.save(compact, tmp_path / "compact"))

    for sizes in OTHER_SIZES:
        assert difference(call(loaded, tokens(*sizes)), call(gated, tokens(*sizes))) < EXACT


def test_an_onnx_file_of_a_cut_encoder_takes_other_batches_and_lengths(gated, tmp_path):
    compact = shrink(gated, form="graph").float()

    path = export_onnx(compact, tokens(1, 7), tmp_path / "encoder.onnx")

    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in [*onnx.load(path).graph.input, *onnx.load(path).graph.output]
    }
    assert shapes["input_ids"] == shapes["attention_mask"] == ["batch", "length"]
    assert shapes["hidden"][:2] == ["batch", "length"]
    assert shapes["logits"] == ["batch", 3]
    for sizes in OTHER_SIZES:
        assert onnx_difference(path, compact, tokens(*sizes)).max_rel < 1e-5


def test_a_file_with_a_free_length_is_measured_at_that_of_its_example(gated, tmp_path):
    path = export_onnx(shrink(gated).float(), tokens(2, 7), tmp_path / "encoder.onnx")

    report = benchmark({"encoder": path}, warmup_s=0, min_samples=2, min_seconds=0.01, processes=1)

    assert report["encoder"].samples >= 2


def test_a_free_length_costs_no_units(gated, monkeypatch):
    monkeypatch.setattr("l0prune.look.capture.length_dimensions", lambda call: {})
    static = l0prune.trace(gated.model, tokens(2, 7))

    assert not static.captured.free.lengths
    assert gated.flow.captured.free.lengths
    assert gated.flow.n_gates == static.n_gates > 0
    assert gated.flow.dense_cost("macs") == static.dense_cost("macs")
    assert gated.flow.prunable_fraction == static.prunable_fraction


def free(net: nn.Module, x: Tensor) -> list[list[bool]]:
    """For every input, which of its sizes are free."""
    shapes = capture(ready(net), x).free.shapes
    return [[not size.is_Integer for size in shape] for shape in shapes]


def test_positions_by_features_keep_their_length_free():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

    assert free(net, inputs(2, 5, 6)) == [[True, True, False]]


def test_signals_keep_their_length_free():
    net = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 2, 3))

    assert free(net, inputs(1, 3, 20)) == [[True, False, True]]


def test_images_keep_their_size():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))

    assert free(net, inputs(2, 3, 8, 8)) == [[True, False, False, False]]


def test_a_model_that_mixes_along_positions_keeps_its_batch_free_alone():
    net = Net(lambda net, x: net.mix(net.up(x).transpose(1, 2)), up=nn.Linear(6, 8), mix=nn.Linear(5, 5))

    assert free(net, inputs(2, 5, 6)) == [[True, False, False]]


def test_lengths_stay_on_the_side_of_a_condition_that_the_example_took():
    net = Net(
        lambda net, ids: net.down(net.embed(ids).amax(1) if ids.shape[1] > 3 else net.embed(ids)[:, 0]),
        embed=nn.Embedding(9, 8),
        down=nn.Linear(8, 2),
    )
    found = capture(ready(net), torch.ones(2, 5, dtype=torch.int64)).free

    assert [low for low, _ in found.lengths.values()] == [4]
    assert list(found.scaled_lengths(0.5).values()) == [4]


def test_a_batch_that_is_fixed_leaves_nothing_free():
    net = Net(lambda net, x: net.down(net.up(x.view(3, 5, 6))), up=nn.Linear(6, 8), down=nn.Linear(8, 2))

    assert free(net, inputs(3, 5, 6)) == [[False, False, False]]


def test_tensors_without_a_batch_beside_those_with_one():
    net = Net(
        lambda net, ids, positions: net.head((net.embed(ids) + net.place(positions)).relu()),
        embed=nn.Embedding(9, 8),
        place=nn.Embedding(9, 8),
        head=nn.Linear(8, 2),
    )
    ids, positions = torch.randint(9, (2, 5)), torch.arange(5)
    flow = traced(net, (ids, positions))
    compact = shrink(gated_at(net, flow, random_gates(flow)), form="graph")

    assert [[not size.is_Integer for size in shape] for shape in flow.captured.free.shapes] == [[True, True], [True]]
    assert compact(torch.randint(9, (4, 7)), torch.arange(7)).shape == (4, 7, 2)
