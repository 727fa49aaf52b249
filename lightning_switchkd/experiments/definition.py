"""The definition of a sweep (``conf/sweep/``), and the jobs that it consists of."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.renamed import SWEEP_FIELDS

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class SweepDefinition:
    """Definition of a sweep (``conf/sweep/``).

    In every text, ``{data}`` stands for the name of the data set. In a method or a model, ``{seed}`` stands for the
    seed of the run. A file with ``extends: OTHER.yaml`` takes the fields it does not set from that file next to it.

    Attributes:
        description: The question of the sweep, for its report.
        folder: Folder of the runs, ``METHOD/SEED`` each.
        base: Configuration files and flags of every run, in order.
        methods: The files and flags that follow them, by name of the method.
        seeds: Each method runs once per seed. The seed decides the order of the data.
        baseline: The method that gains are measured from.
        models: Model folders that answer the questions too. With ``{seed}``, one per seed.
        questions: LLaVA files by name, the main one first. Missing files are skipped.
        image_root: Folder of their images.
        text_only_baseline: Training annotations of the text-only baseline.
        expected_order: Pairs of methods, the better one last, that the summary checks.
        baselines: Methods whose gains are measured from another method than ``baseline``.
    """

    description: str
    folder: str
    base: list[str]
    methods: dict[str, list[str]]
    seeds: list[int]
    baseline: str
    models: dict[str, str]
    questions: dict[str, str]
    image_root: str
    text_only_baseline: str
    expected_order: list[list[str]] = field(default_factory=list)
    baselines: dict[str, str] = field(default_factory=dict)

    def baseline_of(self, name: str) -> str:
        """Return the method that a method's gain is measured from."""
        return self.baselines.get(name, self.baseline)

    @classmethod
    def read(cls, file: Path, data: str) -> SweepDefinition:
        """Read a definition.

        Raises:
            UserError: The file cannot be read, or a field is missing or unknown.
        """
        raw = _load(file)
        known = {f.name for f in fields(cls)}
        optional = {"expected_order", "baselines"}
        if not isinstance(raw, dict) or not known - optional <= raw.keys() <= known:
            raise UserError(f"--sweep: {file} must have exactly these fields: {', '.join(sorted(known))}.")
        sweep = cls(**_fill(raw, data))
        expected = {name for pair in sweep.expected_order for name in pair}
        named = {sweep.baseline, *sweep.baselines, *sweep.baselines.values(), *expected}
        if unknown := named - sweep.methods.keys():
            raise UserError(
                f"--sweep: {file} names unknown methods: {', '.join(sorted(unknown))}. Add them to `methods`."
            )
        return sweep

    def model_jobs(self, questions: dict[str, str], name: str, seeds: Sequence[int]) -> list[Job]:
        """Return the job of an existing model, or one per seed."""
        model = self.models[name]
        if "{seed}" not in model:
            return [self._job(questions, name, model)]
        return [self._job(questions, f"{name}/{seed}", model.replace("{seed}", str(seed))) for seed in seeds]

    def training_job(self, questions: dict[str, str], method: str, seed: int, flags: str) -> Job:
        """Return one run of a method: its files as ``--config``, its flags, the seed, and last the user's flags."""
        texts = [part.replace("{seed}", str(seed)) for part in (*self.base, *self.methods[method])]
        parts = [text if text.startswith("--") else f"--config={text}" for text in texts]
        name = f"{method}/{seed}"
        fit = [*parts, f"--seed_everything={seed}", *shlex.split(flags)]
        return self._job(questions, name, f"{self.folder}/{name}/student", fit)

    def _job(self, questions: dict[str, str], name: str, model: str, fit: Sequence[str] = ()) -> Job:
        return Job(name, Path(self.folder, name), tuple(fit), model, questions, self.image_root)


def _load(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"--sweep: {file} does not exist. The sweeps of this repository are in conf/sweep/.")
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    if isinstance(raw, dict) and (renamed := raw.keys() & SWEEP_FIELDS.keys()):
        names = ", ".join(f"{old} -> {SWEEP_FIELDS[old]}" for old in sorted(renamed))
        raise UserError(f"--sweep: {file} uses fields that were renamed in 0.2. Change them: {names}.")
    if isinstance(raw, dict) and "extends" in raw:
        raw = {**_load(file.parent / raw.pop("extends")), **raw}
    return raw


def _fill(value: Any, data: str) -> Any:
    if isinstance(value, dict):
        return {key: _fill(entry, data) for key, entry in value.items()}
    if isinstance(value, list):
        return [_fill(entry, data) for entry in value]
    return value.replace("{data}", data) if isinstance(value, str) else value


@dataclass(frozen=True)
class Job:
    """One model to train, if needed, and to ask.

    Attributes:
        name: ``METHOD/SEED``, or the name of an existing model.
        place: The run folder. Answers and log are next to it.
        fit: Arguments of the training. Empty for an existing model.
        model: Folder of the model that answers.
        questions: LLaVA files by name.
        image_root: Folder of their images.
    """

    name: str
    place: Path
    fit: tuple[str, ...]
    model: str
    questions: dict[str, str]
    image_root: str

    @property
    def answers(self) -> Path:
        """Return the file of the answers. It exists when the job is finished."""
        return self.place.with_name(f"{self.place.name}.json")

    @property
    def log(self) -> Path:
        """Return the file with everything that the job printed."""
        return self.place.with_name(f"{self.place.name}.log")

    def digest(self) -> dict[str, Any]:
        """Return everything that the answers depend on, except the code."""
        values = [argument.partition("=")[2] for argument in self.fit]
        files = [Path(value) for value in values if value.endswith(".yaml")]
        texts = {
            *values,
            *(text for file in files for text in _texts(yaml.safe_load(file.read_text(encoding="utf-8")))),
        }
        models = [name for name in sorted(texts) if Path(name, WEIGHTS).is_file()] if self.fit else [self.model]
        return {
            "fit": list(self.fit),
            "files": {str(file): _hash(file) for file in [*files, *map(Path, self.questions.values())]},
            "models": {name: _hash(Path(name, WEIGHTS)) for name in models},
        }

    def finished(self) -> bool:
        """Check that the answers exist and were made with the same settings, models and questions."""
        if not self.answers.is_file():
            return False
        stored = json.loads(self.answers.read_text(encoding="utf-8"))
        return bool(stored.get("digest") == self.digest())


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a configuration. Some of them are model folders."""
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)
    elif isinstance(value, str):
        yield value


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else "missing"
