"""The LightningModule: wires data, models and objective to Lightning. No mathematics of the method lives here."""

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
from lightning_switchkd.core.types import Batch, Counts, Part
from lightning_switchkd.data.datamodule import Split
from lightning_switchkd.data.dataset import mean_supervised_tokens
from lightning_switchkd.distillation.checks import check_data, check_packing, check_pair, check_vocabulary, same_encoder
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.distillation.teacher_cache import HiddenStateCache, TeacherCache
from lightning_switchkd.models.adapter import fingerprint
from lightning_switchkd.models.auto import build, tokenizer_of
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives.base import Objective, ObjectiveOutput
from lightning_switchkd.objectives.sft import SFT
from lightning_switchkd.objectives.terms import Need
from lightning_switchkd.training.checkpoints.metadata import METADATA_KEY, check_resumable
from lightning_switchkd.training.checkpoints.resume import align_to_step_start, restore_counters
from lightning_switchkd.training.metrics import Means
from lightning_switchkd.training.optim import parameter_groups, warmup_cosine
from lightning_switchkd.training.strategies import FSDP2

log = logging.getLogger(__name__)


class SwitchKD(L.LightningModule):
    """Distils a teacher into a student, or fine-tunes the student alone, as its objective says.

    Args:
        student: the model that learns.
        teacher: the model it learns from; loaded only if the objective needs it, frozen always.
        objective: what is minimised.
        freeze: parts of the student that stay as they are.
        lr: learning rate of every part that has none of its own.
        lr_vision: learning rate of the vision encoder.
        lr_projector: learning rate of the projector.
        lr_lm: learning rate of the language model and its head.
        weight_decay: AdamW's decay of matrices; norms and biases are never decayed.
        betas: AdamW's running averages.
        warmup: part of all steps (below 1) or number of steps (from 1) over which the learning rate rises.
        min_lr_ratio: part of the learning rate that is left at the end of the cosine.
        teacher_cache: where the teacher's hidden rows are kept for later epochs and runs; None computes them each time.
        logits_gib: most memory, in GiB, that logits take up at a time: as many rows go through the heads together as
            fit in. None is 2 on a GPU, 0.25 elsewhere; more is not faster once a chunk has some hundred rows.
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
        self.student_spec = student
        self.teacher_spec = teacher
        self._objective = (objective or SFT(),)  # in a tuple: the distiller alone registers it as a module
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
        if logits_gib is not None and not logits_gib > 0:
            raise UserError(f"model.logits_gib is {logits_gib}: logits need some memory. Set it above 0, or to null.")
        self.logits_gib = logits_gib
        self.teacher_cache = teacher_cache
        self._caches: dict[str, HiddenStateCache] = {}
        self._distiller: Distiller | None = None
        self._switch_looked_at = self._same_encoder = False
        self._totals: Tensor | None = None
        self._configured: list[dict[str, Any]] = []

    # -- building -----------------------------------------------------------------------------------------------------

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return self._objective[0]

    @property
    def distiller(self) -> Distiller:
        """The models with their objective; there from ``configure_model`` on."""
        assert self._distiller is not None, "the models are loaded in configure_model, which Lightning calls"
        return self._distiller

    def configure_model(self) -> None:
        """Loads the models, checks that they fit each other and the data, and freezes what is to stay."""
        if self._distiller is not None:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "processor"):
            raise UserError("SwitchKD needs a LLaVADataModule: it carries the processor that makes ids and images.")
        schedulers = [c for c in self.trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
        if any(len(scheduler.scheduling) > 1 for scheduler in schedulers):
            raise UserError(
                "GradientAccumulationScheduler changes the accumulation between epochs, but every term is divided by "
                "the units of a whole window, which is read ahead. Set trainer.accumulate_grad_batches instead."
            )
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy | ModelParallelStrategy) and not isinstance(strategy, FSDP2):
            raise UserError(
                f"trainer.strategy is {type(strategy).__name__}, which knows no plan for this pair and writes other "
                "checkpoints. Use TRAINER=fsdp2 (class_path: lightning_switchkd.training.strategies.FSDP2)."
            )
        tokenizer = cast(LlavaProcessor, data.processor).tokenizer
        student = build(self.student_spec, tokenizer, "student")
        check_data(student, tokenizer, data.image_tokens)
        student.freeze(self.freeze_parts)
        teacher = None
        if self.teacher_spec is not None and Need.TEACHER in self.objective.needs:
            teacher = build(self.teacher_spec, tokenizer, "teacher")
            teacher_tokenizer = tokenizer_of(self.teacher_spec)
            if teacher_tokenizer is None:
                log.warning("The teacher's folder holds no tokenizer: that both share one vocabulary is not checked.")
            else:
                check_vocabulary(tokenizer, teacher_tokenizer)
        check_pair(student, teacher, self.objective.needs, len(tokenizer))
        if data.hparams["packing"]:
            check_packing(student, teacher)
        self.teacher_fingerprint = None if teacher is None else fingerprint(teacher)
        self._same_encoder = teacher is not None and same_encoder(student, teacher)
        self._distiller = Distiller(student, teacher, self.objective, len(tokenizer), self.logits_gib).train()
        if isinstance(strategy, FSDP2):
            strategy.shard(self._distiller)
        self.train_means = Means(self.objective.terms)
        self.held_out_means = Means([*self.objective.terms, "correct"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, one group per part and decay, and a cosine after a linear warm-up, stepped by optimizer step."""
        groups = parameter_groups(self.distiller, self.lr, self.weight_decay)
        if not groups:
            raise UserError(f"Nothing is left to train: model.freeze is {self.freeze_parts}. Leave one part out of it.")
        optimizer = torch.optim.AdamW(groups, betas=self.betas)
        self._configured = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, warmup_cosine(steps, self.warmup, self.min_lr_ratio))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def cached(self, split: Split) -> HiddenStateCache | None:
        """The teacher's rows of a split, where they are kept; the first call opens them and says how large they grow.

        Raises:
            UserError: they were made by another teacher or of other data settings, the strategy shards the teacher, or
                the objective reads more of the teacher than rows.
        """
        if self.teacher_cache is None or self.teacher_fingerprint is None:
            return None
        data, needs = self.trainer.datamodule, self.objective.needs  # type: ignore[attr-defined]
        dataset = data.dataset(split)
        if (source := dataset.source.fingerprint) not in self._caches:
            if needs & (Need.IMAGE_EMBEDS | Need.FIRST_ATTENTION):
                raise UserError(
                    f"model.teacher_cache keeps the teacher's last hidden states, but {type(self.objective).__name__} "
                    "also reads its first attention or its image embeddings. Set model.teacher_cache to null."
                )
            if isinstance(self.trainer.strategy, FSDP2):
                raise UserError(
                    "model.teacher_cache lets a process leave the teacher out where it has its rows, but the shards of "
                    "a teacher need all processes. Set model.teacher_cache to null, or use TRAINER=ddp."
                )
            teacher, head = self.distiller.frozen_teacher, self.distiller.frozen_teacher.head
            key = {
                "model.teacher": self.teacher_fingerprint,
                "model.teacher.dtype": str(teacher.head.weight.dtype),
                "model.teacher.attn_implementation": teacher.attention,
                "model.teacher.feature_layer": str(teacher.feature_space),
                "trainer.precision": str(self.trainer.precision),
                **data.prompt_metadata(),
            }
            image_tokens = Need.IMAGE_TOKENS in needs
            size = len(dataset), head.weight.shape[1], head.dtype
            place = f"{source}-with-image-tokens" if image_tokens else source
            cache = self.teacher_cache.open(key, place, *size, self.trainer.world_size)
            rank_zero_info(cache.describe(mean_supervised_tokens(dataset, image_tokens)))
            self._caches[source] = cache
        return self._caches[source]

    def on_train_start(self) -> None:
        """After a restart the configured hyperparameters hold, not those that the checkpoint's optimizer brought."""
        if not self._configured:
            return
        optimizer = self.trainer.optimizers[0]
        schedule = cast(LambdaLR, self.trainer.lr_scheduler_configs[0].scheduler)
        schedule.base_lrs = [configured["lr"] for configured in self._configured]
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        for group, configured, factor in zip(optimizer.param_groups, self._configured, factors, strict=True):
            group.update(configured, initial_lr=configured["lr"], lr=configured["lr"] * factor)

    # -- steps --------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Lets checkpoints continue where they are."""
        restore_counters(self.trainer, batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one micro-batch, scaled so that Lightning's means over ranks and micro-batches give METHOD's sum.

        Logs the terms' means since the last log line, over all ranks: here, so that no checkpoint comes in between.
        """
        if batch.window_start or self._totals is None:
            self._totals = self._over_ranks(batch.window)
        terms = self.distiller(batch, self._totals, self.global_step, self.cached("train"))
        self.train_means.update(terms.sums, terms.counts(batch.counts))
        if batch.window_end and (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log("train", self.train_means.compute_and_reset(), batch)
        if batch.counts.visual_token and not self._switch_looked_at:
            self._switch_looked_at = True
            self._warn_if_nothing_to_switch(terms, batch)
        return cast(Tensor, terms.loss * (self.trainer.world_size * self.trainer.accumulate_grad_batches))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds up every term and the right top-1 tokens on held-out data."""
        split: Split = "test" if self.trainer.testing else "val"
        terms = self.distiller(batch, self._over_ranks(batch.counts), self.global_step, self.cached(split))
        self.held_out_means.update(terms.sums, terms.counts(batch.counts))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same on the test data."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Fills the teacher cache (``fill-cache``)."""
        cache = self.cached(self.trainer.datamodule.predict_splits[dataloader_idx])  # type: ignore[attr-defined]
        assert cache is not None
        self.distiller.cached_teacher(batch, self.distiller.kept_positions(batch).positions, cache)

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/loss/*`` and ``val/accuracy`` (share of supervised tokens whose top-1 is right)."""
        self._log_held_out("val")

    def on_test_epoch_end(self) -> None:
        """Logs ``test/loss/*`` and ``test/accuracy``."""
        self._log_held_out("test")

    def _log_held_out(self, stage: str) -> None:
        means = self.held_out_means.compute_and_reset()
        self.log(f"{stage}/accuracy", means.pop("correct"), prog_bar=True)
        self._log(stage, means, None)

    def _over_ranks(self, counts: Counts) -> Tensor:
        totals = counts.tensor(self.device)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(totals)
        return totals

    def _log(self, stage: str, means: dict[str, Tensor], batch: Batch | None) -> None:
        total = sum((self.objective.weight(name, self.global_step) * mean for name, mean in means.items()))
        values = {f"{stage}/loss/{name}": mean for name, mean in {**means, "total": total}.items()}
        self.log_dict(values, batch_size=None if batch is None else len(batch))
        self.log(f"{stage}/loss", cast(Tensor, total), prog_bar=True, logger=False, batch_size=1)

    def _warn_if_nothing_to_switch(self, terms: ObjectiveOutput, batch: Batch) -> None:
        if "vsd" not in terms.sums:
            return
        per_token = float(terms.sums["vsd"]) / batch.counts.visual_token
        if per_token < 1e-5 and self._same_encoder:
            log.warning(
                "The student's vision encoder equals the teacher's: the visual switch changes nothing yet, so L_VSD is "
                "0 and sends no gradient. Start the student from another encoder of the same feature space."
            )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint or an exported folder says of this run: plain values, safe with ``weights_only``."""
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
        """Adds what the file needs to be understood alone, and the sums since the last log line."""
        checkpoint[METADATA_KEY] = self.metadata()
        checkpoint["train_means"] = self.train_means.summed_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another student or teacher; one from the middle of a step goes back to its start."""
        check_resumable(checkpoint, self.state_dict(), self.teacher_fingerprint)
        if self.trainer.state.fn == TrainerFn.FITTING:
            align_to_step_start(checkpoint, self.trainer.accumulate_grad_batches)
        self.train_means.restore(checkpoint.get("train_means", {}), self.global_rank)
