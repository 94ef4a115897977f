"""The Trainer of transformers prunes a gated model by a callback: its steps, its cut, its checkpoints, its log."""

import copy
import warnings
from collections import namedtuple
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hf_models import tiny_bert, token_inputs

import l0prune
from l0prune.errors import ConfigError
from l0prune.finetuning.features import FeatureReader, feature_loss, feature_sites
from l0prune.gated.model import GatedModel

transformers = pytest.importorskip("transformers")

from l0prune.integrations.teaching import DenseTeacher  # noqa: E402
from l0prune.integrations.transformers import L0PruneCallback  # noqa: E402

STEPS, GATE_STEPS, BATCH = 6, 3, 4
HALF = l0prune.Budget("macs", 0.5)


class Rows(torch.utils.data.Dataset):
    """Tokens whose sum decides their class."""

    def __init__(self, n=48):
        self.ids = torch.randint(1, 40, (n, 10), generator=torch.Generator().manual_seed(3))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        ids = self.ids[index]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": int(ids.sum()) % 3}


@lru_cache
def traced_bert() -> GatedModel:
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return l0prune.inject(model, l0prune.trace(model, token_inputs()))


def gated_bert() -> GatedModel:
    return copy.deepcopy(traced_bert())


def arguments(folder, **options):
    usual = {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "learning_rate": 1e-3, "logging_steps": 1}
    usual |= {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "seed": 1, "use_cpu": True}
    return transformers.TrainingArguments(str(folder), **(usual | options))


def trained(folder, gated=None, *, resume=None, callback=None, features=None, **options):
    """A trainer whose training is over, and its callback."""
    gated = gated_bert() if gated is None else gated
    pruning = callback or L0PruneCallback(
        budget=HALF, gate_fraction=GATE_STEPS / STEPS, align=1, feature_distillation=features
    )
    trainer = transformers.Trainer(
        model=gated, args=arguments(folder, **options), train_dataset=Rows(), eval_dataset=Rows(8), callbacks=[pruning]
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, pruning


def test_the_trainer_ends_with_a_network_within_the_budget_that_it_recovered(tmp_path):
    trainer, pruning = trained(tmp_path)
    gated, compact = trainer.model, pruning.compact

    assert type(compact) is transformers.BertForSequenceClassification
    assert gated.hard_cost("macs") <= 0.5
    before = {name: value.clone() for name, value in compact.state_dict().items()}
    assert sum(p.numel() for p in compact.parameters()) < 0.9 * sum(p.numel() for p in gated.model.parameters())
    with torch.no_grad():
        difference = (compact(**token_inputs()).logits - gated(**token_inputs()).logits).abs().max()
    assert difference < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in compact.state_dict().items())
    folder = l0prune.hf.save_pretrained(compact, tmp_path / "cut", onnx=False)
    assert type(l0prune.hf.from_pretrained(folder)) is type(compact)


def test_costs_are_in_the_log_and_the_class_of_a_row_is_evaluated(tmp_path):
    trainer, _ = trained(tmp_path)

    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert len(logged) == STEPS
    assert [("l0prune_expected_macs" in line) for line in logged] == [True] * (GATE_STEPS - 1) + [False] * (
        STEPS - GATE_STEPS + 1
    )
    assert all(line["l0prune_macs"] <= 0.5 for line in logged[GATE_STEPS - 1 :])
    assert "eval_loss" in trainer.evaluate()


def same_noise_(gated):
    """Have each call draw the same gates, and the Trainer divide the loss, which this model's own loss would not."""
    gated.model.accepts_loss_kwargs = False
    gated.register_forward_pre_hook(lambda module, _: module.gates._generator.manual_seed(5) and None)
    return gated


