"""Supervised fine-tuning: the baseline that every gain is measured from."""

from __future__ import annotations

from lightning_switchkd.objectives.base import Objective


class SFT(Objective):
    """Cross-entropy alone. Needs no teacher."""

    def __init__(self) -> None:
        super().__init__()
