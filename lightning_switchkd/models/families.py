"""The supported model families, found by the ``model_type`` of a configuration.

To support another family, subclass :class:`VLMAdapter` as :class:`LlavaAdapter` does and add the class to ``FAMILIES``.
"""

from __future__ import annotations

from typing import ClassVar, cast

from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Part
from lightning_switchkd.models.adapter import FeatureSpace, VLMAdapter
from lightning_switchkd.models.head import Head


class LlavaAdapter(VLMAdapter):
    """``LlavaForConditionalGeneration`` with a CLIP or SigLIP vision encoder and any language model of ``AutoModel``.

    Layers of the vision encoder after the feature layer never run. They are frozen, and the export keeps them.
    """

    model_types = ("llava",)
    hf_class = LlavaForConditionalGeneration
    vision_types: ClassVar[tuple[str, ...]] = ("clip_vision_model", "siglip_vision_model")

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        config = self.model.config
        vision_type = config.vision_config.model_type
        if vision_type not in self.vision_types:
            raise UserError(
                f"Unsupported vision encoder '{vision_type}'. Choose a LLaVA model with one of "
                f"{', '.join(self.vision_types)}."
            )
        num_layers = config.vision_config.num_hidden_layers
        layer = config.vision_feature_layer
        if not isinstance(layer, int) or not -num_layers - 1 <= layer <= num_layers:
            raise UserError(
                f"vision_feature_layer must be one integer from {-num_layers - 1} to {num_layers} for this vision "
                f"encoder of {num_layers} layers, got {layer!r}. Set it in the model's config.json."
            )
        self.num_used_layers = layer if layer >= 0 else num_layers + 1 + layer
        encoder = self.model.model.vision_tower
        unused = [*encoder.encoder.layers[self.num_used_layers :], encoder.post_layernorm]
        if hasattr(encoder, "head"):
            unused.append(encoder.head)
        for module in unused:
            module.requires_grad_(False)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Run the vision encoder up to the feature layer. Hugging Face's forward also runs and discards the rest."""
        encoder = self.model.model.vision_tower
        hidden = encoder.embeddings(pixel_values)  # [M, positions, H_v]
        if hasattr(encoder, "pre_layrnorm"):
            hidden = encoder.pre_layrnorm(hidden)
        for layer in encoder.encoder.layers[: self.num_used_layers]:
            hidden = layer(hidden, None)
        if self.feature_space.strategy == "default":
            hidden = hidden[:, 1:]  # without the class token
        return cast(Tensor, hidden)  # [M, P, H_v]

    def project(self, features: Tensor) -> Tensor:
        """Run the projector in the dtype of its weights."""
        projector = self.model.model.multi_modal_projector
        return cast(Tensor, projector(features.to(next(projector.parameters()).dtype)))  # [M, P, H]

    def decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_embeds: Tensor,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Run the language model without its head."""
        output = self.model.model.language_model(
            inputs_embeds=self._embed(input_ids, image_embeds),  # [B, T, H]
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        )
        return cast(Tensor, output.last_hidden_state)  # [B, T, H]

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, image_embeds: Tensor, max_new_tokens: int, stop_ids: list[int]
    ) -> Tensor:
        """Generate greedily by Hugging Face's ``generate``."""
        generated = self.model.generate(
            inputs_embeds=self._embed(input_ids, image_embeds),  # [B, T, H]
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stop_ids,
            pad_token_id=stop_ids[0],
        )
        return cast(Tensor, generated)  # [B, <= max_new_tokens]

    def _embed(self, input_ids: Tensor, image_embeds: Tensor) -> Tensor:
        is_image = input_ids == self.image_token_id  # [B, T]
        embeds = self.model.get_input_embeddings()(input_ids.masked_fill(is_image, 0))  # [B, T, H]
        # A blank image is left over and reaches no position: its parts run, with weight 0.
        return cast(Tensor, embeds.masked_scatter(is_image[..., None], image_embeds.to(embeds.dtype)))

    @property
    def head(self) -> Head:
        """The output head (``lm_head``)."""
        return Head(self.model.lm_head.weight, self.model.lm_head.bias)

    @property
    def feature_space(self) -> FeatureSpace:
        """The feature space, from the configuration."""
        config = self.model.config
        vision = config.vision_config
        num_patches = (vision.image_size // vision.patch_size) ** 2
        has_class_token = vision.model_type == "clip_vision_model"
        tokens = num_patches + has_class_token - (config.vision_feature_select_strategy == "default")
        return FeatureSpace(
            vision.hidden_size, tokens, config.vision_feature_layer, config.vision_feature_select_strategy
        )

    def parts(self) -> dict[Part, list[nn.Module]]:
        """Return the modules of each part, without the unused layers of the vision encoder."""
        llava = self.model.model
        encoder = llava.vision_tower
        vision = [encoder.embeddings, *encoder.encoder.layers[: self.num_used_layers]]
        if hasattr(encoder, "pre_layrnorm"):
            vision.insert(1, encoder.pre_layrnorm)
        return {
            "vision": vision,
            "projector": [llava.multi_modal_projector],
            "lm": [llava.language_model, self.model.lm_head],
        }

    def blocks(self, part: Part) -> list[nn.Module]:
        """Return the layers that Hugging Face marks for gradient checkpointing, or the part's only module."""
        llava = self.model.model
        if part == "vision":
            return list(llava.vision_tower.encoder.layers[: self.num_used_layers])
        if part == "projector":
            return [llava.multi_modal_projector]
        lm: nn.Module = llava.language_model
        return [module for module in lm.modules() if isinstance(module, GradientCheckpointingLayer)] or [lm]

    @property
    def language_model(self) -> PreTrainedModel:
        """The decoder, without ``lm_head``."""
        return cast(PreTrainedModel, self.model.model.language_model)

    @property
    def head_size(self) -> int:
        """Columns of ``lm_head``."""
        return int(self.model.lm_head.out_features)

    @property
    def image_token_id(self) -> int:
        """The id of ``<image>`` in the configuration."""
        return int(self.model.config.image_token_id)


FAMILIES: tuple[type[VLMAdapter], ...] = (LlavaAdapter,)
"""All families. Add an adapter class here."""


def family_of(config: PretrainedConfig, where: str) -> type[VLMAdapter]:
    """Find the adapter class for a model configuration.

    Args:
        config: Configuration of a whole model.
        where: Name of the model, for the error message.

    Raises:
        UserError: The family is not supported.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    supported = ", ".join(model_type for family in FAMILIES for model_type in family.model_types)
    raise UserError(
        f"{where} is a '{config.model_type}' model, which has no adapter. Supported: {supported} (a folder or hub id "
        "that LlavaForConditionalGeneration loads). Any-resolution models (llava_next, llava_onevision), video models, "
        "Qwen-VL, SmolVLM and InternVL are not supported. Choose another model."
    )
