"""The supported model families: one adapter class each, found by the ``model_type`` of a configuration."""

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
    """``LlavaForConditionalGeneration`` with a CLIP or SigLIP tower and any language model of ``AutoModel``."""

    model_types = ("llava",)
    hf_class = LlavaForConditionalGeneration
    towers: ClassVar[tuple[str, ...]] = ("clip_vision_model", "siglip_vision_model")

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        config = self.model.config
        tower_type = config.vision_config.model_type
        if tower_type not in self.towers:
            raise UserError(
                f"The vision tower is a '{tower_type}'; supported towers are {', '.join(self.towers)}. "
                "Choose a LLaVA model with a CLIP or SigLIP tower."
            )
        layers = config.vision_config.num_hidden_layers
        layer = config.vision_feature_layer
        if not isinstance(layer, int) or not -layers - 1 <= layer <= layers:
            raise UserError(
                f"vision_feature_layer is {layer!r}; one integer between {-layers - 1} and {layers} is supported "
                f"for this tower of {layers} layers. Set it in the model's config.json."
            )
        self.depth = layer if layer >= 0 else layers + 1 + layer
        for module in self._behind_feature_layer():
            module.requires_grad_(False)

    def _behind_feature_layer(self) -> list[nn.Module]:
        """Layers after the feature layer and the pooler: no output depends on them, the export keeps them."""
        tower = self.model.model.vision_tower
        tail = [*tower.encoder.layers[self.depth :], tower.post_layernorm]
        return [*tail, tower.head] if hasattr(tower, "head") else tail

    @property
    def feature_space(self) -> FeatureSpace:
        config = self.model.config
        vision = config.vision_config
        positions = (vision.image_size // vision.patch_size) ** 2
        has_class_token = vision.model_type == "clip_vision_model"
        tokens = positions + has_class_token - (config.vision_feature_select_strategy == "default")
        return FeatureSpace(
            vision.hidden_size, tokens, config.vision_feature_layer, config.vision_feature_select_strategy
        )

    def parts(self) -> dict[Part, list[nn.Module]]:
        llava = self.model.model
        tower = llava.vision_tower
        used = [tower.embeddings, *tower.encoder.layers[: self.depth]]
        if hasattr(tower, "pre_layrnorm"):
            used.insert(1, tower.pre_layrnorm)
        return {
            "vision": used,
            "projector": [llava.multi_modal_projector],
            "lm": [llava.language_model, self.model.lm_head],
        }

    def blocks(self, part: Part) -> list[nn.Module]:
        llava = self.model.model
        if part == "vision":
            return list(llava.vision_tower.encoder.layers[: self.depth])
        if part == "projector":
            return [llava.multi_modal_projector]
        lm: nn.Module = llava.language_model
        return [module for module in lm.modules() if isinstance(module, GradientCheckpointingLayer)] or [lm]

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        # Layer by layer, so that nothing behind the feature layer runs (Hugging Face computes it and throws it away).
        tower = self.model.model.vision_tower
        hidden = tower.embeddings(pixel_values)  # [M, positions, H_v]
        if hasattr(tower, "pre_layrnorm"):
            hidden = tower.pre_layrnorm(hidden)
        for layer in tower.encoder.layers[: self.depth]:
            hidden = layer(hidden, None)
        return cast(Tensor, hidden[:, 1:] if self.feature_space.strategy == "default" else hidden)

    def project(self, features: Tensor) -> Tensor:
        projector = self.model.model.multi_modal_projector
        return cast(Tensor, projector(features.to(next(projector.parameters()).dtype)))

    def _embed(self, input_ids: Tensor, image_embeds: Tensor) -> Tensor:
        is_image = input_ids == self.image_token_id  # [B, T]
        embeds = self.model.get_input_embeddings()(input_ids.masked_fill(is_image, 0))  # [B, T, H]
        # A blank image stays over at the end and is scattered nowhere: its path is run, at weight 0.
        return cast(Tensor, embeds.masked_scatter(is_image[..., None], image_embeds.to(embeds.dtype)))

    def decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_embeds: Tensor,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        out = self.model.model.language_model(
            inputs_embeds=self._embed(input_ids, image_embeds),
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        )
        return cast(Tensor, out.last_hidden_state)

    @property
    def head(self) -> Head:
        return Head(self.model.lm_head.weight, self.model.lm_head.bias)

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, image_embeds: Tensor, max_new_tokens: int, stop_ids: list[int]
    ) -> Tensor:
        generated = self.model.generate(
            inputs_embeds=self._embed(input_ids, image_embeds),
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stop_ids,
            pad_token_id=stop_ids[0],
        )
        return cast(Tensor, generated)

    @property
    def language_model(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.model.model.language_model)

    @property
    def head_size(self) -> int:
        return int(self.model.lm_head.out_features)

    @property
    def image_token_id(self) -> int:
        return int(self.model.config.image_token_id)


FAMILIES: tuple[type[VLMAdapter], ...] = (LlavaAdapter,)


def family_of(config: PretrainedConfig, where: str) -> type[VLMAdapter]:
    """The adapter for a model configuration, or a clear word that there is none yet.

    Raises:
        UserError: The family is not supported.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    raise UserError(
        f"{where} is a '{config.model_type}' model, which has no adapter here yet. Supported: "
        f"{', '.join(t for f in FAMILIES for t in f.model_types)} (a LlavaForConditionalGeneration folder or hub id). "
        "Any-resolution (llava_next, llava_onevision), video, Qwen-VL, SmolVLM and InternVL models are not supported; "
        "convert the model to the LLaVA format or choose another."
    )
