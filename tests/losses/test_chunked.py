"""The head in chunks against the plain way: whole logits on autograd's tape."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Pathway
from lightning_switchkd.losses import CumulativeMass, FixedTopK, Kneedle, dbild, forward_kl
from lightning_switchkd.losses.chunked import chunk_size, sum_losses
from lightning_switchkd.losses.divergence import jensen_shannon, reverse_kl
from lightning_switchkd.losses.logits import Heads, LogitsChunk, SupervisedTokens
from lightning_switchkd.losses.precomputed_grads import attach_gradients
from lightning_switchkd.losses.select import Selection
from lightning_switchkd.models.head import Head
from lightning_switchkd.objectives import KD, SFT, Objective, SwitchKDObjective
from lightning_switchkd.objectives.kd import DivergenceLoss
from lightning_switchkd.objectives.terms import CrossEntropy, ObjectiveInputs, TokenLoss

SELECTIONS: list[Selection] = [
    Kneedle(window=16),
    Kneedle(window=None),
    Kneedle(domain="probabilities", max_k=7),
    FixedTopK(5),
    CumulativeMass(0.8, min_k=3),
]
OBJECTIVES: list[Objective] = [
    SFT(),
    KD("fkl", 0.7, temperature=2.0),
    KD("rkl"),
    KD("jsd", beta=0.3),
    *(SwitchKDObjective(0.5, 2.0, select=select) for select in SELECTIONS),
    SwitchKDObjective(lambda_vsd=0, direction="forward"),
    SwitchKDObjective(lambda_align=0, tau_squared=True),
    SwitchKDObjective(direction="symmetric", switch_divergence="fkl"),
]


DIVERGENCES = {"fkl": forward_kl, "rkl": reverse_kl, "jsd": jensen_shannon}
REVERSE = {"reverse": [True], "forward": [False], "symmetric": [True, False]}


@dataclass(frozen=True)
class Problem:
    """Rows, heads, and what is to have a gradient."""

    rows: SupervisedTokens
    heads: Heads

    def learning(self) -> list[Tensor]:
        tensors = [*self.rows.hidden.values(), *(x for h in self.heads.values() for x in (h.weight, h.bias))]
        return list({id(x): x for x in tensors if x is not None and x.requires_grad}.values())


def problem(
    n: int = 6,
    v: int = 37,
    padding: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    bias: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    frozen_head: bool = False,
    widths: tuple[int, int] = (5, 8),
    size: float = 1.0,
) -> Problem:
    """Random rows; the heads have `padding` more columns than there are ids, not equally many."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def head(width: int, columns: int) -> Head:
        return Head(size * random(columns, width), random(columns) if bias else None, scale, softcap)

    student, teacher = head(widths[0], v + padding), head(widths[1], v + 2 * padding)
    hidden: dict[Pathway, Tensor] = {"student": random(n, widths[0])}
    hidden |= {"teacher": random(n, widths[1]), "switch": random(n, widths[1])}
    for x in (hidden["student"], hidden["switch"], *([] if frozen_head else [student.weight, student.bias])):
        if x is not None:
            x.requires_grad_()
    visual = torch.rand(n, generator=generator) < 0.6
    rows = SupervisedTokens(hidden, torch.randint(v, (n,), generator=generator), visual, v)
    return Problem(rows, {"student": student, "teacher": teacher, "switch": teacher})


