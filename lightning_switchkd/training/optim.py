"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import PARTS
from lightning_switchkd.distillation.distiller import Distiller


def check_settings(
    rates: Mapping[str, float | None], weight_decay: float, betas: Sequence[float], warmup: float, min_lr_ratio: float
) -> None:
    """Check the optimizer's settings before a model is loaded.

    Args:
        rates: Learning rates by setting. None is not set.
        weight_decay: See :class:`~lightning_switchkd.training.module.SwitchKD`, as for the other settings.
        betas: Two numbers.
        warmup: A fraction or a number of steps.
        min_lr_ratio: A fraction.

    Raises:
        UserError: A setting is out of its range. The message names it.

    >>> check_settings({"lr": -1.0}, 0.0, (0.9, 0.999), 0.03, 0.0)
    Traceback (most recent call last):
    lightning_switchkd.core.errors.UserError: model.lr must be a positive number, got -1.0. Set it to 2e-5, for example.
    """
    for name, rate in rates.items():
        if rate is not None and not 0 < rate < math.inf:
            raise UserError(f"model.{name} must be a positive number, got {rate}. Set it to 2e-5, for example.")
    if not 0 <= weight_decay < math.inf:
        raise UserError(f"model.weight_decay must be 0 or more, got {weight_decay}. Set it to 0.")
    if not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"model.betas must be in [0, 1), got {list(betas)}. Set it to [0.9, 0.999].")
    if not 0 <= warmup < math.inf:
        raise UserError(f"model.warmup must be a fraction or a number of steps, got {warmup}. Set it to 0.03.")
    if not 0 <= min_lr_ratio <= 1:
        raise UserError(f"model.min_lr_ratio must be in [0, 1], got {min_lr_ratio}. Set it to 0.")


def parameter_groups(distiller: Distiller, lr: Mapping[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """Group the trainable parameters by part (vision, projector, lm, the objective's adapters) and by decay.

    Matrices and embeddings are decayed. Vectors (norms, biases, class tokens) are not. Frozen parameters are in no
    group.

    Args:
        distiller: The models with their objective.
        lr: Learning rate of each part.
        weight_decay: Of the groups that are decayed.
    """
    parts: dict[str, list[nn.Parameter]] = {part: distiller.student.part_parameters(part) for part in PARTS}
    parts["objective"] = list(distiller.objective.parameters())
    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()  # a tied head shares its parameter with the embeddings
    for part, parameters in parts.items():
        trainable = [p for p in parameters if p.requires_grad and not (p in seen or seen.add(p))]  # type: ignore[func-returns-value]
        for name, decay, members in (
            (f"{part}/decay", weight_decay, [p for p in trainable if p.ndim >= 2]),
            (f"{part}/no_decay", 0.0, [p for p in trainable if p.ndim < 2]),
        ):
            if members:
                groups.append({"params": members, "lr": lr[part], "weight_decay": decay, "name": name})
    return groups


def warmup_cosine(num_steps: int, warmup: float, min_ratio: float) -> Callable[[int], float]:
    """Return a function from the step to the factor of the learning rate: a linear warm-up, then half a cosine.

    Args:
        num_steps: Number of optimizer steps of the run.
        warmup: Length of the warm-up: a fraction of all steps (below 1) or a number of steps (1 or more).
        min_ratio: The factor after the last step.

    >>> [round(warmup_cosine(8, 0.25, 0.0)(step), 2) for step in (0, 1, 2, 5, 8)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warmup_steps = round(warmup * num_steps) if warmup < 1 else int(warmup)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
        return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
