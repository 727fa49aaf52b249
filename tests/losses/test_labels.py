"""The shift by one, against a loop that spells it out."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_switchkd.core.labels import count_supervised, supervised_positions
from lightning_switchkd.core.types import IGNORE_INDEX

LABEL_ROWS = st.integers(1, 6).flatmap(
    lambda length: st.lists(
        st.lists(st.sampled_from([IGNORE_INDEX, 0, 1, 151_935]), min_size=length, max_size=length),
        min_size=1,
        max_size=4,
    )
)


@given(LABEL_ROWS)
def test_each_row_predicts_the_token_after_it(rows: list[list[int]]) -> None:
    positions, targets = supervised_positions(torch.tensor(rows))
    expected = [
        (record * len(labels) + t, labels[t + 1])
        for record, labels in enumerate(rows)
        for t in range(len(labels) - 1)
        if labels[t + 1] != IGNORE_INDEX
    ]
    assert list(zip(positions.tolist(), targets.tolist(), strict=True)) == expected
    assert positions.dtype == targets.dtype == torch.int64


@given(LABEL_ROWS)
def test_counts_are_the_rows_of_each_record(rows: list[list[int]]) -> None:
    labels = torch.tensor(rows)
    counts = count_supervised(labels)
    assert counts.tolist() == [len(supervised_positions(labels[i : i + 1])[0]) for i in range(len(labels))]
    assert counts.dtype == torch.int64


def test_a_label_on_the_first_token_belongs_to_no_row() -> None:
    """Its row would be the last position of the record before."""
    labels = torch.tensor([[IGNORE_INDEX, IGNORE_INDEX], [5, IGNORE_INDEX]])
    positions, targets = supervised_positions(labels)
    assert positions.shape == targets.shape == (0,)
    assert count_supervised(labels).tolist() == [0, 0]


def test_no_record_and_one_token_give_no_row() -> None:
    assert supervised_positions(torch.empty(0, 7, dtype=torch.int64))[0].shape == (0,)
    assert supervised_positions(torch.tensor([[3], [4]]))[0].shape == (0,)
    assert count_supervised(torch.empty(0, 7, dtype=torch.int64)).shape == (0,)
