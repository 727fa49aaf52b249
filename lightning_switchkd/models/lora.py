"""Low-rank adapters (Hu et al. 2021) in the student's language model, by the package peft. Merged at export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.extras import requires
from lightning_switchkd.models.adapter import VLMAdapter

BASE, DOWN, UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
"""Parts of the names that peft gives to W, A and B."""


@dataclass
class LoRA:
    """Train W + alpha / rank · BA in place of W.

    Attributes:
        rank: Columns of B.
        alpha: Strength.
        dropout: Dropout of the adapters' input.
        targets: Names of the linear layers that get an adapter. Null takes all in the language model's blocks.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] | None = None

    @property
    def scale(self) -> float:
        """The factor of BA."""
        return self.alpha / self.rank


def add_lora(vlm: VLMAdapter, lora: LoRA, where: str) -> None:
    """Freeze the language model and add adapters to its linear layers. B starts at 0, so the outputs do not change.

    Args:
        vlm: The student.
        lora: The adapters' settings.
        where: Name of the setting, for error messages.

    Raises:
        UserError: peft is not installed, or no layer has a name in ``lora.targets``.
    """
    with requires("lora", where):
        from peft import LoraConfig, inject_adapter_in_model

    language_model = vlm.language_model
    language_model.requires_grad_(False)
    vlm.model.lm_head.requires_grad_(False)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.targets or "all-linear",
    )
    try:
        inject_adapter_in_model(config, language_model)
    except ValueError as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from error


def copy_lora(source: VLMAdapter, target: VLMAdapter) -> None:
    """Add the adapters of one model, freshly initialized, to another model of the same configuration."""
    for config in getattr(source.language_model, "peft_config", {}).values():
        from peft import inject_adapter_in_model

        inject_adapter_in_model(config, target.language_model)


def merged(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Merge the adapters into a state dict: each W + scale · BA, under its plain name.

    Args:
        weights: State dict of a model, with or without adapters.
        scale: The factor of BA (``LoRA.scale``).
    """
    plain = {}
    for name, weight in weights.items():
        if ".lora_" in name:
            continue
        layer = name.partition(BASE)[0]
        if BASE in name and name.endswith(".weight"):
            exact = torch.promote_types(weight.dtype, torch.float32)
            product = weights[layer + UP].to(exact) @ weights[layer + DOWN].to(exact)
            weight = (weight.to(exact) + scale * product).to(weight.dtype)
        plain[name.replace(BASE, ".")] = weight
    return plain
