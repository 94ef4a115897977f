import hashlib
import json

import pytest
import torch
from torch import nn

from l0prune import models
from l0prune.models.resnet_cifar import PadShortcut
from l0prune.models.vit import Attention
from l0prune.sources.batches import make_batches
from l0prune.sources.datasets import load_data
from l0prune.sources.model_spec import bundled_weights, load_model
from l0prune.tasks.provided.classification import Classification

# Trainable parameters, as published for the architectures that have been.
PARAMETERS = {
    "lenet300": 266_610,
    "lenet5": 431_080,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "digits_resnet": 371_434,
}
BUNDLED = [name for name in models.names() if models.entry(name).checkpoint]


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", models.names())
def test_every_network_turns_its_example_input_into_logits(name):
    entry = models.entry(name)
    model = entry.factory(num_classes=7).eval()

    assert model(torch.randn(2, *entry.input_shape)).shape == (2, 7)
    assert len(entry.mean) == len(entry.std) == entry.input_shape[0]


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_the_published_ones(name):
    assert n_parameters(models.entry(name).factory()) == PARAMETERS[name]


def test_resnet_keys_are_those_of_the_public_checkpoints():
    keys = set(models.entry("resnet20").factory().state_dict())

    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "linear.weight", "linear.bias", *(f"bn1.{part}" for part in norm)}
    for block in (f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(3)):
        for i in (1, 2):
            expected |= {f"{block}.conv{i}.weight", *(f"{block}.bn{i}.{part}" for part in norm)}
    assert keys == expected


def test_the_option_a_shortcut_keeps_every_second_pixel_between_zero_channels():
    x = torch.randn(2, 3, 6, 6)

    y = PadShortcut(before=2, after=1, stride=2)(x)

    assert y.shape == (2, 6, 3, 3)
    assert torch.equal(y[:, 2:5], x[:, :, ::2, ::2])
    assert not y[:, [0, 1, 5]].any()


def test_a_resnet_that_projects_has_1x1_convolutions_in_place_of_its_two_padded_shortcuts():
    padded, projecting = models.entry("resnet20").factory(), models.entry("resnet20").factory(projects=True)

    added = {name: tuple(p.shape) for name, p in projecting.named_parameters() if "shortcut" in name}
    assert added["layer2.0.shortcut.0.weight"] == (32, 16, 1, 1)
    assert added["layer3.0.shortcut.0.weight"] == (64, 32, 1, 1)
    assert n_parameters(projecting) == n_parameters(padded) + 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert not any(isinstance(module, PadShortcut) for module in projecting.modules())
    assert projecting.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_attention_computes_on_when_heads_are_cut_out_of_its_weights():
    torch.manual_seed(0)
    attention = Attention(width=12, n_heads=3).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    silenced = Attention(width=12, n_heads=3).double()
    silenced.load_state_dict(attention.state_dict())
    silenced.proj.weight.data[:, 4:8] = 0  # the second head goes nowhere

    kept = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    rows = torch.cat([kept, kept + 12, kept + 24])
    attention.qkv.weight = nn.Parameter(attention.qkv.weight[rows])
    attention.qkv.bias = nn.Parameter(attention.qkv.bias[rows])
    attention.proj.weight = nn.Parameter(attention.proj.weight[:, kept])

    torch.testing.assert_close(attention(x), silenced(x), atol=1e-12, rtol=0)


def test_an_mlp_block_and_an_image_size_can_be_chosen():
    vit = models.entry("vit_cifar").factory(image_size=16, width=32, depth=1, n_heads=2, mlp_width=48, in_channels=1)
    mobilenet = models.entry("mobilenetv2_cifar").factory(width=0.5, stem_stride=2)

    assert vit.eval()(torch.randn(2, 1, 16, 16)).shape == (2, 10)
    assert n_parameters(mobilenet) < n_parameters(models.entry("mobilenetv2_cifar").factory()) / 2


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_checkpoint_is_the_one_its_provenance_describes(name):
    path = bundled_weights(name)
    provenance = json.loads(path.with_suffix(".json").read_text())

    assert path.stat().st_size < 2_000_000
    assert hashlib.sha256(path.read_bytes()).hexdigest() == provenance["sha256"]


def test_the_demo_network_reads_digits():
    data = load_data("digits")
    loaded = load_model("digits_resnet", weights="bundled")

    reached = Classification().evaluate(loaded.model, make_batches(loaded, data.x_test, data.y_test, batch_size=120))

    provenance = json.loads(bundled_weights("digits_resnet").with_suffix(".json").read_text())
    assert reached == pytest.approx(provenance["test_accuracy"], abs=0.3)  # one image more or less
    assert reached >= 98
