"""One interface for the models of all families: encode images, project them, decode, generate.

The adapter calls what every vision-language model of Hugging Face has: ``get_image_features``, and a forward that takes
``mm_encoder_outputs``. Record and replay (``models/record_replay.py``) tells vision encoder and projector apart. So no
family's forward is written here again. ``models/families.py`` lists the families. ``core/types.py`` explains the axis
letters of shapes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lightning_switchkd.core.types import Features, Part, Vision
from lightning_switchkd.models.families import family_of
from lightning_switchkd.models.head import Head
from lightning_switchkd.models.record_replay import hooked, probe, record, replay


@dataclass(frozen=True)
class FeatureSpace:
    """The image features that a projector expects. Two models can switch vision encoders only if all fields agree.

    Attributes:
        width: Channels of one image feature (H_v).
        tokens: Image features, and so ``<image>`` ids, for each image (P).
        layer: Hidden state of the vision encoder that is used. -2 is the output of the second to last layer.
        strategy: ``default`` drops the class token, ``full`` keeps every position.
    """

    width: int
    tokens: int
    layer: int
    strategy: str


class VLMAdapter(nn.Module):
    """One vision-language model behind the interface of all families.

    Parameters of the vision encoder that no image embedding depends on are frozen: LLaVA's layers behind the feature
    layer, and its pooling. Modules of such parameters pass their input on instead of computing.

    Args:
        model: The complete Hugging Face model.

    Attributes:
        model: The same, ready to be exported.

    Raises:
        UserError: The family is not supported.
    """

    model: Any  # a PreTrainedModel, whose attributes depend on the family

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.family = family_of(model.config, "The model")
        self._form, self._unread = probe(self._base, self._tower, self.family.probe(self.model.config))
        for name, parameter in self._tower.named_parameters():
            if name in self._unread:
                parameter.requires_grad_(False)
        for name, module in self._tower.named_modules():
            own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
            if own and own <= self._unread and _layers(module) in ([], [module]):
                module.forward = MethodType(_pass_on, module)

    # -- forward -------------------------------------------------------------------------------------------------------

    def encode(self, vision: Vision) -> Features:
        """Encode M images.

        Args:
            vision: What the model's image processor returns. LLaVA: ``pixel_values`` ``[M, 3, height, width]``.
        """
        return record(self._base, self._tower, self._form, vision)

    def project(self, features: Features, vision: Vision) -> list[Tensor]:
        """Project the features of M images into image embeddings for the language model.

        Args:
            features: What :meth:`encode` returns, of this model or of another one with the same feature space.
            vision: The arguments of :meth:`encode`.

        Returns:
            ``[P, H]`` of each image.
        """
        dtype = self.part_parameters("projector")[0].dtype
        output = self._form.fill([tensor.to(dtype) for tensor in features])
        return replay(self._base, self._tower, output, vision)

    def decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_embeds: list[Tensor],
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Run the language model, with image embeddings in place of the image tokens.

        Args:
            input_ids: ``[B, T]``, packed ``[1, T]``.
            attention_mask: ``[B, T]``. None where samples are packed.
            image_embeds: ``[P, H]`` of each image, in the order of the image tokens. May end with a blank image, which
                has no tokens.
            position_ids: ``[1, T]`` where samples are packed. They restart at every sample, and no token attends to
                another sample.

        Returns:
            Final hidden states ``[B, T, H]``, before the output head.
        """
        images, blank = self._images(input_ids, image_embeds)

        def reach(embeddings: nn.Module, arguments: Any, embeds: Tensor) -> Tensor:
            # A blank image reaches no position, but its parts have a gradient, which is 0. It enters where images do:
            # all processes of FSDP2 must gather the blocks in the same order on the way back.
            for image in blank:
                embeds = embeds + image[:0].sum()
            return embeds

        with hooked(self._base.get_input_embeddings(), reach):
            output = self._base(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False, **images
            )
        return cast(Tensor, output.last_hidden_state)  # [B, T, H]

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_embeds: list[Tensor],
        max_new_tokens: int,
        stop_ids: list[int],
    ) -> Tensor:
        """Continue left-padded prompts greedily.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``.
            image_embeds: As in :meth:`decode`.
            max_new_tokens: Longest continuation.
            stop_ids: Ids that end a continuation. The first one pads finished continuations.

        Returns:
            The new tokens ``[B, <= max_new_tokens]``.
        """
        generated = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stop_ids,
            pad_token_id=stop_ids[0],
            **self._images(input_ids, image_embeds)[0],
        )
        return cast(Tensor, generated[:, input_ids.shape[1] :])

    def _images(self, input_ids: Tensor, image_embeds: list[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
        """Return the arguments that carry the images with tokens, and the images without."""
        tokens = int((input_ids == self.image_token_id).sum()) if image_embeds else 0
        used: list[Tensor] = []
        for embeds in image_embeds:
            if tokens <= 0:
                break
            used.append(embeds)
            tokens -= len(embeds)
        output = BaseModelOutputWithPooling(pooler_output=cast(Any, used))
        return {"mm_encoder_outputs": {"image": output}} if used else {}, image_embeds[len(used) :]

    @property
    def head(self) -> Head:
        """The output head: hidden states ``[..., H]`` to logits ``[..., V]``, padding columns included."""
        head = self.model.get_output_embeddings()
        return Head(head.weight, head.bias)

    # -- structure -----------------------------------------------------------------------------------------------------

    @property
    def feature_space(self) -> FeatureSpace:
        """The space that :meth:`encode` writes and :meth:`project` reads, from the configuration."""
        config = self.model.config
        vision = config.vision_config
        num_patches = (vision.image_size // vision.patch_size) ** 2
        has_class_token = vision.model_type == "clip_vision_model"
        tokens = num_patches + has_class_token - (config.vision_feature_select_strategy == "default")
        return FeatureSpace(
            vision.hidden_size, tokens, config.vision_feature_layer, config.vision_feature_select_strategy
        )

    @property
    def _base(self) -> Any:
        return self.model.base_model

    @property
    def _tower(self) -> nn.Module:
        return cast(nn.Module, self._base.get_submodule(self.family.tower))

    def parts(self) -> dict[Part, list[nn.Module]]:
        """Return the modules of each part."""
        return {
            "vision": [self._tower],
            "projector": [self._base.get_submodule(path) for path in self.family.projector],
            "lm": [self.language_model, self.model.get_output_embeddings()],
        }

    def blocks(self, part: Part) -> list[nn.Module]:
        """Return the units of ``models/compile.py`` and FSDP2: the layers of a part that compute, or its only module.

        Hugging Face marks them for gradient checkpointing.
        """
        (module, *_) = self.parts()[part]
        computing = (layer for layer in _layers(module) if getattr(layer.forward, "__func__", None) is not _pass_on)
        return list(computing) or [module]

    @property
    def language_model(self) -> PreTrainedModel:
        """The decoder, without the output head."""
        return cast(PreTrainedModel, self._base.get_decoder())

    @property
    def head_size(self) -> int:
        """Columns V of the head. Tokenizers have fewer ids; the remaining columns are padding."""
        return int(self.model.get_output_embeddings().out_features)

    @property
    def image_token_id(self) -> int:
        """The id that stands for one image feature in ``input_ids``."""
        return int(self.model.config.image_token_id)

    @property
    def width(self) -> int:
        """Width H of the language model's hidden states."""
        return int(self.language_model.config.hidden_size)

    @property
    def attention_heads(self) -> int:
        """Number of query heads in a layer of the language model."""
        return int(self.language_model.config.num_attention_heads)

    @property
    def attention(self) -> str:
        """The attention kernel of the language model, by its name in transformers."""
        return str(self.language_model.config._attn_implementation)

    # -- parameters ----------------------------------------------------------------------------------------------------

    def part_parameters(self, part: Part) -> list[nn.Parameter]:
        """Return the parameters of one part that a training step can reach, in a fixed order."""
        unread = self._unread if part == "vision" else ()
        return [p for module in self.parts()[part] for name, p in module.named_parameters() if name not in unread]

    def freeze(self, parts: Iterable[Part]) -> None:
        """Exclude parts from training."""
        for part in parts:
            for parameter in self.part_parameters(part):
                parameter.requires_grad_(False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # Buffers keep their dtype, as in Hugging Face's loading. In bfloat16, rounded rotary frequencies would rotate a
        # token at position 4,000 by up to 3.9 radians too far.
        buffers = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, moved in self.named_buffers():
            if moved.dtype != buffers[name].dtype:
                owner, _, own_name = name.rpartition(".")
                setattr(self.get_submodule(owner), own_name, buffers[name].to(moved.device))
        return self


def _layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def _pass_on(layer: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def fingerprint(vlm: VLMAdapter, values_per_tensor: int = 256) -> str:
    """Hash the weights: the name, the shape and up to ``values_per_tensor`` evenly spaced values of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in vlm.model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // values_per_tensor)].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]
