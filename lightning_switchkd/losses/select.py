"""Select the token ids that are distilled: a row of logits becomes a short ordered list of ids.

Every selection sorts the candidates of a row in the same way. Selections differ in where they cut the list:
:class:`Kneedle` at the knee of the curve, :class:`FixedTopK` at a number, :class:`CumulativeMass` at a probability.
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
"""Default number of largest logits that are candidates."""

SMALLEST_K = 3
"""Fewer entries have at most one pair of logits."""

BLOCK = 64
"""Entries of a block in the search for the largest logits."""

TOLERANCE = 1e-6
"""Relative difference that counts as equal: rounding must not move a cut from one machine to another."""


class Selection(Protocol):
    """Chooses token ids for each row. Never differentiated."""

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Select token ids.

        Args:
            logits: ``[N, V]``, any floating dtype. Values that are not finite (hidden padding) are never selected.

        Returns:
            ``indices [N, K]`` int64, ordered by (logit descending, id ascending), and ``mask [N, K]`` bool, True on the
            first k entries of a row. K is the largest k of all rows. Beyond its k, a row repeats id 0.
        """
        ...

    def limit(self, vocabulary: int) -> int:
        """Return the largest k that this selection can have for rows of so many logits."""
        ...


@dataclass(frozen=True)
class Kneedle(Selection):
    """Cut at the knee: the point of the sorted curve farthest below its chord.

    A steeper curve gives a smaller k. A row with fewer than ``min_k`` finite logits keeps all of them.

    Args:
        window: Length of the sorted curve, counted from its top. None is the whole vocabulary.
        domain: Heights of the curve: the logits, or their probabilities at ``temperature``.
        temperature: Softens the probabilities. Has no effect on logits.
        min_k: Smallest k. At least 3, since a single pair teaches nothing.
        max_k: Largest k. None is no limit.

    Raises:
        UserError: A setting is invalid.

    Source: docs/explanation/method.md, section 3; Satopää et al. 2011. The paper calls it "logits transition point".

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
            raise UserError(f"{self}: unknown domain '{self.domain}'. Set it to {' or '.join(get_args(Domain))}.")

    @torch.no_grad()
    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Select token ids, see :class:`Selection`."""
        values, ids, count = _candidates(logits, self.window)
        heights = values.double()
        if self.domain == "probabilities":  # up to a factor for each row, which does not move the knee
            heights = torch.exp((heights - heights[:, :1]) / self.temperature)
        return _leading(ids, torch.minimum(_knee(heights, count).clamp(self.min_k, self.max_k), count))

    def limit(self, vocabulary: int) -> int:
        """Return the largest k, see :class:`Selection`."""
        return min(vocabulary, self.window or vocabulary, self.max_k or vocabulary)


