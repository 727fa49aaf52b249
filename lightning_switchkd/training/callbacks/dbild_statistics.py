"""What DBiLD looks at while it trains: sizes, overlap and probability mass of the leading sets, of Align and of VSD."""

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
    """Logs ``{train,val,test}/dbild/{align,vsd}/*``, made from the logits and selections that the loss made anyway.

    The names are those of ``losses.statistics.region_statistics``, averaged over the rows since the last log line; the
    k of both sets also with their 10, 50 and 90 % quantiles and, in TensorBoard, a histogram. Rows are added up over
    ranks; a checkpoint carries what has not been logged yet. Objectives without DBiLD log nothing.

    Args:
        every_n_steps: look at every n-th optimizer step of the training; 0 looks at none, nor at validation.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        self.every_n_steps = every_n_steps
        self._seen: dict[str, dict[str, TokenStatistics]] = {"train": {}, "val": {}, "test": {}}
        self._carried: Mapping[str, Mapping[str, Tensor]] = {}
        self._stage = "train"
        self._handle: RemovableHandle | None = None

    # -- when to look -------------------------------------------------------------------------------------------------

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str, look: bool) -> None:
        assert isinstance(pl_module, SwitchKD)
        if self._handle is None:
            self._handle = pl_module.distiller.register_forward_hook(self._after_forward)
            self._rank = trainer.global_rank
        self._stage = stage
        pl_module.objective.collect_statistics = look

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Looks at every n-th step."""
        due = self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        self._begin(trainer, pl_module, "train", due)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks at all of the validation data."""
        self._begin(trainer, pl_module, "val", self.every_n_steps > 0 and not trainer.sanity_checking)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks at all of the test data."""
        self._begin(trainer, pl_module, "test", self.every_n_steps > 0)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Looks no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    # -- looking ------------------------------------------------------------------------------------------------------

    def _after_forward(self, distiller: Any, _: Any, terms: ObjectiveOutput) -> None:
        for name, statistics in terms.statistics.items():
            self._metric(distiller, name, statistics).update(statistics)

    def _metric(self, distiller: Any, name: str, statistics: Mapping[str, Tensor]) -> TokenStatistics:
        metrics = self._seen[self._stage]
        if name not in metrics:
            term = distiller.objective.terms[name]
            assert isinstance(term, DBiLDLoss)
            device = next(iter(statistics.values())).device
            metrics[name] = TokenStatistics(statistics, term.select.limit(distiller.vocabulary)).to(device)
            if self._stage == "train" and name in self._carried:
                metrics[name].restore(self._carried[name], self._rank)
        return metrics[name]

    # -- logging ------------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Logs what was seen since the last log line."""
        if batch.window_end and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer, pl_module, len(batch))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs what was seen of the validation data."""
        self._log(trainer, pl_module, 1)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs what was seen of the test data."""
        self._log(trainer, pl_module, 1)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, batch_size: int) -> None:
        for term, metric in self._seen[self._stage].items():
            means, histograms = metric.compute_and_reset()
            place = f"{self._stage}/dbild/{term}"
            pl_module.log_dict({f"{place}/{name}": mean for name, mean in means.items()}, batch_size=batch_size)
            for name, counts in histograms.items():
                log_counts(trainer, f"{place}/{name}_histogram", counts)  # TensorBoard keeps one kind a tag

    # -- resume -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Training rows that have not been logged yet, added up over ranks."""
        return {name: metric.summed_state() for name, metric in self._seen["train"].items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up when the first row comes."""
        self._carried = state_dict
