"""The command line: ``switchkd COMMAND``, or ``python -m lightning_switchkd COMMAND``."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from importlib import import_module
from textwrap import TextWrapper
from traceback import walk_tb

from omegaconf.errors import InterpolationResolutionError

from lightning_switchkd.cli.commands import COMMANDS, run_command
from lightning_switchkd.cli.renamed import LIGHTNING_COMMANDS, check_names
from lightning_switchkd.core.errors import Interrupted, UserError, out_of_memory
from lightning_switchkd.core.paths import names_in
from lightning_switchkd.core.text import program, python

USAGE = """\
usage: {program} COMMAND [--help] [options]

Train
  distill        Distill a teacher into a student: --teacher MODEL --student MODEL --data FILE --images FOLDER
  fit            Train a student: --config FILE ... [--trainer.max_steps=10 --model.lr=1e-4 --ckpt_path=last ...]
  validate       Compute losses and token accuracy on the validation data.
  test           Compute losses and token accuracy on the test data.
  pipeline       Run the stages of conf/pipeline/ in order: data, models, trainings, evaluation.
  sweep          Train several methods over several seeds, and compare them.

Prepare
  demo-data      Write a demo data set: digits, easy_vqa or emoji. [--output FOLDER --seed 0 ...]
  dry-run        Estimate FLOPs, memory, time and price of a full-size run.
  validate-data  Check every sample. Writes a report and the list of samples to exclude.
  fill-cache     Compute the teacher's hidden states of all samples once, for later runs.
  repack         Convert a data set to JSON, JSONL, Parquet or tar.
  convert        Convert a TinyLLaVA, LLaVA-1.5 or xtuner checkpoint to a Hugging Face folder.

Evaluate
  export         Export the student of a checkpoint as a Hugging Face folder.
  generate       Ask a model about an image: one question, or --chat.
  evaluate       Run models on benchmarks, and score their answers.
  ask            Answer the questions of LLaVA files, without scores.
  score          Score any system's answer file on a benchmark.
  report         Compare results with each other and with published ones: HTML, Markdown, JSON.

Configurations: pass conf/base.yaml, then files of these folders of conf/, in this order (--config FILE ...).
{configurations}
A file of conf/ in the working directory replaces the package's. Flags override all files.
"""

CONFIGURATIONS = ("data", "model", "trainer", "method", "overlay", "pipeline", "sweep", "benchmarks.yaml")
"""Folders of ``conf/``, and the file of all benchmarks."""

COLUMN = TextWrapper(100, initial_indent="  ", subsequent_indent=" " * 17, break_on_hyphens=False)
"""Layout of a list of names below :data:`USAGE`."""


NOISE = (
    ".*Total length of `list` across ranks is zero.*",  # the first line of a run says that there is no validation data
    ".*It is recommended to use `self.log.*sync_dist=True.*",  # metrics are already added up over ranks
    ".*is smaller than the logging interval.*",  # log lines count steps across epochs
    ".*Checkpoint directory .* exists and is not empty.*",
    "Glyph .* missing from font.*",  # an answer with a rare character in the panel
    "constrained_layout not applied.*",
    ".*FSDP2-wrapped module.*returned a view tensor.*",  # the view is never written to
    ".*module\\(s\\) in eval mode at the start of training.*",  # the teacher, on purpose
    ".*does not have many workers.*",
    ".*DataLoader will create .* worker processes in total.*",  # the page on speed tells how many help
    ".*LightningCLI's args parameter.*",
    ".*predict returned None.*",  # `fill-cache` writes its results to disk
    ".*Experiment logs directory.*exists and is not empty.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)
"""Warnings of other packages that a user cannot act on."""


DEMO_DATA = ("digits", "easy_vqa", "emoji")
"""Demo data sets. Each is a module, which is imported only when it is written: it needs packages of its own."""

NOTES = re.compile("Tip:|TPU available")
"""Notes of Lightning that a user cannot act on."""

MISSING_PACKAGE = re.compile(r"Requirement '(?P<package>[^']+)' not met")
"""Lightning's message on the package of a logger."""