@dataclass(frozen=True)
class FixedTopK(Selection):
    """Cut every row at the same k (BiLD: 8). A row with fewer finite logits keeps all of them.

    Equal logits at the cut are selected by ascending id, unless there are hundreds of them.

    Args:
        k: Entries of a row. At least 3, since a single pair teaches nothing.

    Raises:
        UserError: A setting is invalid.

    Source: Li et al., *BiLD: Bi-directional Logits Difference Loss*, COLING 2025;
    docs/explanation/method.md, section 7.

    >>> FixedTopK(k=3)(torch.tensor([[0.0, 9.0, 1.0, 8.0]]))
    (tensor([[1, 3, 2]]), tensor([[True, True, True]]))
    """

    k: int = 8

    def __post_init__(self) -> None:
        _check_enough(self, "k", self.k)

    @torch.no_grad()
    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Select token ids, see :class:`Selection`."""
        _, ids, count = _candidates(logits, max(WINDOW, 2 * self.k))  # wider than k, so that ties at the cut are inside
        return _leading(ids, count.clamp(max=self.k))

    def limit(self, vocabulary: int) -> int:
        """Return the largest k, see :class:`Selection`."""
        return min(vocabulary, self.k)


@dataclass(frozen=True)
class CumulativeMass(Selection):
    """Cut where the cumulative probability first reaches ``mass`` (within 1e-6), as nucleus sampling does.

    Probabilities are those of the whole row. If the window holds less than ``mass``, the whole window is kept.

    Args:
        mass: Probability to reach, in (0, 1].
        temperature: Softens the probabilities.
        window: Number of largest logits that are candidates. None is the whole vocabulary.
        min_k: Smallest k. At least 3, since a single pair teaches nothing.
        max_k: Largest k. None is no limit.

    Raises:
        UserError: A setting is invalid.

    Source: docs/explanation/method.md, section 3.

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
            raise UserError(f"{self}: mass must be in (0, 1], got {self.mass}. Set it to 0.95.")

    @torch.no_grad()
    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Select token ids, see :class:`Selection`."""
        values, ids, count = _candidates(logits, self.window)
        total = (_finite(logits).double() / self.temperature).logsumexp(dim=-1, keepdim=True)
        cumulative = torch.exp(values.double() / self.temperature - total).cumsum(dim=-1)
        reached = (cumulative < self.mass - TOLERANCE).sum(dim=-1) + 1
        return _leading(ids, torch.minimum(reached.clamp(self.min_k, self.max_k), count))

    def limit(self, vocabulary: int) -> int:
        """Return the largest k, see :class:`Selection`."""
        return min(vocabulary, self.window or vocabulary, self.max_k or vocabulary)


def _finite(logits: Tensor) -> Tensor:
    """Return the logits with everything that is not a candidate at -inf."""
    return torch.nan_to_num(logits, nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def _candidates(logits: Tensor, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Sort by (logit descending, id ascending): values and ids ``[N, W]``, and how many are finite ``[N]``.

    At the edge of the window, any of several equal logits may be selected.
    """
    vocabulary = logits.shape[-1]
    if window is None or window >= vocabulary:
        ids = torch.arange(vocabulary, device=logits.device).expand_as(logits)
    else:  # top-k breaks ties arbitrarily: restore ascending ids, then a stable sort decides
        ids = _largest(logits, window).sort(dim=-1).values
        if bool((logits.gather(-1, ids).nan_to_num(math.inf) == math.inf).any()):  # they displace finite logits
            ids = _largest(_finite(logits), window).sort(dim=-1).values
    values, order = _finite(logits.gather(-1, ids)).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order), values.isfinite().sum(dim=-1)


def _largest(logits: Tensor, window: int) -> Tensor:
    """Return the ids ``[N, W]`` of the largest logits, in any order.

    Top-k reads a row several times. So it first finds the blocks with the largest maxima, then the entries of these.
    A block that holds one of the W largest logits is among the W blocks with the largest maxima, up to ties.
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
    """Return the first point farthest below the chord of a row's ``count`` heights ``[N, W]``: ``[N]``, from 1."""
    length = count[:, None]
    place = torch.arange(1, heights.shape[-1] + 1, device=heights.device)
    bottom = heights.gather(-1, (length - 1).clamp(min=0))
    drop = heights[:, :1] - bottom
    depth = (length - place) * drop - (length - 1) * (heights - bottom)
    depth = depth.masked_fill(place > length, -math.inf)
    deepest = depth.amax(dim=-1, keepdim=True)
    return (depth >= deepest - TOLERANCE * (length - 1) * drop).int().argmax(dim=-1) + 1


def _leading(ids: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first k ``[N]`` entries of each row of ``ids [N, W]``, as a :class:`Selection` returns them."""
    largest = int(k.max()) if len(k) else 0  # the only wait for the device
    mask = torch.arange(largest, device=ids.device) < k[:, None]
    return ids[:, :largest].masked_fill(~mask, 0), mask


def _check_enough(selection: object, name: str, value: int) -> None:
    if value < SMALLEST_K:
        raise UserError(
            f"{selection}: {name} must be at least {SMALLEST_K}, got {value}. With k = 2 the only pair has "
            f"probability 1, so loss and gradient are exactly 0. Set {name} to {SMALLEST_K} or more."
        )


def _check_bounds(selection: object, window: int | None, min_k: int, max_k: int | None) -> None:
    _check_enough(selection, "min_k", min_k)
    if window is not None:
        _check_enough(selection, "window", window)
    if max_k is not None and max_k < min_k:
        raise UserError(
            f"{selection}: max_k must be at least min_k = {min_k}, got {max_k}. Increase it, or set it to null."
        )


def _check_temperature(selection: object, temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise UserError(f"{selection}: temperature must be positive and finite, got {temperature}. Set it to 1.0.")