def test_micro_batches_that_are_accumulated_move_gates_and_weights_as_one_batch_does(tmp_path):
    whole, of_whole = trained(tmp_path / "1", same_noise_(gated_bert().double()), features=0.0)
    parts, of_parts = trained(
        tmp_path / "2",
        same_noise_(gated_bert().double()),
        features=0.0,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )

    assert parts.state.global_step == whole.state.global_step == STEPS
    torch.testing.assert_close(parts.model.gates.log_alpha, whole.model.gates.log_alpha, rtol=0, atol=1e-5)
    assert (whole.model.gates.locations - gated_bert().gates.locations).abs().max() > 1
    for name, value in of_whole.compact.state_dict().items():
        torch.testing.assert_close(of_parts.compact.state_dict()[name], value, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "at", [pytest.param(2, marks=pytest.mark.slow, id="gates"), pytest.param(4, id="after the cut")]
)
def test_a_training_that_is_resumed_ends_with_the_same_weights(tmp_path, at):
    _, straight = trained(tmp_path / "a", save_strategy="steps", save_steps=at)
    checkpoint = tmp_path / "a" / f"checkpoint-{at}"
    with warnings.catch_warnings():
        warnings.simplefilter("error", l0prune.errors.L0PruneWarning)
        trainer, resumed = trained(tmp_path / "b", resume=str(checkpoint), save_strategy="no")

    assert trainer.state.global_step == STEPS
    assert straight.compact.state_dict().keys() == resumed.compact.state_dict().keys()
    for name, value in straight.compact.state_dict().items():
        torch.testing.assert_close(resumed.compact.state_dict()[name], value, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_activation_checkpoints_change_nothing(tmp_path):
    _, plain = trained(tmp_path / "a")
    _, checkpointed = trained(tmp_path / "b", gradient_checkpointing=True)

    for name, value in plain.compact.state_dict().items():
        torch.testing.assert_close(checkpointed.compact.state_dict()[name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_mixed_precision_trains_as_well(tmp_path):
    trainer, pruning = trained(tmp_path, bf16=True)

    assert trainer.model.hard_cost("macs") <= 0.5
    assert next(pruning.compact.parameters()).dtype == torch.float32


def test_the_optimizer_takes_its_momentum_over_to_the_smaller_tensors(tmp_path):
    _, pruning = trained(tmp_path, save_strategy="steps", save_steps=STEPS)
    saved = torch.load(tmp_path / f"checkpoint-{STEPS}" / "optimizer.pt", weights_only=True)["state"]

    shapes = sorted(tuple(p.shape) for p in pruning.compact.parameters())
    assert sorted(tuple(entry["exp_avg"].shape) for entry in saved.values()) == shapes
    assert {float(entry["step"]) for entry in saved.values()} == {STEPS}


def test_blocks_of_the_cut_network_are_taught_by_the_channels_that_they_kept():
    gated = gated_bert().double()
    gated.freeze(torch.arange(gated.n_gates) % 2)
    dense, compact = gated.model, l0prune.shrink(gated)
    sites = feature_sites(gated, compact)
    inputs = {**token_inputs(), "labels": torch.tensor([0, 1])}
    features, wanted = (FeatureReader(model, sites)(lambda model: model(**inputs))[1] for model in (compact, dense))
    losses = []
    for weight in (0.0, 60.0):
        student, teacher = copy.deepcopy(compact).train(), DenseTeacher(dense, 0.5, 2.0, weight)
        teacher.attach(student)
        teacher.teach_blocks(student, sites)
        losses.append(student(**inputs).loss)

    assert len(sites) == len(dense.bert.encoder.layer)
    torch.testing.assert_close(losses[1] - losses[0], 60 * feature_loss(sites, features, wanted), rtol=1e-10, atol=0)
    assert losses[1] - losses[0] > 1
    assert losses[1].requires_grad


@pytest.mark.parametrize("heeds", [True, False])
def test_a_teacher_counts_items_as_the_model_does(heeds):
    """Two batches of two, told that there are four items, weigh as the mean of one batch of four."""

    def loss(logits, labels, n_items):
        return (
            F.cross_entropy(logits, labels)
            if n_items is None or not heeds
            else F.cross_entropy(logits, labels, reduction="sum") / n_items
        )

    class Net(torch.nn.Linear):
        def forward(self, x, labels, num_items_in_batch=None):
            logits = super().forward(x)
            return SimpleNamespace(loss=loss(logits, labels, num_items_in_batch), logits=logits)

    torch.manual_seed(0)
    dense, student, x, labels = Net(3, 2), Net(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    DenseTeacher(dense, 0.7, 2.0).attach(student)
    whole = student(x, labels=labels).loss
    parts = [student(x[i : i + 2], labels=labels[i : i + 2], num_items_in_batch=4).loss for i in (0, 2)]
    torch.testing.assert_close(sum(parts) / (1 if heeds else 2), whole)


Fields = namedtuple("Fields", ["loss", "logits"])


@pytest.mark.parametrize("form", [tuple, dict, Fields])
def test_the_teacher_understands_every_form_of_outputs(form):
    class Net(torch.nn.Linear):
        made = SimpleNamespace

        def forward(self, x, labels):
            logits = super().forward(x)
            loss = F.cross_entropy(logits, labels)
            return (loss, logits, x) if self.made is tuple else self.made(loss=loss, logits=logits)

    torch.manual_seed(0)
    dense, student, x, labels = Net(3, 2), Net(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    DenseTeacher(dense, 0.7, 2.0).attach(student)
    expected = student(x, labels=labels).loss
    Net.made = form
    found = student(x, labels=labels)

    assert type(found) is form
    assert torch.equal(found["loss"] if form is dict else found[0], expected)
    assert not torch.equal(expected, F.cross_entropy(F.linear(x, student.weight, student.bias), labels))


def test_the_teacher_teaches_models_that_return_tuples(tmp_path):
    as_tuples = gated_bert()
    as_tuples.model.config.return_dict = False
    _, of_tuples = trained(tmp_path / "a", same_noise_(as_tuples))
    _, usual = trained(tmp_path / "b", same_noise_(gated_bert()))

    for name, value in usual.compact.state_dict().items():
        torch.testing.assert_close(of_tuples.compact.state_dict()[name], value, rtol=0, atol=1e-6)


def test_a_teacher_that_no_loss_can_hear_says_so_once(tmp_path):
    with pytest.warns(l0prune.errors.L0PruneWarning) as told:
        trained(tmp_path, label_smoothing_factor=0.1)

    ours = [str(warning.message) for warning in told if "teaches nothing" in str(warning.message)]
    assert len(ours) == 1
    assert "label_smoothing_factor" in ours[0]


def test_what_cannot_be_pruned_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="0 gated models"):
        trained(tmp_path, tiny_bert())
    with pytest.raises(ConfigError, match="nothing says what the network may cost"):
        trained(tmp_path, callback=L0PruneCallback())


def test_a_training_too_short_to_decide_is_cut_with_a_warning(tmp_path):
    callback = L0PruneCallback(budget=HALF, gate_fraction=1.0, align=1)
    halted = transformers.TrainerCallback()
    halted.on_step_end = lambda args, state, control, **_: setattr(control, "should_training_stop", True)
    gated = gated_bert()
    trainer = transformers.Trainer(
        model=gated, args=arguments(tmp_path), train_dataset=Rows(), callbacks=[callback, halted]
    )
    with pytest.warns(l0prune.errors.L0PruneWarning, match="without recovery"):
        trainer.train()
    assert gated.hard_cost("macs") <= 0.5
