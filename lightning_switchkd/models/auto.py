"""A model from its settings: a checkpoint, parts and a fresh projector, or random weights."""

from __future__ import annotations

from typing import Any, cast

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_flash_attn_4_available,
    is_kernels_available,
)

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.compile import compile_blocks, recompute_blocks
from lightning_switchkd.models.compose import compose
from lightning_switchkd.models.families import family_of
from lightning_switchkd.models.lora import add_lora
from lightning_switchkd.models.spec import VLMSpec, load_config, load_pretrained


def build(spec: VLMSpec, tokenizer: PreTrainedTokenizerBase, name: str) -> VLMAdapter:
    """Loads or makes the model.

    Args:
        spec: Where it comes from.
        tokenizer: The tokenizer whose ids it will read; it has ``<image>`` as one token.
        name: ``student`` or ``teacher``, for messages: the setting is ``model.<name>``.

    Raises:
        UserError: The settings contradict each other, the files are missing, or the family has no adapter.
    """
    if spec.checkpoint is not None and (spec.vision is not None or spec.lm is not None):
        raise UserError(
            f"model.{name} has both a checkpoint and parts (vision, lm). Give checkpoint for a whole model, or "
            "vision and lm for a new one with a fresh projector; set the other to null."
        )
    if spec.checkpoint is None and (spec.vision is None or spec.lm is None):
        raise UserError(
            f"model.{name} needs a checkpoint, or both vision and lm (each a folder, a hub id or a configuration)."
        )
    _check_attention(spec.attn_implementation, f"model.{name}.attn_implementation")
    if spec.checkpoint is not None:
        vlm = _from_checkpoint(spec, f"model.{name}.checkpoint")
    else:
        vlm = compose(spec, tokenizer, f"model.{name}")
    return apply_options(vlm, spec, name)


def apply_options(vlm: VLMAdapter, spec: VLMSpec, name: str) -> VLMAdapter:
    """The same model with what its specification switches on: adapters, compiled and recomputed blocks."""
    if spec.lora is not None:
        if name == "teacher":
            raise UserError("model.teacher.lora: a teacher does not learn, so it takes no adapters. Set it to null.")
        add_lora(vlm, spec.lora, f"model.{name}.lora")
    for part in set(spec.compile):
        compile_blocks(vlm.blocks(part), f"model.{name}.compile")
    for part in set(spec.activation_checkpointing):
        recompute_blocks(vlm.blocks(part))
    return vlm


def empty_model(config: dict[str, Any]) -> VLMAdapter:
    """A model of the stored Hugging Face configuration, for weights to be loaded into."""
    hf_config = AutoConfig.for_model(**config)
    family = family_of(hf_config, "The checkpoint's student")
    return family(family.hf_class(hf_config))


def tokenizer_of(spec: VLMSpec) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside the model, or None where there is none to compare with."""
    source = spec.checkpoint if spec.checkpoint is not None else spec.lm
    if not isinstance(source, str):
        return None
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source))
    except (OSError, ValueError, KeyError):
        return None


def _check_attention(implementation: str, where: str) -> None:
    """Refuses what this machine lacks. A model class that cannot do it says so itself when it is made."""
    hub = is_kernels_available()  # with the package `kernels`, Hugging Face fetches them from the hub
    flash = {2: is_flash_attn_2_available(), 3: is_flash_attn_3_available(), 4: is_flash_attn_4_available()}
    lacking = {f"flash_attention_{version}" for version, there in flash.items() if not (there or hub)}
    usable = ["eager", *(n for n in ALL_ATTENTION_FUNCTIONS.valid_keys() if n not in lacking and "paged" not in n)]
    if implementation not in usable and not ("/" in implementation and hub):
        raise UserError(
            f"{where} is '{implementation}', which is unknown or not installed here. What works here: "
            f"{', '.join(usable)}. flash_attention_2 and its successors need the package flash-attn (or kernels) and a "
            "GPU."
        )


def _from_checkpoint(spec: VLMSpec, where: str) -> VLMAdapter:
    assert spec.checkpoint is not None
    family = family_of(load_config(spec.checkpoint, spec, where), f"{where} = '{spec.checkpoint}'")
    return family(load_pretrained(family.hf_class, spec.checkpoint, spec, where))
