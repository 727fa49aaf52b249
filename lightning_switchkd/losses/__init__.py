"""Losses on plain tensors, without models and without Lightning."""

from lightning_switchkd.losses.dbild import dbild, logits_difference_kl
from lightning_switchkd.losses.divergence import forward_kl, jensen_shannon, reverse_kl
from lightning_switchkd.losses.select import CumulativeMass, FixedTopK, Kneedle

__all__ = [
    "CumulativeMass",
    "FixedTopK",
    "Kneedle",
    "dbild",
    "forward_kl",
    "jensen_shannon",
    "logits_difference_kl",
    "reverse_kl",
]
