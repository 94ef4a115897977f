"""Rules of look-ups: what is looked up by position or data stays, the other dimensions keep their units."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import Net, assert_cut_exactly, both, gated_at, gates, inputs, random_gates, traced
from torch import nn

from l0prune.surgery.shrink import shrink

LOOKED_UP = "indexed by position"
TOKENS = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))


def net_with(function, n_out: int = 4) -> Net:
    """`up` makes 4 features of 3 at every one of 5 positions, `function` sees them."""
    return Net(lambda net, x: net.head(function(net.up(x))), up=nn.Linear(3, 4), head=nn.Linear(n_out, 2))


def test_an_embedding_loses_features_and_no_words():
    net = nn.Sequential(nn.Embedding(11, 6), nn.ReLU(), nn.Linear(6, 2))

    flow = assert_cut_exactly(net, TOKENS)

    assert gates(flow, "0.weight", 1) == gates(flow, "2.weight", 1) == list(range(6))
    assert gates(flow, "0.weight", 0) is None
    assert flow.pinned["a vocabulary: rows are looked up by data"] == 11


OF_POSITIONS = {
    "list": lambda y: y[:, [3, 0, 0, 1]],
    "tensor of two dimensions": lambda y: y[:, torch.tensor([[0, 1], [2, 2]])].sum(2),
    "index_select": lambda y: y.index_select(1, torch.tensor([2, 0, 1])),
    "select": lambda y: y[:, 2],
    "select from the end": lambda y: y[:, -1],
    "unbind": lambda y: y.unbind(1)[1] + y.unbind(1)[3],
    "two indices apart": lambda y: y[:, :, None].expand(-1, -1, 2, -1)[:, [0, 1], [1, 0]],
    "two indices": lambda y: y[[0, 1], [2, 3]],
}


@pytest.mark.parametrize("name", OF_POSITIONS)
def test_positions_may_be_looked_up(name):
    flow = assert_cut_exactly(net_with(OF_POSITIONS[name]), inputs(3, 5, 3), forms=["graph"])

    assert gates(flow, "up.weight", 0) == gates(flow, "head.weight", 1) == [0, 1, 2, 3]


def test_indices_apart_put_the_result_first():
    net = Net(lambda net, x: net.head(net.up(x)[[0, 1], :, [2, 0]]), up=nn.Conv1d(3, 4, 1), head=nn.Linear(4, 2))

    flow = assert_cut_exactly(net, inputs(3, 3, 5), forms=["graph"])

    assert flow.n_gates == 4


OF_UNITS = {
    "list": (lambda y: y[..., [3, 0, 0, 1]], 4, LOOKED_UP),
    "index_select": (lambda y: y.index_select(2, torch.tensor([2, 0, 1])), 3, LOOKED_UP),
    "select": (
        lambda y: y[..., 2:].select(-1, 1)[..., None].expand(-1, -1, 4),
        4,
        "one index is selected by its number",
    ),
    "unbind": (lambda y: torch.stack(y.unbind(-1)[::-1], -1), 4, "unbound into separate tensors"),
}


@pytest.mark.parametrize("name", OF_UNITS)
def test_units_that_are_looked_up_are_pinned(name):
    function, n_out, reason = OF_UNITS[name]

    flow = traced(net_with(function, n_out), inputs(3, 5, 3))

    assert gates(flow, "up.weight", 0) is None
    assert flow.pinned[reason] > 0


def test_indices_with_units_of_their_own_are_pinned():
    """Positions looked up by a number computed from units."""
    net = Net(
        lambda net, x: net.head(net.table[net.up(x).argmax(1) % 7]).sum(1),
        up=nn.Linear(3, 4),
        table=nn.Parameter(torch.empty(7, 6)),
        head=nn.Linear(6, 2),
    )

    flow = assert_cut_exactly(net, inputs(3, 5, 3), forms=["graph"])

    assert gates(flow, "up.weight", 0) is None
    assert gates(flow, "table", 1) == gates(flow, "head.weight", 1) == list(range(6))
    assert gates(flow, "table", 0) is None


def test_a_table_of_position_biases_keeps_its_rows():
    """Relative position biases: rows looked up, then heads carried to the scores."""

    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).reshape(-1, 5, 2, 4).transpose(1, 2) for layer in (net.q, net.k, net.v))
        places = (torch.arange(5)[:, None] - torch.arange(5)[None] + 4).view(-1)
        bias = net.table[places].view(5, 5, 2).permute(2, 0, 1).unsqueeze(0)
        scores = (q @ k.transpose(-2, -1) + bias).softmax(-1)
        return net.out((scores @ v).transpose(1, 2).reshape(-1, 5, 8))

    net = Net(
        function,
        q=nn.Linear(3, 8),
        k=nn.Linear(3, 8),
        v=nn.Linear(3, 8),
        table=nn.Parameter(torch.empty(9, 2)),
        out=nn.Linear(8, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 5, 3))

    assert flow.n_gates == 2
    assert gates(flow, "table", 1) == [0, 1]
    assert gates(flow, "table", 0) is None
    assert gates(flow, "q.weight", 0) == gates(flow, "out.weight", 1) == [0] * 4 + [1] * 4


class Chosen(nn.Module):
    """Works on some of its input's positions, kept in a buffer."""

    def __init__(self, select, n: int = 6):
        super().__init__()
        self.register_buffer("chosen", torch.randperm(9, generator=torch.Generator().manual_seed(1))[:n])
        self.select, self.first, self.head = select, nn.Linear(n, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(self.select(x, self.chosen)).relu())


