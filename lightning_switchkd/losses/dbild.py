"""DBiLD: the divergence between two rows of logits seen through their pairwise differences, in O(k).

Notation of docs/explanation/method.md, section 3. Take the selected entries of a row in the leader's order. Logits z
then define a distribution over the pairs i < j, q_ij ∝ exp(a_i − a_j) with a = z/τ. The loss only needs sums over one
member of the pair, and those are running sums. No pair is ever materialized.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_switchkd.losses.divergence import check_shapes, tempered
from lightning_switchkd.losses.select import Kneedle, Selection


def dbild(
    *,
    teacher: Tensor,
    student: Tensor,
    temperature: float = 3.0,
    select: Selection = Kneedle(),  # noqa: B008 (frozen)
    reverse: bool = True,
) -> Tensor:
    """Compute the dynamic bi-directional logits-difference loss: a teacher-led plus a student-led term.

    The leader chooses the entries and their order. Both sides are read there. The choice is not differentiated, the
    logits are. Cut padding columns off, or hide them with -inf on **both** sides.

    Args:
        teacher: ``[..., V]`` logits, any floating dtype.
        student: ``[..., V]`` logits, any floating dtype. For the visual-switch term, those of the switch pathway.
        temperature: Divides the logits of both sides.
        select: Chooses the leader's entries.
        reverse: Use KL(student ‖ teacher) in both terms, else KL(teacher ‖ student).

    Returns:
        ``[...]`` nats, float32 (float64 where a side is float64).

    Raises:
        UserError: The shapes differ, or the temperature is not positive.

    Source: Switch-KD (arXiv 2604.14629), DBiLD; docs/explanation/method.md, section 3.

    >>> z = torch.tensor([[3.0, 2.0, 2.0, 0.0, -1.0]])
    >>> bool(dbild(teacher=z, student=2 * z) > 0)
    True
    """
    check_shapes(teacher, student)
    rows = [logits.reshape(-1, logits.shape[-1]) for logits in (teacher, student)]

    def led(leader: Tensor) -> Tensor:
        ids, mask = select(leader)
        teacher_led, student_led = (logits.gather(-1, ids) for logits in rows)
        return logits_difference_kl(
            teacher=teacher_led, student=student_led, mask=mask, temperature=temperature, reverse=reverse
        )

    return (led(rows[0]) + led(rows[1])).view(teacher.shape[:-1])


def logits_difference_kl(
    *, teacher: Tensor, student: Tensor, mask: Tensor, temperature: float = 3.0, reverse: bool = True
) -> Tensor:
    """Compute the exact KL between two logits-difference distributions in O(k) time and memory, forward and backward.

    Each side is a softmax over the pairs i < j of (z_i − z_j)/τ. Entries outside the mask have no effect, whatever they
    hold. A row with fewer than two entries gives 0 with zero gradient. Differentiable once, with respect to both sides.

    Args:
        teacher: ``[N, K]`` logits in the leader's order, any floating dtype.
        student: ``[N, K]`` logits at the same ids.
        mask: ``[N, K]`` bool, True for the selected entries of a row, which come first.
        temperature: τ.
        reverse: Use KL(student ‖ teacher), else KL(teacher ‖ student).

    Returns:
        ``[N]`` nats, float32 (float64 where a side is float64), computed in float64. Equal sides give 0 up to
        rounding. A value may be slightly negative: about -1e-15 relative to the range of the logits over τ.

    Raises:
        UserError: The shapes differ, or the temperature is not positive.

    Source: Switch-KD (arXiv 2604.14629), DBiLD; docs/explanation/method.md, section 3.

    >>> z = torch.tensor([[3.0, 1.0, 0.0]])
    >>> logits_difference_kl(teacher=z, student=z, mask=torch.ones(1, 3, dtype=torch.bool))
    tensor([0.])
    """
    teacher, student = tempered(teacher, student, temperature)
    q, p = (student, teacher) if reverse else (teacher, student)
    return _pairwise_kl(q, p, mask)


class _PairwiseKL(torch.autograd.Function):
    """KL(q ‖ p) over pairs, from tempered logits ``[N, K]`` and a mask, with the closed-form gradient.

    Computes in float64: differences of running log-sums cancel, and at O(k) the precision costs almost nothing.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, p: Tensor, mask: Tensor) -> Tensor:
        dtype = q.dtype
        q, p = _anchored(q, mask), _anchored(p, mask)
        first, second, q_log_z = _marginals(q, mask)
        p_log_z = _log_normalizer(_log_earlier(p, mask))
        ctx.save_for_backward(q, p, mask, first, second, q_log_z)
        return (((first - second) * (q - p)).sum(-1) + (p_log_z - q_log_z).squeeze(-1)).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        q, p, mask, first, second, log_z = ctx.saved_tensors
        grad_q = grad_p = None
        if ctx.needs_input_grad[0]:
            grad_q = grad[:, None] * _gradient_q(q, p, mask, first, second, log_z).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            p_first, p_second, _ = _marginals(p, mask)
            grad_p = grad[:, None] * ((p_first - p_second) - (first - second)).to(grad.dtype)
        return grad_q, grad_p, None


