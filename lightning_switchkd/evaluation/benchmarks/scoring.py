"""Scorings of ``conf/benchmarks.yaml``: functions that score one answer, each with the tally that adds scores up."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lightning_switchkd.core.text import exact_match
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers import Reply, ScoringProtocol, llava, lmms, vlmevalkit
from lightning_switchkd.evaluation.benchmarks.scorers.documents import anls, relaxed_match
from lightning_switchkd.evaluation.benchmarks.scorers.mmmu import contains
from lightning_switchkd.evaluation.benchmarks.scorers.short_answer import consensus, evalai
from lightning_switchkd.evaluation.benchmarks.tallies import MME, POPE, Abilities, Circular, Mean, WithImages


@dataclass(frozen=True, slots=True)
class Judged:
    """Score of one answer.

    Attributes:
        score: Score from 0 to 1.
        reply: 1 for a yes, -1 for a no, 0 for any other answer. Only yes-or-no benchmarks set it.
    """

    score: float
    reply: int = 0


Judge = Callable[..., Judged]
"""(item, text, **settings of the benchmark) -> Judged"""


@dataclass(frozen=True)
class Scoring:
    """Scoring of a kind of benchmark: the function that scores one answer, and the tally."""

    judge: Judge
    tally: Mean


def by_reply(parse: Callable[[str], Reply]) -> Judge:
    """Score a yes or a no."""

    def judge(item: Item, text: str) -> Judged:
        reply = parse(text)
        return Judged(float(reply == item.answers[0].lower()), {"yes": 1, "no": -1, "other": 0}[reply])

    return judge


def by_letter(parse: Callable[[str, Mapping[str, str]], str | None]) -> Judge:
    """Score the letter of an option."""
    return lambda item, text: Judged(float(parse(text, item.options) == item.answers[0]))


def by_equality(equal: Callable[[str, str], bool]) -> Judge:
    """Score by comparison with one correct answer."""
    return lambda item, text: Judged(float(equal(text, item.answers[0])))


def by_people(score: Callable[[str, Sequence[str]], float]) -> Judge:
    """Score by the answers of several people."""
    return lambda item, text: Judged(score(text, item.answers))


def by_mmmu(
    parse: Callable[[str, Mapping[str, str]], str | None], open_match: Callable[[str, Sequence[str]], bool]
) -> Judge:
    """Score a letter or an open answer by MMMU's rules."""

    def judge(item: Item, text: str, fallback: str = "random") -> Judged:
        if not item.options:
            return Judged(float(open_match(text, item.answers)))
        letter = parse(text, item.options)
        if letter is None and fallback == "random":  # "wrong": it scores 0
            letter = random.Random(f"42/{item.id}").choice(list(item.options))
        return Judged(float(letter in item.answers))

    return judge


def by_mmmu_as_choice(item: Item, text: str, fallback: str = "wrong") -> Judged:
    """Score an answer to MMMU by VLMEvalKit's rules, which make every question a choice and never guess."""
    if not item.options:
        return Judged(float(vlmevalkit.mmmu_open(text, item.answers)))
    return Judged(float(vlmevalkit.choice(text, item.options) in item.answers))


def by_exact_match(item: Item, text: str) -> Judged:
    """Score by exact match with any correct answer, ignoring leading and trailing white space."""
    return Judged(float(any(exact_match(text, answer) for answer in item.answers)))


def by_short_answer(item: Item, text: str) -> Judged:
    """Score by match with any correct answer, ignoring case, articles, number words and punctuation."""
    return Judged(float(evalai(text) in {evalai(answer) for answer in item.answers}))


def by_anls(item: Item, text: str) -> Judged:
    """Score by the similarity to the closest correct answer, letter by letter (DocVQA, ST-VQA)."""
    return Judged(anls(text, item.answers))


def by_relaxed_match(item: Item, text: str) -> Judged:
    """Score by match with any correct answer, where numbers may differ by 5 % (ChartQA)."""
    return Judged(float(any(relaxed_match(text, answer) for answer in item.answers)))


def any_yes_no(text: str) -> Reply:
    """Parse a yes or a no anywhere in the answer. An answer with both is neither."""
    replies = {"yes", "no"} & set(re.sub(r"[^\w\s]", " ", text.lower()).split())
    return "yes" if replies == {"yes"} else "no" if replies == {"no"} else "other"


def _own(judge: Judge, tally: Mean) -> dict[ScoringProtocol, Scoring]:
    """Return a scoring of this project. It is no reference's, so it has the default protocol alone."""
    return {"llava": Scoring(judge, tally)}


SCORINGS: dict[str, dict[ScoringProtocol, Scoring]] = {
    "mme": {
        "llava": Scoring(by_reply(llava.mme), MME()),
        "lmms": Scoring(by_reply(lmms.mme), MME()),
        "vlmevalkit": Scoring(by_reply(vlmevalkit.yes_no), MME()),
    },
    "pope": {
        "llava": Scoring(by_reply(llava.pope), POPE()),
        "lmms": Scoring(by_reply(lmms.pope), POPE(pooled=True, as_lmms=True)),
        "vlmevalkit": Scoring(by_reply(vlmevalkit.yes_no), POPE(pooled=True)),
    },
    "gqa": {
        "llava": Scoring(by_equality(llava.gqa), Mean()),
        "lmms": Scoring(by_equality(lmms.gqa), Mean()),
        "vlmevalkit": Scoring(by_equality(vlmevalkit.gqa), Mean()),
    },
    "scienceqa": {
        "llava": Scoring(by_letter(llava.scienceqa), WithImages()),
        "lmms": Scoring(by_letter(lmms.scienceqa), WithImages()),
        "vlmevalkit": Scoring(by_letter(vlmevalkit.choice), WithImages()),
    },
    "mmbench": {
        "llava": Scoring(by_letter(vlmevalkit.choice), Circular()),  # LLaVA leaves it to a server
        "lmms": Scoring(by_letter(lmms.mmbench), Circular()),
        "vlmevalkit": Scoring(by_letter(vlmevalkit.choice), Circular()),
    },
    "mmmu": {
        "llava": Scoring(by_mmmu(llava.mmmu, contains), Mean()),
        "lmms": Scoring(by_mmmu(lmms.mmmu, lmms.mmmu_open), Mean()),
        "vlmevalkit": Scoring(by_mmmu_as_choice, Mean()),
    },
    "vqav2": {
        "llava": Scoring(by_people(llava.vqav2), Mean()),
        "lmms": Scoring(by_people(lmms.vqav2), Mean()),
    },
    "consensus": {
        "llava": Scoring(by_people(consensus), Mean()),
        "lmms": Scoring(by_people(consensus), Mean()),
        "vlmevalkit": Scoring(by_people(vlmevalkit.short_answer), Mean()),
    },
    "exact": _own(by_exact_match, Abilities()),
    "yes_no": _own(by_reply(any_yes_no), Mean()),
    "choice": _own(by_letter(vlmevalkit.choice), Mean()),
    "short_answer": _own(by_short_answer, Mean()),
    "anls": _own(by_anls, Mean()),
    "relaxed": _own(by_relaxed_match, Mean()),
}
"""Scorings by the name in ``conf/benchmarks.yaml``, and by protocol. The last six are for your own benchmarks.

A protocol that is missing has no such benchmark.
"""