KEPT_LISTS = {
    "index": lambda x, chosen: x[:, chosen],
    "index_select": lambda x, chosen: x.index_select(-1, chosen),
}


@pytest.mark.parametrize("form", ["in-place", "graph"])
@pytest.mark.parametrize("name", KEPT_LISTS)
def test_entries_of_a_kept_list_of_positions_are_units(name, form):
    """Inputs that nobody needs are not even read."""
    flow = assert_cut_exactly(Chosen(KEPT_LISTS[name]), inputs(3, 9), forms=[form])

    assert gates(flow, "chosen", 0) == gates(flow, "first.weight", 1) == list(range(4, 10))
    assert gates(flow, "first.weight", 0) == list(range(4))


def test_a_kept_list_that_chooses_among_units_pins_those():
    net = Net(lambda net, x: net.head(net.up(x)[:, net.chosen]), up=nn.Linear(3, 4), head=nn.Linear(3, 2))
    net.register_buffer("chosen", torch.tensor([2, 0, 3]))

    flow = assert_cut_exactly(net, inputs(3, 3), forms=["in-place", "graph"])

    assert gates(flow, "up.weight", 0) is None
    assert gates(flow, "chosen", 0) == gates(flow, "head.weight", 1) == [0, 1, 2]


@pytest.mark.parametrize("name", KEPT_LISTS)
def test_units_that_a_kept_list_chooses_among_stay_for_their_other_readers(name):
    net = both(lambda net, y: KEPT_LISTS[name](y, net.chosen), n_out=3)
    net.register_buffer("chosen", torch.tensor([2, 0, 3]))

    flow = assert_cut_exactly(net, inputs(5, 3), forms=["in-place", "graph"])

    assert gates(flow, "up.weight", 0) is None
    assert gates(flow, "chosen", 0) == gates(flow, "out.weight", 1) == [0, 1, 2]


def test_rows_selected_by_numbers_of_units_are_as_many_as_the_units():
    net = Net(
        lambda net, x: net.head(net.up(x)) + net.table.index_select(0, (net.up.bias > 0).long()).sum(0),
        up=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
        table=nn.Parameter(torch.empty(2, 2)),
    )

    flow = traced(net, inputs(5, 3))

    assert gates(flow, "up.weight", 0) is None
    assert flow.pinned[LOOKED_UP] == 4 + 2


def test_a_kept_list_read_in_two_places_keeps_what_either_needs():
    net = Net(lambda net, x: (net.head(x[:, net.chosen]), x[:, net.chosen]), head=nn.Linear(3, 2))
    net.register_buffer("chosen", torch.tensor([2, 0, 1]))

    assert traced(net, inputs(3, 3)).n_gates == 0


def test_a_list_cut_out_of_a_longer_one_is_not_shortened():
    net = Net(lambda net, x: net.head(x[:, net.chosen[:3]]), head=nn.Linear(3, 2))
    net.register_buffer("chosen", torch.tensor([2, 0, 1, 0]))

    assert traced(net, inputs(3, 3)).n_gates == 0


