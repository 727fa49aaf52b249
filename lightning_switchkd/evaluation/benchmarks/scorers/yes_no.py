"""Yes-or-no answers: MME and POPE."""

from __future__ import annotations

import re
from typing import Literal

from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol

Reply = Literal["yes", "no", "other"]

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def mme_reply(text: str, protocol: ScoringProtocol = "llava") -> Reply:
    """Parse an answer by MME's rules: yes or no anywhere in the first four letters.

    Source: MME's ``calculation.py``. lmms-eval first strips the answer, removes periods, and accepts a single letter.

    >>> mme_reply("Eyes"), mme_reply("It is yes")
    ('yes', 'other')
    """
    text = text.lower()
    if protocol == "lmms":
        text = text.strip().replace(".", "")
        text = {"y": "yes", "n": "no"}.get(text, text)
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def pope_reply(text: str, protocol: ScoringProtocol = "llava") -> Reply:
    """Parse an answer by POPE's rules. With ``llava``, every answer without a no is a yes.

    >>> pope_reply("NO"), pope_reply("NO", "lmms"), pope_reply("Nope", "vlmevalkit")
    ('yes', 'no', 'other')
    """
    if protocol == "llava":
        words = text.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "no", "not"} & set(words) else "yes"
    if protocol == "lmms":
        lowered = text.lower()
        return "yes" if lowered == "yes" else "no" if lowered == "no" else "other"
    replies = {"yes", "no"} & set(re.sub(r"[^\w\s]", " ", text.lower()).split())
    return "yes" if replies == {"yes"} else "no" if replies == {"no"} else "other"
