"""Tallies: how the scores of single answers add up to a benchmark's figures.

Every headline score is a function of sums over independent units: an image with all its questions, or in MMBench a
question with its rotations. So one bootstrap over units gives the interval of every benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.significance import Floats, interval_of_score, resample_sums

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


CATEGORY, ABILITY = attrgetter("category"), attrgetter("ability")


class Mean:
    """Tally whose headline is the mean score of all questions, in percent.

    Attributes:
        category_scale: Factor of the scores of single categories, which may be in points.
    """

    category_scale = 1

    def counts(self, item: Item) -> bool:
        """Return whether a question counts in the headline."""
        return True

    def unit(self, item: Item) -> str:
        """Return the independent unit of a question."""
        return item.image or item.id

    def pair(self, index: int, item: Item) -> str:
        """Return the key by which two systems are compared: a question, or all rows that belong to one question."""
        return str(index)

    def sums(self, items: Sequence[Item], judged: Floats) -> Floats:
        """Return ``[U, d]``: what each unit contributes to the headline.

        Args:
            items: N questions.
            judged: ``[N, 2]``: score, and reply (1 for a yes, -1 for a no).
        """
        rows = [i for i, item in enumerate(items) if self.counts(item)]
        return self.sums_of_all([items[i] for i in rows], judged[rows])

    def sums_of_all(self, items: Sequence[Item], judged: Floats) -> Floats:
        """Return the same, including questions that do not count in the headline."""
        _, unit = np.unique([self.unit(item) for item in items], return_inverse=True)
        parts = self.parts(items, judged)  # [N, d]
        sums = np.zeros((int(unit.max(initial=-1)) + 1, parts.shape[1]))
        np.add.at(sums, unit.reshape(-1), parts)
        return self.of_unit(sums)

    def parts(self, items: Sequence[Item], judged: Floats) -> Floats:
        """Return ``[N, d]``: what each question contributes."""
        return np.stack([judged[:, 0], np.ones(len(items))], axis=1)

    def of_unit(self, sums: Floats) -> Floats:
        """Return what each unit contributes, given the sums ``[U, d]`` over its questions."""
        return sums

    def headline(self, sums: Floats) -> Floats:
        """Return the headline in percent, given the sums ``[..., d]`` over all units."""
        percentages: Floats = 100 * _ratio(sums[..., 0], sums[..., 1])
        return percentages

    def score(self, items: Sequence[Item], judged: Floats) -> float:
        """Return the headline of questions."""
        return float(self.headline(self.sums(items, judged).sum(0)))

    def resamples(self, items: Sequence[Item], judged: Floats) -> Floats:
        """Return the headline in percent over bootstrap resamples of the units: ``[R]``.

        The draws depend on the number of units alone, so they are the same for every system.
        """
        return self.headline(resample_sums(self.sums(items, judged)))

    def scores(self, items: Sequence[Item], judged: Floats) -> tuple[float, dict[str, float], dict[str, float]]:
        """Return the headline, the scores by category, and further figures with the scores by ability.

        All are in percent, except for MME's categories and further figures, which are in points.

        Args:
            items: N questions.
            judged: ``[N, 2]``: score, and reply (1 for a yes, -1 for a no).
        """
        by_category, by_ability = (
            {name: self.category(*part) for name, part in _grouped(items, judged, key).items()}
            for key in (CATEGORY, ABILITY)
        )
        figures = self.figures(items, judged, by_category) | (by_ability if len(by_ability) > 1 else {})
        return self.score(items, judged), by_category if len(by_category) > 1 else {}, figures

    def category_intervals(self, items: Sequence[Item], judged: Floats) -> dict[str, tuple[float, float]]:
        """Return the 95 % intervals of the scores by category, by bootstrap over the units of each."""
        parts = _grouped(items, judged, CATEGORY)
        return {name: self._interval(*part) for name, part in parts.items() if len(parts) > 1}

    def category(self, items: Sequence[Item], judged: Floats) -> float:
        """Return the score of the questions of one category, whether they count in the headline or not."""
        return self.category_scale * float(self.headline(self.sums_of_all(items, judged).sum(0)))

    def _interval(self, items: Sequence[Item], judged: Floats) -> tuple[float, float]:
        sums = self.sums_of_all(items, judged)
        low, high = interval_of_score(self.headline(resample_sums(sums)), len(sums))
        return self.category_scale * low, self.category_scale * high

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """Return the further figures that the benchmark reports.

        Args:
            items: N questions.
            judged: ``[N, 2]``: score, and reply (1 for a yes, -1 for a no).
            categories: Score of each category.
        """
        return {}


class Abilities(Mean):
    """Mean over all questions, which also reports the plain mean over categories."""

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """Return the mean over categories, regardless of their sizes."""
        return {"average": float(np.mean(list(categories.values())))}


class WithImages(Mean):
    """Mean over the questions with an image (ScienceQA-IMG)."""

    def counts(self, item: Item) -> bool:
        """Return whether the question has an image."""
        return bool(item.pictures)

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """Return the score of all questions, including those without an image."""
        return {"all questions": self.category(items, judged)}


class Circular(Mean):
    """MMBench's CircularEval: a question is correct if all its rotations are.

    The rotations of a question have the same ``index`` modulo 10⁶.
    """

    def unit(self, item: Item) -> str:
        """Return the question that a rotation belongs to.

        Raises:
            UserError: The id is not a number, or not unique.
        """
        if not item.id.isdecimal():
            raise UserError(f"CircularEval needs unique numbers as ids, got '{item.id}'. Fix the ids, or use 'choice'.")
        return str(int(item.id) % 1_000_000)

    def pair(self, index: int, item: Item) -> str:
        """Return the question."""
        return self.unit(item)

    def of_unit(self, sums: Floats) -> Floats:
        """Return 1 for each question whose rotations are all correct."""
        return np.stack([sums[:, 0] == sums[:, 1], np.ones(len(sums))], axis=1).astype(np.float64)

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """Return the accuracy over single rows."""
        return {"vanilla accuracy": Mean().score(items, judged)}


class MME(Mean):
    """MME's perception score as a percentage of 2,000 points.

    The points of a category, at most 200, are its accuracy plus the percentage of images with both answers correct.
    """

    category_scale = 2

    def counts(self, item: Item) -> bool:
        """Return whether the category belongs to perception."""
        return item.category in PERCEPTION

    def parts(self, items: Sequence[Item], judged: Floats) -> Floats:
        """Return correct and asked in the columns of the category, and two zeros that :meth:`of_unit` fills."""
        names = sorted({item.category for item in items})
        parts = np.zeros((len(items), len(names), 4))
        for row, item in enumerate(items):
            parts[row, names.index(item.category), :2] = judged[row, 0], 1
        return parts.reshape(len(items), -1)

    def of_unit(self, sums: Floats) -> Floats:
        """Return for each image and category: correct, asked, 1 if all are correct, 1 if any was asked."""
        by_category = sums.reshape(len(sums), -1, 4)
        by_category[..., 3] = by_category[..., 1] > 0
        by_category[..., 2] = by_category[..., 3] * (by_category[..., 0] == by_category[..., 1])
        return by_category.reshape(len(by_category), -1)

    def headline(self, sums: Floats) -> Floats:
        """Return the mean over the categories that were asked. 200 points are 100 %."""
        correct, asked, both, images = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 4), -1, 0)
        points = 100 * (_ratio(correct, asked) + _ratio(both, images))
        percentages: Floats = _ratio(points.sum(-1), 2 * (asked > 0).sum(-1))
        return percentages

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """Return the points of perception (at most 2,000) and cognition (at most 800), if all categories were asked."""
        groups = {"perception": PERCEPTION, "cognition": COGNITION}
        return {
            name: sum(categories[category] for category in group)
            for name, group in groups.items()
            if set(group) <= categories.keys()
        }


@dataclass(frozen=True)
class POPE(Mean):
    """F1, with yes as the positive answer. A ratio with denominator 0 counts as 0.

    Attributes:
        pooled: The headline is the F1 of all splits together. Default: the mean of the splits' F1.
        as_lmms: Leave answers other than yes and no out of precision, recall and F1, and report the yes ratio of the
            labels, as lmms-eval does. Default: they count as a no, and the yes ratio is that of the answers.
    """

    pooled: bool = False
    as_lmms: bool = False

    def parts(self, items: Sequence[Item], judged: Floats) -> Floats:
        """Return the counts of each question in the columns of its split.

        They are true positives, predicted yes, labeled yes, correct, asked, and the yes of the yes ratio.
        """
        splits = sorted({item.category for item in items})
        parts = np.zeros((len(items), len(splits), NUM_COUNTS))
        for row, item in enumerate(items):
            score, reply = judged[row]
            predicted, labeled = reply > 0, item.answers[0].lower() == "yes"
            found = labeled and (reply != 0 or not self.as_lmms)
            yes = labeled if self.as_lmms else predicted
            parts[row, splits.index(item.category)] = predicted and labeled, predicted, found, score, 1, yes
        return parts.reshape(len(items), -1)

    def headline(self, sums: Floats) -> Floats:
        """Return the F1 in percent."""
        by_split = sums.reshape(*sums.shape[:-1], -1, NUM_COUNTS)
        return _f1(by_split.sum(-2)) if self.pooled else _f1(by_split).mean(-1)

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """Return both F1, and the figures of all splits together and of each split."""
        by_split = self.sums(items, judged).sum(0).reshape(-1, NUM_COUNTS)
        figures = {"mean F1": float(_f1(by_split).mean()), "pooled F1": float(_f1(by_split.sum(0)))}
        figures |= _detection(by_split.sum(0))
        if len(by_split) > 1:
            for split, counts in zip(sorted({item.category for item in items}), by_split, strict=True):
                figures |= {f"{split} {name}": value for name, value in _detection(counts).items()}
        return figures


NUM_COUNTS = 6


def _f1(counts: Floats) -> Floats:
    """Return F1 in percent, given the counts of :class:`POPE` in the last axis."""
    true_positives, predicted, labeled = np.moveaxis(counts[..., :3], -1, 0)
    return np.asarray(100 * _ratio(2 * true_positives, predicted + labeled))


def _detection(counts: Floats) -> dict[str, float]:
    """Return the further figures in percent, given the counts of :class:`POPE`."""
    true_positives, predicted, labeled, correct, asked, yes = counts
    ratios = {
        "accuracy": (correct, asked),
        "precision": (true_positives, predicted),
        "recall": (true_positives, labeled),
        "yes ratio": (yes, asked),
    }
    return {name: 100 * float(_ratio(*parts)) for name, parts in ratios.items()}


def _ratio(part: Any, whole: Any) -> Any:
    """Divide. A denominator of 0 gives 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _grouped(items: Sequence[Item], judged: Floats, key: Callable[[Item], str]) -> dict[str, tuple[list[Item], Floats]]:
    """Return the questions and scores of each group, in alphabetical order."""
    rows: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        rows.setdefault(key(item), []).append(row)
    return {name: ([items[i] for i in rows[name]], judged[rows[name]]) for name in sorted(rows)}
