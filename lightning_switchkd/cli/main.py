"""The command line: LightningCLI's fit, validate and test, and the package's own commands."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data loader's workers are forked after tokenizers ran

import torch
from jsonargparse import _typehints, auto_cli, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from omegaconf.errors import InterpolationResolutionError
from transformers.utils import logging as transformers_logging

from lightning_switchkd.training.callbacks import (
    AnswerPanel,
    DataHealth,
    DBiLDStatistics,
    ExportStudent,
    FiniteSteps,
    GreedyValidation,
    Interruption,
    StepProgressBar,
    Throughput,
    VisionGradients,
)
from lightning_switchkd.training.callbacks.interruption import Interrupted
from lightning_switchkd.training.callbacks.run_files import RunRecord, set_aside
from lightning_switchkd.models.convert import convert
from lightning_switchkd.models.export import export, read_checkpoint
from lightning_switchkd.training.checkpoints.io import newest
from lightning_switchkd.data.datamodule import LLaVADataModule
from lightning_switchkd.data.repack import repack
from lightning_switchkd.data.validate.validate import validate_data
from lightning_switchkd.estimation.dry_run import Plan, dry_run
from lightning_switchkd.core.errors import UserError, out_of_memory
from lightning_switchkd.evaluation.chat import generate
from lightning_switchkd.evaluation.runner import evaluate
from lightning_switchkd.evaluation.report.report import report
from lightning_switchkd.evaluation.score import score
from lightning_switchkd.experiments.sweep import ablation
from lightning_switchkd.training.module import SwitchKD
from lightning_switchkd.objectives.terms import Need
from lightning_switchkd.training.strategies import FSDP2
from lightning_switchkd.estimation.memory import Shards

COMMANDS: dict[str, Callable[..., Any]] = {
    "export": export,
    "convert": convert,
    "generate": generate,
    "evaluate": evaluate,
    "score": score,
    "report": report,
    "ablation": ablation,
    "repack": repack,
}

CALLBACKS: dict[str, type[Callback]] = {
    "checkpoint": ModelCheckpoint,
    "interruption": Interruption,
    "lr_monitor": LearningRateMonitor,
    "finite": FiniteSteps,
    "statistics": DBiLDStatistics,
    "gradients": VisionGradients,
    "data_health": DataHealth,
    "throughput": Throughput,
    "progress": StepProgressBar,
    "greedy": GreedyValidation,
    "panel": AnswerPanel,
    "export": ExportStudent,
}
"""Callbacks of every run, each with a section of flags (``--greedy.records=0``); ``trainer.callbacks`` adds others."""

USAGE = """\
usage: python -m lightning_switchkd COMMAND [--help] [options]

  fit            train: --config FILE ... [--trainer.max_steps=10 --model.lr=1e-4 --ckpt_path=FILE ...]
  validate       loss terms and token accuracy on the validation data
  test           the same on the test data
  export         write the student of a checkpoint as a Hugging Face folder
  convert        write a TinyLLaVA, LLaVA-1.5 or xtuner checkpoint as a native model folder
  generate       ask a model folder about an image: one question, or --chat
  evaluate       ask model folders the questions of benchmarks, and score the answers
  score          score any system's answer file on a benchmark
  report         results of several systems side by side, with published rows: HTML, Markdown, JSON
  ablation       train the methods of a study over several seeds, and compare them
  validate-data  read every record of the data: a report, and a list of those to leave out
  fill-cache     write the teacher's hidden rows of all records to model.teacher_cache, for the runs to come
  dry-run        a recipe at full size without a download: time and memory of its steps, hours and GPU memory of all
  repack         write a data set in another format: JSON, JSONL, Parquet or tar

Configurations lie in conf/ and are given in this order: base, data, model, trainer, experiment (`make help`).
"""


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
            set_aside(Path(self.trainer.default_root_dir))


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
        save_config_callback=None if own else RunRecord,
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
                "is missing. Set --model.teacher_cache.folder (WITH=teacher_cache), and an objective with a teacher."
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

NOISE = (
    ".*FSDP2-wrapped module.*returned a view tensor.*",  # nobody writes into it
    ".*module\\(s\\) in eval mode at the start of training.*",  # the teacher, on purpose
    ".*does not have many workers.*",
    ".*LightningCLI's args parameter.*",
    ".*predict returned None.*",  # what it is for lies on the disk
    ".*Experiment logs directory.*exists and is not empty.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)


def quiet() -> None:
    """Leaves out what other packages say at every start and nobody can act on."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda line: "Tip:" not in line.getMessage())
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)


def user_error_in(error: BaseException | None) -> str | None:
    """The user's mistake behind an error, however often the parser has wrapped it; Lightning's refusals are such."""
    while error is not None:
        early_stopping = isinstance(error, RuntimeError) and str(error).startswith("Early stopping conditioned on")
        if isinstance(error, UserError | MisconfigurationException) or early_stopping:
            return str(error)
        error = error.__cause__
    return None


def switched_on(function: Callable[..., Any], arguments: list[str]) -> list[str]:
    """``--strict`` alone is ``--strict=true``, for every truth value that a command takes.

    >>> def score(strict: bool = False) -> None: ...
    >>> switched_on(score, ["--strict", "--output", "x"]), switched_on(score, ["--strict", "false"])
    (['--strict=true', '--output', 'x'], ['--strict', 'false'])
    """
    names = {f"--{name}" for name, of in signature(function).parameters.items() if of.annotation in (bool, "bool")}
    following = [*arguments[1:], "--"]
    return [
        f"{word}=true" if word in names and after.lower() not in ("true", "false") else word
        for word, after in zip(arguments, following, strict=True)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Runs one command. A user's mistake ends in one paragraph on standard error and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    quiet()
    try:
        if command in LIGHTNING_COMMANDS:
            run_lightning(arguments)
        elif command in COMMANDS:
            prog = f"python -m lightning_switchkd {command}"
            given = switched_on(COMMANDS[command], arguments[1:])
            auto_cli(COMMANDS[command], args=given, as_positional=False, prog=prog)
        elif command in ("-h", "--help"):
            print(USAGE, end="")
        else:
            raise UserError(f"'{command}' is no command. There are: {', '.join((*LIGHTNING_COMMANDS, *COMMANDS))}.")
    except Interrupted as interrupted:
        print(interrupted.message, file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except InterpolationResolutionError as error:
        print(
            f"error: {error.full_key}: {str(error).splitlines()[0]}. ${{…}} reaches other sections only in files given "
            "by --config, which hold a whole tree (model:, data:, trainer:, ...), not in a file for one section.",
            file=sys.stderr,
        )
        sys.exit(2)
    except (ValueError, RuntimeError, MemoryError, MisconfigurationException) as error:
        if (mistake := user_error_in(error) or out_of_memory(error)) is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
