"""The settings of one model, and loading of Hugging Face files with clear errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Part
from lightning_switchkd.data.processor import may_be_hub_id
from lightning_switchkd.models.lora import LoRA

DType = Literal["float32", "bfloat16", "float16", "float64"]


@dataclass
class VLMSpec:
    """Settings of one model: either ``checkpoint``, or ``vision`` and ``lm`` with a fresh projector.

    Attributes:
        checkpoint: Folder or hub id of a whole vision-language model.
        vision: Vision encoder: a folder or hub id (of a vision encoder, a CLIP/SigLIP pair or a LLaVA model), or a
            configuration (a mapping with ``model_type``) for random weights.
        lm: Language model: a folder or hub id, or a configuration for random weights.
        projector: ``mlp2x_gelu`` (LLaVA-1.5) or ``linear``. Only for models composed from parts.
        feature_layer: Hidden state of the vision encoder that is projected. Only for models composed from parts.
        feature_strategy: ``default`` drops the class token, ``full`` keeps all positions (SigLIP has no class token).
        dtype: Data type of the weights. A frozen teacher keeps it whatever the trainer's precision.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``, ... for vision encoder and language model.
        compile: Parts (``vision``, ``projector``, ``lm``) whose blocks ``torch.compile`` compiles.
        activation_checkpointing: Parts whose activations are recomputed in the backward pass instead of stored.
        lora: Low-rank adapters in the language model, whose own weights are frozen. For the student only.
        trust_remote_code: Let a hub model run its own Python code. Enable only if you trust its author.
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
    def name(self) -> str:
        """The model in a few words, for messages."""
        if self.checkpoint is not None:
            return self.checkpoint
        parts = (part if isinstance(part, str) else (part or {}).get("model_type") for part in (self.vision, self.lm))
        return " + ".join(map(str, parts))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as a ``torch.dtype``."""
        return cast(torch.dtype, getattr(torch, self.dtype))


def as_spec(given: VLMSpec | Mapping[str, Any], where: str) -> VLMSpec:
    """Convert a mapping of the fields of a :class:`VLMSpec`, as in a YAML file, from a caller in Python.

    Raises:
        UserError: A field is unknown. ``where`` names the model.
    """
    if isinstance(given, VLMSpec):
        return given
    known = {f.name for f in fields(VLMSpec)}
    if unknown := given.keys() - known:
        raise UserError(f"{where}: unknown fields {', '.join(sorted(unknown))}. Known: {', '.join(sorted(known))}.")
    lora = given.get("lora")
    return VLMSpec(**{**given, "lora": LoRA(**lora) if isinstance(lora, Mapping) else lora})


@contextmanager
def _loading_errors(where: str, source: str) -> Iterator[None]:
    """Turn Hugging Face's errors on missing or invalid files into one paragraph."""
    if not Path(source).expanduser().is_dir() and not may_be_hub_id(source):
        raise UserError(
            f"{where}: folder '{source}' does not exist. Give a folder with config.json and weights, or a hub id "
            "(owner/name). If an earlier stage creates the model, run that stage first (`make teacher`, `make help`)."
        )
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{where}: '{source}' could not be loaded as a model ({first_line}). Check the folder or hub id and the "
            "network. The source must contain config.json and safetensors weights."
        ) from error


def load_config(source: str, spec: VLMSpec, where: str) -> PretrainedConfig:
    """Load the configuration of a folder or hub id.

    Raises:
        UserError: The source is missing or invalid. ``where`` names the setting.
    """
    with _loading_errors(where, source):
        return cast(PretrainedConfig, AutoConfig.from_pretrained(source, trust_remote_code=spec.trust_remote_code))


def load_pretrained(auto: Any, source: str, spec: VLMSpec, where: str) -> PreTrainedModel:
    """Load the weights of a folder or hub id by a Hugging Face class.

    Raises:
        UserError: The source is missing or invalid. ``where`` names the setting.
    """
    with _loading_errors(where, source):
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
