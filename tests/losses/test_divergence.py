"""Full-vocabulary divergences, against their definitions written as loops."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.losses import forward_kl, jensen_shannon, reverse_kl

DIVERGENCES = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jsd 0.5": jensen_shannon,
    "jsd 0.9": partial(jensen_shannon, beta=0.9),
}
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)


def softmax(row: list[float], temperature: float) -> list[float]:
    weights = [math.exp((z - max(row)) / temperature) for z in row]
    return [w / sum(weights) for w in weights]


def kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def reference(name: str, teacher: list[float], student: list[float], temperature: float) -> float:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    if not name.startswith("jsd"):
        return kl(p, q) if name == "forward" else kl(q, p)
    beta = float(name.removeprefix("jsd "))
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def pathways(seed: int, n: int = 3, vocabulary: int = 20, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    pair = torch.randn(2, n, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 4
    return pair[0].to(dtype), pair[1].to(dtype)


@pytest.mark.parametrize("name", DIVERGENCES)
@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([0.7, 1.0, 3.0]))
def test_equals_its_definition(name: str, seed: int, temperature: float) -> None:
    teacher, student = pathways(seed)
    value = DIVERGENCES[name](teacher=teacher, student=student, temperature=temperature)
    expected = [reference(name, t, s, temperature) for t, s in zip(teacher.tolist(), student.tolist(), strict=True)]
    assert value.tolist() == pytest.approx(expected, abs=1e-12)


@every_divergence
@given(seed=st.integers(0, 2**32))
def test_zero_at_equality_and_never_negative(divergence, seed: int) -> None:
    teacher, student = pathways(seed, dtype=torch.float32)
    assert divergence(teacher=teacher, student=teacher).abs().max() < 1e-6
    assert divergence(teacher=teacher, student=student).min() > -1e-6


@every_divergence
@given(seed=st.integers(0, 2**32), shift=st.floats(-1e3, 1e3))
def test_a_shift_and_hidden_columns_change_nothing(divergence, seed: int, shift: float) -> None:
    teacher, student = pathways(seed)
    hidden = torch.full((3, 5), -math.inf, dtype=torch.float64)
    wide = torch.cat([student + shift, hidden], dim=1).requires_grad_()
    value = divergence(teacher=torch.cat([teacher - shift, hidden], dim=1), student=wide)
    value.sum().backward()
    narrow = student.clone().requires_grad_()
    expected = divergence(teacher=teacher, student=narrow)
    expected.sum().backward()
    torch.testing.assert_close(value, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(wide.grad, torch.cat([narrow.grad, torch.zeros(3, 5)], dim=1), atol=1e-10, rtol=0)


@every_divergence
def test_gradients_of_both_sides(divergence) -> None:
    teacher, student = (pathway.requires_grad_() for pathway in pathways(0))
    assert torch.autograd.gradcheck(lambda t, s: divergence(teacher=t, student=s), (teacher, student))


@every_divergence
def test_extreme_logits_stay_finite(divergence) -> None:
    teacher = torch.tensor([[1e4, -1e4, 0.0]])
    student = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    value = divergence(teacher=teacher, student=student)
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad.isfinite().all()


@every_divergence
def test_computes_in_at_least_float32(divergence) -> None:
    teacher, student = pathways(1, dtype=torch.bfloat16)
    value = divergence(teacher=teacher, student=student)
    assert value.dtype == torch.float32
    assert torch.equal(value, divergence(teacher=teacher.float(), student=student.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(value, divergence(teacher=teacher, student=student))


@every_divergence
def test_no_rows(divergence) -> None:
    assert divergence(teacher=torch.empty(0, 9), student=torch.empty(0, 9)).shape == (0,)


def test_jensen_shannon_is_bounded_by_log_2() -> None:
    apart = jensen_shannon(teacher=torch.tensor([[99.0, 0.0]]), student=torch.tensor([[0.0, 99.0]]), temperature=1.0)
    assert apart.item() == pytest.approx(math.log(2))


@every_divergence
def test_settings_that_cannot_work_are_refused(divergence) -> None:
    teacher, student = pathways(0)
    with pytest.raises(UserError, match=r"\(3, 20\).*\(3, 19\).*both vocabularies"):
        divergence(teacher=teacher, student=student[:, :-1])
    with pytest.raises(UserError, match=r"temperature must be positive and finite, got 0"):
        divergence(teacher=teacher, student=student, temperature=0)
    with pytest.raises(UserError, match=r"Student logits have the dtype torch.int64. Pass floating-point logits"):
        divergence(teacher=teacher, student=student.long())


@pytest.mark.parametrize("beta", [0.0, 1.0, math.nan])
def test_jensen_shannon_refuses_a_weight_of_one_side(beta: float) -> None:
    with pytest.raises(UserError, match=r"beta must be in \(0, 1\)"):
        jensen_shannon(teacher=torch.zeros(1, 2), student=torch.zeros(1, 2), beta=beta)
