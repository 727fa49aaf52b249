"""Divergences between the next-token distributions of teacher and student, over the whole vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_switchkd.core.errors import UserError


def forward_kl(*, teacher: Tensor, student: Tensor, temperature: float = 3.0) -> Tensor:
    """Compute KL(teacher ‖ student) for each row, without a τ² factor.

    Columns at -inf on both sides (hidden padding columns) have no effect.

    Args:
        teacher: ``[N, V]`` logits, any floating dtype.
        student: ``[N, V]`` logits, any floating dtype.
        temperature: Divides both sides' logits.

    Returns:
        ``[N]`` nats, float32 (float64 where a side is float64).

    Raises:
        UserError: The shapes differ, or the temperature is not positive.

    Source: Hinton et al. 2015 (arXiv 1503.02531); docs/explanation/method.md, section 7.

    >>> z = torch.tensor([[0.0, 0.0]])
    >>> forward_kl(teacher=z, student=z)
    tensor([0.])
    """
    teacher_logprobs, student_logprobs = _log_softmax(teacher, student, temperature)
    return _kl(teacher_logprobs, student_logprobs)


def reverse_kl(*, teacher: Tensor, student: Tensor, temperature: float = 3.0) -> Tensor:
    """Compute KL(student ‖ teacher) for each row. Arguments, result, errors and source: see :func:`forward_kl`."""
    teacher_logprobs, student_logprobs = _log_softmax(teacher, student, temperature)
    return _kl(student_logprobs, teacher_logprobs)


def jensen_shannon(*, teacher: Tensor, student: Tensor, temperature: float = 3.0, beta: float = 0.5) -> Tensor:
    """Compute the generalized Jensen-Shannon divergence for each row.

    β·KL(p^T ‖ m) + (1−β)·KL(p^S ‖ m) with m = β·p^T + (1−β)·p^S. It is bounded by the entropy of (β, 1−β), which is
    log 2 at β = 0.5.

    Args:
        teacher: ``[N, V]`` logits.
        student: ``[N, V]`` logits.
        temperature: Divides both sides' logits.
        beta: Weight of the teacher, strictly between 0 and 1.

    Returns:
        ``[N]`` nats.

    Raises:
        UserError: As for :func:`forward_kl`, or ``beta`` is outside (0, 1), where the divergence is 0 everywhere.

    Source: Agarwal et al. 2024 (arXiv 2306.13649); docs/explanation/method.md, section 7.
    """
    if not 0 < beta < 1:
        raise UserError(f"jensen_shannon: beta must be in (0, 1), got {beta}. Set it to 0.5.")
    teacher_logprobs, student_logprobs = _log_softmax(teacher, student, temperature)
    mixture = torch.logaddexp(teacher_logprobs + math.log(beta), student_logprobs + math.log1p(-beta))
    return beta * _kl(teacher_logprobs, mixture) + (1 - beta) * _kl(student_logprobs, mixture)


def log_z_and_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log Σ e^z and the entropy −Σ p log p of each row's next-token distribution.

    Args:
        logits: ``[N, V]``; a column at -inf (hidden padding) has no effect.

    Returns:
        Log normalizer ``[N]`` and entropy ``[N]``, both nats.

    >>> log_z, entropy = log_z_and_entropy(torch.zeros(1, 8))
    >>> bool(torch.isclose(entropy, log_z))  # both log 8
    True
    """
    logits = logits.clamp(min=torch.finfo(logits.dtype).min / 2)
    log_z = logits.logsumexp(dim=-1)
    return log_z, log_z - torch.linalg.vecdot(logits.softmax(dim=-1), logits)


def check_shapes(teacher: Tensor, student: Tensor) -> None:
    """Check that both sides have logits of the same rows and ids.

    Raises:
        UserError: The shapes differ, or the values are not floating-point numbers.
    """
    for name, logits in (("Teacher", teacher), ("Student", student)):
        if not logits.is_floating_point():
            raise UserError(f"{name} logits have the dtype {logits.dtype}. Pass floating-point logits, not token ids.")
    if teacher.shape != student.shape:
        raise UserError(
            f"Teacher logits {tuple(teacher.shape)} and student logits {tuple(student.shape)} differ in shape. "
            "Pass the same rows, and only the token ids that both vocabularies have."
        )


def check_temperature(temperature: float) -> None:
    """Check a temperature.

    Raises:
        UserError: It is not positive and finite.
    """
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature must be positive and finite, got {temperature}. Set it to 3.0.")


def tempered(teacher: Tensor, student: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Divide the logits of both sides by the temperature, in their widest dtype, at least float32.

    Args:
        teacher: Logits of any shape.
        student: Logits of the same shape.
        temperature: Positive.

    Returns:
        Teacher and student, in this order.

    Raises:
        UserError: The shapes differ, or the temperature is not positive.
    """
    check_shapes(teacher, student)
    check_temperature(temperature)
    dtype = torch.promote_types(torch.promote_types(teacher.dtype, student.dtype), torch.float32)
    return teacher.to(dtype) / temperature, student.to(dtype) / temperature


def _log_softmax(teacher: Tensor, student: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return both log-probabilities. A column at -inf gets a finite floor: probability 0, never 0 · inf."""
    teacher, student = tempered(teacher, student, temperature)
    floor = torch.finfo(teacher.dtype).min / 2
    return teacher.clamp(min=floor).log_softmax(dim=-1), student.clamp(min=floor).log_softmax(dim=-1)


def _kl(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    return (logprobs.exp() * (logprobs - reference_logprobs)).sum(dim=-1)
