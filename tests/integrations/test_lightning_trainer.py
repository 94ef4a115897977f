"""The Trainer of Lightning prunes a gated model by a callback: its steps, its cut, its checkpoints, its log."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import l0prune
from l0prune.errors import ConfigError

lightning: Any = pytest.importorskip("lightning.pytorch")

from l0prune.integrations.lightning import L0Prune  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning, on workers of loaders and the like

EPOCHS, STEPS, GATE_STEPS, BATCH = 4, 8, 4, 4
HALF = l0prune.Budget("macs", 0.5)


class Module(lightning.LightningModule):
    """A perceptron with momentum, and a layer of its own that no gate knows."""

    def __init__(self, *, gated=True):
        super().__init__()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 8)).double()
        self.net = l0prune.inject(net, l0prune.trace(net, torch.zeros(2, 6).double())) if gated else net
        self.head = nn.Linear(8, 3).double()
        self.scores = []

    def forward(self, x):
        return self.head(self.net(x))

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class SameNoise(lightning.Callback):
    def setup(self, trainer, pl_module, stage):
        pl_module.net.register_forward_pre_hook(lambda net, _: net.gates._generator.manual_seed(5) and None)


def loader(batch=BATCH):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(STEPS // EPOCHS * BATCH, 6, generator=generator).double()
    rows = torch.utils.data.TensorDataset(x, x[:, 0].gt(0).long() + x[:, 1].gt(0).long())
    return torch.utils.data.DataLoader(rows, batch_size=batch)


def trained(folder, *callbacks, module=None, batch=BATCH, resume=None, budget=HALF, **options):
    module = Module() if module is None else module
    pruning = L0Prune(budget=budget, gate_fraction=GATE_STEPS / STEPS, align=1)
    usual = {"accelerator": "cpu", "max_epochs": EPOCHS, "enable_progress_bar": False, "enable_model_summary": False}
    usual |= {"logger": False, "enable_checkpointing": any(hasattr(c, "dirpath") for c in callbacks)}
    trainer = lightning.Trainer(default_root_dir=folder, callbacks=[pruning, *callbacks], **(usual | options))
    trainer.fit(module, loader(batch), ckpt_path=resume, **({"weights_only": True} if resume else {}))
    return module, pruning, trainer


def assert_same(first, second, atol):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=atol)


def test_the_trainer_ends_with_a_network_within_the_budget_that_it_recovered(tmp_path):
    module, pruning, trainer = trained(tmp_path)

    assert module.net.hard_cost("macs") <= 0.5
    assert sum(p.numel() for p in pruning.compact.parameters()) < 0.6 * sum(
        p.numel() for p in module.net.model.parameters()
    )
    x = next(iter(loader()))[0]
    torch.testing.assert_close(module.head(pruning.compact(x)), module.eval()(x), rtol=0, atol=1e-10)
    assert trainer.logged_metrics["l0prune_macs"] <= 0.5
    assert {p.shape for p in pruning.compact.parameters()} <= {
        state["exp_avg"].shape for state in trainer.optimizers[0].state.values()
    }
    assert {float(state["step"]) for state in trainer.optimizers[0].state.values()} == {STEPS}


def test_batches_that_are_accumulated_move_gates_and_weights_as_one_batch_does(tmp_path):
    whole, of_whole, _ = trained(tmp_path, SameNoise())
    parts, of_parts, trainer = trained(tmp_path, SameNoise(), batch=BATCH // 2, accumulate_grad_batches=2)

    assert trainer.global_step == STEPS
    assert (whole.net.gates.locations - Module().net.gates.locations).abs().max() > 1
    torch.testing.assert_close(parts.net.gates.locations, whole.net.gates.locations, rtol=0, atol=1e-5)
    assert_same(of_whole.compact.state_dict(), of_parts.compact.state_dict(), atol=1e-8)


@pytest.mark.parametrize(("epoch", "at"), [(0, 2), (2, 6)], ids=["gates", "after the cut"])
def test_a_training_that_is_resumed_ends_with_the_same_weights(tmp_path, epoch, at):
    keep = lightning.callbacks.ModelCheckpoint(dirpath=tmp_path / "kept", every_n_train_steps=at, save_top_k=-1)
    straight, pruning, _ = trained(tmp_path, keep)
    resumed, again, trainer = trained(tmp_path, resume=tmp_path / "kept" / f"epoch={epoch}-step={at}.ckpt")

    assert trainer.global_step == STEPS
    assert_same(pruning.compact.state_dict(), again.compact.state_dict(), atol=1e-12)
    assert_same(straight.head.state_dict(), resumed.head.state_dict(), atol=1e-12)


def test_what_cannot_be_pruned_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="0 gated models"):
        trained(tmp_path, module=Module(gated=False))
    with pytest.raises(ConfigError, match="the number of steps"):
        trained(tmp_path, max_epochs=-1)
