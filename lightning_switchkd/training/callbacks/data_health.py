"""Log how many samples are skipped because they are invalid."""

from __future__ import annotations

import logging
from typing import Any, get_args

import lightning as L
import torch

from lightning_switchkd.core.types import Batch, DefectCode
from lightning_switchkd.data.quarantine import Quarantine, format_counts

log = logging.getLogger(__name__)

CODES: tuple[DefectCode, ...] = get_args(DefectCode)


class DataHealth(L.Callback):
    """Log ``data/skipped_samples`` over all ranks, and ``data/skipped_samples/CODE`` for each kind of defect.

    At the end of a run, a warning names the total and the files that list these samples.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log the counts at every log line."""
        due = batch.window_end and trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        quarantine = _quarantine(trainer)
        if due and quarantine is not None:
            counts = _sum_over_ranks(trainer, quarantine)
            pl_module.log("data/skipped_samples", float(sum(counts.values())), batch_size=1)
            by_code = {f"data/skipped_samples/{code}": float(n) for code, n in counts.items() if n}
            pl_module.log_dict(by_code, batch_size=1)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn about the skipped samples of the whole run."""
        if (quarantine := _quarantine(trainer)) is None:
            return
        counts = {code: n for code, n in _sum_over_ranks(trainer, quarantine).items() if n}
        if counts and trainer.is_global_zero:
            total = sum(counts.values())
            log.warning(f"Skipped {total} invalid samples ({format_counts(counts)}), listed in {quarantine.folder}.")


def _quarantine(trainer: L.Trainer) -> Quarantine | None:
    return trainer.datamodule.quarantine  # type: ignore[attr-defined,no-any-return]


def _sum_over_ranks(trainer: L.Trainer, quarantine: Quarantine) -> dict[DefectCode, int]:
    counts = torch.tensor([quarantine.counts[code] for code in CODES], device=trainer.strategy.root_device)
    total: Any = trainer.strategy.reduce(counts, reduce_op="sum")
    return dict(zip(CODES, total.tolist(), strict=True))
