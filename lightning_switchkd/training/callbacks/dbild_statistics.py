"""Log sizes, overlap and probability mass of DBiLD's selected sets, for Align and for VSD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_switchkd.core.types import Batch
from lightning_switchkd.objectives.base import ObjectiveOutput
from lightning_switchkd.objectives.switch_kd import DBiLDLoss
from lightning_switchkd.training.loggers import log_counts
from lightning_switchkd.training.metrics import TokenStatistics
from lightning_switchkd.training.module import SwitchKD


class DBiLDStatistics(L.Callback):
    """Log ``{train,val,test}/dbild/{align,vsd}/*`` from the logits and selections that the loss computes anyway.

    The names are those of ``losses.statistics.region_statistics``. Values are means over the tokens since the last log
    line, over all ranks. The sizes k of both sets also have 10, 50 and 90 % quantiles and, in TensorBoard, a histogram.
    A checkpoint keeps what has not been logged yet. Objectives without DBiLD log nothing.

    Args:
        every_n_steps: Collect statistics in every n-th optimizer step. 0 turns them off, in validation too.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        self.every_n_steps = every_n_steps
        self._metrics: dict[str, dict[str, TokenStatistics]] = {"train": {}, "val": {}, "test": {}}
        self._restored: Mapping[str, Mapping[str, Tensor]] = {}
        self._stage = "train"
        self._handle: RemovableHandle | None = None

    # -- when to collect ----------------------------------------------------------------------------------------------

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str, collect: bool) -> None:
        assert isinstance(pl_module, SwitchKD)
        if self._handle is None:
            self._handle = pl_module.distiller.register_forward_hook(self._after_forward)
            self._rank = trainer.global_rank
        self._stage = stage
        pl_module.objective.collect_statistics = collect

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Collect in every n-th step."""
        due = self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        self._begin(trainer, pl_module, "train", due)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collect over all validation data."""
        self._begin(trainer, pl_module, "val", self.every_n_steps > 0 and not trainer.sanity_checking)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collect over all test data."""
        self._begin(trainer, pl_module, "test", self.every_n_steps > 0)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    # -- collecting ---------------------------------------------------------------------------------------------------

    def _after_forward(self, distiller: Any, _: Any, output: ObjectiveOutput) -> None:
        for term, statistics in output.statistics.items():
            self._metric(distiller, term, statistics).update(statistics)

    def _metric(self, distiller: Any, term: str, statistics: Mapping[str, Tensor]) -> TokenStatistics:
        metrics = self._metrics[self._stage]
        if term not in metrics:
            loss = distiller.objective.terms[term]
            assert isinstance(loss, DBiLDLoss)
            device = next(iter(statistics.values())).device
            metrics[term] = TokenStatistics(statistics, loss.select.limit(distiller.vocabulary)).to(device)
            if self._stage == "train" and term in self._restored:
                metrics[term].restore(self._restored[term], self._rank)
        return metrics[term]

    # -- logging ------------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log the statistics since the last log line."""
        if batch.window_end and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer, pl_module, len(batch))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the statistics of the validation data."""
        self._log(trainer, pl_module, 1)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the statistics of the test data."""
        self._log(trainer, pl_module, 1)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, batch_size: int) -> None:
        for term, metric in self._metrics[self._stage].items():
            means, histograms = metric.compute_and_reset()
            prefix = f"{self._stage}/dbild/{term}"
            pl_module.log_dict({f"{prefix}/{name}": mean for name, mean in means.items()}, batch_size=batch_size)
            for name, counts in histograms.items():
                log_counts(trainer, f"{prefix}/{name}_histogram", counts)  # a TensorBoard tag holds one kind of data

    # -- resume -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the training statistics that have not been logged yet, added up over ranks."""
        return {term: metric.summed_state() for term, metric in self._metrics["train"].items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the first tokens arrive."""
        self._restored = state_dict
