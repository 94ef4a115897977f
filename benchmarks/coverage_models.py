"""Transformers architectures in small, with random weights: what the coverage table runs and what tests run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CASES", "Case", "case"]

N_TOKENS = 12
VOCABULARY = 99


@dataclass(frozen=True)
class Case:
    """A model that can be built without any download.

    Attributes:
        name: As in the table.
        build: Makes it, with random weights, in evaluation mode.
        inputs: Makes its example inputs: a tensor, a tuple of positional or a dict of keyword tensors.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], Any]


def case(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)


@torch.no_grad()
def trained_(model: nn.Module) -> nn.Module:
    """Weights of the size that training gives them: at their initial size attention is all but uniform and hides mistakes."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=1.5 * (parameter.numel() / parameter.shape[0]) ** -0.5)
        else:
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model


def _builder(config_class: str, model_class: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, config_class)(**options)
        return trained_(getattr(transformers, model_class)(config)).eval()

    return build


class Only(nn.Module):
    """A model of which one field of the output is used."""

    def __init__(self, model: nn.Module, field: str):
        super().__init__()
        self.model = model
        self.field = field

    def forward(self, **inputs: Tensor) -> Tensor:
        """That field."""
        value: Tensor = getattr(self.model(**inputs), self.field)
        return value


def _only(field: str, build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Only(build(), field).eval()


def _whisper_encoder() -> nn.Module:
    """The speech encoder alone: the decoder is BART's."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(0)
    encoder = WhisperEncoder(
        WhisperConfig(
            d_model=48,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=96,
            num_mel_bins=16,
            max_source_positions=20,
        )
    )
    return trained_(encoder).eval()


