"""The LightningModule: connects data, models and objective to the Trainer. It holds no mathematics of the method."""

from __future__ import annotations

import json
import logging
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlavaProcessor

from lightning_switchkd import __version__
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import PARTS, Batch, Counts, Part
from lightning_switchkd.data.datamodule import Split
from lightning_switchkd.data.dataset import mean_supervised_tokens
from lightning_switchkd.distillation.checks import check_cache, same_encoder
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.distillation.pair import load_pair
from lightning_switchkd.distillation.teacher_cache import HiddenStateCache, TeacherCache
from lightning_switchkd.models.adapter import fingerprint
from lightning_switchkd.models.spec import VLMSpec, as_spec
from lightning_switchkd.objectives.base import Objective, ObjectiveOutput
from lightning_switchkd.objectives.sft import SFT
from lightning_switchkd.objectives.switch_kd import SwitchKDObjective
from lightning_switchkd.objectives.terms import Need
from lightning_switchkd.training.checkpoints.metadata import METADATA_KEY, check_resumable, upgrade_checkpoint
from lightning_switchkd.training.checkpoints.resume import align_to_step_start, restore_counters
from lightning_switchkd.training.describe import describe_run
from lightning_switchkd.training.metrics import Means
from lightning_switchkd.training.optim import check_settings, parameter_groups, warmup_cosine
from lightning_switchkd.training.strategies import FSDP2

log = logging.getLogger(__name__)


