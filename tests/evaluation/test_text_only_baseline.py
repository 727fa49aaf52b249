"""Tests of the text-only baseline on a tiny example, counted by hand."""

from __future__ import annotations

from lightning_switchkd.data.samples import Turn
from lightning_switchkd.evaluation.text_only_baseline import text_only_answers


def turns(*pairs: tuple[str, str]) -> list[Turn]:
    return [turn for question, reply in pairs for turn in (Turn("user", question), Turn("assistant", reply))]


TRAINING = [
    [Turn("system", "Be brief."), *turns(("<image>\nIs it red?", "no"), ("Is it round?", "yes"))],
    turns(("<image>\nIs it red?", "yes"), ("Is it round?", "no")),
    turns(("<image>\nIs it round?", "no"), ("Is it red?", "no")),
    turns(("<image>\nWhich color?", " teal "), ("Which color?", "red"), ("Which color?", "teal")),
]


def answers(*texts: str) -> list[str]:
    return text_only_answers(TRAINING, texts)


def test_every_turn_counts_wherever_the_placeholder_is() -> None:
    assert answers("Is it red?", "Is it round?", "Which color?") == ["no", "no", "teal"]


def test_unseen_text_gets_most_common_answer_of_all() -> None:
    assert answers("Is it large?") == ["no"]
