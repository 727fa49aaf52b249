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

from lightning_switchkd.errors import UserError
from lightning_switchkd.evaluation.items import Item
from lightning_switchkd.evaluation.scorers import Protocol
from lightning_switchkd.evaluation.scorers.choice import mmbench_letter, mmmu_letter, mmmu_open, scienceqa_letter
from lightning_switchkd.evaluation.scorers.short_answer import consensus, equal, evalai
from lightning_switchkd.evaluation.scorers.yes_no import COGNITION, PERCEPTION, mme_reply, pope_reply

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


def by_consensus(item: Item, text: str, protocol: Protocol, normaliser: Mapping[str, Any] = NORMALISER) -> Judged:
    """Against the answers of ten people."""
    return Judged(consensus(text, item.answers, normaliser[protocol]))


def by_equality(item: Item, text: str, protocol: Protocol) -> Judged:
    """GQA's exact match."""
    return Judged(float(equal(text, item.answers[0], protocol)))


def exactly(item: Item, text: str, protocol: Protocol) -> Judged:
    """The very text, but for white space around it."""
    return Judged(float(text.strip() in item.answers))


def by_short_answer(item: Item, text: str, protocol: Protocol) -> Judged:
    """Any of the right answers, case, articles, number words and punctuation aside."""
    return Judged(float(evalai(text) in {evalai(answer) for answer in item.answers}))


def by_mme(item: Item, text: str, protocol: Protocol) -> Judged:
    """Yes or no as MME reads it."""
    reply = mme_reply(text.replace("\n", " ").replace("\t", " "), protocol)
    return Judged(float(reply == item.answers[0].lower()), reply == "yes")


def by_pope(item: Item, text: str, protocol: Protocol) -> Judged:
    """Yes or no as POPE reads it."""
    reply = pope_reply(text, protocol)
    return Judged(float(reply == item.answers[0].lower()), reply == "yes")


def by_yes_no(item: Item, text: str, protocol: Protocol) -> Judged:
    """Yes or no anywhere in the answer, but not both."""
    reply = pope_reply(text, "vlmevalkit")
    return Judged(float(reply == item.answers[0].lower()), reply == "yes")


def by_scienceqa(item: Item, text: str, protocol: Protocol) -> Judged:
    """A letter as ScienceQA's code reads it."""
    return Judged(float(scienceqa_letter(text.strip(), len(item.options), protocol) == item.answers[0]))


def by_choice(item: Item, text: str, protocol: Protocol) -> Judged:
    """A letter or an option's text, as MMBench's exact matching reads it."""
    return Judged(float(mmbench_letter(text, item.options, protocol) == item.answers[0]))


def by_mmmu(item: Item, text: str, protocol: Protocol, fallback: str = "random") -> Judged:
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
        _, place = np.unique([self.unit(items[i]) for i in rows], return_inverse=True)
        parts = self.parts([items[i] for i in rows], judged[rows])
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
        """The score of questions of one category."""
        return self.score(items, judged)

    def figures(self, items: Sequence[Item], judged: Floats) -> dict[str, float]:
        """What else the benchmark reports."""
        return {}


class Abilities(Mean):
    """All questions are the headline; the plain mean over categories stands beside it."""

    def figures(self, items: Sequence[Item], judged: Floats) -> dict[str, float]:
        """The mean over categories, whatever their sizes."""
        categories = np.array([item.category for item in items])
        return {"average": float(100 * np.mean([judged[categories == c, 0].mean() for c in np.unique(categories)]))}


class WithImages(Mean):
    """Questions with an image alone (ScienceQA-IMG)."""

    def counts(self, item: Item) -> bool:
        """With an image."""
        return bool(item.pictures)

    def category(self, items: Sequence[Item], judged: Floats) -> float:
        """Of all of the category."""
        return Mean().score(items, judged)

    def figures(self, items: Sequence[Item], judged: Floats) -> dict[str, float]:
        """Text-only questions as well."""
        return {"all questions": Mean().score(items, judged)}


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

    def figures(self, items: Sequence[Item], judged: Floats) -> dict[str, float]:
        """Every row by itself."""
        return {"vanilla accuracy": Mean().score(items, judged)}


class MME(Mean):
    """MME's perception score as a share of 2,000; a category's is accuracy plus the share of images with both right."""

    def parts(self, items: Sequence[Item], judged: Floats) -> Floats:
        """Right and asked, in the columns of its category."""
        places = {name: n for n, name in enumerate(PERCEPTION)}
        parts = np.zeros((len(items), len(PERCEPTION), 4))
        for row, item in enumerate(items):
            parts[row, places[item.category], :2] = judged[row, 0], 1
        return parts.reshape(len(items), -1)

    def counts(self, item: Item) -> bool:
        """Perception alone."""
        return item.category in PERCEPTION

    def of_unit(self, summed: Floats) -> Floats:
        """An image: right, asked, both right, one image."""
        of = summed.reshape(len(summed), -1, 4)
        of[..., 2], of[..., 3] = (of[..., 1] > 0) & (of[..., 0] == of[..., 1]), of[..., 1] > 0
        return of.reshape(len(of), -1)

    def headline(self, sums: Floats) -> Floats:
        """The mean over the categories that were asked."""
        of = sums.reshape(*sums.shape[:-1], -1, 4)
        scores = _share(of[..., 0], of[..., 1]) + _share(of[..., 2], of[..., 3])
        there = of[..., 1] > 0
        shares: Floats = 100 * _share((scores * there).sum(-1), 2 * there.sum(-1))
        return shares

    def category(self, items: Sequence[Item], judged: Floats) -> float:
        """At most 200."""
        as_one = [Item(i.id, "", category=PERCEPTION[0], image=i.image) for i in items]
        return 2 * self.score(as_one, judged)

    def figures(self, items: Sequence[Item], judged: Floats) -> dict[str, float]:
        """Perception (at most 2,000) and cognition (at most 800), where all of their categories were asked."""
        rows: dict[str, list[int]] = {}
        for row, item in enumerate(items):
            rows.setdefault(item.category, []).append(row)
        scores = {name: self.category([items[i] for i in of], judged[of]) for name, of in rows.items()}
        groups = {"perception": PERCEPTION, "cognition": COGNITION}
        return {n: sum(scores[c] for c in group) for n, group in groups.items() if set(group) <= scores.keys()}


class POPE(Mean):
    """The mean of the splits' F1, a yes being the positive."""

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
        of = sums.reshape(*sums.shape[:-1], -1, 5)
        return np.asarray(100 * _share(2 * of[..., 0], of[..., 1] + of[..., 2]).mean(-1))

    def figures(self, items: Sequence[Item], judged: Floats) -> dict[str, float]:
        """Of all splits together."""
        one = [Item(i.id, "", i.answers, image=i.image) for i in items]
        hits, said, true, right, asked = self.sums(one, judged).sum(0)
        shares = {
            "accuracy": (right, asked),
            "precision": (hits, said),
            "recall": (hits, true),
            "yes ratio": (said, asked),
        }
        return {name: 100 * float(_share(np.asarray(a), np.asarray(b))) for name, (a, b) in shares.items()}


def _share(part: Any, whole: Any) -> Any:
    """0 of nothing."""
    return np.divide(part, whole, out=np.zeros_like(np.asarray(part, dtype=np.float64)), where=np.asarray(whole) > 0)


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
