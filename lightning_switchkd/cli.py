"""The command line: LightningCLI's fit, validate and test, and the package's own commands."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data loader's workers are forked after tokenizers ran

from jsonargparse import auto_cli, set_parsing_settings
from lightning.pytorch.cli import LightningCLI
from transformers.utils import logging as transformers_logging

from lightning_switchkd.checkpoints.export import export, read_checkpoint
from lightning_switchkd.data.datamodule import LLaVADataModule
from lightning_switchkd.errors import UserError
from lightning_switchkd.evaluation.evaluate import evaluate
from lightning_switchkd.evaluation.generate import generate
from lightning_switchkd.module import SwitchKD

LIGHTNING_COMMANDS = ("fit", "validate", "test")
COMMANDS: dict[str, Callable[..., Any]] = {"export": export, "generate": generate, "evaluate": evaluate}

USAGE = """\
usage: python -m lightning_switchkd COMMAND [--help] [options]

  fit         train: --config FILE ... [--trainer.max_steps=10 --model.lr=1e-4 --ckpt_path=FILE ...]
  validate    loss terms and token accuracy on the validation data
  test        the same on the test data
  export      write the student of a checkpoint as a Hugging Face folder
  generate    ask a model folder a question about an image
  evaluate    greedy answers of model folders on LLaVA records: table, plot, example page

Configurations lie in conf/ and are given in this order: base, data, model, trainer, experiment (`make help`).
"""


class SwitchKDCLI(LightningCLI):
    """LightningCLI, except that a checkpoint's hyperparameters never override files and flags."""

    def _parse_ckpt_path(self) -> None:
        path = self.config[self.config["subcommand"]].get("ckpt_path")
        if path is not None and path not in ("last", "best", "hpc"):
            read_checkpoint(path)  # missing, damaged or foreign: say so before anything is built


def run_lightning(arguments: list[str]) -> None:
    """fit, validate or test, as LightningCLI does it."""
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    SwitchKDCLI(
        SwitchKD,
        LLaVADataModule,
        args=arguments,
        parser_kwargs={"parser_mode": "omegaconf+"},
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
    )


NOISE = (
    ".*module\\(s\\) in eval mode at the start of training.*",  # the teacher, on purpose
    ".*does not have many workers.*",
    ".*LightningCLI's args parameter.*",
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


def user_error_in(error: BaseException | None) -> UserError | None:
    """The user's mistake behind an error, however often the parser has wrapped it."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


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
            auto_cli(COMMANDS[command], args=arguments[1:], as_positional=False, prog=prog)
        elif command in ("-h", "--help"):
            print(USAGE, end="")
        else:
            raise UserError(f"'{command}' is no command. There are: {', '.join((*LIGHTNING_COMMANDS, *COMMANDS))}.")
    except ValueError as error:
        if (mistake := user_error_in(error)) is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