class SwitchKD(L.LightningModule):
    """Distill a teacher into a student, or fine-tune the student alone. The objective decides which.

    Args:
        student: The model that learns, as a ``VLMSpec`` or a mapping of its fields.
        teacher: The model to learn from, in the same way. Loaded only if the objective needs it, and always frozen.
        objective: The loss. None distills with Switch-KD from a teacher, and fine-tunes (``SFT``) without one. On the
            command line, ``--model.objective.help SwitchKDObjective`` lists the settings of an objective.
        freeze: Parts of the student to freeze.
        lr: Learning rate of every part without a rate of its own.
        lr_vision: Learning rate of the vision encoder. None uses ``lr``.
        lr_projector: Learning rate of the projector. None uses ``lr``.
        lr_lm: Learning rate of the language model and its head. None uses ``lr``.
        weight_decay: AdamW's weight decay of matrices. Norms and biases are never decayed.
        betas: AdamW's decay rates of its two running averages.
        warmup: Length of the linear warm-up: a fraction of all steps (below 1) or a number of steps (1 or more).
        min_lr_ratio: Final learning rate of the cosine schedule, as a fraction of the peak.
        teacher_cache: Where to store the teacher's hidden states for later epochs and runs. None computes them anew
            each time.
        logits_gib: Memory limit for the logits of one chunk, in GiB. None is 2 on a GPU and 0.25 elsewhere. Above some
            hundred tokens a chunk, more memory is not faster.

    Raises:
        UserError: A setting is invalid.
    """

    def __init__(
        self,
        student: VLMSpec,
        teacher: VLMSpec | None = None,
        objective: Objective | None = None,
        freeze: list[Part] | None = None,
        lr: float = 2e-5,
        lr_vision: float | None = None,
        lr_projector: float | None = None,
        lr_lm: float | None = None,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup: float = 0.03,
        min_lr_ratio: float = 0.0,
        teacher_cache: TeacherCache | None = None,
        logits_gib: float | None = None,
    ) -> None:
        super().__init__()
        if logits_gib is not None and not logits_gib > 0:
            raise UserError(f"model.logits_gib must be above 0, got {logits_gib}. Set it to null for the default.")
        rates = {"lr": lr, "lr_vision": lr_vision, "lr_projector": lr_projector, "lr_lm": lr_lm}
        check_settings(rates, weight_decay, betas, warmup, min_lr_ratio)
        self.student_spec = as_spec(student, "model.student")
        self.teacher_spec = None if teacher is None else as_spec(teacher, "model.teacher")
        objective = objective or (SFT() if teacher is None else SwitchKDObjective())
        self._objective = (objective,)  # in a tuple: only the distiller registers it as a submodule
        self.freeze_parts: list[Part] = freeze or []
        self.lr: dict[str, float] = {
            "vision": lr if lr_vision is None else lr_vision,
            "projector": lr if lr_projector is None else lr_projector,
            "lm": lr if lr_lm is None else lr_lm,
            "objective": lr,
        }
        self.weight_decay = weight_decay
        self.betas = betas
        self.warmup = warmup
        self.min_lr_ratio = min_lr_ratio
        self.teacher_cache = teacher_cache
        self.logits_gib = logits_gib
        self._distiller: Distiller | None = None
        self._caches: dict[str, HiddenStateCache] = {}  # by fingerprint of the data
        self._optimizer_settings: list[dict[str, Any]] = []  # of each parameter group, as configured
        self._window_totals: Tensor | None = None  # [4] units of the accumulation window, over all ranks
        self._switch_checked = self._same_encoder = False

    @property
    def objective(self) -> Objective:
        """The loss."""
        return self._objective[0]

    @property
    def distiller(self) -> Distiller:
        """The models with their objective, available after ``configure_model``."""
        assert self._distiller is not None, "Lightning calls configure_model, which loads the models"
        return self._distiller

    # -- models and optimizer -----------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the models, check that they fit each other and the data, freeze and shard them.

        Raises:
            UserError: Models, data and trainer settings do not fit each other.
        """
        if self._distiller is not None:
            return
        _check_trainer(self.trainer)
        data, strategy = self.trainer.datamodule, self.trainer.strategy  # type: ignore[attr-defined]
        tokenizer = cast(LlavaProcessor, data.processor).tokenizer

        student, teacher = load_pair(
            self.student_spec,
            self.teacher_spec,
            self.objective.needs,
            tokenizer,
            data.image_tokens,
            self.freeze_parts,
            data.hparams["packing"],
        )
        self.teacher_fingerprint = None if teacher is None else fingerprint(teacher)
        self._same_encoder = teacher is not None and same_encoder(student, teacher)
        self._distiller = Distiller(student, teacher, self.objective, len(tokenizer), self.logits_gib).train()
        if isinstance(strategy, FSDP2):
            strategy.shard(self._distiller)
        self.train_means = Means(self.objective.terms)
        self.held_out_means = Means([*self.objective.terms, "correct"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Create AdamW with a group for each part and decay, and a schedule stepped with the optimizer.

        Raises:
            UserError: All parameters are frozen.
        """
        groups = parameter_groups(self.distiller, self.lr, self.weight_decay)
        if not groups:
            raise UserError(
                f"No trainable parameters: model.freeze is {self.freeze_parts}. Remove at least one part from it."
            )
        optimizer = torch.optim.AdamW(groups, betas=self.betas)
        self._optimizer_settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, warmup_cosine(steps, self.warmup, self.min_lr_ratio))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Print in one line what is trained, on what, and how long."""
        teacher = None if self.distiller.teacher is None else self.teacher_spec
        rates = sorted({self.lr[part] for part in PARTS})
        rank_zero_info(describe_run(self.trainer, self.distiller, self.student_spec, teacher, rates))

    def on_train_start(self) -> None:
        """Restore the configured hyperparameters, which loading the optimizer's state has overwritten."""
        if not self._optimizer_settings:
            return
        optimizer = self.trainer.optimizers[0]
        schedule = cast(LambdaLR, self.trainer.lr_scheduler_configs[0].scheduler)
        schedule.base_lrs = [settings["lr"] for settings in self._optimizer_settings]
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        for group, settings, factor in zip(optimizer.param_groups, self._optimizer_settings, factors, strict=True):
            group.update(settings, initial_lr=settings["lr"], lr=settings["lr"] * factor)

    # -- steps --------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Correct Lightning's counters after a restart."""
        restore_counters(self.trainer, batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one micro-batch, a scalar.

        Lightning averages over ranks and micro-batches. The factor at the end turns these means into the sum of
        docs/explanation/method.md, section 2. Terms are logged here, before any checkpoint of this step is written.
        """
        if batch.window_start or self._window_totals is None:
            self._window_totals = self._sum_over_ranks(batch.window)  # [4]
        output = self.distiller(batch, self._window_totals, self.global_step, self.hidden_state_cache("train"))
        self.train_means.update(output.sums, output.counts(batch.counts))
        if batch.window_end and (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log_terms("train", self.train_means.compute_and_reset(), len(batch))
        self._check_switch(output, batch)
        return cast(Tensor, output.loss * (self.trainer.world_size * self.trainer.accumulate_grad_batches))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accumulate the terms and the correct top-1 tokens of held-out data."""
        split: Split = "test" if self.trainer.testing else "val"
        totals = self._sum_over_ranks(batch.counts)  # [4]
        output = self.distiller(batch, totals, self.global_step, self.hidden_state_cache(split))
        self.held_out_means.update(output.sums, output.counts(batch.counts))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Do the same as ``validation_step`` on the test data."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compute and store the teacher's hidden states that the cache does not hold (``fill-cache``)."""
        cache = self.hidden_state_cache(self.trainer.datamodule.predict_splits[dataloader_idx])  # type: ignore[attr-defined]
        assert cache is not None
        self.distiller.cached_teacher(batch, self.distiller.kept_positions(batch).positions, cache)

    def _sum_over_ranks(self, counts: Counts) -> Tensor:
        totals = counts.tensor(self.device)  # [4]
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(totals)
        return totals

    def _check_switch(self, output: ObjectiveOutput, batch: Batch) -> None:
        """Warn once if the first batch with images shows that the visual switch has no effect."""
        if self._switch_checked or not batch.counts.visual_token:
            return
        self._switch_checked = True
        if "vsd" not in output.sums:
            return
        if self._same_encoder and float(output.sums["vsd"]) / batch.counts.visual_token < 1e-5:
            log.warning(
                "The visual switch has no effect: the student's vision encoder equals the teacher's. L_VSD is 0 and "
                "has no gradient. Start the student from another encoder with the same feature space."
            )

    # -- logging ------------------------------------------------------------------------------------------------------

    def on_validation_epoch_end(self) -> None:
        """Log ``val/loss/*`` and ``val/accuracy``, the fraction of supervised tokens with the correct top-1."""
        self._log_held_out("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/loss/*`` and ``test/accuracy``."""
        self._log_held_out("test")

    def _log_held_out(self, stage: str) -> None:
        means = self.held_out_means.compute_and_reset()
        self.log(f"{stage}/accuracy", means.pop("correct"), prog_bar=True)
        self._log_terms(stage, means, None)

    def _log_terms(self, stage: str, means: dict[str, Tensor], batch_size: int | None) -> None:
        total = sum((self.objective.weight(name, self.global_step) * mean for name, mean in means.items()))
        values = {f"{stage}/loss/{name}": mean for name, mean in {**means, "total": total}.items()}
        self.log_dict(values, batch_size=batch_size)
        self.log(f"{stage}/loss", cast(Tensor, total), prog_bar=True, logger=False, batch_size=1)

    # -- teacher cache ------------------------------------------------------------------------------------------------

    def hidden_state_cache(self, split: Split) -> HiddenStateCache | None:
        """Return the cache of the teacher's hidden states for a split, or None without a cache.

        The first call opens the cache and reports its size.

        Raises:
            UserError: The cache was filled with another teacher or other data settings, the strategy shards the
                teacher, or the objective reads more of the teacher than final hidden states.
        """
        if self.teacher_cache is None or self.teacher_fingerprint is None:
            return None
        data, needs = self.trainer.datamodule, self.objective.needs  # type: ignore[attr-defined]
        dataset = data.dataset(split)
        source = dataset.source.fingerprint
        if source not in self._caches:
            check_cache(self.objective, sharded_teacher=isinstance(self.trainer.strategy, FSDP2))
            image_tokens = Need.IMAGE_TOKENS in needs
            cache = self.teacher_cache.open(
                self.distiller.frozen_teacher,
                {
                    "model.teacher": self.teacher_fingerprint,
                    "trainer.precision": str(self.trainer.precision),
                    **data.prompt_metadata(),
                },
                f"{source}-with-image-tokens" if image_tokens else source,
                len(dataset),
                self.trainer.world_size,
            )
            rank_zero_info(cache.describe(mean_supervised_tokens(dataset, image_tokens)))
            self._caches[source] = cache
        return self._caches[source]

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint or an exported folder records about this run: plain values (``weights_only``)."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return {
            "version": __version__,
            "step": self.global_step,
            "objective": type(self.objective).__name__,
            "teacher": self.teacher_spec.checkpoint if self.teacher_fingerprint and self.teacher_spec else None,
            "teacher_fingerprint": self.teacher_fingerprint,
            "lora_scale": None if self.student_spec.lora is None else self.student_spec.lora.scale,
            "student_config": json.loads(self.distiller.student.model.config.to_json_string(use_diff=False)),
            **data.metadata(),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the metadata, and the sums that have not been logged yet."""
        checkpoint[METADATA_KEY] = self.metadata()
        checkpoint["train_means"] = self.train_means.summed_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Upgrade and check the checkpoint. Lightning restores callbacks, loops and optimizers after this hook.

        Raises:
            UserError: The checkpoint belongs to another student or teacher.
        """
        upgrade_checkpoint(checkpoint)
        check_resumable(checkpoint, self.state_dict(), self.teacher_fingerprint)
        if self.trainer.state.fn == TrainerFn.FITTING:
            align_to_step_start(checkpoint, self.trainer.accumulate_grad_batches)
        self.train_means.restore(checkpoint.get("train_means", {}), self.global_rank)


def _check_trainer(trainer: Any) -> None:
    """Refuse trainer settings that would train something else.

    Raises:
        UserError: The data module, a callback or the strategy is not supported.
    """
    if not hasattr(trainer.datamodule, "processor"):
        raise UserError(
            f"SwitchKD needs a LLaVADataModule, which holds the processor, got {type(trainer.datamodule).__name__}. "
            "Pass one as datamodule."
        )
    schedulers = [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]
    if any(len(scheduler.scheduling) > 1 for scheduler in schedulers):
        raise UserError(
            "GradientAccumulationScheduler must not change the accumulation between epochs: losses are divided by the "
            "units of a whole window, which is read ahead. Set trainer.accumulate_grad_batches instead."
        )
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy) and not isinstance(strategy, FSDP2):
        raise UserError(
            f"trainer.strategy {type(strategy).__name__} is not supported: it cannot shard this pair and writes other "
            "checkpoints. Use TRAINER=fsdp2 (class_path: lightning_switchkd.training.strategies.FSDP2)."
        )
