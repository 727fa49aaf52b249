"""Results of systems on benchmarks, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.benchmarks.tables import load_json
from lightning_switchkd.evaluation.benchmarks.tallies import Mean
from lightning_switchkd.evaluation.significance import Floats, interval_of_score

QUESTIONS = ".questions.json"
"""Suffix of the file next to a result, with every answer and its score."""


def is_result(file: Path) -> bool:
    """Return whether a file is one of the two that :meth:`Result.write` writes."""
    return file.name.endswith(QUESTIONS) or file.with_suffix(QUESTIONS).is_file()


@dataclass
class Result:
    """Result of a system on a benchmark.

    Attributes:
        benchmark: Name of the benchmark.
        definition: Name in ``conf/benchmarks.yaml``, or YAML file of the benchmark. Empty for another harness.
        title: Title of the benchmark.
        protocol: Rules that were applied.
        annotations: Folder of the benchmark's files.
        answers: The system's answer file.
        questions: Number of scored questions.
        score: Headline score in percent. None if no labels are known.
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        categories: Scores by category.
        figures: Further figures that the benchmark reports.
        odd: Numbers of missing, unknown, doubled, damaged, failed and unlabelled answers.
        examples_of_odd: Some of their ids.
        pairs: Key of each scored question, by which it is compared with another system.
        ids: Ids of the scored questions.
        scores: Score of each, from 0 to 1.
        texts: Answer to each, or None.
        complete: Number of questions of the complete benchmark. 0 if it does not matter.
        category_intervals: 95 % intervals of the scores by category.
        resamples: The score over bootstrap resamples, which are the same for every system.
    """

    benchmark: str
    definition: str
    title: str
    protocol: ScoringProtocol
    annotations: str
    answers: str
    questions: int
    score: float | None
    low: float = 0.0
    high: float = 0.0
    categories: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    odd: dict[str, int] = field(default_factory=dict)
    examples_of_odd: dict[str, list[str]] = field(default_factory=dict)
    pairs: list[str] = field(default_factory=list, repr=False)
    ids: list[str] = field(default_factory=list, repr=False)
    scores: list[float] = field(default_factory=list, repr=False)
    texts: list[str | None] = field(default_factory=list, repr=False)
    complete: int = 0
    category_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    resamples: list[float] = field(default_factory=list, repr=False)

    @property
    def num_questions(self) -> str:
        """The number of scored questions as text. A part of the complete benchmark says so."""
        number = f"{self.questions:,}"
        return f"{number} of {self.complete:,} questions" if self.partial else f"{number} questions"

    @property
    def partial(self) -> bool:
        """True if the complete benchmark has more questions."""
        return self.questions < self.complete

    @property
    def in_points(self) -> bool:
        """True if the scores by category are points, of 200 each (MME), instead of percent."""
        return max(self.categories.values(), default=0) > 100

    def correct(self) -> dict[str, bool]:
        """Return whether each question was answered correctly, by its key. A score of 0.5 is enough."""
        correct: dict[str, bool] = {}
        for pair, score in zip(self.pairs, self.scores, strict=True):
            correct[pair] = correct.get(pair, True) and score >= 0.5
        return correct

    def set_scores(self, tally: Mean, items: Sequence[Item], judged: Floats) -> None:
        """Set all scores and intervals.

        Args:
            tally: How the scores add up.
            items: N questions.
            judged: ``[N, 2]``: score, and reply (1 for a yes, -1 for a no).
        """
        self.score, self.categories, self.figures = tally.scores(items, judged)
        self.category_intervals = tally.category_intervals(items, judged)
        resamples = tally.resamples(items, judged)
        self.low, self.high = interval_of_score(resamples, len(tally.sums(items, judged)))
        self.resamples = resamples.round(6).tolist()
        self.ids = [item.id for item in items]
        self.scores = judged[:, 0].tolist()

    def write(self, file: Path) -> None:
        """Write ``NAME.json`` with the figures, and ``NAME.questions.json`` with every answer."""
        file.parent.mkdir(parents=True, exist_ok=True)
        figures = asdict(self)
        by_question = {name: figures.pop(name) for name in ("pairs", "ids", "scores", "texts", "resamples")}
        file.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        file.with_suffix(QUESTIONS).write_text(json.dumps(by_question, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Result:
        """Read a result that :meth:`write` wrote.

        Raises:
            UserError: The file is not a result.
        """
        by_question = file.with_suffix(QUESTIONS)
        values: dict[str, Any] = {**load_json(file), **(load_json(by_question) if by_question.is_file() else {})}
        known = {f.name for f in fields(cls)}
        if not known - {"category_intervals", "complete", "resamples"} <= values.keys() <= known:  # 0.1.0 has none
            raise UserError(
                f"{file} and {by_question.name} are not a result. Write them with `score --output` or `evaluate`."
            )
        return cls(**values)