def in_chunks(given: Problem, objective: Objective, chunk: int | None = None) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients, so many rows at a time."""
    rows, heads = given.rows, given.heads
    weights = [heads[pathway].weight for pathway in rows.hidden]
    row = sum(len(weight) * max(4, weight.element_size()) for weight in weights)
    gib = 1.0 if chunk is None else (chunk + 0.5) * row / 2**30
    assert chunk is None or chunk_size(rows, heads, gib) == chunk
    loss = objective(ObjectiveInputs(rows, heads), torch.tensor([7, 5, 3, 2], device=rows.targets.device), 0, gib).loss
    return loss.detach(), gradients(3 * loss, given)


def plainly(given: Problem, objective: Objective) -> tuple[Tensor, list[Tensor]]:
    """The same by whole logits and autograd."""
    rows, v = given.rows, given.rows.vocabulary
    z = {pathway: given.heads[pathway](states) for pathway, states in rows.hidden.items()}
    z = {pathway: x if x.dtype == torch.float64 else x.float() for pathway, x in z.items()}
    loss = F.cross_entropy(z["student"], rows.targets, reduction="sum") / 7
    for name, term in objective.terms.items():
        if name == "ce":
            continue
        teacher, student = z["teacher"][:, :v], z[term.pathway][:, :v]
        if isinstance(term, DivergenceLoss):
            beta = {"beta": term.beta} if term.divergence == "jsd" else {}
            values = DIVERGENCES[term.divergence](
                teacher=teacher, student=student, temperature=term.temperature, **beta
            )
        else:
            values = sum(
                term.scale
                * dbild(
                    teacher=teacher, student=student, temperature=term.temperature, select=term.select, reverse=reverse
                )
                for reverse in REVERSE[term.direction]
            ) / len(REVERSE[term.direction])
        values = values[rows.visual] / 5 if name == "vsd" else values / 7
        loss = loss + objective.weight(name, 0) * values.sum()
    return loss.detach(), gradients(3 * loss, given)


def gradients(loss: Tensor, given: Problem) -> list[Tensor]:
    """By everything that learns; 0 where the loss does not depend on it."""
    inputs = given.learning()
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def assert_same(found: tuple[Tensor, list[Tensor]], wanted: tuple[Tensor, list[Tensor]], tolerance: float) -> None:
    for ours, theirs in zip([found[0], *found[1]], [wanted[0], *wanted[1]], strict=True):
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=tolerance, atol=tolerance * max(scale, 1e-3))


@given(
    n=st.integers(0, 7),
    v=st.integers(17, 70),
    padding=st.integers(0, 5),
    beyond=st.integers(-6, 3),
    objective=st.sampled_from(OBJECTIVES),
    seed=st.integers(0, 10_000),
    bias=st.booleans(),
    softcap=st.sampled_from([None, 4.0]),
    scale=st.sampled_from([1.0, 0.25]),
    frozen_head=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_equals_the_plain_way(n: int, beyond: int, objective: Objective, seed: int, **shape: Any) -> None:
    given = problem(n, seed=seed, **shape)
    assert_same(in_chunks(given, objective, max(1, n + beyond)), plainly(given, objective), 1e-10)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=range(len(OBJECTIVES)))
@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_equals_the_plain_way_in_float32(objective: Objective, chunk: int) -> None:
    given = problem(12, 101, dtype=torch.float32)
    assert_same(in_chunks(given, objective, chunk), plainly(given, objective), 2e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_a_wide_head_is_multiplied_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    given, objective = problem(6, 101, bias=bias, softcap=4.0), SwitchKDObjective()
    whole = in_chunks(given, objective)
    monkeypatch.setattr("lightning_switchkd.models.head.COLUMNS", 16)
    assert_same(in_chunks(given, objective), whole, 1e-12)


@pytest.mark.parametrize("n", [0, 1])
def test_few_rows(n: int) -> None:
    given = problem(n)
    loss, found = in_chunks(given, SwitchKDObjective())
    assert [g.shape for g in found] == [x.shape for x in given.learning()]
    assert n or (loss == 0 and all(not g.any() for g in found))


class Alive(TorchDispatchMode):
    """Counts the elements of tensors that are alive together, and the most that one has."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.now = self.most = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in inputs | self._storages:
                self._see(x)
        return out

    def _see(self, x: Tensor) -> None:
        storage, size = x.untyped_storage(), x.untyped_storage().nbytes() // x.element_size()
        self._storages.add(storage._cdata)
        self.now += size
        self.most, self.largest = max(self.most, self.now), max(self.largest, size)
        weakref.finalize(storage, self._end, storage._cdata, size)

    def _end(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.now -= size


@pytest.mark.parametrize("observed", [False, True])
def test_logits_of_more_than_a_chunk_never_exist(observed: bool) -> None:
    n, v, chunk = 60, 3000, 7
    given, objective = problem(n, v, 0, dtype=torch.float32), SwitchKDObjective()
    objective.collect_statistics = observed
    in_chunks(problem(2, v, 0, dtype=torch.float32), objective)
    with Alive() as alive:
        in_chunks(given, objective, chunk)
    assert v < alive.largest <= max(chunk * v, v * 8)
    assert alive.most < 6 * chunk * v + 2 * v * 8, "three pathways' logits, small change, and the head's gradient"
    with Alive() as alive:
        plainly(given, objective)
    assert alive.largest >= n * v, "the plain way is seen"


@pytest.mark.parametrize("objective", OBJECTIVES[1:4], ids=["forward kl", "switch kd", "whole vocabulary"])
def test_bfloat16_points_where_float64_does(objective: Objective) -> None:
    """Logits as steep as a trained model's; their products are rounded to bfloat16 as well."""
    given = problem(64, 2000, dtype=torch.bfloat16, widths=(96, 128), size=0.1)
    with torch.no_grad():
        for pathway, states in given.rows.hidden.items():
            states.copy_(10 * given.heads[pathway].weight[given.rows.targets] + 2 * states)
    exact = Problem(
        replace(given.rows, hidden={s: h.detach().double() for s, h in given.rows.hidden.items()}),
        {s: replace(h, weight=h.weight.detach().double()) for s, h in given.heads.items()},
    )
    for x in (exact.rows.hidden["student"], exact.rows.hidden["switch"], exact.heads["student"].weight):
        x.requires_grad_()
    loss, found = in_chunks(given, objective, 17)
    wanted, directions = plainly(exact, objective)
    assert float(loss) == pytest.approx(float(wanted), rel=0.01)
    ours, theirs = (torch.cat([x.double().flatten() for x in pathway]) for pathway in (found, directions))
    assert F.cosine_similarity(ours, theirs, dim=0) > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=range(len(OBJECTIVES)))
