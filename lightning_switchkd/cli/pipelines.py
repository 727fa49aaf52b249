"""The commands `pipeline` and `sweep`, which launch other commands."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial

from lightning_switchkd.cli.main import main
from lightning_switchkd.experiments.pipeline import run_pipeline


def pipeline(
    pipeline: str = "conf/pipeline/emoji.yaml",
    variables: dict[str, str] | None = None,
    stages: list[str] | None = None,
    jobs: int | None = None,
    train_prepared: bool = False,
    command: str = "fit",
    launcher: str = "",
    dry: bool = False,
) -> None:
    """Run the stages of a pipeline in order: data, models, trainings, evaluation.

    Finished stages are kept, and interrupted trainings resume: run the same command again. A stage runs again if its
    settings, its data or its models changed.

    Args:
        pipeline: file of conf/pipeline/.
        variables: values of its variables, ``--variables.method=dbild``.
        stages: run these stages and what they need. Default: the targets of the pipeline.
        jobs: stages at a time. Default: one per processor core if all train on one CPU each, else one.
        train_prepared: train the models that ship with the package.
        command: run this command with the settings of the stages, instead of training: dry-run, validate-data, ...
        launcher: program that starts the processes of a training, such as srun.
        dry: print the commands, and run nothing.
    """
    launch = partial(launch_by, launcher.split()) if launcher else main
    run_pipeline(launch, pipeline, variables, stages, jobs, train_prepared, command, dry)


def launch_by(launcher: list[str], arguments: list[str]) -> None:
    """Run a training by another program, such as srun, and pass it a Ctrl-C. Other commands run in this process."""
    if arguments[0] != "fit":
        return main(arguments)
    process = subprocess.Popen([*launcher, sys.executable, "-m", "lightning_switchkd", *arguments])
    try:
        process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
    sys.exit(process.returncode)


def sweep(
    sweep: str = "conf/sweep/methods.yaml",
    variables: dict[str, str] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    flags: str = "",
    output: str | None = None,
    jobs: int | None = None,
    dry: bool = False,
) -> None:
    """Train all methods of a sweep from one student, ask all the same questions, and write the comparison.

    The models of the sweep are made first, by the stages of its pipeline. Finished runs are kept, as in `pipeline`.

    Args:
        sweep: what is compared, a file of conf/sweep/.
        variables: values of its fields, ``--variables.data=digits``.
        methods: run only these methods.
        seeds: use these seeds instead of the sweep's.
        flags: more flags for every run, as one text.
        output: folder of the report. Default: reports/ and the names of the sweep and the data.
        jobs: runs at a time. Default: one per processor core.
        dry: print the commands, and run nothing.
    """
    from lightning_switchkd.experiments.sweep import run_sweep  # its report needs the evaluation

    values = {**(variables or {}), **({"seeds": seeds} if seeds else {})}
    run_sweep(main, sweep, values, methods, flags, output, jobs, dry)
