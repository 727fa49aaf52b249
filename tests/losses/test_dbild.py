"""The O(k) logits-difference divergence, against every pair written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.losses import CumulativeMass, FixedTopK, Kneedle, dbild, logits_difference_kl

SEEDS = st.integers(0, 2**32)
LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=4)
both_directions = pytest.mark.parametrize("reverse", [True, False], ids=["reverse", "forward"])


def pairs_kl(teacher: Tensor, student: Tensor, mask: Tensor, temperature: float, reverse: bool) -> Tensor:
    """Row by row, pair by pair, as method.md, section 3 defines it; gradients by autograd."""
    values = []
    for t, s, kept in zip(teacher, student, mask, strict=True):
        i, j = torch.triu_indices(int(kept.sum()), int(kept.sum()), offset=1)
        log_p, log_q = (((pathway[kept][i] - pathway[kept][j]) / temperature).log_softmax(-1) for pathway in (t, s))
        if not reverse:
            log_p, log_q = log_q, log_p
        values.append((log_q.exp() * (log_q - log_p)).sum())
    return torch.stack(values)


def led_rows(seed: int, lengths: list[int], scale: float = 4.0) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher ``[N, K]`` in its own order, a student around it, and a mask of the given lengths; float64."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, len(lengths), max(lengths), dtype=torch.float64, generator=generator)
    teacher = (noise[0] * scale).sort(-1, descending=True).values
    return teacher, teacher + noise[1] * scale / 3, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def vocabulary_rows(seed: int, n: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Teacher and student ``[n, vocabulary]`` float64."""
    both = torch.randn(2, n, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 4
    return both[0], both[1]


def value_and_gradients(loss: Any, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, teacher's gradient, student's gradient, under a different upstream gradient for each row."""
    teacher, student = teacher.detach().requires_grad_(), student.detach().requires_grad_()
    value = loss(teacher, student)
    weights = torch.arange(1, len(value) + 1).to(value.dtype)
    return value.detach(), *torch.autograd.grad((value * weights).sum(), (teacher, student))


def assert_equals_pairs(
    teacher: Tensor, student: Tensor, mask: Tensor, temperature: float, reverse: bool, tolerance: float
) -> None:
    def fast(t: Tensor, s: Tensor) -> Tensor:
        return logits_difference_kl(teacher=t, student=s, mask=mask, temperature=temperature, reverse=reverse)

    expected = value_and_gradients(lambda t, s: pairs_kl(t, s, mask, temperature, reverse), teacher, student)
    for got, want in zip(value_and_gradients(fast, teacher, student), expected, strict=True):
        torch.testing.assert_close(got, want, atol=tolerance, rtol=0)


@both_directions
@settings(max_examples=40)
@given(seed=SEEDS, lengths=LENGTHS, temperature=st.sampled_from([0.5, 3.0]))
def test_equals_every_pair_written_out(seed: int, lengths: list[int], temperature: float, reverse: bool) -> None:
    assert_equals_pairs(*led_rows(seed, lengths), temperature, reverse, tolerance=1e-11)


@both_directions
@pytest.mark.parametrize("k", [3, 8, 128, 300])
def test_equals_every_pair_at_any_k(k: int, reverse: bool) -> None:
    assert_equals_pairs(*led_rows(k, [k, k // 2]), 3.0, reverse, tolerance=1e-11)


@pytest.mark.slow
@both_directions
@settings(max_examples=500)
@given(seed=SEEDS, k=st.integers(2, 300), temperature=st.floats(0.3, 10), scale=st.floats(0.01, 30))
def test_equals_every_pair_sweep(seed: int, k: int, temperature: float, scale: float, reverse: bool) -> None:
    tolerance = 1e-12 * (1 + scale / temperature) ** 2 * (1 + 1 / temperature)
    assert_equals_pairs(*led_rows(seed, [k, k // 2, 2]), temperature, reverse, tolerance=tolerance)


@both_directions
def test_extreme_logits(reverse: bool) -> None:
    """Logits of ±1e4: pairs that differ by thousands of nats, and ties at both ends. Errors grow with the logits."""
    teacher, student, mask = led_rows(0, [60, 33, 2], scale=6e3)
    teacher, student = teacher.clamp(-1e4, 1e4), student.clamp(-1e4, 1e4)
    assert_equals_pairs(teacher, student, mask, 3.0, reverse, tolerance=1e-8)

    def fast(t: Tensor, s: Tensor) -> Tensor:
        return logits_difference_kl(teacher=t, student=s, mask=mask, reverse=reverse)

    exact = value_and_gradients(fast, teacher, student)
    for got, want in zip(value_and_gradients(fast, teacher.float(), student.float()), exact, strict=True):
        torch.testing.assert_close(got.double(), want, atol=1e-5 * float(want.abs().max()), rtol=0)


@both_directions
def test_gradcheck(reverse: bool) -> None:
    teacher, student, mask = led_rows(3, [7, 3, 2, 1, 0])

    def loss(t: Tensor, s: Tensor) -> Tensor:
        return logits_difference_kl(teacher=t, student=s, mask=mask, temperature=2.0, reverse=reverse)

    assert torch.autograd.gradcheck(loss, (teacher.requires_grad_(), student.requires_grad_()))
    assert torch.autograd.gradcheck(loss, (teacher.detach(), student))
    assert torch.autograd.gradcheck(loss, (teacher, student.detach()))


@both_directions
@given(seed=SEEDS, scale=st.floats(0, 30), lengths=LENGTHS)
def test_zero_at_equality_and_never_negative(seed: int, scale: float, lengths: list[int], reverse: bool) -> None:
    """Up to rounding, which is that of float64 even where the logits are float32."""
    teacher, student, mask = led_rows(seed, lengths, scale)
    teacher, student = teacher.float(), student.float()
    rounding = 1e-13 * (1 + scale)
    value, *gradients = value_and_gradients(
        lambda t, s: logits_difference_kl(teacher=t, student=s, mask=mask, reverse=reverse), teacher, teacher
    )
    assert value.abs().max() < rounding
    assert all(gradient.abs().max() == 0 for gradient in gradients if gradient.numel())
    assert logits_difference_kl(teacher=teacher, student=student, mask=mask, reverse=reverse).min() > -rounding


@both_directions
@given(seed=SEEDS, shift=st.floats(-1e4, 1e4))
def test_a_shift_of_the_logits_changes_nothing(seed: int, shift: float, reverse: bool) -> None:
    teacher, student, mask = led_rows(seed, [20, 5])
    value = logits_difference_kl(teacher=teacher, student=student, mask=mask, reverse=reverse)
    shifted = logits_difference_kl(teacher=teacher - shift, student=student + shift, mask=mask, reverse=reverse)
    torch.testing.assert_close(shifted, value, atol=1e-9, rtol=0)


@both_directions
@given(seed=SEEDS, garbage=st.sampled_from([-math.inf, math.inf, math.nan, 1e30, -1e30]))
def test_masked_entries_are_inert(seed: int, garbage: float, reverse: bool) -> None:
    """Whatever they hold, wherever they lie: the row is worth its kept entries, and they get no gradient."""
    teacher, student, _ = led_rows(seed, [12, 12])
    mask = torch.rand(2, 12, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[1] = False
    expected = value_and_gradients(lambda t, s: pairs_kl(t, s, mask, 3.0, reverse), teacher, student)
    spoiled = (teacher.masked_fill(~mask, garbage), student.masked_fill(~mask, -garbage))
    got = value_and_gradients(
        lambda t, s: logits_difference_kl(teacher=t, student=s, mask=mask, reverse=reverse), *spoiled
    )
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(0, 0), (0, 8), (3, 0), (3, 1), (3, 8)], ids=str)
def test_rows_without_a_pair_give_zero_and_a_backward(shape: tuple[int, int]) -> None:
    student = torch.full(shape, math.nan, requires_grad=True)
    value = logits_difference_kl(teacher=torch.randn(shape), student=student, mask=torch.zeros(shape, dtype=torch.bool))
    value.sum().backward()
    assert torch.equal(value, torch.zeros(shape[0]))
    assert torch.equal(student.grad, torch.zeros(shape))


@both_directions
def test_one_pair_teaches_nothing(reverse: bool) -> None:
    teacher, student, mask = led_rows(0, [2])
    values = value_and_gradients(
        lambda t, s: logits_difference_kl(teacher=t, student=s, mask=mask, reverse=reverse), teacher, student
    )
    assert all(value.abs().max() < 1e-14 for value in values)


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_memory_is_linear_in_k() -> None:
    """At k = 3000 there are 4.5 million pairs a row."""
    teacher, student, mask = led_rows(0, [3000])
    with LargestTensor() as seen:
        value_and_gradients(lambda t, s: logits_difference_kl(teacher=t, student=s, mask=mask), teacher, student)
    assert seen.elements <= 3000 + 1


def test_computes_in_at_least_float32() -> None:
    teacher, student, mask = led_rows(0, [20, 7])
    low = [pathway.bfloat16() for pathway in (teacher, student)]
    value, *gradients = value_and_gradients(lambda t, s: logits_difference_kl(teacher=t, student=s, mask=mask), *low)
    assert value.dtype == torch.float32
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 2
    assert torch.equal(value, logits_difference_kl(teacher=low[0].float(), student=low[1].float(), mask=mask))
    assert logits_difference_kl(teacher=low[0], student=student, mask=mask).dtype == torch.float64


def test_autocast_changes_nothing() -> None:
    teacher, student = (pathway.float() for pathway in vocabulary_rows(0, 4, 50))
    plain = value_and_gradients(lambda t, s: dbild(teacher=t, student=s), teacher, student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = value_and_gradients(lambda t, s: dbild(teacher=t, student=s), teacher, student)
    assert all(torch.equal(one, other) for one, other in zip(plain, cast, strict=True))


def test_compiles_as_one_graph() -> None:
    teacher, student, mask = led_rows(0, [20, 7])
    compiled = torch.compile(
        lambda t, s: logits_difference_kl(teacher=t, student=s, mask=mask), backend="aot_eager", fullgraph=True
    )
    expected = value_and_gradients(lambda t, s: logits_difference_kl(teacher=t, student=s, mask=mask), teacher, student)
    for got, want in zip(value_and_gradients(compiled, teacher, student), expected, strict=True):
        torch.testing.assert_close(got, want)


@both_directions
@pytest.mark.parametrize("select", [Kneedle(), Kneedle(window=None), FixedTopK(), CumulativeMass()], ids=str)
def test_dbild_is_the_two_led_terms(select: Any, reverse: bool) -> None:
    """The gradient reaches the gathered logits of both terms, never through the choice of entries."""
    teacher, student = vocabulary_rows(0, 3, 300)

    def by_pairs(t: Tensor, s: Tensor) -> Tensor:
        terms = []
        for leader in (t, s):
            ids, mask = select(leader)
            terms.append(pairs_kl(t.gather(-1, ids), s.gather(-1, ids), mask, 2.0, reverse))
        return terms[0] + terms[1]

    def fast(t: Tensor, s: Tensor) -> Tensor:
        return dbild(teacher=t, student=s, temperature=2.0, select=select, reverse=reverse)

    expected = value_and_gradients(by_pairs, teacher, student)
    for got, want in zip(value_and_gradients(fast, teacher, student), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


@given(seed=SEEDS)
def test_dbild_ignores_hidden_columns_and_hands_the_teacher_no_gradient(seed: int) -> None:
    teacher, student = vocabulary_rows(seed, 2, 40)
    hidden = torch.full((2, 3), -math.inf, dtype=torch.float64)
    teacher_wide, student_wide = torch.cat([teacher, hidden], 1), torch.cat([student, hidden], 1).requires_grad_()
    value = dbild(teacher=teacher_wide, student=student_wide)
    value.sum().backward()
    torch.testing.assert_close(value, dbild(teacher=teacher, student=student), atol=1e-12, rtol=0)
    assert student_wide.grad.isfinite().all()
    assert (student_wide.grad[:, 40:] == 0).all()
    assert teacher_wide.grad is None


@pytest.mark.parametrize("logits", [torch.empty(0, 40), torch.full((2, 40), -math.inf)], ids=["no rows", "all hidden"])
def test_dbild_of_nothing_is_zero_and_has_a_backward(logits: Tensor) -> None:
    student = logits.clone().requires_grad_()
    value = dbild(teacher=logits, student=student)
    value.sum().backward()
    assert torch.equal(value, torch.zeros(len(logits)))
    assert torch.equal(student.grad, torch.zeros_like(logits))


def test_settings_that_cannot_work_are_refused() -> None:
    teacher, student, mask = led_rows(0, [20, 7])
    with pytest.raises(UserError, match=r"\(2, 20\).*\(2, 19\).*same rows"):
        logits_difference_kl(teacher=teacher, student=student[:, :-1], mask=mask)
    with pytest.raises(UserError, match=r"temperature must be positive and finite, got -1.0"):
        dbild(teacher=teacher, student=student, temperature=-1.0)
    with pytest.raises(UserError, match=r"Teacher logits have the dtype torch.int64. Pass floating-point logits"):
        dbild(teacher=teacher.long(), student=student)
