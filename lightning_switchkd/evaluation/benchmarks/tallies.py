"""Tallies: how the scores of single answers add up to a benchmark's figures.

Every headline score is a function of sums over independent units: an image with all its questions, or in MMBench a
question with its rotations. So one bootstrap over units gives the interval of every benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers.yes_no import COGNITION, PERCEPTION
from lightning_switchkd.evaluation.significance import Floats, interval_of_score, resample_sums


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
            judged: ``[N, 2]``: score, and 1 for a yes.
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

    def category(self, items: Sequence[Item], judged: Floats) -> float:
        """Return the score of the questions of one category, whether they count in the headline or not."""
        return self.category_scale * float(self.headline(self.sums_of_all(items, judged).sum(0)))

    def category_interval(self, items: Sequence[Item], judged: Floats) -> tuple[float, float]:
        """Return the 95 % interval of the score of one category, by bootstrap over its units."""
        sums = self.sums_of_all(items, judged)
        low, high = interval_of_score(self.headline(resample_sums(sums)), len(sums))
        return self.category_scale * low, self.category_scale * high

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """Return the further figures that the benchmark reports.

        Args:
            items: N questions.
            judged: ``[N, 2]``: score, and 1 for a yes.
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


class POPE(Mean):
    """Mean of the splits' F1, with yes as the positive answer. A ratio with denominator 0 counts as 0."""

    def parts(self, items: Sequence[Item], judged: Floats) -> Floats:
        """Return true positives, predicted yes, labeled yes, correct and asked in the columns of the split."""
        splits = sorted({item.category for item in items})
        parts = np.zeros((len(items), len(splits), 5))
        for row, item in enumerate(items):
            score, predicted = judged[row]
            labeled = item.answers[0].lower() == "yes"
            parts[row, splits.index(item.category)] = predicted and labeled, predicted, labeled, score, 1
        return parts.reshape(len(items), -1)

    def headline(self, sums: Floats) -> Floats:
        """Return the mean F1 in percent."""
        true_positives, predicted, labeled, _, _ = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 5), -1, 0)
        return np.asarray(100 * _ratio(2 * true_positives, predicted + labeled).mean(-1))

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """Return the figures of all splits together."""
        true_positives, predicted, labeled, correct, asked = self.sums(items, judged).sum(0).reshape(-1, 5).sum(0)
        ratios = {
            "accuracy": (correct, asked),
            "precision": (true_positives, predicted),
            "recall": (true_positives, labeled),
            "yes ratio": (predicted, asked),
        }
        return {name: 100 * float(_ratio(*parts)) for name, parts in ratios.items()}


def _ratio(part: Any, whole: Any) -> Any:
    """Divide. A denominator of 0 gives 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
