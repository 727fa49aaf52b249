"""From answers to a benchmark's figures: how each answer is judged, and how judgements add up.

Every headline is a function of sums over independent units (an image and all its questions; in MMBench a question and
its rotations), so that one bootstrap over units gives the interval of each.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.benchmarks.scorers.choice import (
    mmbench_letter,
    mmmu_letter,
    mmmu_open,
    scienceqa_letter,
)
from lightning_switchkd.evaluation.benchmarks.scorers.short_answer import consensus, equal, evalai
from lightning_switchkd.evaluation.benchmarks.scorers.yes_no import COGNITION, PERCEPTION, mme_reply, pope_reply

Floats = NDArray[np.float64]
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Judged:
    """What an answer is worth.

    Attributes:
        score: 0 to 1.
        positive: whether it says yes, where that is asked.
    """

    score: float
    positive: bool = False


Judge = Callable[..., Judged]
"""(item, text, protocol, **settings of the benchmark) -> Judged"""

NORMALISER = {"llava": "evalai", "lmms": "evalai", "vlmevalkit": "vlmevalkit"}


def by_consensus(
    item: Item, text: str, protocol: ScoringProtocol, normaliser: Mapping[str, Any] = NORMALISER
) -> Judged:
    """Against the answers of ten people."""
    return Judged(consensus(text, item.answers, normaliser[protocol]))


def by_equality(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """GQA's exact match."""
    return Judged(float(equal(text, item.answers[0], protocol)))


