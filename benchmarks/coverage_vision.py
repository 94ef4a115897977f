"""The vision models of the coverage table: the smallest of every timm family, and what torchvision can build."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from coverage_models import Case
from torch import Tensor, nn

__all__ = ["LARGEST", "TIMM", "TOO_LARGE", "missing_timm_families", "torchvision_cases", "vision_cases"]

LARGEST = 90_000_000
"""Parameters beyond which a timm family's smallest model is left out."""

TIMM = (
    *("beit_base_patch16_224", "halonet_h1", "mobileone_s1", "cait_xxs24_224", "coat_tiny", "convit_tiny"),
    *("convmixer_768_32", "convnext_zepto_rms", "cpubone_nano", "crossvit_tiny_240", "csatv2", "cs3darknet_focus_s"),
    *("cspnext_tiny", "davit_tiny", "deit_tiny_patch16_224", "densenet121", "dla46x_c", "dpn48b", "edgenext_xx_small"),
    *("efficientformer_l1", "efficientformerv2_s0", "mobilenetv2_035", "efficientvim_m1", "efficientvit_b0"),
    *("efficientvit_m0", "vit_tiny_patch16_dinov3_qkvb", "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf"),
    *("gcvit_xxtiny", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224", "sam2_hiera_tiny"),
    *("hrnet_w18_small", "iformer_t", "inception_next_atto", "inception_resnet_v2", "inception_v3", "inception_v4"),
    *("lcnetv2_small", "levit_128s", "lowformer_b0", "mambaout_femto", "maxvit_pico_rw_256", "poolformerv2_s12"),
    *("gmlp_ti16_224", "mobilenetv3_small_050", "mobilevit_xxs", "mvitv2_tiny", "naflexvit_base_patch16_parfac_gap"),
    *("nasnetalarge", "jx_nest_tiny", "nextvit_small", "nf_regnet_b0", "pit_ti_224", "pnasnet5large", "pvt_v2_b0"),
    *("qwen3_vit_88m", "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvit_m1", "res2next50", "resnest14d"),
    *("resnet10t", "resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s", "shvit_s1"),
    *("skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window16_256"),
    *("swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small"),
    *("visformer_tiny", "vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "vit_srelpos_small_patch16_224"),
    *("samvit_base_patch16_224", "vitamin_small_224", "volo_d1_224", "ese_vovnet19b_slim_dw", "legacy_xception"),
    *("xception41p", "xcit_nano_12_p8_224"),
)
"""The smallest model of every module of timm 1.0.31, its miniatures for timm's own tests (`test_*`) left out."""

TOO_LARGE = {"deepseek_vit": 411_800_000, "gemma4_vit": 167_400_000, "mobilenetv5": 294_100_000, "vgg": 132_900_000}
"""Families whose smallest model has more than `LARGEST` parameters."""

SMALL_IMAGES = (96, 128)
"""Images that models of a fixed size are built for, where they can be."""

FIRST_SIZES = (64, 96, 128, 160, 224, 256)


def missing_timm_families() -> list[str]:
    """Modules of the installed timm that the table knows no model of."""
    import timm
    from timm.models._registry import _model_to_module

    covered = {_model_to_module[name] for name in TIMM if name in _model_to_module} | TOO_LARGE.keys()
    return sorted(set(timm.list_modules()) - covered)


def vision_cases() -> Iterator[tuple[str, Case]]:
    """(suite, case) of every vision model."""
    for name in TIMM:
        yield "timm", Case(name, partial(_timm, name), _fitting_image)
    yield from torchvision_cases()


def torchvision_cases() -> Iterator[tuple[str, Case]]:
    """Classification, segmentation and video models that torchvision can build without weights."""
    from torchvision import models

    for name in models.list_models(module=models):
        options = {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}
        yield "classification", Case(name, partial(_torchvision, name, **options), _fitting_image)
    for name in models.list_models(module=models.segmentation):
        yield "segmentation", Case(name, partial(_torchvision, name, weights_backbone=None), _fitting_image)
    for name in models.list_models(module=models.video):
        yield "video", Case(name, partial(_torchvision, name), _fitting_clip)


def _timm(name: str) -> nn.Module:
    """For small images where the model can be built for them."""
    import timm

    torch.manual_seed(0)
    known = timm.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size:
        for size in SMALL_IMAGES:
            try:
                model = timm.create_model(name, img_size=size).eval()
                with torch.no_grad():
                    model(torch.zeros(2, 3, size, size))
            except Exception:  # noqa: BLE001 - it cannot, and may say so in any way
                continue
            model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, size, size)}
            return model  # type: ignore[no-any-return]
    return timm.create_model(name).eval()  # type: ignore[no-any-return]


def _torchvision(name: str, **options: Any) -> nn.Module:
    from torchvision import models

    from l0prune.sources.libraries import drop_auxiliary_heads_

    torch.manual_seed(0)
    model = models.get_model(name, weights=None, **options).eval()
    drop_auxiliary_heads_(model)
    return model


def _fitting_image(model: nn.Module) -> Tensor:
    """Two images of the smallest size the model accepts, its own where it is fixed."""
    own = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = own.get("input_size", (3, 224, 224))
    sizes = () if own.get("fixed_input_size") else FIRST_SIZES
    return _first_that_fits(model, [*[(channels, size, size) for size in sizes], (channels, height, width)])


def _fitting_clip(model: nn.Module) -> Tensor:
    """Two clips of the smallest size the model accepts."""
    return _first_that_fits(model, [(3, t, s, s) for t, s in ((8, 64), (16, 64), (16, 112), (16, 224))])


def _first_that_fits(model: nn.Module, shapes: list[tuple[int, ...]]) -> Tensor:
    failure: Exception | None = None
    for shape in shapes:
        images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                model(images.to(next(model.parameters()).dtype))
        except Exception as error:  # noqa: BLE001 - a model that rejects a size may raise anything; the next is tried
            failure = error
        else:
            return images
    raise ValueError(f"{type(model).__name__} accepts none of {shapes}") from failure