@pytest.mark.parametrize("size", [0.0, 3e3], ids=["equal logits", "huge logits"])
def test_nothing_is_nan(objective: Objective, size: float, dtype: torch.dtype) -> None:
    given = problem(9, 300, dtype=dtype, size=size)
    assert size == 0 or given.heads["student"](given.rows.hidden["student"]).abs().max() > 1e4
    loss, found = in_chunks(given, objective, 4)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in found)


def on_gpu(given: Problem) -> Problem:
    """The same rows and heads there."""

    def moved(x: Any) -> Any:
        return x if x is None else x.detach().cuda().requires_grad_(x.requires_grad)

    rows = replace(
        given.rows,
        hidden={pathway: moved(states) for pathway, states in given.rows.hidden.items()},
        targets=given.rows.targets.cuda(),
        visual=given.rows.visual.cuda(),
    )
    student, teacher = (
        replace(head, weight=moved(head.weight), bias=moved(head.bias))
        for head in (given.heads["student"], given.heads["teacher"])
    )
    return Problem(rows, {"student": student, "teacher": teacher, "switch": teacher})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("objective", OBJECTIVES, ids=range(len(OBJECTIVES)))
def test_equals_the_plain_way_on_a_gpu(objective: Objective) -> None:
    given = on_gpu(problem(40, 9000, bias=True, softcap=9.0))
    assert_same(in_chunks(given, objective, 7), plainly(given, objective), 1e-10)
    half = on_gpu(problem(64, 9000, dtype=torch.bfloat16, widths=(96, 128), size=0.1))
    exact = on_gpu(problem(64, 9000, dtype=torch.bfloat16, widths=(96, 128), size=0.1))
    exact = Problem(
        replace(
            exact.rows,
            hidden={s: h.detach().double().requires_grad_(h.requires_grad) for s, h in exact.rows.hidden.items()},
        ),
        {
            s: replace(h, weight=h.weight.detach().double().requires_grad_(s == "student"))
            for s, h in exact.heads.items()
        },
    )
    (loss, found), (wanted, directions) = in_chunks(half, objective, 17), plainly(exact, objective)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-3)
    for ours, theirs in zip(found, directions, strict=True):
        if theirs.any():
            assert F.cosine_similarity(ours.double().flatten(), theirs.flatten(), dim=0) > 0.999


