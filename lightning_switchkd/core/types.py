"""The types that travel from the data loader to the loss.

Legend of the axis letters in shapes, for the whole package:

- B samples of a batch, T tokens of a sample, M images of a batch, P features of an image,
- V vocabulary (columns of a head), H width of hidden states, H_v width of vision features,
- N supervised tokens of a batch, n tokens of a chunk, K selected ids of a token (or kept positions of a batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, cast

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a token that is not supervised (PyTorch's ``ignore_index``)."""

Pathway = Literal["student", "teacher", "switch"]
"""A way from images and token ids to logits (``distillation/pathways.py``)."""

PATHWAYS: tuple[Pathway, ...] = ("student", "teacher", "switch")

Part = Literal["vision", "projector", "lm"]
"""A part of a vision-language model."""

PARTS: tuple[Part, ...] = ("vision", "projector", "lm")

Vision = dict[str, Tensor]
"""What an image processor returns for the images of a batch, by name: the arguments of ``get_image_features``."""

Features = list[Tensor]
"""What a projector reads of the vision encoder's output. LLaVA: one tensor ``[M, positions, H_v]``."""

DefectCode = Literal[
    "bad_json",
    "schema",
    "roles",
    "image_count",
    "image_missing",
    "image_decode",
    "image_size",
    "empty_answer",
    "too_long",
    "no_supervision",
]
"""The kinds of invalid samples (docs/reference/data.md describes them)."""


@dataclass(frozen=True)
class Defect:
    """One invalid sample, as the quarantine file stores it.

    Attributes:
        path: The file of the sample.
        index: Its position in the file.
        id: Its own id, if it could be read.
        source: Its data set, if it could be read.
        code: The kind of defect.
        error: The problem in words, and the fix.
    """

    path: str
    index: int
    id: str | None
    source: str
    code: DefectCode
    error: str


@dataclass
class Counts:
    """Numbers of units, which loss terms are divided by (docs/explanation/method.md, section 2).

    Attributes:
        token: Supervised tokens, that is positions whose next token has a label.
        visual_token: Supervised tokens of samples with an image.
        image_token: Placeholder positions that hold an image feature.
        image: Images.
    """

    token: int = 0
    visual_token: int = 0
    image_token: int = 0
    image: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """Return ``[4]`` int64 in field order, ready for an all-reduce."""
        return torch.tensor([getattr(self, f.name) for f in fields(self)], dtype=torch.int64, device=device)


@dataclass  # not frozen: Lightning casts and copies batches field by field
class Batch:
    """One micro-batch: B rows of one sample each, right-padded. Or packed: one row of B samples in sequence.

    Attributes:
        input_ids: ``[B, T]`` int64, packed ``[1, T]``. Each image is one ``<image>`` id per image feature.
        attention_mask: ``[B, T]`` int64, 1 on real tokens, made from lengths, never from the pad id. None if packed.
        labels: ``[B, T]`` int64, packed ``[1, T]``, **unshifted**. ``IGNORE_INDEX`` where nothing is learned, and on
            the first token of a packed sample.
        pixel_values: ``[M, 3, H, W]`` float32 in placeholder order. Never empty: a batch without images has one blank
            image (``image_sample`` -1), so that every rank runs the same parts (docs/explanation/method.md, section 9).
        image_sample: ``[M]`` int64, the sample that an image belongs to. -1 for the blank image, which comes last.
        sample_index: ``[B]`` int64, position of the sample in its source. -1 for a padding sample.
        counts: Units in this micro-batch.
        window: Units in the whole accumulation window of this rank.
        window_start: True for the first micro-batch of its window.
        window_end: True for the last micro-batch of its window. The optimizer steps after it.
        position_ids: ``[1, T]`` int64 only if packed, from 0 in each sample. Kernels find the boundaries by it.
        pixel_values_teacher: ``[M, 3, H', W']`` only if the teacher has another image processor.
        sample_ids: The samples' own ids, for messages.
        defects: Samples that were dropped from this batch.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    labels: Tensor
    pixel_values: Tensor
    image_sample: Tensor
    sample_index: Tensor
    counts: Counts
    window: Counts
    window_start: bool = True
    window_end: bool = True
    position_ids: Tensor | None = None
    pixel_values_teacher: Tensor | None = None
    sample_ids: tuple[str, ...] = ()
    defects: tuple[Defect, ...] = ()

    def _map(self, move: object) -> Batch:
        assert callable(move)
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: move(v) for k, v in tensors.items() if isinstance(v, Tensor)})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return a copy on ``device`` (Lightning and Fabric call this)."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory (the DataLoader's pin-memory thread calls this)."""
        return self._map(lambda t: t.pin_memory())

    def __len__(self) -> int:
        return self.sample_index.shape[0]

    @property
    def vision(self) -> Vision:
        """The images, as the student's vision encoder takes them."""
        return {"pixel_values": self.pixel_values}

    @property
    def vision_teacher(self) -> Vision:
        """The images, as the teacher's vision encoder takes them."""
        return self.vision if self.pixel_values_teacher is None else {"pixel_values": self.pixel_values_teacher}

    @property
    def sample_of(self) -> Tensor:
        """``[B * T]`` int64, packed ``[T]``: the sample (its place in the batch) that each position belongs to."""
        if self.position_ids is not None:
            return (self.position_ids[0] == 0).cumsum(0) - 1
        rows, columns = self.input_ids.shape
        return torch.arange(rows, device=self.input_ids.device).repeat_interleave(columns)

    def only(self, samples: Sequence[int]) -> Batch:
        """Return a batch of some of the samples, in their order, with a blank image if none of them has an image.

        Counts stay those of all samples: the divisors of a loss do not change.
        """
        chosen = torch.zeros(len(self), dtype=torch.bool)
        chosen[list(samples)] = True
        chosen = chosen.to(self.input_ids.device)
        rows = chosen if self.position_ids is None else chosen[self.sample_of]
        image = (self.image_sample >= 0) & chosen[self.image_sample]
        if not bool(image.any()):
            image = torch.arange(len(image), device=image.device) == len(image) - 1
        place = torch.where(chosen, chosen.cumsum(0) - 1, -1)  # place in the new batch
        owner = torch.where(self.image_sample >= 0, place[self.image_sample], -1)[image]

        def part(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows] if self.position_ids is None else x[:, rows]

        return replace(
            self,
            input_ids=cast(Tensor, part(self.input_ids)),
            attention_mask=part(self.attention_mask),
            labels=cast(Tensor, part(self.labels)),
            position_ids=part(self.position_ids),
            pixel_values=self.pixel_values[image],
            pixel_values_teacher=None if self.pixel_values_teacher is None else self.pixel_values_teacher[image],
            image_sample=owner,
            sample_index=self.sample_index[chosen],
            sample_ids=tuple(self.sample_ids[i] for i in sorted(samples)) if self.sample_ids else (),
        )

    @property
    def lengths(self) -> Tensor:
        """``[B]`` int64: real tokens of each sample."""
        if self.attention_mask is not None:
            return self.attention_mask.sum(1)
        return torch.zeros_like(self.sample_index).index_add_(0, self.sample_of, torch.ones_like(self.input_ids[0]))
