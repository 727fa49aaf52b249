"""A model from two parts and a fresh projector: a vision encoder and a language model, pretrained or random."""

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
from lightning_switchkd.models.families import LlavaAdapter
from lightning_switchkd.models.spec import VLMSpec, load_config, load_pretrained


def load_vision(spec: VLMSpec, where: str) -> PreTrainedModel:
    """The vision tower of ``spec.vision``: from a folder or hub id of a tower, a pair or a LLaVA model, or random."""
    if isinstance(spec.vision, dict):
        tower = AutoModel.from_config(AutoConfig.for_model(**spec.vision), attn_implementation=spec.attn_implementation)
        return cast(PreTrainedModel, tower)
    assert spec.vision is not None
    config = load_config(spec.vision, spec, where)
    if config.model_type == "llava":
        return cast(
            PreTrainedModel, load_pretrained(LlavaForConditionalGeneration, spec.vision, spec, where).model.vision_tower
        )
    model = load_pretrained(AutoModel, spec.vision, spec, where)
    return cast(PreTrainedModel, getattr(model, "vision_model", model))


def _load_lm(spec: VLMSpec, tokenizer: PreTrainedTokenizerBase, where: str) -> PreTrainedModel:
    if isinstance(spec.lm, dict):
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        settings = {"vocab_size": len(tokenizer), **ids, **spec.lm}
        config = AutoConfig.for_model(**settings)
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=spec.attn_implementation)
    else:
        assert spec.lm is not None
        lm = load_pretrained(AutoModelForCausalLM, spec.lm, spec, where)
    head = lm.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise UserError(
            f"{where}: the output head of this {lm.config.model_type} model has a bias, which "
            "LlavaForConditionalGeneration cannot hold, so the exported student would answer differently. "
            "Choose a language model without one (Qwen2.5, Llama, Phi-3, StableLM, Gemma, ...)."
        )
    for setting in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(lm.config, setting, None) not in (None, 1.0):
            raise UserError(
                f"{where}: this {lm.config.model_type} model changes its logits by {setting}, which "
                "LlavaForConditionalGeneration does not do. Choose a language model without it."
            )
    if len(lm.get_input_embeddings().weight) < len(tokenizer):  # type: ignore[arg-type]
        lm.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    return lm


def compose(spec: VLMSpec, tokenizer: PreTrainedTokenizerBase, where: str) -> VLMAdapter:
    try:
        vision = load_vision(spec, f"{where}.vision")
        lm = _load_lm(spec, tokenizer, f"{where}.lm")
    except UserError:
        raise
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where}: the configuration of a part is not usable ({error}). It needs model_type, and "
            f"{where}.attn_implementation must be one that the class supports (eager always is)."
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
    with torch.device("meta"):  # only the frame: its parts are put in below
        model = LlavaForConditionalGeneration._from_config(config, attn_implementation=spec.attn_implementation)
    model.model.vision_tower = vision
    model.model.language_model = lm.base_model
    model.lm_head = lm.get_output_embeddings()
    model.model.multi_modal_projector = _projector(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return LlavaAdapter(model).to(spec.torch_dtype)


def _projector(config: LlavaConfig) -> LlavaMultiModalProjector:
    """A fresh projector. ``linear`` is the same module with an identity behind it, so that any LLaVA code loads it."""
    projector = LlavaMultiModalProjector(config)
    if config.projector_hidden_act == "linear":
        nn.init.eye_(projector.linear_2.weight)
        nn.init.zeros_(projector.linear_2.bias)
        projector.linear_2.requires_grad_(False)
    return projector
