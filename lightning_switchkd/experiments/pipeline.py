"""Pipelines (``conf/pipeline/``): stages in order, from data and models to the comparison of students."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.paths import existing, read_mapping, shipped
from lightning_switchkd.experiments.prepared import PREPARED, usable
from lightning_switchkd.experiments.scheduler import Launch, run_stages
from lightning_switchkd.experiments.stage import DATA, Stage

STAGE_FIELDS = (
    *("command", "configs", "overlays", "settings", "flags", "without"),
    *("folder", "output", "prepared", "each_seed"),
)
FIXED = ("description", "folder", "base", "seeds", "targets", "stages")
"""Fields of a pipeline that are not variables of its own."""


class Pipeline:
    """Stages by name, in an order in which each follows the stages whose outputs it reads.

    Args:
        stages: All stages.
        source: The file, for messages.
        train_prepared: Train stages that have a prepared model.

    Raises:
        UserError: Stages read each other's outputs in a circle.
    """

    def __init__(self, stages: Iterable[Stage], source: str, train_prepared: bool = False) -> None:
        self.source = source
        by_name = {stage.name: stage for stage in stages}
        self.copied = {name for name, stage in by_name.items() if not train_prepared and usable(stage)}
        self.inputs = {name: {} if name in self.copied else stage.inputs() for name, stage in by_name.items()}
        self.needs = {name: self._makers(stage, by_name.values()) for name, stage in by_name.items()}
        try:
            self.stages = {name: by_name[name] for name in TopologicalSorter(self.needs).static_order()}
        except CycleError as error:
            raise UserError(
                f"{source}: these stages read each other's outputs: {' -> '.join(error.args[1])}."
            ) from None

    def _makers(self, stage: Stage, stages: Iterable[Stage]) -> list[str]:
        others = [other for other in stages if other.name != stage.name]
        return [other.name for other in others if any(makes(other, name) for name in self.inputs[stage.name])]

    def needed(self, targets: Sequence[str]) -> list[Stage]:
        """Return the targets and the stages that they need, in order.

        Raises:
            UserError: A stage is unknown.
        """
        if unknown := [name for name in targets if name not in self.stages]:
            raise UserError(f"{self.source} has no stage '{unknown[0]}'. Its stages: {', '.join(self.stages)}.")
        wanted, queue = set(targets), list(targets)
        while queue:
            new = [name for name in self.needs[queue.pop()] if name not in wanted]
            wanted.update(new)
            queue += new
        return [stage for name, stage in self.stages.items() if name in wanted]

    def check(self, targets: Sequence[str]) -> None:
        """Check the inputs of the targets and of the stages that they need, before anything runs.

        Raises:
            UserError: An input exists neither on this machine nor as the output of a stage.
        """
        stages = self.needed(targets)
        for stage in stages:
            for name, key in self.inputs[stage.name].items():
                made = any(makes(other, name) for other in stages)
                local = key.rpartition(".")[2] in DATA or name.startswith(("runs/", "datasets/", "/", "."))
                pattern = any(mark in name for mark in ("://", "{", "*", "?"))
                if local and not made and not pattern and not Path(name).exists():
                    raise UserError(f"Stage '{stage.name}': {key}={name} does not exist, and no other stage makes it.")


def makes(stage: Stage, name: str) -> bool:
    """Check whether a path is the output or the run folder of a stage, or inside one of them."""
    return any(name == str(made) or name.startswith(f"{made}/") for made in (stage.output, stage.folder))


def load_definition(file: str | Path, kind: str) -> dict[str, Any]:
    """Read a pipeline or a sweep.

    A file with ``extends: OTHER.yaml`` takes the fields that it does not set from that file next to it, and the stages
    of both.

    Args:
        file: The YAML file.
        kind: Name of the flag, for messages.

    Raises:
        UserError: The file does not exist or is not a mapping.
    """
    raw = read_mapping(file, f"--{kind}")
    if "extends" in raw:
        other = load_definition(shipped(file).parent / raw.pop("extends"), kind)
        stages = {"stages": other.get("stages", {}) | raw.get("stages", {})}
        raw = {**other, **raw, **(stages if stages["stages"] else {})}
    return raw


def resolve(definition: Mapping[str, Any], variables: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Replace ``${name}`` in a definition by the values of its top-level fields.

    Raises:
        UserError: A name is unknown, or a variable does not exist.
    """
    if unknown := variables.keys() - definition.keys():
        known = ", ".join(key for key in definition if key not in FIXED)
        raise UserError(f"{source} has no variable '{min(unknown)}'. Its variables: {known}.")
    try:
        container = OmegaConf.to_container(OmegaConf.create({**definition, **variables}), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {str(error).splitlines()[0]}") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def stages_of(definition: Mapping[str, Any], variables: Mapping[str, Any], source: str) -> list[Stage]:
    """Return the stages of a definition. A stage with ``each_seed`` becomes one stage per seed, ``NAME.SEED``.

    Raises:
        UserError: A field is unknown, a configuration file does not exist, or a reference leads nowhere.
    """
    stages, seeds = [], resolve({**definition, "stages": {}}, variables, source)["seeds"]
    for name, fields in (definition.get("stages") or {}).items():
        if unknown := fields.keys() - set(STAGE_FIELDS):
            known = ", ".join(STAGE_FIELDS)
            raise UserError(f"{source}: stage '{name}' has an unknown field '{min(unknown)}'. Known fields: {known}.")
        for seed in seeds if fields.get("each_seed") else [None]:
            own = {} if seed is None else {"seed": seed}
            values = resolve({**definition, "stages": {name: fields}, **own}, variables, source)
            stages.append(_stage(name if seed is None else f"{name}.{seed}", values["stages"][name], values))
    return stages


def _stage(name: str, fields: Mapping[str, Any], values: Mapping[str, Any]) -> Stage:
    folder = Path(fields.get("folder") or f"{values['folder']}/{name}")
    if "command" in fields:
        command = tuple(str(word) for word in fields["command"] if word is not None)
        return Stage(name, folder, command, Path(fields.get("output") or folder))
    overlays = [f"conf/overlay/{overlay}.yaml" for overlay in words(fields.get("overlays"))]
    configs = [*values["base"], *fields.get("configs", ()), *overlays]
    for config in configs:
        existing(config)
    seed = [f"--seed_everything={values['seed']}"] if fields.get("each_seed") else []
    without = tuple(f"--{key}{mark}" for key in fields.get("without", ()) for mark in ".=")
    return Stage(
        name,
        folder,
        ("fit", *seed, *(flag for flag in as_flags(fields.get("flags")) if not flag.startswith(without))),
        folder / "student",
        tuple(configs),
        fields.get("settings") or {},
        PREPARED / fields["prepared"] if fields.get("prepared") else None,
    )


def words(value: str | Sequence[str] | None) -> list[str]:
    """Split a text into its words, as a shell does. A list stays a list.

    >>> words("best 'two words'"), words(["a b"]), words(None)
    (['best', 'two words'], ['a b'], [])
    """
    return shlex.split(value) if isinstance(value, str) else [str(word) for word in value or ()]


def as_flags(value: str | Sequence[str] | None) -> list[str]:
    """Return flags as ``--key=value`` each.

    >>> as_flags("--trainer.max_steps 5 --model.lr=1e-3")
    ['--trainer.max_steps=5', '--model.lr=1e-3']
    """
    joined: list[str] = []
    for word in words(value):
        follows = joined and "=" not in joined[-1] and not word.startswith("--")
        joined[-1:] = [f"{joined[-1]}={word}"] if follows else [*joined[-1:], word]
    if wrong := [word for word in joined if not word.startswith("--") or "=" not in word]:
        raise UserError(f"'{wrong[0]}' is not a flag. Write --key=value.")
    return joined


def run_pipeline(
    launch: Launch,
    pipeline: str,
    variables: Mapping[str, str] | None = None,
    stages: Sequence[str] | None = None,
    jobs: int | None = None,
    train_prepared: bool = False,
    command: str = "fit",
    dry: bool = False,
) -> None:
    """Run the stages of a pipeline. Finished stages are kept, interrupted trainings resume.

    Args:
        launch: Runs a command of the command line, such as ``["fit", …]``.
        pipeline: The YAML file.
        variables: Values of its variables.
        stages: Run these stages and what they need. None runs the pipeline's ``targets``.
        jobs: Stages at a time (see :func:`default_jobs`).
        train_prepared: Train stages that have a prepared model.
        command: Run this command with the settings of the targets, instead of training them.
        dry: Print the commands, and run nothing.

    Raises:
        UserError: The definition or an input is wrong, or a stage failed.
    """
    definition = load_definition(pipeline, "pipeline")
    values = resolve({**definition, "stages": {}}, variables or {}, pipeline)
    loaded = Pipeline(stages_of(definition, variables or {}, pipeline), pipeline, train_prepared)
    targets = list(stages or values["targets"])
    if command == "fit":
        loaded.check(targets)
        run(launch, loaded, targets, jobs, dry)
        return
    others = [stage.name for stage in loaded.needed(targets) if stage.name not in targets]
    run(launch, loaded, others, jobs, dry)
    for name in targets:
        launch([command, *loaded.stages[name].arguments()[1:]])


def run(launch: Launch, pipeline: Pipeline, targets: Sequence[str], jobs: int | None, dry: bool) -> None:
    """Run the targets of a checked pipeline, and the stages that they need."""
    needed = pipeline.needed(targets)
    if dry:
        for stage in needed:
            copied = stage.name in pipeline.copied
            print(f"{stage.name}: {f'copy {stage.prepared}' if copied else shlex.join(stage.arguments())}")
        return
    for stage in needed:
        stage.check_writable()
    jobs = jobs or default_jobs(needed)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    try:
        run_stages(needed, pipeline.needs, jobs, launch, pipeline.copied)
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command to resume. Finished stages are kept.", file=sys.stderr)
        sys.exit(130)


def default_jobs(stages: Iterable[Stage]) -> int:
    """Return the number of stages to run at a time: one per processor core if all train on one CPU each, else one."""
    trainers = [stage.effective_settings.get("trainer", {}) for stage in stages if stage.trains]
    on_cpu = all(trainer.get("accelerator") == "cpu" and trainer.get("devices") == 1 for trainer in trainers)
    return (os.cpu_count() or 1) if on_cpu else 1
