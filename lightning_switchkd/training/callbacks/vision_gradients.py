"""Log the gradient that each pathway, and each term, sends into the student's vision encoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Batch
from lightning_switchkd.objectives.base import ObjectiveOutput
from lightning_switchkd.training.metrics import Means
from lightning_switchkd.training.module import SwitchKD
from lightning_switchkd.training.strategies import FSDP2

PREFIX = "train/vision_gradient"


class VisionGradients(L.Callback):
    """Log ``train/vision_gradient/{student,switch}``: the norm of the loss's gradient at V^S's output, by pathway.

    The gradient is that of the whole optimizer step at the features of all its images. The norm is the root mean square
    over the steps since the last log line. ``cosine`` between both gradients tells whether the pathways agree. Hooks
    read the gradients during the backward pass at almost no cost. With a frozen vision encoder nothing is logged.

    Args:
        split_every_n_steps: Also log ``train/vision_gradient/by_term/*`` in every n-th optimizer step. In such a step,
            each term runs the heads and the backward pass of the language models once more. With three terms this
            about doubles the cost of the step. 0 turns it off.
    """

    def __init__(self, split_every_n_steps: int = 0) -> None:
        self.split_every_n_steps = split_every_n_steps
        self._pathway_squares, self._term_squares = Means(["student", "switch", "dot"]), Means([])
        self._restored: Mapping[str, Tensor] = {}
        self._pathways: list[str] = []
        self._trainer: L.Trainer | None = None
        self._handle: RemovableHandle | None = None
        self._gradients: dict[tuple[str, int], Tensor] = {}  # of this micro-batch, by pathway and place in its features

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Register a hook on the distiller.

        Raises:
            UserError: The strategy cannot differentiate each term alone.
        """
        assert isinstance(pl_module, SwitchKD)
        if self.split_every_n_steps and isinstance(trainer.strategy, FSDP2):
            raise UserError(
                "vision_gradients.split_every_n_steps must be 0 with FSDP2, got "
                f"{self.split_every_n_steps}: sharded models cannot differentiate each term alone. Set it to 0 (norms "
                "by pathway are still logged), or use TRAINER=ddp."
            )
        self._trainer = trainer
        self._pathway_squares.to(pl_module.device).restore(self._restored, trainer.global_rank)
        self._term_squares = Means(pl_module.objective.terms).to(pl_module.device)
        self._handle = pl_module.distiller.register_forward_hook(self._after_forward)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _after_forward(self, distiller: Any, _: Any, output: ObjectiveOutput) -> None:
        features = {name: tensors for name, tensors in output.features.items() if tensors[0].requires_grad}
        if not distiller.training or not features or not torch.is_grad_enabled():
            return
        for name, loss in output.term_losses.items():
            tensors = [tensor for of_pathway in features.values() for tensor in of_pathway]
            gradients = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
            squares = sum((g.double().square().sum() for g in gradients if g is not None), loss.new_zeros(()))
            self._term_squares.update({name: squares}, {name: 0})
        self._gradients, self._pathways = {}, list(features)
        for pathway, of_pathway in features.items():
            for place, tensor in enumerate(of_pathway):
                tensor.register_hook(partial(self._after_backward, pathway, place))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Request the loss of each term in steps that log a split."""
        assert isinstance(pl_module, SwitchKD)
        pl_module.objective.split_terms = self._split_due(trainer.global_step)

    def _split_due(self, step: int) -> bool:
        return self.split_every_n_steps > 0 and step % self.split_every_n_steps == 0

    def _after_backward(self, pathway: str, place: int, gradient: Tensor) -> None:
        assert self._trainer is not None
        scaler = getattr(self._trainer.precision_plugin, "scaler", None)
        # training_step and the loss scaler multiply the loss by these factors
        factor = self._trainer.world_size * (1.0 if scaler is None else scaler.get_scale())
        gradient = gradient.detach().double() / factor
        squares = {pathway: gradient.square().sum()}
        for (_, at), other in self._gradients.items():
            if at == place:
                squares["dot"] = (gradient * other).sum()
        self._gradients[pathway, place] = gradient
        self._pathway_squares.update(squares, dict.fromkeys(squares, 0))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the optimizer step. Log the split of this step, and the norms by pathway at every log line."""
        self._gradients = {}
        if not batch.window_end or not self._pathways:
            return
        split = self._split_due(trainer.global_step - 1)
        for means in (self._pathway_squares, self._term_squares) if split else (self._pathway_squares,):
            zero = torch.zeros((), device=pl_module.device)  # squares add up over ranks, each step counts once
            means.update(dict.fromkeys(means.names, zero), dict.fromkeys(means.names, int(trainer.is_global_zero)))
        if split:
            squares = self._term_squares.compute_and_reset()
            norms = {f"{PREFIX}/by_term/{name}": float(square.sqrt()) for name, square in squares.items()}
            for logger in trainer.loggers:  # `log` would repeat the values at every later log line
                logger.log_metrics(norms, trainer.global_step - 1)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            squares = self._pathway_squares.compute_and_reset()
            values = {pathway: squares[pathway].sqrt() for pathway in self._pathways}
            if len(values) == 2:  # NaN if a gradient is 0
                values["cosine"] = squares["dot"] / (values["student"] * values["switch"])
            pl_module.log_dict({f"{PREFIX}/{name}": value for name, value in values.items()}, batch_size=len(batch))

    def state_dict(self) -> dict[str, Any]:
        """Return the squares that have not been logged yet, added up over ranks."""
        return self._pathway_squares.summed_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts."""
        self._restored = state_dict
