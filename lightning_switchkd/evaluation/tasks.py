"""The benchmarks of an evaluation: named ones, LLaVA files, and the test samples of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.runs import read_config
from lightning_switchkd.evaluation.answer_store import AnswerLog
from lightning_switchkd.evaluation.answers import read_answers
from lightning_switchkd.evaluation.benchmarks.definition import SAMPLE_SUFFIXES, Benchmark, images_beside
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.readers import Turns
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.labels import NO_IMAGE
from lightning_switchkd.evaluation.matching import Matched, match
from lightning_switchkd.evaluation.results import QUESTIONS
from lightning_switchkd.evaluation.score import rate
from lightning_switchkd.evaluation.text_only_baseline import read_conversations, text_only_answers

TEST = "test"
"""The benchmark that stands for the test samples of a run."""

PRESENT = "present"
"""Stands for the benchmarks whose files exist."""

EXTRA_TOKENS = 8
"""Tokens of an answer beyond the length of the longest correct one, for spaces and the end of the turn."""

ANSWERS = ".answers.jsonl"


@dataclass(frozen=True)
class Task:
    """The questions of one benchmark.

    Attributes:
        benchmark: Its definition.
        folder: Folder of its files.
        items: The questions.
        protocol: Prompts and rules.
        exclude: List of training samples that the text-only baseline skips.
    """

    benchmark: Benchmark
    folder: Path
    items: Sequence[Item]
    protocol: ScoringProtocol
    exclude: str | None = None

    @property
    def num_turns(self) -> int:
        """The number of questions in the longest conversation, up to the question that is asked."""
        return 1 + max(sum(turn.role == "user" for turn in item.history) for item in self.items)

    def stem(self, no_image: bool) -> str:
        """Return the name of the files, without their endings."""
        return f"{self.benchmark.name}.{NO_IMAGE}" if no_image else self.benchmark.name

    def answer_log(self, answers_folder: Path) -> AnswerLog:
        """Return the stored answers of a model."""
        return AnswerLog(answers_folder, self.items, [self.benchmark.prompt_of(i, self.protocol) for i in self.items])

    def rate(self, log: AnswerLog, output: Path, no_image: bool) -> None:
        """Write and score a model's answers. The name of ``output`` is the name of the model."""
        file = output / f"{self.stem(no_image)}{ANSWERS}"
        log.write(file, output.name)
        matched = match(self.items, *read_answers(file))
        result = rate(self.benchmark, self.folder, self.items, matched, self.protocol, str(file))
        result.write(output / f"{self.stem(no_image)}.json")

    def remove_no_image(self, output: Path) -> None:
        """Remove a model's earlier result with blank images, which may be of other questions or weights."""
        for ending in (".json", QUESTIONS, ANSWERS):
            (output / f"{self.stem(no_image=True)}{ending}").unlink(missing_ok=True)

    def rate_text_only_baseline(self, output: Path) -> None:
        """Score the most common training answer to each question, and write the result."""
        training = self.benchmark.training
        files = [training] if isinstance(training, str) else training
        conversations = [turns for file in files for turns in read_conversations(file, self.exclude)]
        answers = text_only_answers(conversations, [item.question for item in self.items])
        result = rate(self.benchmark, self.folder, self.items, Matched(list(answers)), self.protocol, ", ".join(files))
        result.write(output / f"{self.benchmark.name}.json")


