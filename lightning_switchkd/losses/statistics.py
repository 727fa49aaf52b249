"""Statistics of DBiLD for each token: the two leading sets, their overlap, and the probability they hold."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_switchkd.core.types import Pathway
from lightning_switchkd.losses.logits import LogitsChunk, Statistics
from lightning_switchkd.losses.select import Selection


@torch.no_grad()
def region_statistics(chunk: LogitsChunk, pathway: Pathway, selection: Selection) -> Statistics:
    """Compare the teacher-led set with the set led by ``pathway``, from logits and selections of the loss.

    Probabilities are those of the whole vocabulary at temperature 1.

    Args:
        chunk: The tokens, with their logits and selections memoized.
        pathway: The pathway compared with the teacher, ``student`` or ``switch``. PATHWAY in the names below.
        selection: Finds a leader's set.

    Returns:
        ``[n]`` each:

        - ``k_teacher``, ``k_PATHWAY``: number of entries of a set, int64.
        - ``overlap``: shared entries over all entries, 1 where both sets are equal.
        - ``teacher_mass_in_teacher_set``, ``PATHWAY_mass_in_teacher_set``, and both ``_in_PATHWAY_set``: probability.
        - ``top1_agreement``: 1 where both have the same most likely token.
        - ``entropy_teacher``, ``entropy_PATHWAY``: nats.
    """
    pathways: tuple[Pathway, Pathway] = ("teacher", pathway)
    sets = {leader: chunk.select(leader, selection) for leader in pathways}
    statistics: Statistics = {f"k_{leader}": mask.sum(-1) for leader, (_, mask) in sets.items()}
    statistics["overlap"] = overlap(*sets["teacher"], *sets[pathway])
    for leader, (ids, mask) in sets.items():
        for holder in pathways:
            logprobs = chunk.logits_at(holder, ids) - chunk.log_z_and_entropy(holder)[0][:, None]
            statistics[f"{holder}_mass_in_{leader}_set"] = (logprobs.exp() * mask).sum(-1)
    first, second = (ids[:, :1] for ids, _ in sets.values())  # a leader's order starts with its most likely token
    statistics["top1_agreement"] = (first == second).sum(-1)
    for holder in pathways:
        statistics[f"entropy_{holder}"] = chunk.log_z_and_entropy(holder)[1]
    return statistics


def overlap(a_ids: Tensor, a_mask: Tensor, b_ids: Tensor, b_mask: Tensor) -> Tensor:
    """Compute the Jaccard index |A ∩ B| / |A ∪ B| of two sets of ids for each row; 0 where both are empty.

    Args:
        a_ids: ``[N, K]`` distinct ids. Entries outside the mask are ignored.
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