MISSING_GPU = re.compile("No supported gpu backend found|`CUDAAccelerator` can not run on your system")
"""Lightning's messages on a machine without a GPU."""

CONFIGURATION_ERROR = "MisconfigurationException"
"""Name of Lightning's error on settings. Importing it would import Lightning."""

WRONG_SETTING = ("Early stopping conditioned on", " `val_check_interval`")
"""How Lightning's other errors on settings begin."""


def silence_noise() -> None:
    """Hide the messages that other packages print at every start."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda line: NOTES.search(line.getMessage()) is None)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)


def importing_package(error: ModuleNotFoundError) -> str:
    """Return the package whose module imports a missing one, such as mlflow if only its smallest part is installed."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    packages = [module.partition(".")[0] for module in modules]
    return next(package for package in reversed(packages) if package != "importlib")


def find_user_error(error: BaseException | None) -> str | None:
    """Return the message of the user error behind an exception, even if the parser has wrapped the error.

    Lightning's configuration errors count as user errors, and so does a missing package or GPU.
    """
    while error is not None:
        message = str(error)
        if missing := MISSING_PACKAGE.search(message):
            return f"A setting needs a missing package: {python()} -m pip install '{missing['package']}'"
        if isinstance(error, ModuleNotFoundError) and (package := importing_package(error)) != "lightning_switchkd":
            return f"{package} needs {error.name}, which is missing: {python()} -m pip install {package}"
        if MISSING_GPU.search(message):
            return "This machine has no supported GPU. Set TRAINER=cpu, or --trainer.accelerator=cpu."
        is_configuration_error = type(error).__name__ == CONFIGURATION_ERROR
        if isinstance(error, UserError) or is_configuration_error or message.startswith(WRONG_SETTING):
            return message.strip()
        error = error.__cause__
    return None


def main(arguments: list[str] | None = None) -> None:
    """Run one command. A user error prints one paragraph to standard error and exits with status 2.

    Args:
        arguments: The command and its flags. None reads ``sys.argv``.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    silence_noise()
    try:
        check_names(arguments)
        if command in LIGHTNING_COMMANDS:
            import_module("lightning_switchkd.cli.lightning").run_lightning(arguments)
        elif command in COMMANDS:
            run_command(arguments)
        elif command == "demo-data":
            write_demo_data(arguments[1:])
        elif command in ("-h", "--help"):
            names = {kind.removesuffix(".yaml"): names_in(f"conf/{kind}") for kind in CONFIGURATIONS}
            lines = [f"{kind:<13}  {', '.join(of_kind)}" for kind, of_kind in names.items()]
            print(USAGE.format(program=program(), configurations="\n".join(map(COLUMN.fill, lines))), end="")
        else:
            available = ", ".join((*LIGHTNING_COMMANDS, *COMMANDS, "demo-data"))
            raise UserError(f"Unknown command '{command}'. Available commands: {available}.")
    except Interrupted as interrupted:
        print(interrupted.message, file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except InterpolationResolutionError as error:
        print(
            f"error: {error.full_key}: {str(error).splitlines()[0]}. ${{…}} can refer to other sections only in files "
            "given by --config, which hold all sections (model:, data:, ...), not in a file for one section.",
            file=sys.stderr,
        )
        sys.exit(2)
    except Exception as error:
        if (message := find_user_error(error) or out_of_memory(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def write_demo_data(arguments: list[str]) -> None:
    """Write a demo data set.

    Args:
        arguments: Its name and its flags.

    Raises:
        UserError: The name is unknown.
    """
    name = arguments[0] if arguments else ""
    if name not in DEMO_DATA:
        raise UserError(f"demo-data: name a data set: {', '.join(DEMO_DATA)}.")
    import_module(f"lightning_switchkd.demo.{name}").main(arguments[1:])
