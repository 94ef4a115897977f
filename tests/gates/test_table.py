"""What docs/gates.md says of each family: expected cost, closed, test-time value."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from l0prune.gates.bank import GateBank
from l0prune.gates.registry import gate_distribution, gate_names

TABLE = re.search(
    r"^\| `--gate` \|.*?\n\n",
    (Path(__file__).parents[2] / "docs" / "gates.md").read_text(),
    re.DOTALL | re.MULTILINE,
)[0]
ROWS = [[cell.strip() for cell in row.split(" | ")] for row in TABLE.strip().splitlines()[2:]]
LOCATIONS = torch.linspace(-7.99, 7.99, 400, dtype=torch.float64)
MIXTURES = ("mdr-exponential", "mdr-exponential-uniform", "mdr-power")
WITH_ATOMS = ("hard-concrete", *(f"{name}-stretched" for name in MIXTURES))
WITHOUT = ("concrete", *MIXTURES)
STRAIGHT = [name for name in gate_names() if name.endswith("-st")]


def named(cell: str) -> set[str]:
    """Names of the families of a row, `...` standing for each of the mixtures."""
    return {
        full.removeprefix("mdr-...") if "..." not in full else full.replace("mdr-...", mixture)
        for full in re.findall(r"`([\w.-]+)`", cell)
        for mixture in (MIXTURES if "..." in full else ("",))
    }


def test_every_family_has_a_row():
    found = [name for cells in ROWS for name in sorted(named(cells[0]))]

    assert sorted(found) == sorted(gate_names())


@pytest.mark.parametrize("name", gate_names())
def test_the_values_told_are_those_there_are(name):
    told = next(cells[-1] for cells in ROWS if name in named(cells[0]))
    first_words = [re.match(r"`?(\w+)", part.strip("| "))[1] for part in told.split(";")]

    one = "median"  # of a gate that is 0 or 1
    assert tuple(one if word == "1" else word for word in first_words) == gate_distribution(name).estimators


@pytest.mark.parametrize("name", WITH_ATOMS)
def test_with_an_atom_the_cost_counts_what_is_not_zero(name):
    gate = gate_distribution(name)
    samples = gate.rsample(torch.full((200_000,), -0.5), generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(gate.prob_open(LOCATIONS), 1 - gate.prob_zero(LOCATIONS))
    expected = float(gate.prob_open(torch.tensor([-0.5]))[0])
    assert float((samples != 0).float().mean()) == pytest.approx(expected, abs=0.005)  # 4 standard errors


@pytest.mark.parametrize("name", WITHOUT)
def test_without_an_atom_the_cost_counts_the_binary_gate(name):
    torch.testing.assert_close(gate_distribution(name).prob_open(LOCATIONS), torch.sigmoid(LOCATIONS))


@pytest.mark.parametrize("name", STRAIGHT)
def test_straight_through_samples_are_binary_and_counted_as_they_come(name):
    gate = gate_distribution(name)
    samples = gate.rsample(torch.full((200_000,), 0.4), generator=torch.Generator().manual_seed(0))

    assert set(samples.unique().tolist()) == {0.0, 1.0}
    assert float(samples.mean()) == pytest.approx(float(gate.prob_open(torch.tensor([0.4]))[0]), abs=0.005)


@pytest.mark.parametrize("name", [*WITH_ATOMS, *WITHOUT, *STRAIGHT])
def test_a_gate_is_closed_up_to_an_open_probability_of_one_half(name):
    gate = gate_distribution(name)

    value = gate.test_value(LOCATIONS)

    assert torch.equal(value == 0, gate.prob_open(LOCATIONS) <= 0.5)
    assert 0 < int((value == 0).sum()) < len(value)
    assert bool(((value >= 0) & (value <= 1)).all())
    if name not in STRAIGHT:
        torch.testing.assert_close(value[value > 0], gate.median(LOCATIONS)[value > 0])
    else:
        assert set(value.tolist()) == {0.0, 1.0}


def test_the_original_rule_closes_later():
    gate = gate_distribution("hard-concrete")

    closed = gate.test_value(LOCATIONS, estimator="louizos") == 0

    assert float(gate.prob_open(LOCATIONS)[closed].max()) == pytest.approx(0.31, abs=0.01)


def test_exactly_k_are_open_and_counted():
    gate = gate_distribution("exact-k").at(0.5, lambda: 150)

    assert float(gate.prob_open(LOCATIONS).sum()) == pytest.approx(150)
    assert torch.equal(gate.test_value(LOCATIONS), (torch.arange(400) >= 250).double())
    assert float(gate.rsample(LOCATIONS.float()).sum()) == 150


def test_the_annealed_gate_counts_with_its_value_and_hardens():
    gate = gate_distribution("continuous-sparsification")
    end = gate.at(1.0, lambda: 0)

    torch.testing.assert_close(gate.prob_open(LOCATIONS), torch.sigmoid(LOCATIONS))
    torch.testing.assert_close(end.prob_open(LOCATIONS), torch.sigmoid(20 * LOCATIONS))
    for moment in (gate, end):
        assert torch.equal(moment.test_value(LOCATIONS), (LOCATIONS > 0).double())


@pytest.mark.parametrize("name", gate_names())
def test_located_gates_are_open_where_they_are_to_be(name):
    is_open = torch.rand(300, generator=torch.Generator().manual_seed(1)) < 0.4
    bank = GateBank(300, distribution=gate_distribution(name)).eval()

    bank.decide_(is_open, seed=3)

    values: Tensor = bank.values()
    assert torch.equal(values != 0, is_open)
    assert bool((values <= 1).all())