def exactly(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """The very text, but for white space around it."""
    return Judged(float(text.strip() in item.answers))


def by_short_answer(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """Any of the right answers, case, articles, number words and punctuation aside."""
    return Judged(float(evalai(text) in {evalai(answer) for answer in item.answers}))


def by_mme(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """Yes or no as MME reads it."""
    reply = mme_reply(text.replace("\n", " ").replace("\t", " "), protocol)
    return Judged(float(reply == item.answers[0].lower()), reply == "yes")


def by_pope(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """Yes or no as POPE reads it."""
    reply = pope_reply(text, protocol)
    return Judged(float(reply == item.answers[0].lower()), reply == "yes")


def by_yes_no(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """Yes or no anywhere in the answer, but not both."""
    reply = pope_reply(text, "vlmevalkit")
    return Judged(float(reply == item.answers[0].lower()), reply == "yes")


def by_scienceqa(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """A letter as ScienceQA's code reads it."""
    return Judged(float(scienceqa_letter(text.strip(), len(item.options), protocol) == item.answers[0]))


def by_choice(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """A letter or an option's text, as MMBench's exact matching reads it."""
    return Judged(float(mmbench_letter(text, item.options, protocol) == item.answers[0]))


def by_mmmu(item: Item, text: str, protocol: ScoringProtocol, fallback: str = "random") -> Judged:
    """A letter, or an open answer. ``fallback``: an answer without a letter is guessed (``random``) or ``wrong``."""
    if not item.options:
        return Judged(float(mmmu_open(text, item.answers)))
    letter = mmmu_letter(text, item.options, protocol)
    if letter is None and fallback == "random":
        letter = random.Random(f"42/{item.id}").choice(list(item.options))
    return Judged(float(letter in item.answers))


class Mean:
    """The mean score of all questions, in per cent."""

    def counts(self, item: Item) -> bool:
        """Whether a question is in the headline."""
        return True

    def unit(self, item: Item) -> str:
        """What its question belongs to."""
        return item.image or item.id

    def pair(self, place: int, item: Item) -> str:
        """What two systems are compared by: a question; where several rows are one, all must be right."""
        return str(place)

    def sums(self, items: Sequence[Item], judged: Floats) -> Floats:
        """``[units, d]``: what the headline is made of, summed within each unit.

        Args:
            items: the questions.
            judged: ``[N, 2]``: score, and 1 for a yes.
        """
        rows = [i for i, item in enumerate(items) if self.counts(item)]
        return self.sums_of_all([items[i] for i in rows], judged[rows])

    def sums_of_all(self, items: Sequence[Item], judged: Floats) -> Floats:
        """The same of questions that are not in the headline as well."""
        _, place = np.unique([self.unit(item) for item in items], return_inverse=True)
        parts = self.parts(items, judged)
        summed = np.zeros((int(place.max(initial=-1)) + 1, parts.shape[1]))
        np.add.at(summed, place.reshape(-1), parts)
        return self.of_unit(summed)

    def parts(self, items: Sequence[Item], judged: Floats) -> Floats:
        """``[N, d]`` of single questions."""
        return np.stack([judged[:, 0], np.ones(len(items))], axis=1)

    def of_unit(self, summed: Floats) -> Floats:
        """What a unit gives, from the sums of its questions."""
        return summed

    def headline(self, sums: Floats) -> Floats:
        """``[..., d]`` of all units together -> per cent."""
        shares: Floats = 100 * _share(sums[..., 0], sums[..., 1])
        return shares

    def score(self, items: Sequence[Item], judged: Floats) -> float:
        """The headline of some questions."""
        return float(self.headline(self.sums(items, judged).sum(0)))

    def category(self, items: Sequence[Item], judged: Floats) -> float:
        """The score of questions of one category, in the headline or not."""
        return float(self.headline(self.sums_of_all(items, judged).sum(0)))

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """What else the benchmark reports, from its questions and the scores of their categories."""
        return {}


class Abilities(Mean):
    """All questions are the headline; the plain mean over categories stands beside it."""

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """The mean over categories, whatever their sizes."""
        return {"average": float(np.mean(list(categories.values())))}


class WithImages(Mean):
    """Questions with an image alone (ScienceQA-IMG)."""

    def counts(self, item: Item) -> bool:
        """With an image."""
        return bool(item.pictures)

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """Text-only questions as well."""
        return {"all questions": self.category(items, judged)}


class Circular(Mean):
    """MMBench's CircularEval: a question is right if all of its rotations are; rows of one are ``index`` modulo 10⁶."""

    def unit(self, item: Item) -> str:
        """The question, whatever the order of its options.

        Raises:
            UserError: the id is no number, or not the only one.
        """
        if not item.id.isdecimal():
            raise UserError(
                f"CircularEval tells rotations by ids, which must be different numbers; one is '{item.id}'."
            )
        return str(int(item.id) % 1_000_000)

    def pair(self, place: int, item: Item) -> str:
        """The question."""
        return self.unit(item)

    def of_unit(self, summed: Floats) -> Floats:
        """1 where all are right."""
        return np.stack([summed[:, 0] == summed[:, 1], np.ones(len(summed))], axis=1).astype(np.float64)

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """Every row by itself."""
        return {"vanilla accuracy": Mean().score(items, judged)}


class MME(Mean):
    """MME's perception score as a share of 2,000; a category's is accuracy plus the share of images with both right."""

    def counts(self, item: Item) -> bool:
        """Perception alone."""
        return item.category in PERCEPTION

    def parts(self, items: Sequence[Item], judged: Floats) -> Floats:
        """Right and asked, in the columns of its category, and room for what its image gives."""
        names = sorted({item.category for item in items})
        parts = np.zeros((len(items), len(names), 4))
        for row, item in enumerate(items):
            parts[row, names.index(item.category), :2] = judged[row, 0], 1
        return parts.reshape(len(items), -1)

    def of_unit(self, summed: Floats) -> Floats:
        """An image: right, asked, whether all is right, one image."""
        of = summed.reshape(len(summed), -1, 4)
        of[..., 3] = of[..., 1] > 0
        of[..., 2] = of[..., 3] * (of[..., 0] == of[..., 1])
        return of.reshape(len(of), -1)

    def headline(self, sums: Floats) -> Floats:
        """The mean over the categories that were asked; 200 points are 100 %."""
        right, asked, both, images = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 4), -1, 0)
        points = 100 * (_share(right, asked) + _share(both, images))
        shares: Floats = _share(points.sum(-1), 2 * (asked > 0).sum(-1))
        return shares

    def category(self, items: Sequence[Item], judged: Floats) -> float:
        """Its points, at most 200."""
        return 2 * super().category(items, judged)

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """Perception (at most 2,000) and cognition (at most 800), where all of their categories were asked."""
        groups = {"perception": PERCEPTION, "cognition": COGNITION}
        return {n: sum(categories[c] for c in of) for n, of in groups.items() if set(of) <= categories.keys()}


class POPE(Mean):
    """The mean of the splits' F1, a yes being the positive; 0 where a share is of nothing."""

    def parts(self, items: Sequence[Item], judged: Floats) -> Floats:
        """Hits, yes said, yes true, right and asked, in the columns of its split."""
        splits = sorted({item.category for item in items})
        parts = np.zeros((len(items), len(splits), 5))
        for row, item in enumerate(items):
            score, said = judged[row]
            true = item.answers[0].lower() == "yes"
            parts[row, splits.index(item.category)] = said and true, said, true, score, 1
        return parts.reshape(len(items), -1)

    def headline(self, sums: Floats) -> Floats:
        """F1 in per cent."""
        hits, said, true, _, _ = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 5), -1, 0)
        return np.asarray(100 * _share(2 * hits, said + true).mean(-1))

    def figures(self, items: Sequence[Item], judged: Floats, categories: Mapping[str, float]) -> dict[str, float]:
        """Of all splits together."""
        hits, said, true, right, asked = self.sums(items, judged).sum(0).reshape(-1, 5).sum(0)
        shares = {
            "accuracy": (right, asked),
            "precision": (hits, said),
            "recall": (hits, true),
            "yes ratio": (said, asked),
        }
        return {name: 100 * float(_share(*of)) for name, of in shares.items()}


def _share(part: Any, whole: Any) -> Any:
    """0 of nothing."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


@dataclass(frozen=True)
class Scoring:
    """How a kind of benchmark is scored."""

    judge: Judge
    tally: Mean


SCORINGS: dict[str, Scoring] = {
    "consensus": Scoring(by_consensus, Mean()),
    "gqa": Scoring(by_equality, Mean()),
    "mme": Scoring(by_mme, MME()),
    "pope": Scoring(by_pope, POPE()),
    "mmbench": Scoring(by_choice, Circular()),
    "scienceqa": Scoring(by_scienceqa, WithImages()),
    "mmmu": Scoring(by_mmmu, Mean()),
    "exact": Scoring(exactly, Abilities()),
    "yes_no": Scoring(by_yes_no, Mean()),
    "choice": Scoring(by_choice, Mean()),
    "short_answer": Scoring(by_short_answer, Mean()),
}
"""By the name in ``conf/benchmark/``; the last four are for benchmarks of one's own."""


def interval(tally: Mean, sums: Floats) -> tuple[float, float]:
    """95 % interval of a headline by bootstrap over units, in per cent."""
    generator = np.random.default_rng(0)
    drawn = np.empty((RESAMPLES, sums.shape[1]))
    for row in range(RESAMPLES):
        counts = np.bincount(generator.integers(0, len(sums), len(sums)), minlength=len(sums))
        drawn[row] = counts @ sums
    low, high = np.percentile(tally.headline(drawn), [2.5, 97.5])
    return float(low), float(high)
