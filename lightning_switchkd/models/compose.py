"""Compose a LLaVA model from a vision encoder, a language model and a fresh projector."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.spec import VLMSpec, load_config, load_pretrained


def compose(spec: VLMSpec, tokenizer: PreTrainedTokenizerBase, where: str) -> VLMAdapter:
    """Compose a model from ``spec.vision``, ``spec.lm`` and a fresh projector.

    Args:
        spec: The model's settings.
        tokenizer: The tokenizer whose ids the model reads. It has ``<image>`` as one token.
        where: Name of the setting, for error messages.

    Raises:
        UserError: A part cannot be loaded, its configuration is invalid, or LLaVA cannot hold the language model.
    """
    try:
        vision = load_vision(spec, f"{where}.vision")
        lm = _load_lm(spec, tokenizer, f"{where}.lm")
    except UserError:
        raise
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where}: the configuration of a part is invalid ({error}). Set its model_type, and set "
            f"{where}.attn_implementation to one that the class supports (every class supports eager)."
        ) from error
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=lm.config,
        image_token_index=cast(int, tokenizer.convert_tokens_to_ids("<image>")),
        vision_feature_layer=spec.feature_layer,
        vision_feature_select_strategy=spec.feature_strategy,
        projector_hidden_act="linear" if spec.projector == "linear" else "gelu",
        tie_word_embeddings=lm.config.tie_word_embeddings,
    )
    with torch.device("meta"):  # no weights: the parts are assigned below
        model = LlavaForConditionalGeneration._from_config(config, attn_implementation=spec.attn_implementation)
    model.model.vision_tower = vision
    model.model.language_model = lm.base_model
    model.lm_head = lm.get_output_embeddings()
    model.model.multi_modal_projector = _projector(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return VLMAdapter(model).to(spec.torch_dtype)


def load_vision(spec: VLMSpec, where: str) -> PreTrainedModel:
    """Load or create the vision encoder of ``spec.vision``.

    The source is a folder or hub id (of a vision encoder, a CLIP/SigLIP pair or a LLaVA model), or a configuration.
    """
    if isinstance(spec.vision, dict):
        config = AutoConfig.for_model(**spec.vision)
        return cast(PreTrainedModel, AutoModel.from_config(config, attn_implementation=spec.attn_implementation))
    assert spec.vision is not None
    if load_config(spec.vision, spec, where).model_type == "llava":
        llava = load_pretrained(LlavaForConditionalGeneration, spec.vision, spec, where)
        return cast(PreTrainedModel, llava.model.vision_tower)
    model = load_pretrained(AutoModel, spec.vision, spec, where)
    return cast(PreTrainedModel, getattr(model, "vision_model", model))


def _load_lm(spec: VLMSpec, tokenizer: PreTrainedTokenizerBase, where: str) -> PreTrainedModel:
    if isinstance(spec.lm, dict):
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        config = AutoConfig.for_model(**{"vocab_size": len(tokenizer), **ids, **spec.lm})
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=spec.attn_implementation)
    else:
        assert spec.lm is not None
        lm = load_pretrained(AutoModelForCausalLM, spec.lm, spec, where)
    if getattr(lm.get_output_embeddings(), "bias", None) is not None:
        raise UserError(
            f"{where}: the output head of this {lm.config.model_type} model has a bias. LlavaForConditionalGeneration "
            "cannot store the bias, so the exported student would answer differently. Choose a language model without "
            "a head bias (Qwen2.5, Llama, Phi-3, StableLM, Gemma, ...)."
        )
    for setting in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(lm.config, setting, None) not in (None, 1.0):
            raise UserError(
                f"{where}: this {lm.config.model_type} model changes its logits by {setting}. "
                "LlavaForConditionalGeneration does not. Choose a language model without this setting."
            )
    if len(lm.get_input_embeddings().weight) < len(tokenizer):  # type: ignore[arg-type]
        lm.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    return lm


def _projector(config: LlavaConfig) -> LlavaMultiModalProjector:
    """Create a fresh projector. A ``linear`` one is LLaVA's module whose second layer is a frozen identity."""
    projector = LlavaMultiModalProjector(config)
    if config.projector_hidden_act == "linear":
        nn.init.eye_(projector.linear_2.weight)
        nn.init.zeros_(projector.linear_2.bias)
        projector.linear_2.requires_grad_(False)
    return projector
