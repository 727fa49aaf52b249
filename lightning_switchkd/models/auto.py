"""A VLM from its configuration: a checkpoint, two parts and a fresh projector, or random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.utils.import_utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_flash_attn_4_available,
    is_kernels_available,
)

from lightning_switchkd.data.processor import may_be_hub_id
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.models.lora import LoRA, add_lora
from lightning_switchkd.models.adapter import VLM, Llava, Part, family_of
from lightning_switchkd.models.compile import compile_blocks, recompute_blocks

DType = Literal["float32", "bfloat16", "float16", "float64"]


@dataclass
class VLMSpec:
    """How to obtain one VLM: either ``checkpoint``, or ``vision`` and ``lm`` with a fresh projector.

    Attributes:
        checkpoint: Folder or hub id of a whole VLM.
        vision: Vision tower: folder or hub id (of a tower, a CLIP/SigLIP pair or a LLaVA model whose tower is taken),
            or a configuration (a mapping with ``model_type``) for random weights.
        lm: Language model: folder or hub id, or a configuration for random weights.
        projector: ``mlp2x_gelu`` (LLaVA-1.5) or ``linear``. Only for models built from parts.
        feature_layer: Hidden state of the tower that is projected. Only for models built from parts.
        feature_strategy: ``default`` drops the class token, ``full`` keeps all positions (SigLIP has none to drop).
        dtype: Data type of the weights; a frozen teacher keeps it whatever the trainer's precision.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``, ... for the tower and the language model.
        compile: Parts (``vision``, ``projector``, ``lm``) whose blocks ``torch.compile`` compiles.
        activation_checkpointing: Parts whose blocks are computed again in the backward pass instead of being kept.
        lora: Low-rank adapters in the language model, whose own weights then stay as they are. For the student.
        trust_remote_code: Let a hub model run its own Python. Off unless you trust its author.
    """

    checkpoint: str | None = None
    vision: str | dict[str, Any] | None = None
    lm: str | dict[str, Any] | None = None
    projector: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu"
    feature_layer: int = -2
    feature_strategy: Literal["default", "full"] = "default"
    dtype: DType = "float32"
    attn_implementation: str = "sdpa"
    compile: list[Part] = field(default_factory=list)
    activation_checkpointing: list[Part] = field(default_factory=list)
    lora: LoRA | None = None
    trust_remote_code: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as PyTorch's object."""
        return cast(torch.dtype, getattr(torch, self.dtype))


def build(spec: VLMSpec, tokenizer: PreTrainedTokenizerBase, name: str) -> VLM:
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
        vlm = _from_parts(spec, tokenizer, f"model.{name}")
    return switched(vlm, spec, name)


def switched(vlm: VLM, spec: VLMSpec, name: str) -> VLM:
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


def skeleton(config: dict[str, Any]) -> VLM:
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


@contextmanager
def _explained(where: str, source: str) -> Iterator[None]:
    """Turns what Hugging Face raises on missing or foreign files into one paragraph."""
    if not Path(source).expanduser().is_dir() and not may_be_hub_id(source):
        raise UserError(
            f"{where}: there is no folder '{source}'. Give a folder with config.json and weights, or a hub id "
            "(owner/name). A model that an earlier stage makes must be made first (`make teacher`, `make help`)."
        )
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{where}: '{source}' could not be loaded as a model ({first_line}). Check the folder or hub id, the "
            "network if it is a hub id, and that it holds config.json and safetensors weights."
        ) from error


def _config(source: str, spec: VLMSpec, where: str) -> PretrainedConfig:
    with _explained(where, source):
        return cast(PretrainedConfig, AutoConfig.from_pretrained(source, trust_remote_code=spec.trust_remote_code))


def _load(auto: Any, source: str, spec: VLMSpec, where: str) -> PreTrainedModel:
    with _explained(where, source):
        return cast(
            PreTrainedModel,
            auto.from_pretrained(
                source,
                dtype=spec.torch_dtype,
                attn_implementation=spec.attn_implementation,
                trust_remote_code=spec.trust_remote_code,
                use_safetensors=True,
            ),
        )


def _from_checkpoint(spec: VLMSpec, where: str) -> VLM:
    assert spec.checkpoint is not None
    family = family_of(_config(spec.checkpoint, spec, where), f"{where} = '{spec.checkpoint}'")
    return family(_load(family.hf_class, spec.checkpoint, spec, where))


def load_vision(spec: VLMSpec, where: str) -> PreTrainedModel:
    """The vision tower of ``spec.vision``: from a folder or hub id of a tower, a pair or a LLaVA model, or random."""
    if isinstance(spec.vision, dict):
        tower = AutoModel.from_config(AutoConfig.for_model(**spec.vision), attn_implementation=spec.attn_implementation)
        return cast(PreTrainedModel, tower)
    assert spec.vision is not None
    config = _config(spec.vision, spec, where)
    if config.model_type == "llava":
        return cast(PreTrainedModel, _load(LlavaForConditionalGeneration, spec.vision, spec, where).model.vision_tower)
    model = _load(AutoModel, spec.vision, spec, where)
    return cast(PreTrainedModel, getattr(model, "vision_model", model))


def _lm(spec: VLMSpec, tokenizer: PreTrainedTokenizerBase, where: str) -> PreTrainedModel:
    if isinstance(spec.lm, dict):
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        settings = {"vocab_size": len(tokenizer), **ids, **spec.lm}
        config = AutoConfig.for_model(**settings)
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=spec.attn_implementation)
    else:
        assert spec.lm is not None
        lm = _load(AutoModelForCausalLM, spec.lm, spec, where)
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


def _from_parts(spec: VLMSpec, tokenizer: PreTrainedTokenizerBase, where: str) -> VLM:
    try:
        vision = load_vision(spec, f"{where}.vision")
        lm = _lm(spec, tokenizer, f"{where}.lm")
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
    return Llava(model).to(spec.torch_dtype)


def _projector(config: LlavaConfig) -> LlavaMultiModalProjector:
    """A fresh projector. ``linear`` is the same module with an identity behind it, so that any LLaVA code loads it."""
    projector = LlavaMultiModalProjector(config)
    if config.projector_hidden_act == "linear":
        nn.init.eye_(projector.linear_2.weight)
        nn.init.zeros_(projector.linear_2.bias)
        projector.linear_2.requires_grad_(False)
    return projector
