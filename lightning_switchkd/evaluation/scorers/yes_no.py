"""Yes or no: MME and POPE."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_switchkd.evaluation.scorers import Protocol

Reply = Literal["yes", "no", "other"]

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def mme_reply(text: str, protocol: Protocol = "llava") -> Reply:
    """What MME takes an answer for: yes or no anywhere in its first four letters.

    Source: MME's ``calculation.py``; lmms-eval first strips, drops periods, and takes a single letter.

    >>> mme_reply("Eyes"), mme_reply("It is yes")
    ('yes', 'other')
    """
    text = text.lower()
    if protocol == "lmms":
        text = text.strip().replace(".", "")
        text = {"y": "yes", "n": "no"}.get(text, text)
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_category(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Score of a category, at most 200: accuracy, and the share of images of which both questions are right.

    >>> mme_category([(True, True), (True, False)])
    125.0
    """
    single = sum(map(sum, pairs)) / (2 * len(pairs))
    return 100 * single + 100 * sum(all(pair) for pair in pairs) / len(pairs)


def mme_totals(categories: Mapping[str, float]) -> tuple[float, float]:
    """Perception (at most 2,000) and cognition (at most 800) from the scores of all fourteen categories.

    Raises:
        KeyError: one is missing.
    """
    return sum(categories[name] for name in PERCEPTION), sum(categories[name] for name in COGNITION)


def pope_reply(text: str, protocol: Protocol = "llava") -> Reply:
    """What POPE takes an answer for; ``llava`` takes all that does not say no for a yes.

    >>> pope_reply("NO"), pope_reply("NO", "lmms"), pope_reply("Nope", "vlmevalkit")
    ('yes', 'no', 'other')
    """
    if protocol == "llava":
        words = text.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "no", "not"} & set(words) else "yes"
    if protocol == "lmms":
        lowered = text.lower()
        return "yes" if lowered == "yes" else "no" if lowered == "no" else "other"
    said = {"yes", "no"} & set(re.sub(r"[^\w\s]", " ", text.lower()).split())
    return "yes" if said == {"yes"} else "no" if said == {"no"} else "other"


@dataclass(frozen=True)
class Detection:
    """How well presence is told, a yes being the positive; 0 where a share is of nothing."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float


def detection(replies: Iterable[Reply], labels: Iterable[Reply]) -> Detection:
    """POPE's figures of one split. What is neither yes nor no counts as wrong.

    >>> round(detection(["yes", "yes", "no"], ["yes", "yes", "yes"]).f1, 3)
    0.8
    """
    pairs = list(zip(replies, labels, strict=True))
    hits = sum(reply == label == "yes" for reply, label in pairs)
    said, true = sum(reply == "yes" for reply, _ in pairs), sum(label == "yes" for _, label in pairs)
    precision, recall = _share(hits, said), _share(hits, true)
    return Detection(
        _share(sum(reply == label for reply, label in pairs), len(pairs)),
        precision,
        recall,
        _share(2 * precision * recall, precision + recall),
        _share(said, len(pairs)),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
