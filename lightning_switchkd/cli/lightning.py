"""LightningCLI's ``fit``, ``validate`` and ``test``, and the commands that take the settings of ``fit``."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import _typehints, set_parsing_settings
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_switchkd.cli.parser import Parser
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.paths import existing
from lightning_switchkd.core.runs import UNNAMED
from lightning_switchkd.core.text import program
from lightning_switchkd.data.datamodule import LLaVADataModule
from lightning_switchkd.data.validate.validate import validate_data
from lightning_switchkd.estimation.dry_run import Plan, dry_run
from lightning_switchkd.estimation.memory import Shards
from lightning_switchkd.models.auto import check_family
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
from lightning_switchkd.training.callbacks.run_files import PreviousRun, RunFiles, check_not_finished
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
"""Callbacks of every run, by section of flags (``--export.folder=student``). ``trainer.callbacks`` adds others."""

CONF_FILE = re.compile(r"(?P<flag>-[^=]+=)?(?P<file>conf/.+\.ya?ml)")
"""An argument that names a file of ``conf/``."""


class LightningParser(Parser, LightningArgumentParser):
    """Parser of ``fit`` and the commands that take its settings."""


class SwitchKDCLI(LightningCLI):
    """LightningCLI with a section of settings for each callback of every run.

    - A checkpoint's hyperparameters never override files and flags.
    - ``--ckpt_path=last`` resumes a run, or starts it from scratch if the run folder has no checkpoint.
    - A run that starts from scratch archives an earlier run in its folder, unless it fails before its first step.
    """

    def __init__(self, *classes: Any, **settings: Any) -> None:
        self.command = next(iter(settings["args"]), "")  # `subcommands` reads it while the parser is built
        super().__init__(*classes, **settings)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return only the command that runs. Building the parser of a command takes as long as parsing all settings."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name == self.command}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the name of the method, and one section for each callback."""
        parser.add_argument("--method", default=UNNAMED, help="name of the method, for loggers; conf/method/ sets it")
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
                raise UserError(
                    f"--ckpt_path=last: no checkpoint in {folder}. Run `fit` first, or give the path of a checkpoint."
                )
            print(f"Resuming from {last}." if last else f"No checkpoint in {folder}; starting from scratch.")
        config["weights_only"] = True  # Lightning loads the file with weights_only as well
        if config.get("ckpt_path") is not None:
            read_checkpoint(config["ckpt_path"])  # report a missing, damaged or foreign file before models are built

    def before_fit(self) -> None:
        """Archive an earlier run. Lightning calls this hook after everything is built and before anything runs.

        Raises:
            UserError: A model has no adapter, the run has no steps, or it has finished them with other settings.
        """
        for name, spec in (("student", self.model.student_spec), ("teacher", self.model.teacher_spec)):
            if spec is not None:
                check_family(spec, name)
        for setting in ("max_steps", "max_epochs"):
            if getattr(self.trainer, setting) == 0:
                raise UserError(f"trainer.{setting} is 0: nothing would be trained. Set it to at least 1.")
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if ckpt_path := self._get(self.config_init, "ckpt_path"):
            config = yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_none=False))
            check_not_finished(self.trainer, Path(ckpt_path), config)
        else:
            self.trainer.callbacks.append(PreviousRun(self.trainer))  # type: ignore[attr-defined]


def _forget_init_args(_: Any, previous: Any, value: Any) -> None:
    """Override jsonargparse: when ``class_path`` changes, discard all previous ``init_args``, equal names included."""
    if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
        previous.pop("init_args")


def shipped_files(arguments: list[str]) -> list[str]:
    """Replace files of ``conf/`` that the working directory lacks with the package's copies.

    Args:
        arguments: The command and its flags.

    Raises:
        UserError: A file of ``conf/`` does not exist.

    >>> shipped_files(["fit", "--config=conf/method/mine.yaml"])
    Traceback (most recent call last):
    lightning_switchkd.core.errors.UserError: conf/method/mine.yaml does not exist. Available in conf/method: ...
    """
    resolved = []
    for word in arguments:
        if found := CONF_FILE.fullmatch(word):
            word = f"{found['flag'] or ''}{existing(found['file'])}"
        resolved.append(word)
    return resolved


