from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_switchkd.core.types import IGNORE_INDEX, Counts
from lightning_switchkd.data.collate import Collator, ProcessedSample

PAD, IMAGE = 0, 9
COLLATE = Collator(pad_id=PAD, image_id=IMAGE, blanks=(torch.zeros(3, 4, 4),))


def sample(ids: list[int], learnt: int, images: int = 0, index: int = 0) -> ProcessedSample:
    """The last `learnt` ids are supervised."""
    labels = [IGNORE_INDEX] * (len(ids) - learnt) + ids[len(ids) - learnt :]
    pixels = torch.full((images, 3, 4, 4), float(index + 1))
    return ProcessedSample(torch.tensor(ids), torch.tensor(labels), (pixels,), index, f"r{index}")


def test_a_batch_by_hand() -> None:
    batch = COLLATE([sample([1, 9, 9, 5, 6], 2, images=1, index=3), sample([7, 0, 0], 2, index=4)])
    assert batch.input_ids.tolist() == [[1, 9, 9, 5, 6, 0, 0, 0], [7, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]], "pad id as real token"
    assert batch.labels.tolist() == [[-100] * 3 + [5, 6] + [-100] * 3, [-100, 0, 0] + [-100] * 5]
    assert batch.pixel_values.shape == (1, 3, 4, 4)
    assert (batch.image_sample.tolist(), batch.sample_index.tolist()) == ([0], [3, 4])
    assert batch.counts == batch.window == Counts(token=4, visual_token=2, image_token=2, image=1)
    assert batch.sample_ids == ("r3", "r4")
    assert batch.pixel_values_teacher is None
    dtypes = [
        t.dtype for t in (batch.input_ids, batch.attention_mask, batch.labels, batch.image_sample, batch.sample_index)
    ]
    assert dtypes == [torch.int64] * 5
    assert batch.pixel_values.dtype == torch.float32


def test_a_packed_batch_by_hand() -> None:
    collate = Collator(pad_id=PAD, image_id=IMAGE, blanks=(torch.zeros(3, 4, 4),), packing=True)
    samples = [sample([7, 0, 0], 3, index=4), collate.padding_sample(), sample([1, 9, 9, 5, 6], 2, images=1, index=3)]
    batch = collate(samples)
    assert batch.input_ids.tolist() == [[7, 0, 0, PAD, 1, 9, 9, 5, 6]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 4]]
    assert batch.labels.tolist() == [[-100, 0, 0, -100, -100, -100, -100, 5, 6]], "no record predicts the next one"
    assert batch.attention_mask is None
    assert (len(batch), batch.image_sample.tolist(), batch.sample_index.tolist()) == (3, [2], [4, -1, 3])
    assert batch.sample_of.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    padded = COLLATE(samples)
    assert batch.lengths.tolist() == padded.lengths.tolist() == [3, 1, 5]
    assert batch.counts == padded.counts == Counts(token=4, visual_token=2, image_token=2, image=1)
    assert padded.sample_of.tolist() == [row for row in range(3) for _ in range(8)]


def test_images_keep_their_order() -> None:
    batch = COLLATE([sample([1], 0), sample([9, 9, 1, 1], 1, images=2, index=1), sample([9, 1], 1, images=1, index=2)])
    assert batch.image_sample.tolist() == [1, 1, 2]
    assert batch.pixel_values[:, 0, 0, 0].tolist() == [2, 2, 3]


def test_a_batch_without_images_carries_a_blank_one() -> None:
    batch = COLLATE([sample([1, 2], 1)])
    assert batch.image_sample.tolist() == [-1]
    assert torch.equal(batch.pixel_values, torch.zeros(1, 3, 4, 4))
    assert batch.counts == Counts(token=1)


def test_a_teacher_may_see_other_pixels() -> None:
    collate = Collator(PAD, IMAGE, blanks=(torch.zeros(3, 4, 4), torch.zeros(3, 6, 6)))
    seen = ProcessedSample(
        torch.tensor([9]), torch.tensor([-100]), (torch.ones(1, 3, 4, 4), torch.ones(1, 3, 6, 6)), 0, "r"
    )
    batch = collate([seen, collate.padding_sample()])
    assert batch.pixel_values.shape == (1, 3, 4, 4)
    assert batch.pixel_values_teacher is not None
    assert batch.pixel_values_teacher.shape == (1, 3, 6, 6)
    blank = collate([collate.padding_sample()])
    assert blank.pixel_values_teacher is not None
    assert torch.equal(blank.pixel_values_teacher, torch.zeros(1, 3, 6, 6))


def test_a_padding_record_counts_nothing() -> None:
    batch = COLLATE([COLLATE.padding_sample()])
    assert batch.sample_index.tolist() == [-1]
    assert batch.counts == Counts()
    assert (batch.labels == IGNORE_INDEX).all()
    assert batch.attention_mask.sum() == 1, "one real token: no row is masked entirely"


@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=5),
    multiple=st.sampled_from([1, 8, 64]),
)
def test_padding_is_inert(lengths: list[tuple[int, int, int]], multiple: int) -> None:
    collate = Collator(PAD, IMAGE, COLLATE.blanks, pad_to_multiple_of=multiple)
    samples = [sample([9] * m + [1] * n, min(k, n), m, i) for i, (n, k, m) in enumerate(lengths)]
    batch = collate(samples)
    alone = [collate([s]) for s in samples]
    assert batch.counts == sum((a.counts for a in alone), Counts())
    assert batch.input_ids.shape[1] % multiple == 0
    assert batch.input_ids.shape[1] - max(len(s.input_ids) for s in samples) < multiple
    assert batch.attention_mask.sum(1).tolist() == [len(s.input_ids) for s in samples]
    for row, s in enumerate(samples):
        assert torch.equal(batch.input_ids[row, : len(s.input_ids)], s.input_ids)
        assert torch.equal(batch.labels[row, : len(s.labels)], s.labels)
        assert (batch.labels[row, len(s.labels) :] == IGNORE_INDEX).all()
