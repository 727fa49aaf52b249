"""The definition of a sweep (``conf/sweep/``), and the stages that it consists of."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.paths import existing
from lightning_switchkd.core.renamed import SWEEP_FIELDS
from lightning_switchkd.experiments.pipeline import as_flags, load_definition, resolve
from lightning_switchkd.experiments.stage import Stage


@dataclass(frozen=True)
class Search:
    """A search for the best settings of each method, on validation data.

    Attributes:
        settings: Values to try, by dotted key.
        metric: Column of ``metrics.csv`` whose last value decides.
        mode: ``max`` or ``min``.
        samples: Number of random combinations. None tries all.
        seed: Seed of the trainings, and of the random combinations.
    """

    settings: Mapping[str, Sequence[Any]]
    metric: str = "val/exact_match"
    mode: str = "max"
    samples: int | None = None
    seed: int = 0

    def combinations(self) -> list[dict[str, Any]]:
        """Return the combinations to try."""
        every = [dict(zip(self.settings, values, strict=True)) for values in product(*self.settings.values())]
        if self.samples is None or self.samples >= len(every):
            return every
        return random.Random(self.seed).sample(every, self.samples)


@dataclass(frozen=True)
class SweepDefinition:
    """Definition of a sweep (``conf/sweep/``).

    ``${name}`` stands for another field. In methods and models, ``${seed}`` stands for the seed of the run.
    A file with ``extends: OTHER.yaml`` takes the fields it does not set from that file next to it.

    Attributes:
        description: The question of the sweep, for its report.
        data: Name of the data set.
        pipeline: Pipeline whose stages make the data and the models.
        folder: Folder of the runs, ``METHOD/SEED`` each.
        base: Configuration files of every run, in order.
        settings: Settings of every run that follow the files.
        methods: By name of the method, configuration files and settings that follow.
        seeds: Each method runs once per seed. The seed decides the order of the data.
        baseline: The method that gains are measured from.
        models: Model folders that answer the questions too. With ``${seed}``, one per seed.
        questions: LLaVA files by name, the main one first. Other files that do not exist are skipped.
        image_root: Folder of their images.
        text_only_baseline: Training annotations of the text-only baseline.
        expected_order: Pairs of methods, the better one last, that the summary checks.
        baselines: Methods whose gains are measured from another method than ``baseline``.
        search: Settings to choose for each method on validation data, before its runs. None uses the settings as given.
    """

    description: str
    data: str
    pipeline: str
    folder: str
    base: list[str]
    settings: dict[str, Any]
    methods: dict[str, list[Any]]
    seeds: list[int]
    baseline: str
    models: dict[str, str]
    questions: dict[str, str]
    image_root: str
    text_only_baseline: str
    expected_order: list[list[str]] = field(default_factory=list)
    baselines: dict[str, str] = field(default_factory=dict)
    search: dict[str, Any] | None = None

    def search_settings(self) -> Search | None:
        """Return the search, checked.

        Raises:
            UserError: A field of it is wrong.
        """
        if self.search is None:
            return None
        known = [f.name for f in fields(Search)]
        settings = self.search.get("settings")
        if not self.search.keys() <= set(known) or self.search.get("mode", "max") not in ("max", "min"):
            raise UserError(f"--sweep: `search` takes {', '.join(known)}. Its mode is max or min.")
        if not isinstance(settings, dict) or not all(isinstance(values, list) for values in settings.values()):
            raise UserError("--sweep: `search.settings` lists values by setting: {model.lr: [1.0e-3, 2.0e-3]}.")
        return Search(**self.search)

    def baseline_of(self, name: str) -> str:
        """Return the method that a method's gain is measured from."""
        return self.baselines.get(name, self.baseline)

    @classmethod
    def read(cls, file: str | Path, variables: Mapping[str, Any], seed: int = 0) -> SweepDefinition:
        """Read a definition, for one seed.

        Args:
            file: The YAML file.
            variables: Fields to use instead of the file's, such as ``data``.
            seed: Value of ``${seed}``.

        Raises:
            UserError: The file cannot be read, or a field is missing or unknown.
        """
        raw = load_definition(file, "sweep")
        if renamed := raw.keys() & SWEEP_FIELDS.keys():
            names = ", ".join(f"{old} -> {SWEEP_FIELDS[old]}" for old in sorted(renamed))
            raise UserError(f"--sweep: {file} uses fields that were renamed in 0.2. Change them: {names}.")
        known = {f.name for f in fields(cls)}
        optional = {"expected_order", "baselines", "search"}
        if not known - optional <= raw.keys() <= known:
            raise UserError(f"--sweep: {file} must have exactly these fields: {', '.join(sorted(known))}.")
        values = resolve({**raw, "seed": seed}, variables, str(file))
        del values["seed"]
        sweep = cls(**values)
        sweep.search_settings()
        expected = {name for pair in sweep.expected_order for name in pair}
        named = {sweep.baseline, *sweep.baselines, *sweep.baselines.values(), *expected}
        if unknown := named - sweep.methods.keys():
            raise UserError(
                f"--sweep: {file} names unknown methods: {', '.join(sorted(unknown))}. Add them to `methods`."
            )
        return sweep

    def training(self, method: str, seed: int, user_flags: str, chosen: Mapping[str, Any] | None = None) -> Stage:
        """Return the training of a method: its files, its settings, the seed, and last the user's flags.

        Args:
            method: Name of the method.
            seed: The seed.
            user_flags: More flags, as one text.
            chosen: Settings of a search, by dotted key. None outside a search.
        """
        parts = self.methods[method]
        configs = [*self.base, *(part for part in parts if isinstance(part, str))]
        for config in configs:
            existing(config)
        settings = self.settings
        for part in parts:
            settings = settings if isinstance(part, str) else merge(settings, part)
        name = f"{method}/{seed}"
        command = ["fit", f"--seed_everything={seed}", *as_flags(user_flags)]
        command += [f"--{key}={value}" for key, value in (chosen or {}).items()]
        folder = Path(self.folder, name)
        return Stage(name, folder, tuple(command), folder / "student", tuple(configs), settings)

    def trial(self, method: str, number: int, search: Search, user_flags: str) -> Stage:
        """Return the training of one combination of a search."""
        combination = search.combinations()[number]
        stage = self.training(method, search.seed, user_flags, combination)
        name = f"{method}/search/{number}"
        folder = Path(self.folder, name)
        validated = merge(
            stage.settings, {"trainer": {"limit_val_batches": 1.0}, "val_generation": {"num_samples": 512}}
        )
        return Stage(name, folder, stage.command, folder / "student", stage.configs, validated)

    def answers(self, name: str, model: str) -> Stage:
        """Return the stage in which a model answers the questions."""
        folder = Path(self.folder, f"{name}.answers")
        output = folder.with_name(f"{folder.name}.json")
        command = [
            *("ask", f"--model={model}", f"--image_root={self.image_root}", f"--output={output}"),
            *(f"--questions.{key}={file}" for key, file in self.questions.items()),
        ]
        return Stage(f"{name} answers", folder, tuple(command), output)


def merge(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested settings. Later values win.

    >>> merge({"model": {"lr": 0.1, "freeze": []}}, {"model": {"lr": 0.2}})
    {'model': {'lr': 0.2, 'freeze': []}}
    """
    merged = dict(settings)
    for key, value in more.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged
