"""Scorings of ``conf/benchmarks.yaml``: functions that score one answer, each with the tally that adds scores up."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_switchkd.core.text import exact_match
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.benchmarks.scorers.choice import (
    mmbench_letter,
    mmmu_letter,
    mmmu_open,
    scienceqa_letter,
)
from lightning_switchkd.evaluation.benchmarks.scorers.short_answer import consensus, equal, evalai
from lightning_switchkd.evaluation.benchmarks.scorers.yes_no import mme_reply, pope_reply
from lightning_switchkd.evaluation.benchmarks.tallies import MME, POPE, Abilities, Circular, Mean, WithImages


@dataclass(frozen=True, slots=True)
class Judged:
    """Score of one answer.

    Attributes:
        score: Score from 0 to 1.
        positive: Whether the answer is a yes, in yes-or-no benchmarks.
    """

    score: float
    positive: bool = False


Judge = Callable[..., Judged]
"""(item, text, protocol, **settings of the benchmark) -> Judged"""

NORMALIZER = {"llava": "evalai", "lmms": "evalai", "vlmevalkit": "vlmevalkit"}


def by_consensus(
    item: Item, text: str, protocol: ScoringProtocol, normalizer: Mapping[str, Any] = NORMALIZER
) -> Judged:
    """Score by agreement with the answers of ten people."""
    return Judged(consensus(text, item.answers, normalizer[protocol]))


def by_equality(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """Score by GQA's exact match."""
    return Judged(float(equal(text, item.answers[0], protocol)))


def by_exact_match(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """Score by exact match with any correct answer, ignoring leading and trailing white space."""
    return Judged(float(any(exact_match(text, answer) for answer in item.answers)))


def by_short_answer(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """Score by match with any correct answer, ignoring case, articles, number words and punctuation."""
    return Judged(float(evalai(text) in {evalai(answer) for answer in item.answers}))


def by_mme(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """Score a yes or no by MME's rules."""
    reply = mme_reply(text.replace("\n", " ").replace("\t", " "), protocol)
    return Judged(float(reply == item.answers[0].lower()), reply == "yes")


def by_pope(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """Score a yes or no by POPE's rules."""
    reply = pope_reply(text, protocol)
    return Judged(float(reply == item.answers[0].lower()), reply == "yes")


def by_yes_no(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """Score a yes or no anywhere in the answer. An answer with both is wrong."""
    reply = pope_reply(text, "vlmevalkit")
    return Judged(float(reply == item.answers[0].lower()), reply == "yes")


def by_scienceqa(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """Score a letter by ScienceQA's rules."""
    return Judged(float(scienceqa_letter(text.strip(), len(item.options), protocol) == item.answers[0]))


def by_choice(item: Item, text: str, protocol: ScoringProtocol) -> Judged:
    """Score a letter or an option's text by MMBench's exact matching."""
    return Judged(float(mmbench_letter(text, item.options, protocol) == item.answers[0]))


def by_mmmu(item: Item, text: str, protocol: ScoringProtocol, fallback: str = "random") -> Judged:
    """Score a letter or an open answer by MMMU's rules.

    Args:
        item: The question.
        text: The answer.
        protocol: Rules to apply where evaluation harnesses disagree.
        fallback: Treatment of an answer without a letter: ``random`` guesses a letter, ``wrong`` scores 0.
    """
    if not item.options:
        return Judged(float(mmmu_open(text, item.answers)))
    letter = mmmu_letter(text, item.options, protocol)
    if letter is None and fallback == "random":
        letter = random.Random(f"42/{item.id}").choice(list(item.options))
    return Judged(float(letter in item.answers))


@dataclass(frozen=True)
class Scoring:
    """Scoring of a kind of benchmark: the function that scores one answer, and the tally."""

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
    "exact": Scoring(by_exact_match, Abilities()),
    "yes_no": Scoring(by_yes_no, Mean()),
    "choice": Scoring(by_choice, Mean()),
    "short_answer": Scoring(by_short_answer, Mean()),
}
"""Scorings by the name in ``conf/benchmarks.yaml``. The last four are for your own benchmarks."""