MASKED = {
    "positions": lambda y, mask: y[mask],
    "of each row": lambda y, mask: y[mask[:, 0]].mean(1),
    "after a slice": lambda y, mask: y[:, mask[0]].mean(1),
    "products": lambda y, mask: y[mask].relu() * y[mask],
}


@pytest.mark.parametrize("form", ["in-place", "graph"])
@pytest.mark.parametrize("name", MASKED)
def test_units_beside_what_a_mask_selects_pass(name, form):
    net = Net(lambda net, x, mask: net.head(MASKED[name](net.up(x), mask)), up=nn.Linear(3, 6), head=nn.Linear(6, 2))
    mask = torch.tensor([[True, True, False, True], [True, False, True, False], [False, True, False, False]])

    flow = assert_cut_exactly(net, (inputs(3, 4, 3), mask), forms=[form])

    assert gates(flow, "up.weight", 0) == gates(flow, "head.weight", 1) == list(range(6))
    assert flow.unknown_ops == {}


def test_units_that_a_mask_selects_among_are_pinned():
    net = Net(lambda net, x, mask: net.head(net.up(x)[..., mask]).sum(1), up=nn.Linear(3, 6), head=nn.Linear(4, 2))
    mask = torch.tensor([True, False, True, True, False, True])

    flow = traced(net, (inputs(3, 4, 3), mask))

    assert flow.n_gates == 0
    assert flow.pinned[LOOKED_UP] >= 6


BAGS = {"mean": {}, "sum": {"padding_idx": 0}, "max": {}}


@pytest.mark.parametrize("mode", BAGS)
def test_features_of_bags_of_embeddings_are_units(mode):
    net = Net(
        lambda net, i: net.tail(net.middle(net.bag(i)).relu()),
        bag=nn.EmbeddingBag(9, 6, mode=mode, **BAGS[mode]),
        middle=nn.Linear(6, 5),
        tail=nn.Linear(5, 2),
    )
    x = torch.randint(9, (4, 7), generator=torch.Generator().manual_seed(0))

    flow = assert_cut_exactly(net, x, forms=["in-place", "graph"], seeds=range(2))

    assert flow.n_gates == 6 + 5
    assert gates(flow, "bag.weight", 1) == gates(flow, "middle.weight", 1)
    assert flow.pinned["a vocabulary: rows are looked up by data"] == 9
    compact = shrink(gated_at(net, flow, random_gates(flow)), form="in-place")
    assert compact.bag.embedding_dim == compact.bag.weight.shape[1] < 6


def test_bags_of_several_lengths_with_weights():
    net = Net(
        lambda net, i, start, w: net.tail(net.bag(i, start, per_sample_weights=w)),
        bag=nn.EmbeddingBag(9, 6, mode="sum"),
        tail=nn.Linear(6, 2),
    )
    x = (torch.tensor([3, 1, 4, 1, 5]), torch.tensor([0, 2]), inputs(5))

    assert assert_cut_exactly(net, x).n_gates == 6


BAG_OF_UNITS = {
    "weights": lambda net, y: F.embedding_bag(
        torch.zeros(2, 4, dtype=torch.long), net.table, per_sample_weights=y[0, :2], mode="sum"
    ),
    "rows": lambda net, y: F.embedding_bag((y[0] > 0).long(), net.table),
    "starts": lambda net, y: F.embedding_bag(torch.zeros(5, dtype=torch.long), net.table, offsets=(y[0, 0] > 9).long()),
    "which": lambda net, y: torch.embedding_bag(y[0].t(), torch.tensor([0, 2, 1]), torch.tensor([0, 1]), mode=2)[3],
}


@pytest.mark.parametrize("name", BAG_OF_UNITS)
def test_units_that_choose_or_weigh_the_rows_of_bags_stay(name):
    net = both(BAG_OF_UNITS[name])
    net.register_buffer("table", torch.ones(9, 6))

    flow = traced(net, inputs(2, 5, 3))

    assert gates(flow, "up.weight", 0) is None


def test_features_stay_of_bags_that_are_asked_which_rows_were_the_largest():
    def bags(net, i):
        found = torch.embedding_bag(net.table, i, torch.tensor([0, 2]), mode=2)
        return net.tail(found[0]), found[3]

    net = Net(bags, table=nn.Parameter(torch.empty(9, 6)), tail=nn.Linear(6, 2))

    assert traced(net, torch.tensor([3, 1, 4, 1, 5])).n_gates == 0
