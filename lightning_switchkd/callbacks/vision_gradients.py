"""How strongly each pathway, and each term, pulls at the student's vision encoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_switchkd.batch import Batch
from lightning_switchkd.errors import UserError
from lightning_switchkd.evaluation.metrics import Means
from lightning_switchkd.module import SwitchKD
from lightning_switchkd.objectives.base import Terms


class VisionGradients(L.Callback):
    """Logs ``train/vision_gradient/{student,switch}``: norm of the loss's gradient at V^S's output, by pathway.

    That is the gradient of the whole optimizer step with respect to the features of all its images (root mean square
    over the steps since the last log line), with ``cosine`` between the two: do both ask the encoder for the same?
    It is read by hooks while the backward passes by, and costs next to nothing. Nothing is logged while the vision
    encoder is frozen.

    Args:
        split_every_n_steps: every n-th optimizer step, also log ``train/vision_gradient/by_term/*``. Costs one more
            backward through the language models per term in that step (with three terms about as much as two steps);
            0 never does.
    """

    def __init__(self, split_every_n_steps: int = 0) -> None:
        self.split_every_n_steps = split_every_n_steps
        self._means: dict[str, Means] = {}
        self._carried: Mapping[str, Mapping[str, Tensor]] = {}
        self._trainer: L.Trainer | None = None
        self._handle: RemovableHandle | None = None
        self._first: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens to the distiller."""
        assert isinstance(pl_module, SwitchKD)
        if self.split_every_n_steps and isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise UserError(
                "gradients.split_every_n_steps differentiates each term alone, which sharded models do not allow. "
                "Set it to 0 (the norms by pathway stay), or use another strategy (TRAINER=ddp)."
            )
        self._trainer = trainer
        names = {"pathways": ["student", "switch", "dot"], "terms": list(pl_module.objective.terms)}
        self._means = {group: Means(members).to(pl_module.device) for group, members in names.items()}
        for group, states in self._carried.items():
            self._means[group].restore(states, trainer.global_rank)
        self._handle = pl_module.distiller.register_forward_hook(self._after_forward)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listens no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _after_forward(self, distiller: Any, _: Any, terms: Terms) -> None:
        features = {side: tensor for side, tensor in terms.features.items() if tensor.requires_grad}
        if not distiller.training or not features or not torch.is_grad_enabled():
            return
        if self._split_due():
            for name, share in terms.shares.items():
                gradients = torch.autograd.grad(share, list(features.values()), retain_graph=True, allow_unused=True)
                squares = sum((g.double().square().sum() for g in gradients if g is not None), share.new_zeros(()))
                self._means["terms"].update({name: squares}, {name: 0})
        self._first = {}
        for side, tensor in features.items():
            tensor.register_hook(partial(self._see, side))

    def _split_due(self) -> bool:
        assert self._trainer is not None
        return self.split_every_n_steps > 0 and self._trainer.global_step % self.split_every_n_steps == 0

    def _see(self, side: str, gradient: Tensor) -> None:
        assert self._trainer is not None
        scaler = getattr(self._trainer.precision_plugin, "scaler", None)
        scale = self._trainer.world_size * (
            1.0 if scaler is None else scaler.get_scale()
        )  # what module and plugin put on
        gradient = gradient.detach().double() / scale
        found = {side: gradient.square().sum()}
        for other in self._first.values():
            found["dot"] = (gradient * other).sum()
        self._first[side] = gradient
        self._means["pathways"].update(found, dict.fromkeys(found, 0))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Counts the optimizer step, and logs where a log line is due."""
        self._first = {}
        if not batch.window_end:
            return
        split = self.split_every_n_steps > 0 and (trainer.global_step - 1) % self.split_every_n_steps == 0
        for group in ("pathways", "terms") if split else ("pathways",):
            names = self._means[group].names  # squares add up over ranks, steps are counted once
            nothing = torch.zeros((), device=pl_module.device)
            self._means[group].update(dict.fromkeys(names, nothing), dict.fromkeys(names, int(trainer.is_global_zero)))
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            values = self._values()
            place = "train/vision_gradient"
            pl_module.log_dict({f"{place}/{name}": value for name, value in values.items()}, batch_size=len(batch))

    def _values(self) -> dict[str, Tensor]:
        squares = self._means["pathways"].collect()
        dot = squares.pop("dot")
        values = {name: square.sqrt() for name, square in squares.items() if square > 0}
        if len(values) == 2:
            values["cosine"] = dot / (values["student"] * values["switch"])
        if self.split_every_n_steps:
            by_term = self._means["terms"].collect().items()
            values |= {f"by_term/{name}": square.sqrt() for name, square in by_term if square > 0}
        return values

    def state_dict(self) -> dict[str, Any]:
        """Squares that have not been logged yet, added up over ranks."""
        return {group: means.carried() for group, means in self._means.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up at the start of training."""
        self._carried = state_dict