_pairwise_kl: Callable[[Tensor, Tensor, Tensor], Tensor] = _PairwiseKL.apply


def _gradient_q(q: Tensor, p: Tensor, mask: Tensor, first: Tensor, second: Tensor, log_z: Tensor) -> Tensor:
    """Compute d KL(q ‖ p) / dq_m, ``[N, K]``.

    It is Σ_{j>m} w_mj − Σ_{i<m} w_im with w_ij = q_ij (u_i − u_j − mean) and u = q − p.
    """
    u = q - p
    u = u - F.pad(u, (0, 1)).amin(-1, keepdim=True)  # a common shift is free, and u ≥ 0 has a logarithm
    mean = ((first - second) * u).sum(-1, keepdim=True)
    later = torch.exp(_log_later(q, mask, u) - log_z)  # Σ_{j>m} q_mj u_j
    earlier = torch.exp(_log_earlier(q, mask, u) - log_z)  # Σ_{i<m} q_im u_i
    return (first + second) * u - (first - second) * mean - later - earlier


def _anchored(a: Tensor, mask: Tensor) -> Tensor:
    """Return logits relative to their row's first entry, in float64, and 0 outside the mask."""
    a = a.double().masked_fill(~mask, 0)
    return (a - a[:, :1]) * mask


def _marginals(a: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return r, c ``[N, K]``, the probabilities to be a pair's first or second member, and log Z ``[N, 1]``."""
    later, earlier = _log_later(a, mask), _log_earlier(a, mask)
    log_z = _log_normalizer(earlier)
    return torch.exp(later - log_z), torch.exp(earlier - log_z), log_z


def _log_normalizer(earlier: Tensor) -> Tensor:
    """Compute log Z = log Σ_{i<j} e^{a_i − a_j}, ``[N, 1]``; 0 for a row without pairs, to avoid inf − inf."""
    log_z = earlier.logsumexp(-1, keepdim=True)
    return log_z.masked_fill(log_z == -math.inf, 0)


def _log_earlier(a: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Compute log Σ_{i<m} weight_i e^{a_i − a_m}, ``[N, K]``; -inf for an empty sum. a and −a are masked separately."""
    terms = (a if weight is None else a + weight.log()).masked_fill(~mask, -math.inf)
    earlier = F.pad(terms, (1, 0), value=-math.inf).logcumsumexp(-1)[:, :-1]
    return (earlier - a).masked_fill(~mask, -math.inf)


def _log_later(a: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Compute log Σ_{j>m} weight_j e^{a_m − a_j}, ``[N, K]``: the same sum from the other end."""
    return _log_earlier(-a.flip(-1), mask.flip(-1), None if weight is None else weight.flip(-1)).flip(-1)
