"""A sweep: several methods over several seeds, evaluated on the same questions. Finished runs are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.extras import pyplot
from lightning_switchkd.core.files import write_atomic
from lightning_switchkd.evaluation.report.curves import read_metrics
from lightning_switchkd.experiments.definition import Search, SweepDefinition
from lightning_switchkd.experiments.pipeline import Pipeline, load_definition, run, stages_of
from lightning_switchkd.experiments.scheduler import Launch
from lightning_switchkd.experiments.stage import Stage
from lightning_switchkd.experiments.sweep_report import write_report


def run_sweep(
    launch: Launch,
    sweep: str,
    variables: Mapping[str, Any],
    methods: Sequence[str] | None = None,
    flags: str = "",
    output: str | None = None,
    jobs: int | None = None,
    dry: bool = False,
) -> None:
    """Make the data and the models, train all methods, ask all models the same questions, and write the comparison.

    Args:
        launch: Runs a command of the command line, such as ``["fit", …]``.
        sweep: YAML file of the sweep.
        variables: Fields to use instead of the file's, such as ``data`` and ``seeds``.
        methods: Run only these methods. None runs all.
        flags: More flags for every training.
        output: Folder of the report. None is ``reports/SWEEP-DATA``.
        jobs: Stages at a time. None is one per processor core.
        dry: Print the commands, and run nothing.

    Raises:
        UserError: The definition or an input is wrong, or a run failed.
    """
    pyplot("sweep")  # report a missing package before the first run
    definition = SweepDefinition.read(sweep, variables)
    if unknown := set(methods or ()) - definition.methods.keys():
        raise UserError(f"--methods: unknown {sorted(unknown)}. Available: {', '.join(definition.methods)}.")
    names = [name for name in definition.methods if methods is None or name in methods]
    of_seed = {seed: SweepDefinition.read(sweep, variables, seed) for seed in definition.seeds}
    shared = stages_of(load_definition(definition.pipeline, "sweep"), {"seeds": definition.seeds}, definition.pipeline)
    chosen: dict[str, dict[str, Any]] = {}
    if search := definition.search_settings():
        chosen = _search(launch, definition, search, names, shared, flags, jobs, dry)
    trainings = {
        name: [of.training(name, seed, flags, chosen.get(name)) for seed, of in of_seed.items()] for name in names
    }
    answers = {name: _model_answers(name, of_seed) for name in definition.models}
    for name, runs in trainings.items():
        answers[name] = [definition.answers(run.name, str(run.output)) for run in runs]
    by_seed = [training for runs in zip(*trainings.values(), strict=True) for training in runs]
    asked = [stage for stages in answers.values() for stage in stages]
    pipeline = Pipeline([*shared, *by_seed, *asked], sweep)
    targets = [stage.name for stage in asked]
    pipeline.check(targets)
    run(launch, pipeline, targets, jobs, dry)
    if not dry:
        folder = Path(output or f"reports/{Path(sweep).stem}-{definition.data}")
        print(write_report(folder, definition, answers, trainings))


def _model_answers(name: str, of_seed: Mapping[int, SweepDefinition]) -> list[Stage]:
    """Return the stage in which a model answers, or one per seed if each seed has its own model."""
    folders = {seed: definition.models[name] for seed, definition in of_seed.items()}
    one, *others = folders.items()
    if all(folder == one[1] for _, folder in others):
        return [of_seed[one[0]].answers(name, one[1])]
    return [of_seed[seed].answers(f"{name}/{seed}", folder) for seed, folder in folders.items()]


def _search(
    launch: Launch,
    definition: SweepDefinition,
    search: Search,
    names: Sequence[str],
    shared: Sequence[Stage],
    flags: str,
    jobs: int | None,
    dry: bool,
) -> dict[str, dict[str, Any]]:
    """Try the combinations of a search with every method, and choose each method's best on validation data."""
    combinations = search.combinations()
    numbers = range(len(combinations))
    trials = {name: [definition.trial(name, number, search, flags) for number in numbers] for name in names}
    pipeline = Pipeline([*shared, *(trial for every in trials.values() for trial in every)], "search")
    targets = [trial.name for every in trials.values() for trial in every]
    pipeline.check(targets)
    run(launch, pipeline, targets, jobs, dry)
    if dry:
        return {}
    chosen = {}
    for name, every in trials.items():
        scores = [_last(trial.folder, search.metric) for trial in every]
        best = (max if search.mode == "max" else min)(numbers, key=scores.__getitem__)
        chosen[name] = combinations[best]
        print(f"{name}: {search.metric} is best ({scores[best]:.4f}) with {combinations[best]}")
        table = [{"settings": c, search.metric: s} for c, s in zip(combinations, scores, strict=True)]
        write_atomic(Path(definition.folder, name, "search.json"), json.dumps(table, indent=1))
    return chosen


def _last(run: Path, metric: str) -> float:
    values = read_metrics(run).get(metric)
    if not values:
        raise UserError(f"search.metric: {run}/metrics.csv has no '{metric}'.")
    return values[-1][1]