def test_autocast_multiplies_in_its_dtype() -> None:
    given = problem(9, 200, dtype=torch.float32, widths=(32, 48))
    with torch.autocast("cpu", torch.bfloat16):
        loss, found = in_chunks(given, SwitchKDObjective(), 4)
    exact, _ = plainly(given, SwitchKDObjective())
    assert loss.dtype == torch.float32
    assert {g.dtype for g in found} == {torch.float32}
    assert loss != exact
    assert float(loss) == pytest.approx(float(exact), rel=0.02)


class Scaled(TokenLoss):
    """A term with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, rows: LogitsChunk) -> Tensor:
        return self.factor * rows.log_normalizer("student")


def test_a_term_may_own_parameters() -> None:
    given, term = problem(6, frozen_head=True), Scaled()
    terms: Mapping[str, Any] = {"scaled": term}
    found = sum_losses(given.rows, given.heads, terms, {"scaled": 0.5}, logits_gib=1e-9)
    found.loss.backward()
    wanted = given.heads["student"](given.rows.hidden["student"]).logsumexp(-1).sum()
    torch.testing.assert_close(found.sums["scaled"], 2 * wanted.detach())
    torch.testing.assert_close(term.factor.grad, 0.5 * wanted.detach())


class Detached(TokenLoss):
    """A mistake that is easy to make: logits without a graph."""

    def __init__(self, read: Callable[[LogitsChunk], Tensor]) -> None:
        super().__init__()
        self.read = read

    def forward(self, chunk: LogitsChunk) -> Tensor:
        return self.read(chunk)


@pytest.mark.parametrize(
    "read",
    [
        lambda chunk: chunk.raw_logits("student").logsumexp(-1),
        lambda chunk: chunk.logits("student").detach().sum(-1),
        lambda chunk: chunk.log_z_and_entropy("student")[1],
        lambda chunk: chunk.select("student", Kneedle())[1].sum(-1).double(),
    ],
    ids=["raw_logits", "detached", "entropy", "selection"],
)
def test_a_term_that_lost_its_gradient_is_refused_by_name(read: Callable[[LogitsChunk], Tensor]) -> None:
    given = problem()
    objective: Mapping[str, Any] = {"ce": CrossEntropy(), "mine": Detached(read)}
    with pytest.raises(UserError, match=r"the term 'mine' \(Detached\) read the logits of student, but .* no gradient"):
        sum_losses(given.rows, given.heads, objective, {"ce": 1.0, "mine": 1.0})
    with torch.no_grad():
        assert set(sum_losses(given.rows, given.heads, objective, {"ce": 1.0, "mine": 1.0}).sums) == {"ce", "mine"}
    constant: Mapping[str, Any] = {
        "ce": CrossEntropy(),
        "mine": Detached(lambda chunk: chunk.raw_logits("teacher")[:, 0]),
    }
    sum_losses(given.rows, given.heads, constant, {"ce": 1.0, "mine": 1.0}).loss.backward()


def test_precomputed_gradients() -> None:
    x = torch.ones(3, requires_grad=True)
    loss = attach_gradients(torch.tensor(5.0), [x], [torch.arange(3.0)])
    (2 * loss).backward(retain_graph=True)
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 4]
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()
