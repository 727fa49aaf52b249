"""The command line: ``python -m lightning_switchkd COMMAND``."""

from __future__ import annotations

import logging
import os
import sys
import warnings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data loader's workers are forked after tokenizers ran

from jsonargparse import auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import InterpolationResolutionError
from transformers.utils import logging as transformers_logging

from lightning_switchkd.cli.commands import COMMANDS, switched_on
from lightning_switchkd.cli.lightning import LIGHTNING_COMMANDS, run_lightning
from lightning_switchkd.core.errors import UserError, out_of_memory
from lightning_switchkd.training.callbacks.interruption import Interrupted

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
