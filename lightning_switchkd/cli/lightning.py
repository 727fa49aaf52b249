"""LightningCLI's fit, validate and test, and the commands that take the same settings as `fit`."""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data loader's workers are forked after tokenizers ran

import torch
from jsonargparse import _typehints, set_parsing_settings
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.datamodule import LLaVADataModule
from lightning_switchkd.data.validate.validate import validate_data
from lightning_switchkd.estimation.dry_run import Plan, dry_run
from lightning_switchkd.estimation.memory import Shards
from lightning_switchkd.objectives.terms import Need
from lightning_switchkd.training.callbacks import (
    AnswerPanel,
    DataHealth,
    DBiLDStatistics,
    ExportStudent,
    Interruption,
    SkipNonfinite,
    StepProgressBar,
    Throughput,
    ValGeneration,
    VisionGradients,
)
from lightning_switchkd.training.callbacks.run_files import RunFiles, archive_previous_run
from lightning_switchkd.training.checkpoints.io import newest, read_checkpoint
from lightning_switchkd.training.module import SwitchKD
from lightning_switchkd.training.strategies import FSDP2

CALLBACKS: dict[str, type[Callback]] = {
    "checkpoint": ModelCheckpoint,
    "interruption": Interruption,
    "lr_monitor": LearningRateMonitor,
    "skip_nonfinite": SkipNonfinite,
    "dbild_statistics": DBiLDStatistics,
    "vision_gradients": VisionGradients,
    "data_health": DataHealth,
    "throughput": Throughput,
    "progress": StepProgressBar,
    "val_generation": ValGeneration,
    "answer_panel": AnswerPanel,
    "export": ExportStudent,
}
"""Callbacks of every run, each with a section of flags (``--val_generation.num_samples=0``); ``trainer.callbacks`` adds others."""


class SwitchKDCLI(LightningCLI):
    """LightningCLI with a section for each callback of every run.

    A checkpoint's hyperparameters never override files and flags; ``--ckpt_path=last`` continues a run, or begins it
    where there is none yet; a run that begins moves an earlier one in its folder aside.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the sections."""
        for section, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, section)

    def _parse_ckpt_path(self) -> None:
        config = self.config[self.config["subcommand"]]
        if config.get("ckpt_path") == "last":
            root = config["trainer"]["default_root_dir"] or "."
            folder = Path(config["checkpoint"]["dirpath"] or f"{root}/checkpoints")
            last = newest(folder)
            config["ckpt_path"] = None if last is None else str(last)
            if last is None and self.config["subcommand"] != "fit":
                raise UserError(f"--ckpt_path=last: there is no checkpoint in {folder}. `fit` writes them.")
            print(f"Going on from {last}." if last else f"There is no checkpoint in {folder} yet: starting anew.")
        config["weights_only"] = True  # for Lightning's own reading
        if config.get("ckpt_path") is not None:
            read_checkpoint(config["ckpt_path"])  # missing, damaged or foreign: say so before anything is built

    def before_fit(self) -> None:
        """Lightning calls it when everything is built and nothing has run."""
        if self._get(self.config_init, "ckpt_path") is None and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            archive_previous_run(Path(self.trainer.default_root_dir))


def _forget_init_args(_: Any, previous: Any, value: Any) -> None:
    """In jsonargparse's place: another class keeps none of the former one's arguments, not even those of equal name."""
    if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
        previous.pop("init_args")


def run_lightning(arguments: list[str]) -> None:
    """fit, validate or test, as LightningCLI does it; or the data of a `fit` looked at, or its teacher run ahead."""
    own = OWN_COMMANDS.get(arguments[0])
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    _typehints.discard_init_args_on_class_path_change = _forget_init_args
    (own or SwitchKDCLI)(
        SwitchKD,
        LLaVADataModule,
        args=arguments[1:] if own else arguments,
        run=own is None,
        parser_kwargs={"parser_mode": "omegaconf+"},
        auto_configure_optimizers=False,
        save_config_callback=None if own else RunFiles,
        save_config_kwargs={"save_to_log_dir": False},
    )


class OwnCommandCLI(SwitchKDCLI):
    """Takes what `fit` takes, and does something else with it."""

    def _parse_ckpt_path(self) -> None:
        """There is no checkpoint."""


class ValidateDataCLI(OwnCommandCLI):
    """Builds the data alone."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds its own."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--output", default="reports/data", help="folder of the report and the list")
        parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that read")

    def instantiate_classes(self) -> None:
        """Reads everything; the exit status is 1 where something is to be mended."""
        config, trainer = self.config, self.config.trainer
        devices = len(trainer.devices) if isinstance(trainer.devices, list) else trainer.devices
        devices = int(devices) if str(devices).isdecimal() else None  # flags give text; "auto" and -1 ask the machine
        data = LLaVADataModule(**config.data.as_dict())
        geometry = trainer.accumulate_grad_batches, devices * trainer.num_nodes if devices else None
        if not validate_data(data, Path(config.output), config.workers, *geometry):
            sys.exit(1)


class FillCacheCLI(OwnCommandCLI):
    """Runs the teacher alone, once over all records."""

    def instantiate_classes(self) -> None:
        """Fills the cache."""
        super().instantiate_classes()
        if self.model.teacher_cache is None or Need.TEACHER not in self.model.objective.needs:
            raise UserError(
                "fill-cache writes what an objective reads of its teacher to model.teacher_cache, but one of the two "
                "is missing. Set --model.teacher_cache.folder (OVERLAYS=teacher_cache), and an objective with a teacher."
            )
        trainer: Any = self.trainer
        callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, StepProgressBar)]
        trainer.callbacks = [*callbacks, TQDMProgressBar()]  # the other counts training steps
        trainer.predict(self.model, self.datamodule, return_predictions=False)


class DryRunCLI(OwnCommandCLI):
    """Makes the models at their sizes, and takes a few steps."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds its own."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Plan)

    def instantiate_classes(self) -> None:
        """Prints the report."""
        super().instantiate_classes()
        config, strategy, precision = self.config, self.trainer.strategy, str(self.trainer.precision)
        plan = Plan(**{f.name: config[f.name] for f in fields(Plan)})
        shards = Shards(plan.devices, strategy.shard_teacher) if isinstance(strategy, FSDP2) else Shards()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        print(dry_run(self.model, plan, precision, device, config.data.batch_size, shards))


OWN_COMMANDS: dict[str, type[OwnCommandCLI]] = {
    "validate-data": ValidateDataCLI,
    "fill-cache": FillCacheCLI,
    "dry-run": DryRunCLI,
}
LIGHTNING_COMMANDS = ("fit", "validate", "test", *OWN_COMMANDS)
