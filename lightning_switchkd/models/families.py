"""The supported model families: where the vision encoder of each ends, and what projects its output.

One entry of :data:`FAMILIES` is all that the package knows of a family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from lightning_switchkd.core.errors import UserError


def four_patches(config: PretrainedConfig) -> dict[str, Any]:
    """Return one black image of 2 x 2 patches, for vision encoders that resize their position embeddings."""
    side = 2 * config.vision_config.patch_size
    return {"pixel_values": torch.zeros(1, 3, side, side), "interpolate_pos_encoding": True}


@dataclass(frozen=True)
class Family:
    """The end of a family's vision encoder. Paths are below the base model.

    Attributes:
        tower: The module of the vision encoder.
        projector: The modules that project its output for the language model.
        probe: Returns arguments of ``get_image_features`` for a small image, from the model's configuration.
    """

    tower: str = "vision_tower"
    projector: tuple[str, ...] = ("multi_modal_projector",)
    probe: Callable[[PretrainedConfig], dict[str, Any]] = four_patches


FAMILIES = {"llava": Family()}
"""All families, by the ``model_type`` of their configurations."""

VISION_ENCODERS = ("clip_vision_model", "siglip_vision_model")
"""The vision encoders of LLaVA models that are supported, by ``model_type``."""


def family_of(config: PretrainedConfig, where: str) -> Family:
    """Find the family of a model configuration, and check what the adapter requires of it.

    Args:
        config: Configuration of a whole model.
        where: Name of the model, for the error message.

    Raises:
        UserError: The family is not supported, its vision encoder is not, or the feature layer does not exist.
    """
    if config.model_type not in FAMILIES:
        raise UserError(
            f"{where} is a '{config.model_type}' model, which has no adapter. Supported: {', '.join(FAMILIES)} (a "
            "folder or hub id that LlavaForConditionalGeneration loads). Any-resolution models (llava_next, "
            "llava_onevision), video models, Qwen-VL, SmolVLM and InternVL are not supported. Choose another model."
        )
    vision_type, layers = config.vision_config.model_type, config.vision_config.num_hidden_layers
    if vision_type not in VISION_ENCODERS:
        raise UserError(
            f"Unsupported vision encoder '{vision_type}'. Choose a LLaVA model with one of "
            f"{', '.join(VISION_ENCODERS)}."
        )
    layer = config.vision_feature_layer
    if not isinstance(layer, int) or not -layers - 1 <= layer <= layers:
        raise UserError(
            f"vision_feature_layer must be one integer from {-layers - 1} to {layers} for this vision encoder of "
            f"{layers} layers, got {layer!r}. Set it in the model's config.json."
        )
    return FAMILIES[config.model_type]
