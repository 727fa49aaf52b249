"""How many records could not be used."""

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
    """Logs ``data/skipped_samples``, the records in quarantine over all ranks, and ``data/skipped_samples/CODE`` for each defect met.

    At the end it says how many there are and where they are written.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Logs where a log line is due."""
        due = batch.window_end and trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        quarantine = _quarantine(trainer)
        if due and quarantine is not None:
            counts = self._over_ranks(trainer, quarantine)
            pl_module.log("data/skipped_samples", float(sum(counts.values())), batch_size=1)
            pl_module.log_dict(
                {f"data/skipped_samples/{code}": float(n) for code, n in counts.items() if n}, batch_size=1
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says how many there are."""
        if (quarantine := _quarantine(trainer)) is None:
            return
        counts = {code: n for code, n in self._over_ranks(trainer, quarantine).items() if n}
        if counts and trainer.is_global_zero:
            log.warning(f"Left out: {sum(counts.values())} records ({format_counts(counts)}), see {quarantine.folder}.")

    def _over_ranks(self, trainer: L.Trainer, quarantine: Quarantine) -> dict[DefectCode, int]:
        mine = torch.tensor([quarantine.counts[code] for code in CODES], device=trainer.strategy.root_device)
        total: Any = trainer.strategy.reduce(mine, reduce_op="sum")
        return dict(zip(CODES, total.tolist(), strict=True))


def _quarantine(trainer: L.Trainer) -> Quarantine | None:
    return trainer.datamodule.quarantine  # type: ignore[attr-defined,no-any-return]
