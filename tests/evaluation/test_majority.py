"""The text-only baseline on a tiny example, counted by hand."""

from __future__ import annotations

from lightning_switchkd.data.samples import Turn
from lightning_switchkd.evaluation.text_only_baseline import majority_answers


def said(*pairs: tuple[str, str]) -> list[Turn]:
    return [turn for asked, reply in pairs for turn in (Turn("user", asked), Turn("assistant", reply))]


TRAINING = [
    [Turn("system", "Be brief."), *said(("<image>\nIs it red?", "no"), ("Is it round?", "yes"))],
    said(("<image>\nIs it red?", "yes"), ("Is it round?", "no")),
    said(("<image>\nIs it round?", "no"), ("Is it red?", "no")),
    said(("<image>\nWhich colour?", " teal "), ("Which colour?", "red"), ("Which colour?", "teal")),
]


def answers(*texts: str) -> list[str]:
    return majority_answers(TRAINING, texts)


def test_every_turn_counts_wherever_the_image_stands() -> None:
    assert answers("Is it red?", "Is it round?", "Which colour?") == ["no", "no", "teal"]


def test_an_unseen_text_gets_the_most_frequent_answer_of_all() -> None:
    assert answers("Is it large?") == ["no"]
