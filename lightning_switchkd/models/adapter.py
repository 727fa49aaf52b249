"""One vision-language model as three parts and a head: vision encoder, projector, language model.

A model family joins by one subclass of :class:`VLM` and one line in ``FAMILIES``; nothing else in the package knows
which family it is dealing with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.losses.logits import Head

Part = Literal["vision", "projector", "lm"]
PARTS: tuple[Part, ...] = ("vision", "projector", "lm")


@dataclass(frozen=True)
class FeatureSpace:
    """What a projector expects of a vision encoder; two models can switch encoders only if all of it is equal.

    Attributes:
        width: Channels of one image feature.
        tokens: Image features (hence ``<image>`` ids) per image.
        layer: Hidden state of the vision tower that is used; -2 is the output of the last layer but one.
        strategy: ``default`` drops the class token, ``full`` keeps every position.
    """

    width: int
    tokens: int
    layer: int
    strategy: str


class VLM(nn.Module, ABC):
    """Interface to one vision-language model.

    Attributes:
        model_types: the ``model_type`` of the configurations this family adapts.
        hf_class: the Hugging Face class that loads them.
        model: the Hugging Face model, whole and exportable.
    """

    model_types: ClassVar[tuple[str, ...]]
    hf_class: ClassVar[type[PreTrainedModel]]
    model: Any  # a PreTrainedModel, whose attributes depend on the family

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    @abstractmethod
    def feature_space(self) -> FeatureSpace:
        """The space that :meth:`encode_image` writes and :meth:`project` reads."""

    @abstractmethod
    def parts(self) -> dict[Part, list[nn.Module]]:
        """The modules of each part; together they hold every parameter that a training step can reach."""

    @abstractmethod
    def blocks(self, part: Part) -> list[nn.Module]:
        """The repeated layers of a part that run in a training step, or its one module: the units of ``vlm.speed``."""

    @abstractmethod
    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """``[M, 3, H, W]`` -> vision features ``[M, P, H_v]``."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Vision features ``[M, P, H_v]`` -> image embeddings of the language model's width ``[M, P, H]``."""

    @abstractmethod
    def decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_embeds: Tensor,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Token ids ``[B, T]`` with image embeddings in their places -> final hidden states ``[B, T, H]``.

        Where records are packed (no mask), `position_ids` restart at each: no token sees another record's.
        """

    @property
    @abstractmethod
    def head(self) -> Head:
        """Hidden states ``[..., H]`` -> logits ``[..., V]`` over the whole head, padding columns included."""

    @abstractmethod
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, image_embeds: Tensor, max_new_tokens: int, stop_ids: list[int]
    ) -> Tensor:
        """Greedy continuation ``[B, <= max_new_tokens]`` of left-padded prompts; after a stop id come only stop ids."""

    @property
    @abstractmethod
    def head_size(self) -> int:
        """Columns V of the head. Tokenizers are smaller: the columns beyond their ids are padding."""

    @property
    @abstractmethod
    def image_token_id(self) -> int:
        """The id that stands in ``input_ids`` for one image feature."""

    @property
    @abstractmethod
    def language_model(self) -> PreTrainedModel:
        """The decoder, without embeddings of images and without head."""

    @property
    def width(self) -> int:
        """H of the language model's hidden states."""
        return int(self.language_model.config.hidden_size)

    @property
    def attention_heads(self) -> int:
        """Query heads of a layer of the language model."""
        return int(self.language_model.config.num_attention_heads)

    @property
    def attention(self) -> str:
        """The attention kernel of the language model, by its name in transformers."""
        return str(self.language_model.config._attn_implementation)

    def part_parameters(self, part: Part) -> list[nn.Parameter]:
        """Parameters of one part, in a fixed order."""
        return [p for module in self.parts()[part] for p in module.parameters()]

    def freeze(self, parts: Iterable[Part]) -> None:
        """Leaves some parts as they are."""
        for part in parts:
            for parameter in self.part_parameters(part):
                parameter.requires_grad_(False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # Buffers keep their dtype, as in Hugging Face's loading: rotary frequencies rounded to bfloat16 turn a token
        # 4,000 places on by up to 3.9 radians too far.
        buffers = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, moved in self.named_buffers():
            if moved.dtype != buffers[name].dtype:
                owner, _, own_name = name.rpartition(".")
                setattr(self.get_submodule(owner), own_name, buffers[name].to(moved.device))
        return self


class Llava(VLM):
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


FAMILIES: tuple[type[VLM], ...] = (Llava,)


def family_of(config: PretrainedConfig, where: str) -> type[VLM]:
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


class Frozen(nn.Module):
    """Keeps a teacher as it is: always in eval mode, without gradients, in the dtype it was loaded in.

    Device moves go through; a change of dtype (Lightning's ``bf16-true`` casts whole modules) does not.
    """

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.vlm = vlm
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        return super()._apply(keeping_dtype(fn), recurse)


def keeping_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What ``nn.Module._apply`` is given, without its changes of dtype: moves go through, casts do not."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move
