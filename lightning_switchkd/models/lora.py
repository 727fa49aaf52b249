"""Low-rank adapters (Hu et al., 2021) in the student's language model, by the package peft; merged at export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.models.adapter import VLMAdapter

BASE, DOWN, UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass
class LoRA:
    """Trains W + alpha / rank · BA in place of W.

    Attributes:
        rank: columns of B.
        alpha: strength.
        dropout: of the adapters' input.
        targets: names of the linear layers that get one; null takes all of the language model's blocks.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] | None = None

    @property
    def scale(self) -> float:
        """What BA is multiplied by."""
        return self.alpha / self.rank


def add_lora(vlm: VLMAdapter, lora: LoRA, where: str) -> None:
    """Freezes the language model, and gives its linear layers adapters that start at 0.

    Raises:
        UserError: the package is missing, or no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise UserError(f"{where}: LoRA needs the package peft: pip install peft.") from None
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


def merged(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A state dict without adapters: each W + scale · BA, under its own name."""
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
