"""What DBiLD looks at, row by row: the two leading sets, how far they agree, and how much probability they hold."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_switchkd.core.types import Pathway
from lightning_switchkd.losses.logits import LogitsChunk, Statistics
from lightning_switchkd.losses.select import Selection


@torch.no_grad()
def region_statistics(rows: LogitsChunk, pathway: Pathway, selection: Selection) -> Statistics:
    """Statistics of the teacher-led set and of the one led by ``pathway``, from logits and selections the loss has made.

    Probabilities are those of the whole vocabulary at temperature 1.

    Args:
        rows: the rows, their logits and selections memoised.
        side: what the teacher is compared with, ``student`` or ``switch``; it stands in the names below as SIDE.
        selection: finds a leader's set.

    Returns:
        ``[n]`` each: ``k_teacher``, ``k_SIDE`` (int64, entries of a set); ``overlap`` (shared entries over all entries,
        1 where both sets are equal); ``teacher_mass_in_teacher_set``, ``SIDE_mass_in_teacher_set`` and the same
        ``_in_SIDE_set`` (probability); ``top1_agreement`` (1 where both find the same token the likeliest);
        ``entropy_teacher``, ``entropy_SIDE`` (nats).
    """
    pathways: tuple[Pathway, Pathway] = ("teacher", pathway)
    sets = {leader: rows.select(leader, selection) for leader in pathways}
    found: Statistics = {f"k_{leader}": mask.sum(-1) for leader, (_, mask) in sets.items()}
    found["overlap"] = overlap(*sets["teacher"], *sets[pathway])
    for leader, (ids, mask) in sets.items():
        for holder in pathways:
            logprobs = rows.logits_at(holder, ids) - rows.log_z_and_entropy(holder)[0][:, None]
            found[f"{holder}_mass_in_{leader}_set"] = (logprobs.exp() * mask).sum(-1)
    first, second = (ids[:, :1] for ids, _ in sets.values())  # a leader's order begins with its likeliest token
    found["top1_agreement"] = (first == second).sum(-1)
    for holder in pathways:
        found[f"entropy_{holder}"] = rows.log_z_and_entropy(holder)[1]
    return found


def overlap(a_ids: Tensor, a_mask: Tensor, b_ids: Tensor, b_mask: Tensor) -> Tensor:
    """Jaccard index |A ∩ B| / |A ∪ B| of two sets of ids, row by row; 0 where both are empty.

    Args:
        a_ids: ``[N, K]`` distinct ids; what lies outside the mask is not looked at.
        a_mask: ``[N, K]`` bool.
        b_ids: ``[N, L]``.
        b_mask: ``[N, L]`` bool.

    Returns:
        ``[N]`` float32.

    >>> yes = torch.tensor([[True, True]])
    >>> overlap(torch.tensor([[5, 2]]), yes, torch.tensor([[2, 7]]), yes)
    tensor([0.3333])
    """
    if not a_ids.shape[-1] or not b_ids.shape[-1]:
        return a_ids.new_zeros(len(a_ids), dtype=torch.float32)
    a = a_ids.masked_fill(~a_mask, torch.iinfo(a_ids.dtype).max).sort(dim=-1).values
    place = torch.searchsorted(a, b_ids.contiguous()).clamp(max=a.shape[-1] - 1)
    shared = ((a.gather(-1, place) == b_ids) & b_mask).sum(-1)
    union = a_mask.sum(-1) + b_mask.sum(-1) - shared
    return shared / union.clamp(min=1)
