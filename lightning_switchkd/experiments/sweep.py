"""A sweep: several methods over several seeds, evaluated on the same questions. Finished runs are kept."""

from __future__ import annotations

import os
import sys
from itertools import chain
from pathlib import Path

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.experiments.definition import SweepDefinition
from lightning_switchkd.experiments.supervisor import Launch, run_jobs
from lightning_switchkd.experiments.sweep_report import write_report


def run_sweep(
    launch: Launch,
    sweep: str,
    data: str,
    output: str | None = None,
    jobs: int | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    flags: str = "",
) -> None:
    """Train all methods of a sweep, ask all models the same questions, and write the comparison.

    Args:
        launch: Runs a command of the command line, such as ``["fit", …]``.
        sweep: YAML file of the sweep.
        data: Name of the data set, which replaces ``{data}`` in the file.
        output: Folder of the report. None is ``reports/SWEEP-DATA``.
        jobs: Runs at a time. None is one per processor core.
        methods: Run only these methods.
        seeds: Use these seeds instead of the sweep's.
        flags: More flags for every run, as one text.

    Raises:
        UserError: The file is invalid, a method is unknown, the data is missing, or a run failed.
    """
    file = Path(sweep)
    definition = SweepDefinition.read(file, data)
    if unknown := set(methods or ()) - definition.methods.keys():
        raise UserError(
            f"--methods: {file} has no {', '.join(sorted(unknown))}. "
            f"Available methods: {', '.join(definition.methods)}."
        )
    questions = {name: path for name, path in definition.questions.items() if Path(path).is_file()}
    main = next(iter(definition.questions))
    if main not in questions:
        raise UserError(f"--sweep: {definition.questions[main]} does not exist. Run `make data DATA={data}` first.")
    seeds = definition.seeds if seeds is None else seeds
    existing = {name: definition.model_jobs(questions, name, seeds) for name in definition.models}
    trained = {
        name: [definition.training_job(questions, name, seed, flags) for seed in seeds]
        for name in definition.methods
        if methods is None or name in methods
    }
    every = [
        *chain.from_iterable(existing.values()),
        *(run for runs in zip(*trained.values(), strict=True) for run in runs),
    ]
    todo = [job for job in every if not job.finished()]
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // (jobs or cores))))
    try:
        run_jobs(todo, len(every) - len(todo), jobs or cores, launch)
    except KeyboardInterrupt:
        print(
            f"\nInterrupted. Run the same command to resume. Finished runs are in {definition.folder}.", file=sys.stderr
        )
        sys.exit(130)
    folder = Path(output or f"reports/{file.stem}-{data}")
    print(write_report(folder, definition, questions, existing, trained))
