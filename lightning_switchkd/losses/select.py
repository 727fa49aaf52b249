"""Which token ids of a row are distilled: a row of logits becomes a short ordered list of ids.

Every selection orders a row's candidates in the same way and differs only in where it cuts the list:
:class:`Kneedle` at the bend of the curve, :class:`FixedTopK` at a number, :class:`CumulativeMass` at a probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from lightning_switchkd.core.errors import UserError

Domain = Literal["logits", "probabilities"]

WINDOW = 256
"""How many of a row's largest logits are looked at by default."""

SMALLEST_K = 3
"""Below it there is at most one pair of logits."""

BLOCK = 64
"""Entries that are looked at together in the search for the largest."""

TOLERANCE = 1e-6
"""What counts as equal, relative to the whole: rounding must not move a cut from one machine to the next."""


class Selection(Protocol):
    """Chooses token ids, row by row; never differentiated."""

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Select.

        Args:
            logits: ``[N, V]``, any floating dtype. What is not finite (hidden padding columns) is never taken.

        Returns:
            ``indices [N, K]`` int64, ordered by (logit descending, id ascending), and ``mask [N, K]`` bool, True on the
            leading k entries of a row. K is the largest k of the rows; past its k a row repeats id 0.
        """
        ...

    def limit(self, vocabulary: int) -> int:
        """The largest k that this selection can return for rows of so many logits."""
        ...


@dataclass(frozen=True)
class Kneedle:
    """Cuts at the knee: the point of the sorted curve that lies farthest below its chord.

    Steeper curve, smaller k. A row with fewer than ``min_k`` finite logits keeps them all.

    Args:
        window: Length of the sorted curve, counted from its top; None is the whole vocabulary.
        domain: Heights of the curve: the logits, or their probabilities at ``temperature``.
        temperature: Softens the probabilities; without effect on logits.
        min_k: Smallest k. At least 3, since one pair has nothing to teach.
        max_k: Largest k; None is no bound.

    Raises:
        UserError: A setting that cannot work.

    Source: METHOD section 3; Satopää et al. 2011, the paper's "logits transition point".

    >>> indices, mask = Kneedle(min_k=3)(torch.tensor([[0.0, 9.0, 1.0, 8.0, 8.0, 0.5]]))
    >>> indices, mask
    (tensor([[1, 3, 4, 2]]), tensor([[True, True, True, True]]))
    """

    window: int | None = WINDOW
    domain: Domain = "logits"
    temperature: float = 1.0
    min_k: int = 4
    max_k: int | None = None

    def __post_init__(self) -> None:
        _check_bounds(self, self.window, self.min_k, self.max_k)
        _check_temperature(self, self.temperature)
        if self.domain not in get_args(Domain):
            raise UserError(f"{self}: there is no such domain. Set domain to {' or '.join(get_args(Domain))}.")

    @torch.no_grad()
    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Select: see :class:`Selection`."""
        values, ids, count = _candidates(logits, self.window)
        heights = values.double()
        if self.domain == "probabilities":  # up to a factor a row, which the knee does not see
            heights = torch.exp((heights - heights[:, :1]) / self.temperature)
        return _leading(ids, torch.minimum(_knee(heights, count).clamp(self.min_k, self.max_k), count))

    def limit(self, vocabulary: int) -> int:
        """See :class:`Selection`."""
        return min(vocabulary, self.window or vocabulary, self.max_k or vocabulary)


@dataclass(frozen=True)
class FixedTopK:
    """Cuts every row at the same k (BiLD: 8). A row with fewer finite logits keeps them all.

    Equal logits at the cut are taken by ascending id, unless there are hundreds of them.

    Args:
        k: Entries a row; at least 3, since one pair has nothing to teach.

    Raises:
        UserError: A setting that cannot work.

    Source: Li et al., *BiLD: Bi-directional Logits Difference Loss*, COLING 2025; METHOD section 7.

    >>> FixedTopK(k=3)(torch.tensor([[0.0, 9.0, 1.0, 8.0]]))
    (tensor([[1, 3, 2]]), tensor([[True, True, True]]))
    """

    k: int = 8

    def __post_init__(self) -> None:
        _check_enough(self, "k", self.k)

    @torch.no_grad()
    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Select: see :class:`Selection`."""
        _, ids, count = _candidates(logits, max(WINDOW, 2 * self.k))  # wider than k: ties at the cut are settled inside
        return _leading(ids, count.clamp(max=self.k))

    def limit(self, vocabulary: int) -> int:
        """See :class:`Selection`."""
        return min(vocabulary, self.k)


@dataclass(frozen=True)
class CumulativeMass:
    """Cuts where the probabilities gathered so far first reach ``mass`` (to within 1e-6), as nucleus sampling does.

    Probabilities are those of the whole row; where the window holds less than ``mass``, the whole window is kept.

    Args:
        mass: Probability to reach, in (0, 1].
        temperature: Softens the probabilities.
        window: How many of the largest logits may be taken; None is the whole vocabulary.
        min_k: Smallest k. At least 3, since one pair has nothing to teach.
        max_k: Largest k; None is no bound.

    Raises:
        UserError: A setting that cannot work.

    Source: METHOD section 3.

    >>> indices, mask = CumulativeMass(mass=0.9, min_k=3)(torch.tensor([[0.0, 5.0, 5.0, 5.0, 5.0, -1.0]]))
    >>> indices
    tensor([[1, 2, 3, 4]])
    """

    mass: float = 0.95
    temperature: float = 1.0
    window: int | None = WINDOW
    min_k: int = 4
    max_k: int | None = None

    def __post_init__(self) -> None:
        _check_bounds(self, self.window, self.min_k, self.max_k)
        _check_temperature(self, self.temperature)
        if not 0 < self.mass <= 1:
            raise UserError(f"{self}: mass is a probability. Set mass above 0 and at most 1 (default 0.95).")

    @torch.no_grad()
    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Select: see :class:`Selection`."""
        values, ids, count = _candidates(logits, self.window)
        total = (_finite(logits).double() / self.temperature).logsumexp(dim=-1, keepdim=True)
        gathered = torch.exp(values.double() / self.temperature - total).cumsum(dim=-1)
        reached = (gathered < self.mass - TOLERANCE).sum(dim=-1) + 1
        return _leading(ids, torch.minimum(reached.clamp(self.min_k, self.max_k), count))

    def limit(self, vocabulary: int) -> int:
        """See :class:`Selection`."""
        return min(vocabulary, self.window or vocabulary, self.max_k or vocabulary)


