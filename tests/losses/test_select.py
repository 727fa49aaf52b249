"""Selections, against loops over rows that follow method.md, section 3 word by word."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.losses import CumulativeMass, FixedTopK, Kneedle
from lightning_switchkd.losses.select import BLOCK, Selection

Row = list[float]

TIED = st.integers(-3, 6).map(float)
ROUGH = st.floats(-50, 50).map(lambda z: round(z, 3))
HIDDEN = st.sampled_from([-math.inf, math.inf, math.nan])
SELECTIONS = [Kneedle(), Kneedle(domain="probabilities"), FixedTopK(), CumulativeMass()]
every_selection = pytest.mark.parametrize("selection", SELECTIONS, ids=str)
BOUNDS = st.tuples(st.integers(3, 6), st.none() | st.integers(6, 12))


def rows_of(entries: st.SearchStrategy[float], longest: int = 40) -> st.SearchStrategy[list[Row]]:
    return st.integers(1, longest).flatmap(
        lambda length: st.lists(st.lists(entries, min_size=length, max_size=length), min_size=1, max_size=4)
    )


def in_order(row: Row) -> list[int]:
    return sorted((i for i, z in enumerate(row) if math.isfinite(z)), key=lambda i: (-row[i], i))


def probabilities(row: Row, temperature: float) -> Row:
    top = max((z for z in row if math.isfinite(z)), default=0.0)
    weights = [math.exp((z - top) / temperature) if math.isfinite(z) else 0.0 for z in row]
    return [w / sum(weights) if w else 0.0 for w in weights]


def kneedle_reference(row: Row, kneedle: Kneedle) -> list[int]:
    ids = in_order(row)[: kneedle.window]
    height = row if kneedle.domain == "logits" else probabilities(row, kneedle.temperature)
    z, w = [height[i] for i in ids], len(ids)
    if w == 0:
        return []
    depth = [(w - i) * (z[0] - z[-1]) - (w - 1) * (z[i - 1] - z[-1]) for i in range(1, w + 1)]
    near = max(depth) - 1e-6 * (w - 1) * (z[0] - z[-1])
    knee = next(i for i, d in enumerate(depth, start=1) if d >= near)
    return ids[: min(w, max(kneedle.min_k, min(knee, kneedle.max_k or w)))]


def mass_reference(row: Row, selection: CumulativeMass) -> list[int]:
    ids, share = in_order(row)[: selection.window], probabilities(row, selection.temperature)
    reached = [k for k in range(1, len(ids) + 1) if math.fsum(share[i] for i in ids[:k]) >= selection.mass - 1e-6]
    k = min(reached, default=len(ids))
    return ids[: max(selection.min_k, min(k, selection.max_k or k))]


def selected(selection: Selection, logits: Tensor) -> list[list[int]]:
    """The ids of each row, after checking the form every selection promises."""
    indices, mask = selection(logits)
    assert indices.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert indices.shape == mask.shape
    k = mask.sum(-1)
    assert indices.shape == (len(logits), int(k.max()) if len(k) else 0)
    assert torch.equal(mask, torch.arange(mask.shape[1]) < k[:, None]), "selected entries lead"
    assert (indices[~mask] == 0).all(), "past k: an id that can be gathered"
    return [row[chosen].tolist() for row, chosen in zip(indices, mask, strict=True)]


@given(
    rows_of(TIED) | rows_of(ROUGH) | rows_of(TIED | HIDDEN),
    st.sampled_from(["logits", "probabilities"]),
    st.sampled_from([0.5, 1.0, 3.0]),
    BOUNDS,
)
def test_kneedle_over_the_whole_vocabulary(rows, domain, temperature, bounds) -> None:
    kneedle = Kneedle(None, domain, temperature, *bounds)
    expected = [kneedle_reference(row, kneedle) for row in rows]
    assert selected(kneedle, torch.tensor(rows, dtype=torch.float64)) == expected


@given(st.integers(0, 2**32), st.integers(3, 70), st.sampled_from(["logits", "probabilities"]), BOUNDS)
def test_kneedle_in_a_window(seed, window, domain, bounds) -> None:
    """Distinct logits: what lies at the window's edge is then certain."""
    logits = torch.randn(3, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 4
    kneedle = Kneedle(window, domain, 1.0, *bounds)
    assert selected(kneedle, logits) == [kneedle_reference(row, kneedle) for row in logits.tolist()]


@pytest.mark.slow
@settings(max_examples=300)
@given(rows_of(TIED | ROUGH | HIDDEN, longest=200), st.sampled_from(["logits", "probabilities"]), BOUNDS)
def test_kneedle_on_long_rows(rows, domain, bounds) -> None:
    kneedle = Kneedle(None, domain, 1.0, *bounds)
    expected = [kneedle_reference(row, kneedle) for row in rows]
    assert selected(kneedle, torch.tensor(rows, dtype=torch.float64)) == expected


@given(rows_of(TIED | HIDDEN), st.sampled_from([0.3, 0.95, 1.0]), st.sampled_from([0.5, 2.0]), BOUNDS)
def test_cumulative_mass(rows, mass, temperature, bounds) -> None:
    selection = CumulativeMass(mass, temperature, None, *bounds)
    expected = [mass_reference(row, selection) for row in rows]
    assert selected(selection, torch.tensor(rows, dtype=torch.float64)) == expected


def test_cumulative_mass_counts_the_whole_row_but_takes_only_the_window() -> None:
    logits = torch.arange(20, 0, -1, dtype=torch.float32)[None] / 10
    assert selected(CumulativeMass(mass=0.9, window=5), logits) == [[0, 1, 2, 3, 4]]


@given(rows_of(TIED | HIDDEN, longest=60), st.integers(3, 12))
def test_fixed_top_k(rows, k) -> None:
    assert selected(FixedTopK(k), torch.tensor(rows)) == [in_order(row)[:k] for row in rows]


@given(st.integers(0, 2**32), st.integers(4, 30), st.sampled_from([torch.float32, torch.bfloat16]))
def test_equals_at_the_windows_edge(seed, window, dtype) -> None:
    """Any of them may be taken; the logits taken, and their order inside the selection, are settled."""
    logits = torch.randint(-3, 4, (3, 50), generator=torch.Generator().manual_seed(seed)).to(dtype)
    kneedle = Kneedle(window=window)
    for row, ids in zip(logits.tolist(), selected(kneedle, logits), strict=True):
        assert [row[i] for i in ids] == [row[i] for i in kneedle_reference(row, kneedle)]
        assert ids == sorted(ids, key=lambda i: (-row[i], i))
        assert len(set(ids)) == len(ids)


def test_equal_logits_come_by_ascending_id() -> None:
    logits = torch.tensor([[1.0, 9.0, 9.0, 2.0, 9.0, 2.0]]).repeat(1, 50)
    nines = [i for i, z in enumerate(logits[0].tolist()) if z == 9.0]
    assert selected(FixedTopK(8), logits.bfloat16()) == [nines[:8]]


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
@every_selection
def test_a_shift_of_the_logits_and_padding_columns_change_nothing(selection: Selection, shift: float) -> None:
    logits = torch.randn(6, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    padded = torch.cat([logits + shift, torch.full((6, 8), -math.inf, dtype=torch.float64)], dim=1)
    assert selected(selection, padded) == selected(selection, logits)


def test_a_steeper_curve_selects_fewer() -> None:
    curve = torch.arange(100, dtype=torch.float64)
    k = [len(ids) for ids in selected(Kneedle(), torch.stack([10 * torch.exp(-curve / c) for c in (3, 10, 30)]))]
    assert k[0] < k[1] < k[2]


def test_a_flat_curve_selects_the_fewest() -> None:
    assert selected(Kneedle(min_k=5), torch.full((1, 40), 1.5)) == [[0, 1, 2, 3, 4]]


@every_selection
@pytest.mark.parametrize("vocabulary", [2, 300])
def test_no_rows_and_rows_with_nothing_to_select(selection: Selection, vocabulary: int) -> None:
    assert selected(selection, torch.empty(0, vocabulary)) == []
    logits = torch.full((3, vocabulary), -math.inf)
    assert selected(selection, logits) == [[], [], []]
    logits[1, 1] = 2.0
    assert selected(selection, logits) == [[], [1], []]


@every_selection
def test_a_selection_carries_no_gradient_and_is_a_value(selection: Selection) -> None:
    logits = torch.randn(2, 30, requires_grad=True)
    indices, _ = selection(logits)
    assert not indices.requires_grad
    assert hash(selection) == hash(copy(selection)), "equal settings are one key: a selection made once can be shared"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: Kneedle(min_k=2),
            ["min_k must be at least 3, got 2", "gradient are exactly 0"],
        ),
        (lambda: FixedTopK(k=2), ["FixedTopK(k=2)", "k must be at least 3, got 2", "Set k to 3 or more"]),
        (lambda: CumulativeMass(min_k=0), ["got 0", "Set min_k to 3 or more"]),
        (lambda: Kneedle(window=2), ["window must be at least 3, got 2", "Set window to 3 or more"]),
        (lambda: Kneedle(min_k=6, max_k=5), ["max_k must be at least min_k = 6, got 5"]),
        (lambda: CumulativeMass(max_k=3), ["max_k must be at least min_k = 4, got 3"]),
        (lambda: Kneedle(domain="ranks"), ["domain='ranks'", "logits or probabilities"]),
        (lambda: Kneedle(temperature=0.0), ["temperature must be positive and finite, got 0.0"]),
        (lambda: CumulativeMass(temperature=math.nan), ["temperature must be positive and finite, got nan"]),
        (lambda: CumulativeMass(mass=95), ["mass must be in (0, 1], got 95"]),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Callable[[], object], told: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        make()
    assert [part for part in told if part not in str(refused.value)] == []


@given(
    seed=st.integers(0, 2**32),
    window=st.integers(3, 9),
    tail=st.integers(0, 63),
    levels=st.sampled_from([4, 50, 10**6]),
)
def test_long_rows_are_searched_in_blocks(seed: int, window: int, tail: int, levels: int) -> None:
    """The largest of all, whatever the block; many of them equal, and what is not finite never taken."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(levels, (3, 4 * 9 * BLOCK + tail), generator=generator).float()
    logits[1, torch.randint(logits.shape[1], (50,), generator=generator)] = math.nan
    logits[2, torch.randint(logits.shape[1], (50,), generator=generator)] = math.inf
    ids, mask = Kneedle(window=window, min_k=window)(logits)
    assert mask.all()
    finite = torch.where(logits.isfinite(), logits, -1.0)
    assert torch.equal(finite.gather(1, ids), finite.topk(window).values)
    assert all(len(set(row)) == window for row in ids.tolist())