@dataclass(frozen=True)
class TaskReader:
    """Reads the questions that an evaluation asks.

    Attributes:
        run: Run folder, if any. It provides test samples, an image folder and training samples.
        output: Folder for the definitions of benchmarks that have no YAML file.
        image_root: Folder that image paths in LLaVA files are relative to.
        turns: Questions of a conversation to ask.
        data_root: Value of {root} in definitions.
        annotations: Folders of benchmark files by name.
        protocol: Prompts and rules.
        limit: Number of questions of each benchmark.
    """

    run: str | None
    output: Path
    image_root: str | None
    turns: Turns
    data_root: str
    annotations: Mapping[str, str]
    protocol: ScoringProtocol
    limit: int | None

    def read(self, requested: Sequence[str], published: Sequence[str]) -> list[Task]:
        """Read the questions of all benchmarks.

        Args:
            requested: Names, YAML files, LLaVA files, ``test`` or ``present``.
            published: The benchmarks that ``present`` chooses from.

        Raises:
            UserError: The files of a benchmark are missing or invalid, the protocol does not have a benchmark, or two
                benchmarks have the same name.
        """
        names = list(published) if list(requested) == [PRESENT] else list(requested)
        benchmarks = [benchmark for name in names for benchmark in self._benchmarks(name)]
        chosen = [benchmark.name for benchmark in benchmarks]
        if twice := {name for name in chosen if chosen.count(name) > 1}:
            raise UserError(f"--benchmarks: two benchmarks have the name '{min(twice)}'. Rename a file.")
        folders = [b.folder(self.data_root, self.annotations.get(b.name)) for b in benchmarks]
        pairs = list(zip(benchmarks, folders, strict=True))
        missing = [(benchmark, folder) for benchmark, folder in pairs if not benchmark.available(folder)]
        if list(requested) == [PRESENT]:
            pairs = [pair for pair in pairs if pair not in missing]
            if not pairs:
                raise UserError(f"--benchmarks present: {self.data_root} has the files of none of {', '.join(names)}.")
        elif len(missing) > 1:
            places = "\n".join(f"- {benchmark.name}: {folder}" for benchmark, folder in missing)
            raise UserError(
                f"The files of {len(missing)} benchmarks are missing. Provide them "
                f"(docs/reference/benchmarks-and-protocols.md), or set --benchmarks present:\n{places}"
            )
        for benchmark, _ in pairs:
            benchmark.rules(self.protocol)
        return [self._task(benchmark, folder) for benchmark, folder in pairs]

    def _benchmarks(self, name: str) -> list[Benchmark]:
        if name == TEST:
            return self._test_of_run()
        if Path(name).suffix in SAMPLE_SUFFIXES:
            root = self.image_root or next((s["image_root"] for s in self._data(TEST)), None) or images_beside(name)
            return [self._of_samples(re.sub(r"[^\w-]+", "_", Path(name).stem), name, root)]
        return [Benchmark.read(name)]

    def _test_of_run(self) -> list[Benchmark]:
        data_sets = self._data(TEST)
        if not data_sets:
            place = f"{self.run} has no test samples (data.test)" if self.run else "'test' needs a run folder (--run)"
            raise UserError(f"--benchmarks: {place}. Give names of conf/benchmarks.yaml or a LLaVA file.")
        names = [TEST] if len(data_sets) == 1 else [f"{TEST}_{number}" for number in range(1, len(data_sets) + 1)]
        return [
            self._of_samples(name, data["annotations"], self.image_root or data["image_root"])
            for name, data in zip(names, data_sets, strict=True)
        ]

    def _data(self, split: str) -> list[dict[str, Any]]:
        """Return the data sets of a split of the run."""
        value = self._run_data.get(split)
        return value if isinstance(value, list) else [value] if value else []

    @cached_property
    def _run_data(self) -> dict[str, Any]:
        """The data settings of the run."""
        return dict(read_config(self.run)["data"]) if self.run else {}

    def _of_samples(self, name: str, annotations: str, image_root: str | None) -> Benchmark:
        """Define a benchmark of samples in LLaVA's format."""
        training = [data["annotations"] for data in self._data("train")]
        file = self.output / f"{name}.yaml"
        _check_name(file, annotations)
        training = training if all(map(glob, training)) else []  # not behind URLs, or on another machine
        return Benchmark.of_samples(annotations, str(file), image_root, self.turns, training)

    def _task(self, benchmark: Benchmark, folder: Path) -> Task:
        items = benchmark.items(folder)
        if benchmark.from_samples:
            longest = max(
                len(answer.encode()) for item in items for answer in item.answers
            )  # a token has a byte or more
            benchmark = replace(benchmark, max_new_tokens=longest + EXTRA_TOKENS)
        exclude = self._run_data.get("exclude") if benchmark.from_samples else None
        return Task(benchmark, folder, items[: self.limit], self.protocol, exclude)


def _check_name(definition: Path, annotations: str) -> None:
    """Check that a benchmark of samples replaces no results of other samples with the same name.

    Args:
        definition: Its YAML file, if it was evaluated before.
        annotations: Its samples.

    Raises:
        UserError: It does.
    """
    earlier = Benchmark.read(str(definition)).layouts[0]["annotations"] if definition.is_file() else annotations
    if Path(earlier).resolve() != Path(annotations).resolve():
        raise UserError(
            f"--benchmarks: {definition.parent} already has results of '{definition.stem}' on other questions "
            f"({earlier}, now {annotations}). Set another folder with --output, or rename the file."
        )