def _finite(logits: Tensor) -> Tensor:
    """The logits with everything that is not a candidate at -inf."""
    return torch.nan_to_num(logits, nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def _candidates(logits: Tensor, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The first W by (logit descending, id ascending): values and ids ``[N, W]``; how many are finite ``[N]``.

    At the window's edge any of the equal ones may be taken.
    """
    vocabulary = logits.shape[-1]
    if window is None or window >= vocabulary:
        ids = torch.arange(vocabulary, device=logits.device).expand_as(logits)
    else:  # top-k breaks ties as it likes: ids go back to ascending order, then a stable sort decides
        ids = _largest(logits, window).sort(dim=-1).values
        if bool((logits.gather(-1, ids).nan_to_num(math.inf) == math.inf).any()):  # they take others' places
            ids = _largest(_finite(logits), window).sort(dim=-1).values
    values, order = _finite(logits.gather(-1, ids)).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order), values.isfinite().sum(dim=-1)


def _largest(logits: Tensor, window: int) -> Tensor:
    """Ids ``[N, W]`` of the largest logits, in any order.

    Top-k reads a row several times: it is asked for the blocks that reach highest, and then for the entries of these.
    A block that holds one of the W largest is among the W highest, up to ties.
    """
    blocks = logits.shape[-1] // BLOCK
    if blocks < 4 * window:
        return logits.topk(window, dim=-1, sorted=False).indices
    split = logits[:, : blocks * BLOCK].unflatten(-1, (blocks, BLOCK))
    highest = split.amax(-1).topk(window, dim=-1, sorted=False).indices  # [N, W]
    inside = split.gather(1, highest[:, :, None].expand(-1, -1, BLOCK)).flatten(1)  # [N, W · BLOCK]
    if logits.shape[-1] > blocks * BLOCK:
        inside = torch.cat([inside, logits[:, blocks * BLOCK :]], -1)
    found = inside.topk(window, dim=-1, sorted=False).indices
    place = highest.gather(-1, (found // BLOCK).clamp(max=window - 1)) * BLOCK + found % BLOCK
    return torch.where(found < window * BLOCK, place, found - window * BLOCK + blocks * BLOCK)


def _knee(heights: Tensor, count: Tensor) -> Tensor:
    """The first of the points farthest below the chord of a row's first count heights ``[N, W]``: ``[N]``, from 1."""
    length = count[:, None]
    place = torch.arange(1, heights.shape[-1] + 1, device=heights.device)
    bottom = heights.gather(-1, (length - 1).clamp(min=0))
    drop = heights[:, :1] - bottom
    depth = (length - place) * drop - (length - 1) * (heights - bottom)
    depth = depth.masked_fill(place > length, -math.inf)
    deepest = depth.amax(dim=-1, keepdim=True)
    return (depth >= deepest - TOLERANCE * (length - 1) * drop).int().argmax(dim=-1) + 1


def _leading(ids: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The first k ``[N]`` entries of each row of ``ids [N, W]``, as a :class:`Selection` returns them."""
    largest = int(k.max()) if len(k) else 0  # the one wait for the device
    mask = torch.arange(largest, device=ids.device) < k[:, None]
    return ids[:, :largest].masked_fill(~mask, 0), mask


def _check_enough(selection: object, name: str, value: int) -> None:
    if value < SMALLEST_K:
        raise UserError(
            f"{selection}: {name} = {value} is too small. k = 2 has one pair, whose probability is always 1, so it "
            f"teaches nothing: loss and gradient are exactly 0. Set {name} to {SMALLEST_K} or more."
        )


def _check_bounds(selection: object, window: int | None, min_k: int, max_k: int | None) -> None:
    _check_enough(selection, "min_k", min_k)
    if window is not None:
        _check_enough(selection, "window", window)
    if max_k is not None and max_k < min_k:
        raise UserError(f"{selection}: max_k is below min_k. Set max_k to {min_k} or more, or to null for no bound.")


def _check_temperature(selection: object, temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise UserError(f"{selection}: a temperature divides the logits. Set temperature above 0 (default 1.0).")
