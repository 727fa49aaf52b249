"""Sizes of the recipes' models, to create them at full size with random weights and without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, PretrainedConfig
from transformers.initialization import no_init_weights

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.auto import apply_options
from lightning_switchkd.models.families import family_of
from lightning_switchkd.models.spec import VLMSpec


def _qwen(width: int, inner: int, layers: int, heads: int, groups: int, tied: bool, vocabulary: int = 151936) -> Any:
    return {
        "model_type": "qwen2",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": tied,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
    }


LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": _qwen(896, 4864, 24, 14, 2, tied=True),
    "qwen2.5-1.5b": _qwen(1536, 8960, 28, 12, 2, tied=True),
    "qwen2.5-3b": _qwen(2048, 11008, 36, 16, 2, tied=True),
    "qwen1.5-0.5b": _qwen(1024, 2816, 24, 16, 16, tied=True, vocabulary=152000),
    "qwen1.5-7b": _qwen(4096, 11008, 32, 32, 32, tied=False, vocabulary=152000),
}
VISION_ENCODERS: dict[str, dict[str, Any]] = {
    "siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
    "clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
VLMS = {
    "tinyllava-qwen2.5-3b-siglip": ("siglip-so400m-patch14-384", "qwen2.5-3b", "full"),
    "tinyllava-qwen2.5-3b-clip": ("clip-vit-large-patch14-336", "qwen2.5-3b", "default"),
    "llava-interleave-qwen-0.5b-hf": ("siglip-so400m-patch14-384", "qwen1.5-0.5b", "full"),
    "llava-interleave-qwen-7b-hf": ("siglip-so400m-patch14-384", "qwen1.5-7b", "full"),
}
"""Vision encoder, language model and feature strategy of whole models."""

IMAGE_TOKEN_ID = 151646


def random_model(spec: VLMSpec, name: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> VLMAdapter:
    """Create a recipe's model at full size. Each weight is a cheap random number of a plausible magnitude.

    Args:
        spec: As in ``model.student``. Ids and folders are recognized by their last part.
        name: ``student`` or ``teacher``.
        dtype: Dtype of the weights.
        device: Device of the weights.

    Raises:
        UserError: The sizes are unknown, and neither the folder nor the hub's cache contains a configuration.
    """
    config = _config(spec, f"model.{name}")
    family_of(config, f"model.{name}")
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with no_init_weights(), torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, attn_implementation=spec.attn_implementation)
    finally:
        torch.set_default_dtype(before)
    noise = torch.randn(2**20, dtype=torch.float32, device=device).mul_(0.02).to(dtype)
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        if parameter.dim() == 1:
            flat.fill_(1.0)
            continue
        for start in range(0, flat.numel(), noise.numel()):  # repeats the noise: billions of draws take minutes
            part = flat[start : start + noise.numel()]
            part.copy_(noise[: part.numel()])
    model.tie_weights()
    return apply_options(VLMAdapter(model), spec, name)


def _config(spec: VLMSpec, where: str) -> PretrainedConfig:
    if spec.checkpoint is not None:
        name = Path(spec.checkpoint).name.lower()
        if name not in VLMS:
            return _cached_config(spec.checkpoint, f"{where}.checkpoint", VLMS)
        vision, lm, strategy = VLMS[name]
        return _llava_config(VISION_ENCODERS[vision], LANGUAGE_MODELS[lm], -2, strategy)
    vision_config = _part(spec.vision, VISION_ENCODERS, f"{where}.vision")
    lm_config = _part(spec.lm, LANGUAGE_MODELS, f"{where}.lm")
    return _llava_config(vision_config, lm_config, spec.feature_layer, spec.feature_strategy)


def _part(source: str | dict[str, Any] | None, known: dict[str, dict[str, Any]], where: str) -> dict[str, Any]:
    if isinstance(source, dict):
        return source
    name = Path(source or "").name.lower().removesuffix("-instruct")
    if name in known:
        return known[name]
    config = _cached_config(str(source), where, known)
    return dict(getattr(config, "vision_config", config).to_dict())


def _cached_config(source: str, where: str, known: Any) -> PretrainedConfig:
    try:
        return cast(PretrainedConfig, AutoConfig.from_pretrained(source, local_files_only=True))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{where}: the sizes of '{source}' are unknown. Give a folder that contains config.json, or one of "
            f"{', '.join(known)}."
        ) from error


def _llava_config(vision: dict[str, Any], lm: dict[str, Any], layer: int, strategy: Any) -> LlavaConfig:
    text = AutoConfig.for_model(**lm)
    return LlavaConfig(
        vision_config=AutoConfig.for_model(**vision),
        text_config=text,
        image_token_index=min(IMAGE_TOKEN_ID, text.vocab_size - 1),
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=text.tie_word_embeddings,
    )
