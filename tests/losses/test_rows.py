"""The shift by one, against a loop that spells it out."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_switchkd.core.types import IGNORE
from lightning_switchkd.core.labels import count_supervised, supervised

LABEL_ROWS = st.integers(1, 6).flatmap(
    lambda length: st.lists(
        st.lists(st.sampled_from([IGNORE, 0, 1, 151_935]), min_size=length, max_size=length), min_size=1, max_size=4
    )
)


@given(LABEL_ROWS)
def test_each_row_predicts_the_token_after_it(rows: list[list[int]]) -> None:
    positions, targets = supervised(torch.tensor(rows))
    expected = [
        (record * len(labels) + t, labels[t + 1])
        for record, labels in enumerate(rows)
        for t in range(len(labels) - 1)
        if labels[t + 1] != IGNORE
    ]
    assert list(zip(positions.tolist(), targets.tolist(), strict=True)) == expected
    assert positions.dtype == targets.dtype == torch.int64


@given(LABEL_ROWS)
def test_counts_are_the_rows_of_each_record(rows: list[list[int]]) -> None:
    labels = torch.tensor(rows)
    counts = count_supervised(labels)
    assert counts.tolist() == [len(supervised(labels[i : i + 1])[0]) for i in range(len(labels))]
    assert counts.dtype == torch.int64


def test_a_label_on_the_first_token_belongs_to_no_row() -> None:
    """Its row would be the last position of the record before."""
    labels = torch.tensor([[IGNORE, IGNORE], [5, IGNORE]])
    positions, targets = supervised(labels)
    assert positions.shape == targets.shape == (0,)
    assert count_supervised(labels).tolist() == [0, 0]


def test_no_record_and_one_token_give_no_row() -> None:
    assert supervised(torch.empty(0, 7, dtype=torch.int64))[0].shape == (0,)
    assert supervised(torch.tensor([[3], [4]]))[0].shape == (0,)
    assert count_supervised(torch.empty(0, 7, dtype=torch.int64)).shape == (0,)
