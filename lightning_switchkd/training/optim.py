"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lightning_switchkd.core.types import PARTS
from lightning_switchkd.distillation.distiller import Distiller


def parameter_groups(distiller: Distiller, lr: Mapping[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """One group per part (vision, projector, lm, and the objective's adapters) and decay; frozen parameters in none.

    Matrices and embeddings are decayed; vectors (norms, biases, class tokens) never are.
    """
    parts: dict[str, list[nn.Parameter]] = {part: distiller.student.part_parameters(part) for part in PARTS}
    parts["objective"] = list(distiller.objective.parameters())
    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()  # a tied head is one parameter
    for part, parameters in parts.items():
        own = [p for p in parameters if p.requires_grad and not (p in seen or seen.add(p))]  # type: ignore[func-returns-value]
        for name, decay, members in (
            (f"{part}/decay", weight_decay, [p for p in own if p.ndim >= 2]),
            (f"{part}/no_decay", 0.0, [p for p in own if p.ndim < 2]),
        ):
            if members:
                groups.append({"params": members, "lr": lr[part], "weight_decay": decay, "name": name})
    return groups


def warmup_cosine(steps: int, warmup: float, end: float) -> Callable[[int], float]:
    """Factor of the learning rate at a step: a linear rise, then a half cosine down to ``end``.

    Args:
        steps: optimizer steps in all.
        warmup: part of all steps (below 1) or number of steps (from 1) that the rise takes.
        end: factor left after the last step.

    >>> [round(warmup_cosine(8, 0.25, 0.0)(step), 2) for step in (0, 1, 2, 5, 8)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rise = round(warmup * steps) if warmup < 1 else int(warmup)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, steps - rise))
        return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))

    return factor
