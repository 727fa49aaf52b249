"""Build a model from its settings: from a checkpoint, or from parts with a fresh projector."""

from __future__ import annotations

from typing import Any, cast

from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerBase
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_flash_attn_4_available,
    is_kernels_available,
)

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.processor import may_be_hub_id
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.compile import compile_blocks, recompute_blocks
from lightning_switchkd.models.compose import compose
from lightning_switchkd.models.families import family_of
from lightning_switchkd.models.lora import add_lora
from lightning_switchkd.models.spec import VLMSpec, load_config, load_pretrained


def build(spec: VLMSpec, tokenizer: PreTrainedTokenizerBase, name: str) -> VLMAdapter:
    """Load a model, or compose it from parts, and apply its options.

    Args:
        spec: The model's settings.
        tokenizer: The tokenizer whose ids the model reads. It has ``<image>`` as one token.
        name: ``student`` or ``teacher``. Error messages call the setting ``model.<name>``.

    Raises:
        UserError: The settings contradict each other, files are missing, or the family is not supported.
    """
    if spec.checkpoint is not None and (spec.vision is not None or spec.lm is not None):
        raise UserError(
            f"model.{name} has both a checkpoint and parts (vision, lm). Set checkpoint for a whole model, or vision "
            "and lm for a new model with a fresh projector. Set the other to null."
        )
    if spec.checkpoint is None and (spec.vision is None or spec.lm is None):
        raise UserError(
            f"model.{name} needs a checkpoint, or both vision and lm. Give each a folder, a hub id or a configuration."
        )
    _check_attention(spec.attn_implementation, f"model.{name}.attn_implementation")
    if spec.checkpoint is not None:
        vlm = load_checkpoint(spec.checkpoint, spec, f"model.{name}.checkpoint")
    else:
        vlm = compose(spec, tokenizer, f"model.{name}")
    return apply_options(vlm, spec, name)


def check_family(spec: VLMSpec, name: str) -> None:
    """Check the family of a folder, before its processor and data are read.

    Raises:
        UserError: The folder does not exist, or the family is not supported.
    """
    if spec.checkpoint is not None and not may_be_hub_id(spec.checkpoint):
        where = f"model.{name}.checkpoint"
        family_of(load_config(spec.checkpoint, spec, where), f"{where} = '{spec.checkpoint}'")


def load_checkpoint(source: str, spec: VLMSpec, where: str) -> VLMAdapter:
    """Load a whole model.

    Args:
        source: Folder or hub id.
        spec: The options of loading.
        where: The setting or flag that names the source, for error messages.

    Raises:
        UserError: Files are missing, or the family is not supported.
    """
    family_of(load_config(source, spec, where), f"{where} = '{source}'")
    return VLMAdapter(load_pretrained(AutoModelForImageTextToText, source, spec, where))


def apply_options(vlm: VLMAdapter, spec: VLMSpec, name: str) -> VLMAdapter:
    """Apply the options of a model's settings in place: LoRA, compilation and activation checkpointing."""
    if spec.lora is not None:
        if name == "teacher":
            raise UserError("model.teacher.lora must be null: a teacher does not train. Set it to null.")
        add_lora(vlm, spec.lora, f"model.{name}.lora")
    for part in set(spec.compile):
        compile_blocks(vlm.blocks(part), f"model.{name}.compile")
    for part in set(spec.activation_checkpointing):
        recompute_blocks(vlm.blocks(part))
    return vlm


def empty_model(config: dict[str, Any]) -> VLMAdapter:
    """Create a model from a stored Hugging Face configuration, with random weights to be replaced."""
    hf_config = AutoConfig.for_model(**config)
    family_of(hf_config, "The checkpoint's student")
    return VLMAdapter(AutoModelForImageTextToText.from_config(hf_config))


def tokenizer_of(spec: VLMSpec) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer stored with a model. Return None if there is no tokenizer to compare with."""
    source = spec.checkpoint if spec.checkpoint is not None else spec.lm
    if not isinstance(source, str):
        return None
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source))
    except (OSError, ValueError, KeyError):
        return None


def _check_attention(implementation: str, where: str) -> None:
    """Check that this machine has an attention kernel. The model class itself checks whether it supports the kernel."""
    hub = is_kernels_available()  # Hugging Face downloads kernels if the package `kernels` is installed
    flash = {2: is_flash_attn_2_available(), 3: is_flash_attn_3_available(), 4: is_flash_attn_4_available()}
    missing = {f"flash_attention_{version}" for version, available in flash.items() if not (available or hub)}
    usable = ["eager", *(n for n in ALL_ATTENTION_FUNCTIONS.valid_keys() if n not in missing and "paged" not in n)]
    if implementation not in usable and not ("/" in implementation and hub):
        raise UserError(
            f"{where} is '{implementation}', which is unknown or not installed. Available here: {', '.join(usable)}. "
            "flash_attention_2 and later need a GPU and the package flash-attn (or kernels)."
        )
