"""Transformers learns to load cut models itself: so do its pipelines, and sentence-transformers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l0prune.hf.loading import plan_of, record_of
from l0prune.sources.hf_folder import METHOD, CutFolder, CutSection
from l0prune.sources.libraries import optional
from l0prune.surgery.in_place import cut_, cut_in_place
from l0prune.surgery.into_class import dense_model
from l0prune.surgery.record import remember_surgery_

__all__ = ["register", "sentence_transformer"]


def sentence_transformer(directory: str | Path, **options: Any) -> Any:
    """`SentenceTransformer(directory, ...)` of a folder that `save_pretrained` wrote.

    Args:
        directory: The folder.
        options: Of `SentenceTransformer`.

    Raises:
        ModelSpecError: sentence-transformers is not installed.
        L0PruneError: as `from_pretrained`.
    """
    library = optional("sentence_transformers", "hf")
    register()
    return library.SentenceTransformer(str(directory), **options)


@functools.cache
def register() -> None:
    """From now on, in this process, transformers' own `from_pretrained` loads cut models, and so does what is built on it.

    `AutoModel` and its kin, `pipeline(model=DIR)` and `SentenceTransformer(DIR)` then cut the class by the plan in the folder
    before its weights are loaded. What such a call does beyond that, such as looking for code in the folder where it is told
    to, is transformers' own doing; `l0prune.hf.from_pretrained` never does.

    Raises:
        ModelSpecError: transformers is not installed.
    """
    optional("transformers", "hf")
    from transformers.quantizers import HfQuantizer
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    @register_quantization_config(METHOD)
    class CutConfig(QuantizationConfigMixin):  # type: ignore[misc]
        """The section of a configuration, as it stands there."""

        def __init__(self, **section: Any) -> None:
            self.quant_method = METHOD
            self.section = {key: value for key, value in section.items() if key != "quant_method"}

        def to_dict(self) -> dict[str, Any]:
            return {"quant_method": METHOD, **self.section}

    @register_quantizer(METHOD)
    class Cutter(HfQuantizer):  # type: ignore[misc]
        """Cuts a model that has no memory yet."""

        requires_calibration = True
        folder: CutFolder

        def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
            CutSection.from_json(self.quantization_config.section, "quantization_config")
            self.folder = CutFolder.open(Path(str(getattr(model.config, "_name_or_path", ""))))
            plan = plan_of(self.folder)
            plan.check(model)
            with torch.device("cpu"):
                cut_(model, plan, {})

        def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> None:
            self.remove_quantization_config(model)
            for module in model.modules():
                config: Any = vars(module).get("config")
                if hasattr(config, "_is_quantized"):
                    del config._is_quantized
            _rebuild_buffers_(model, self.folder)
            remember_surgery_(model, record_of(self.folder))

        def is_serializable(self, **_: Any) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return True


def _rebuild_buffers_(model: nn.Module, folder: CutFolder) -> None:
    """Buffers that no file holds have the values they are built with, cut by the plan."""
    plan = plan_of(folder)
    built = cut_in_place(dense_model(folder.origin, plan, folder.weights, empty=True), plan)
    stored = model.state_dict().keys()
    for name, buffer in built.named_buffers(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        holder = model.get_submodule(path)
        held = holder._buffers.get(leaf)
        if name not in stored and held is not None:
            holder._buffers[leaf] = buffer.to(held.device)
