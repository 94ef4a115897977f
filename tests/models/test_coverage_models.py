"""Real architectures: half their units closed at random and cut out; equal to the gated network, in torch and in ONNX."""

import pytest
import torchvision_beside_cpu_torch  # noqa: F401 - importing it is what it does

import l0prune
from l0prune.sources.model_spec import load_model

pytestmark = pytest.mark.models

TIMM = (
    *("resnet18", "resnet50", "vgg11_bn", "densenet121", "mobilenetv2_100", "mobilenetv3_small_050", "efficientnet_b0"),
    *("regnetx_002", "convnext_atto", "inception_v3", "ghostnet_050", "res2next50", "hrnet_w18_small"),
    *("deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "gmixer_12_224"),
)
TORCHVISION = ("shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "mnasnet0_5")
REACH = {"timm:swin_tiny_patch4_window7_224": 0.8}
SPECS = [*(f"timm:{name}" for name in TIMM), *(f"torchvision:{name}" for name in TORCHVISION)]


def load(spec: str):
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    return load_model(spec)


@pytest.mark.parametrize("spec", SPECS)
def test_a_network_cut_in_half_at_random_is_exact(spec):
    loaded = load(spec)

    report = l0prune.verify(loaded.model, loaded.example_inputs, closed=0.5, seed=0)

    assert report.exact
    assert report.max_rel_diff < 1e-4
    assert report.onnx_max_rel_diff is not None
    assert report.onnx_max_rel_diff < 1e-4
    assert report.params_after < 0.6 * report.params_before
    assert report.prunable_fraction >= REACH.get(spec, 0.95)


@pytest.mark.parametrize("spec", SPECS)
def test_it_is_exact_to_nine_digits_in_double_precision(spec):
    loaded = load(spec)

    report = l0prune.verify(loaded.model, loaded.example_inputs, closed=0.5, seed=1, double=True, onnx=False)

    assert report.exact
    assert report.max_rel_diff < 1e-9
