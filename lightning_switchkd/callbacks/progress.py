"""A progress bar that counts optimizer steps over the whole run, however many epochs they take."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class StepProgressBar(ProgressBar):
    """One line: steps done and to do, time left, the latest loss and validation scores."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[None] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Opens the bar at the step the run starts or resumes from."""
        total = trainer.estimated_stepping_batches
        self._bar = tqdm(
            total=None if total == float("inf") else int(total),
            initial=trainer.global_step,
            desc="train",
            unit="step",
            dynamic_ncols=True,
            disable=self.is_disabled,
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves on when the optimizer has stepped."""
        if self._bar is None or trainer.global_step == self._bar.n:
            return
        self._bar.update(trainer.global_step - self._bar.n)
        metrics = self.get_metrics(trainer, pl_module)
        self._bar.set_postfix({k: v for k, v in metrics.items() if k != "v_num"}, refresh=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the finished bar on the screen."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Closes the bar before the error is printed."""
        self._close()

    def disable(self) -> None:
        """Lightning calls this on every rank but the first."""
        self._disabled = True

    def enable(self) -> None:
        """The opposite of :meth:`disable`."""
        self._disabled = False

    @property
    def is_disabled(self) -> bool:
        """Whether nothing is shown."""
        return getattr(self, "_disabled", False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
