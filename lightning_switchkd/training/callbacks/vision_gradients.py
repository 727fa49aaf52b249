"""How strongly each pathway, and each term, pulls at the student's vision encoder."""

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

PLACE = "train/vision_gradient"


class VisionGradients(L.Callback):
    """Logs ``train/vision_gradient/{student,switch}``: norm of the loss's gradient at V^S's output, by pathway.

    That is the gradient of the whole optimizer step with respect to the features of all its images (root mean square
    over the steps since the last log line), with ``cosine`` between the two: do both ask the encoder for the same?
    It is read by hooks while the backward passes by, and costs next to nothing. Nothing is logged while the vision
    encoder is frozen.

    Args:
        split_every_n_steps: every n-th optimizer step, also log ``train/vision_gradient/by_term/*`` of that step. Costs
            one more pass through the heads and backward through the language models per term in that step (with three
            terms about as much as the step itself); 0 never does.
    """

    def __init__(self, split_every_n_steps: int = 0) -> None:
        self.split_every_n_steps = split_every_n_steps
        self._pathways, self._terms = Means(["student", "switch", "dot"]), Means([])
        self._carried: Mapping[str, Tensor] = {}
        self._sides: list[str] = []
        self._trainer: L.Trainer | None = None
        self._handle: RemovableHandle | None = None
        self._first: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens to the distiller."""
        assert isinstance(pl_module, SwitchKD)
        if self.split_every_n_steps and isinstance(trainer.strategy, FSDP2):
            raise UserError(
                "vision_gradients.split_every_n_steps differentiates each term alone, which sharded models do not allow. "
                "Set it to 0 (the norms by pathway stay), or use another strategy (TRAINER=ddp)."
            )
        self._trainer = trainer
        self._pathways.to(pl_module.device).restore(self._carried, trainer.global_rank)
        self._terms = Means(pl_module.objective.terms).to(pl_module.device)
        self._handle = pl_module.distiller.register_forward_hook(self._after_forward)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listens no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _after_forward(self, distiller: Any, _: Any, terms: ObjectiveOutput) -> None:
        features = {pathway: tensor for pathway, tensor in terms.features.items() if tensor.requires_grad}
        if not distiller.training or not features or not torch.is_grad_enabled():
            return
        assert self._trainer is not None
        for name, share in terms.term_losses.items():
            gradients = torch.autograd.grad(share, list(features.values()), retain_graph=True, allow_unused=True)
            squares = sum((g.double().square().sum() for g in gradients if g is not None), share.new_zeros(()))
            self._terms.update({name: squares}, {name: 0})
        self._first, self._sides = {}, list(features)
        for pathway, tensor in features.items():
            tensor.register_hook(partial(self._see, pathway))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Has the terms made one by one where their split is due."""
        assert isinstance(pl_module, SwitchKD)
        pl_module.objective.split_terms = self._split_due(trainer.global_step)

    def _split_due(self, step: int) -> bool:
        return self.split_every_n_steps > 0 and step % self.split_every_n_steps == 0

    def _see(self, pathway: str, gradient: Tensor) -> None:
        assert self._trainer is not None
        scaler = getattr(self._trainer.precision_plugin, "scaler", None)
        factor = self._trainer.world_size * (1.0 if scaler is None else scaler.get_scale())  # of module and plugin
        gradient = gradient.detach().double() / factor
        found = {pathway: gradient.square().sum()}
        for other in self._first.values():
            found["dot"] = (gradient * other).sum()
        self._first[pathway] = gradient
        self._pathways.update(found, dict.fromkeys(found, 0))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Counts the optimizer step; logs the split of this step, and the pathways where a log line is due."""
        self._first = {}
        if not batch.window_end or not self._sides:
            return
        split = self._split_due(trainer.global_step - 1)
        for means in (self._pathways, self._terms) if split else (self._pathways,):
            nothing = torch.zeros((), device=pl_module.device)  # squares add up over ranks, steps are counted once
            means.update(dict.fromkeys(means.names, nothing), dict.fromkeys(means.names, int(trainer.is_global_zero)))
        if split:
            norms = {
                f"{PLACE}/by_term/{name}": float(sq.sqrt()) for name, sq in self._terms.compute_and_reset().items()
            }
            for logger in trainer.loggers:  # not through `log`, which would repeat it at every later log line
                logger.log_metrics(norms, trainer.global_step - 1)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            squares = self._pathways.compute_and_reset()
            values = {pathway: squares[pathway].sqrt() for pathway in self._sides}
            if len(values) == 2:  # not a number where one of them is 0
                values["cosine"] = squares["dot"] / (values["student"] * values["switch"])
            pl_module.log_dict({f"{PLACE}/{name}": value for name, value in values.items()}, batch_size=len(batch))

    def state_dict(self) -> dict[str, Any]:
        """Squares that have not been logged yet, added up over ranks."""
        return self._pathways.summed_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up at the start of training."""
        self._carried = state_dict
