"""Gate phases that decide nothing say so: where they start, at the freeze, and in the result."""

from dataclasses import replace

import pytest
import torch
from finetuning_case import QUICK, Stopping, gated_net, run

from l0prune.finetuning.doubts import hurried_gates, too_few_steps, undecided_gates

SHORT = replace(QUICK, gate_training="gradient", epochs=3, warmup_epochs=0, gate_epochs=1, settle_epochs=0)


class Told:
    """A progress that keeps its messages."""

    def __init__(self):
        self.messages = []

    def start(self, phase, total):
        pass

    def advance(self, steps, figures):
        pass

    def finish(self):
        pass

    def message(self, text):
        self.messages.append(text)


def test_gates_that_cannot_come_down_in_their_steps_are_told_at_the_start():
    gated = gated_net()

    line = too_few_steps(gated, 6, None)

    assert line.startswith(
        "CAREFUL: in 6 steps at learning rate 0.3 no gate can come further down than to a probability of 0.94"
    )
    assert "gate_epochs" in line
    assert "gate_start=magnitude" in line
    assert too_few_steps(gated, 6, 1.0) is None
    assert too_few_steps(gated, 20, None) is None


def test_costs_that_are_apart_are_explained_by_the_gates_between_them():
    gated = gated_net()
    with torch.no_grad():
        gated.gates.log_alpha.fill_(-1.4)  # open with a probability of 0.53

    line = undecided_gates(gated, 10)

    assert line.startswith("CAREFUL: 20 of 20 gates are undecided after 10 steps")
    assert "expected cost is 0.3" in line
    assert "but 1.00 is open" in line


@pytest.mark.parametrize("location", [-6.0, 6.0])
def test_gates_that_have_decided_raise_no_doubt(location):
    gated = gated_net()
    with torch.no_grad():
        gated.gates.log_alpha[::2] = location

    assert undecided_gates(gated, 10) is None


def test_doubts_are_told_when_they_arise_and_stand_in_the_result():
    told = Told()

    result = run(config=SHORT, progress=told)

    assert len(result.doubts) >= 1
    assert set(result.doubts) == {message for message in told.messages if message.startswith("CAREFUL")}
    assert result.to_json()["doubts"] == "\n".join(result.doubts)


def test_a_resumed_run_remembers_its_doubts(tmp_path):
    whole = run(config=SHORT)

    with pytest.raises(KeyboardInterrupt):
        run(batches=Stopping(14), config=SHORT, out=tmp_path)
    told = Told()
    resumed = run(config=SHORT, out=tmp_path, resume=True, progress=told)

    assert resumed.doubts == whole.doubts
    assert not [message for message in told.messages if message.startswith("CAREFUL")]


@pytest.mark.parametrize(
    "options",
    [
        {"gate_start": "magnitude"},
        {"gate_training": None},
        {"method": "magnitude", "gate_epochs": None, "gate_training": None},
    ],
)
def test_a_choice_that_a_criterion_has_made_is_not_doubted(options):
    assert run(config=replace(SHORT, **options)).doubts == ()


def test_gates_that_are_placed_in_hardly_a_step_are_told_what_to_do():
    hurried = replace(SHORT, gate_training=None, epochs=1, gate_epochs=1 / 3)
    (line,) = run(config=hurried).doubts

    assert line == hurried_gates(2, hurried.salience_batches)
    assert line.startswith("CAREFUL: the gates have 2 steps")
    assert "gate_epochs" in line
    assert "method=fisher" in line
    assert hurried_gates(4, 20) is None