def run_lightning(arguments: list[str]) -> None:
    """Run ``fit``, ``validate`` or ``test`` by LightningCLI, or a command that takes the settings of ``fit``.

    Args:
        arguments: The command and its flags.
    """
    own = OWN_COMMANDS.get(arguments[0])
    arguments = shipped_files(arguments)
    names = {"prog": f"{program()} {arguments[0]}", "description": own.__doc__} if own else {"prog": program()}
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    _typehints.discard_init_args_on_class_path_change = _forget_init_args
    (own or SwitchKDCLI)(
        SwitchKD,
        LLaVADataModule,
        args=arguments[1:] if own else arguments,
        run=own is None,
        parser_kwargs={"parser_mode": "omegaconf+", **names},
        parser_class=LightningParser,
        auto_configure_optimizers=False,
        save_config_callback=None if own else RunFiles,
        save_config_kwargs={"save_to_log_dir": False},
    )


class OwnCommandCLI(SwitchKDCLI):
    """Base of the commands that take the settings of ``fit`` and do something else with them."""

    def _parse_ckpt_path(self) -> None:
        """Ignore ``ckpt_path``: these commands read no checkpoint."""


class ValidateDataCLI(OwnCommandCLI):
    """Check every sample. Writes a report and the list of samples to exclude."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the flags of the report."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--output", default="reports/data", help="folder for the report and the list")
        parser.add_argument("--workers", type=int, default=os.cpu_count(), help="number of reader processes")

    def instantiate_classes(self) -> None:
        """Read all samples. Exits with status 1 if the data needs a fix."""
        config, trainer = self.config, self.config.trainer
        devices = len(trainer.devices) if isinstance(trainer.devices, list) else trainer.devices
        devices = int(devices) if str(devices).isdecimal() else None  # the machine resolves "auto" and -1
        data = LLaVADataModule(**config.data.as_dict())
        geometry = trainer.accumulate_grad_batches, devices * trainer.num_nodes if devices else None
        if not validate_data(data, Path(config.output), config.workers, *geometry):
            sys.exit(1)


class FillCacheCLI(OwnCommandCLI):
    """Compute the teacher's hidden states of all samples once, for later runs."""

    def instantiate_classes(self) -> None:
        """Fill the cache."""
        super().instantiate_classes()
        if self.model.teacher_cache is None or Need.TEACHER not in self.model.objective.needs:
            raise UserError(
                "fill-cache needs a teacher cache and an objective that reads the teacher's hidden states. "
                "Set --model.teacher_cache.folder (OVERLAYS=teacher_cache), and a model.objective with a teacher."
            )
        trainer: Any = self.trainer
        callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, StepProgressBar)]
        trainer.callbacks = [*callbacks, TQDMProgressBar()]  # StepProgressBar counts training steps
        trainer.predict(self.model, self.datamodule, return_predictions=False)


class DryRunCLI(OwnCommandCLI):
    """Estimate FLOPs, memory, time and price of a full-size run, by arithmetic. Needs no GPU and no weights."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the flags of the estimate."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Plan)

    def instantiate_classes(self) -> None:
        """Print the report."""
        self.config.trainer.accelerator, self.config.trainer.devices = "cpu", 1  # the GPUs are on another machine
        super().instantiate_classes()
        config, strategy, precision = self.config, self.trainer.strategy, str(self.trainer.precision)
        plan = Plan(**{f.name: config[f.name] for f in fields(Plan)})
        shards = Shards(plan.devices, strategy.shard_teacher) if isinstance(strategy, FSDP2) else Shards()
        print(dry_run(self.model, plan, precision, config.data.batch_size, shards))


OWN_COMMANDS: dict[str, type[OwnCommandCLI]] = {
    "validate-data": ValidateDataCLI,
    "fill-cache": FillCacheCLI,
    "dry-run": DryRunCLI,
}