def _text(model: nn.Module) -> dict[str, Tensor]:
    """Two sentences, the second one shorter."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (2, N_TOKENS), generator=generator)
    mask = torch.ones(2, N_TOKENS, dtype=torch.long)
    mask[1, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _tokens(n: int) -> Callable[[nn.Module], dict[str, Tensor]]:
    """One full sentence of `n` tokens, without a mask."""

    def make(model: nn.Module) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {"input_ids": torch.randint(5, VOCABULARY, (2, n), generator=generator)}

    return make


def _pair(model: nn.Module) -> dict[str, Tensor]:
    """A source text and a target text."""
    generator = torch.Generator().manual_seed(1)
    return {**_text(model), "decoder_input_ids": torch.randint(5, VOCABULARY, (2, 7), generator=generator)}


def _image(size: int) -> Callable[[nn.Module], dict[str, Tensor]]:
    def make(model: nn.Module) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))}

    return make


def _noise(name: str, *shape: int) -> Callable[[nn.Module], dict[str, Tensor]]:
    def make(model: nn.Module) -> dict[str, Tensor]:
        return {name: torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))}

    return make


_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
_DECODER = {
    **_ENCODER,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
_GPT = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4, "use_cache": False}
_VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 64,
    "use_cache": False,
}
_SPEECH = {
    "conv_dim": [16, 16],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
    "vocab_size": 32,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
}

_ENCODERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("bert", "Bert", {}),
    ("roberta", "Roberta", {}),
    ("xlm-roberta", "XLMRoberta", {}),
    ("camembert", "Camembert", {}),
    ("mpnet", "MPNet", {}),
    ("albert", "Albert", {"embedding_size": 24}),
    ("electra", "Electra", {"embedding_size": 24}),
    ("deberta-v2", "DebertaV2", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}),
    ("deberta", "Deberta", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    ("modernbert", "ModernBert", {"pad_token_id": 0, "local_attention": 8}),
    ("squeezebert", "SqueezeBert", {"embedding_size": 48}),
    ("big-bird", "BigBird", {"attention_type": "original_full"}),
    ("roformer", "RoFormer", {"embedding_size": 48}),
    ("convbert", "ConvBert", {"embedding_size": 48}),
    ("ernie", "Ernie", {}),
    ("megatron-bert", "MegatronBert", {}),
    ("roberta-prelayernorm", "RobertaPreLayerNorm", {}),
    ("layoutlm", "LayoutLM", {}),
    ("yoso", "Yoso", {"use_expectation": True}),
)
_DECODERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("llama", "Llama", {}),
    ("mistral", "Mistral", {"sliding_window": 8}),
    ("qwen2", "Qwen2", {}),
    ("qwen3", "Qwen3", {"head_dim": 12}),
    ("gemma", "Gemma", {"head_dim": 12}),
    ("gemma2", "Gemma2", {"head_dim": 12, "sliding_window": 8}),
    ("phi", "Phi", {}),
    ("phi3", "Phi3", {}),
    ("olmo2", "Olmo2", {}),
    ("granite", "Granite", {}),
    ("stablelm", "StableLm", {"partial_rotary_factor": 0.5}),
    ("smollm3", "SmolLM3", {}),
)

CASES: tuple[Case, ...] = (
    *(
        Case(name, _builder(f"{stem}Config", f"{stem}ForSequenceClassification", {**_ENCODER, **options}), _text)
        for name, stem, options in _ENCODERS
    ),
    *(
        Case(name, _builder(f"{stem}Config", f"{stem}ForCausalLM", {**_DECODER, **options}), _text)
        for name, stem, options in _DECODERS
    ),
    Case(
        "distilbert",
        _builder(
            "DistilBertConfig",
            "DistilBertForSequenceClassification",
            {
                "vocab_size": VOCABULARY,
                "dim": 48,
                "n_layers": 2,
                "n_heads": 4,
                "hidden_dim": 96,
                "max_position_embeddings": 64,
            },
        ),
        _text,
    ),
    Case(
        "mobilebert",
        _builder(
            "MobileBertConfig",
            "MobileBertForSequenceClassification",
            {**_ENCODER, "embedding_size": 24, "intra_bottleneck_size": 24, "num_feedforward_networks": 2},
        ),
        _text,
    ),
    Case(
        "nystromformer",
        _builder(
            "NystromformerConfig",
            "NystromformerForSequenceClassification",
            {**_ENCODER, "num_landmarks": 12, "segment_means_seq_len": 12, "conv_kernel_size": 3},
        ),
        _tokens(12),
    ),
    Case(
        "fnet",
        _builder("FNetConfig", "FNetForSequenceClassification", {**_ENCODER, "use_tpu_fourier_optimizations": False}),
        _tokens(12),
    ),
    Case(
        "funnel",
        _builder(
            "FunnelConfig",
            "FunnelForSequenceClassification",
            {
                "vocab_size": VOCABULARY,
                "block_sizes": [1, 1],
                "d_model": 48,
                "n_head": 4,
                "d_head": 12,
                "d_inner": 96,
                "num_decoder_layers": 1,
            },
        ),
        _text,
    ),
    Case(
        "longformer",
        _builder("LongformerConfig", "LongformerForSequenceClassification", {**_ENCODER, "attention_window": 4}),
        _tokens(16),
    ),
    Case("gpt2", _builder("GPT2Config", "GPT2LMHeadModel", _GPT), _text),
    Case(
        "gpt-neo",
        _builder(
            "GPTNeoConfig",
            "GPTNeoForCausalLM",
            {
                "vocab_size": VOCABULARY,
                "max_position_embeddings": 64,
                "hidden_size": 48,
                "num_layers": 2,
                "num_heads": 4,
                "attention_types": [[["global", "local"], 1]],
                "window_size": 8,
                "use_cache": False,
            },
        ),
        _text,
    ),
    Case("gptj", _builder("GPTJConfig", "GPTJForCausalLM", {**_GPT, "rotary_dim": 8}), _text),
    Case("gpt-neox", _builder("GPTNeoXConfig", "GPTNeoXForCausalLM", {**_ENCODER, "use_cache": False}), _text),
    Case(
        "opt",
        _builder(
            "OPTConfig",
            "OPTForCausalLM",
            {
                "vocab_size": VOCABULARY,
                "hidden_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "ffn_dim": 96,
                "max_position_embeddings": 64,
                "word_embed_proj_dim": 48,
                "use_cache": False,
            },
        ),
        _text,
    ),
    Case(
        "bloom",
        _builder(
            "BloomConfig",
            "BloomForCausalLM",
            {"vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 2, "n_head": 4, "use_cache": False},
        ),
        _text,
    ),
    Case("t5-encoder", _builder("T5Config", "T5EncoderModel", _T5), _text),
    Case("t5", _builder("T5Config", "T5ForConditionalGeneration", {**_T5, "decoder_start_token_id": 0}), _pair),
    Case("bart", _builder("BartConfig", "BartForConditionalGeneration", _BART), _pair),
    Case(
        "marian",
        _builder("MarianConfig", "MarianMTModel", {**_BART, "pad_token_id": 0, "decoder_start_token_id": 0}),
        _pair,
    ),
    Case("pegasus", _builder("PegasusConfig", "PegasusForConditionalGeneration", {**_BART, "pad_token_id": 0}), _pair),
    Case("vit", _builder("ViTConfig", "ViTForImageClassification", {**_VISION, "num_labels": 5}), _image(32)),
    Case("deit", _builder("DeiTConfig", "DeiTForImageClassification", {**_VISION, "num_labels": 5}), _image(32)),
    Case("beit", _builder("BeitConfig", "BeitForImageClassification", {**_VISION, "num_labels": 5}), _image(32)),
    Case("dinov2", _builder("Dinov2Config", "Dinov2ForImageClassification", {**_VISION, "patch_size": 8}), _image(32)),
    Case(
        "swin",
        _builder(
            "SwinConfig",
            "SwinForImageClassification",
            {
                "image_size": 32,
                "patch_size": 2,
                "embed_dim": 24,
                "depths": [2, 2],
                "num_heads": [2, 4],
                "window_size": 4,
            },
        ),
        _image(32),
    ),
    Case(
        "convnext",
        _builder(
            "ConvNextConfig",
            "ConvNextForImageClassification",
            {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
        ),
        _image(64),
    ),
    Case(
        "segformer",
        _builder(
            "SegformerConfig",
            "SegformerForSemanticSegmentation",
            {
                "depths": [1, 1, 1, 1],
                "hidden_sizes": [16, 24, 32, 48],
                "num_attention_heads": [1, 2, 4, 4],
                "decoder_hidden_size": 32,
                "mlp_ratios": [2, 2, 2, 2],
            },
        ),
        _image(64),
    ),
    Case(
        "clip-text",
        _only(
            "text_embeds", _builder("CLIPTextConfig", "CLIPTextModelWithProjection", {**_ENCODER, "eos_token_id": 2})
        ),
        _text,
    ),
    Case(
        "clip-vision",
        _only("image_embeds", _builder("CLIPVisionConfig", "CLIPVisionModelWithProjection", _VISION)),
        _image(32),
    ),
    Case(
        "siglip",
        _builder("SiglipConfig", "SiglipForImageClassification", {"vision_config": _VISION, "num_labels": 5}),
        _image(32),
    ),
    Case("whisper-encoder", _whisper_encoder, _noise("input_features", 16, 40)),
    Case(
        "wav2vec2",
        _builder(
            "Wav2Vec2Config",
            "Wav2Vec2ForCTC",
            {**_SPEECH, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96},
        ),
        _noise("input_values", 400),
    ),
)
