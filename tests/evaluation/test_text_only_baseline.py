"""Tests of the text-only baseline on a tiny example, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_switchkd.data.samples import Turn
from lightning_switchkd.evaluation.text_only_baseline import read_conversations, text_only_answers


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


def test_invalid_and_excluded_samples_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, exclude = tmp_path / "train.jsonl", tmp_path / "exclude.jsonl"
    dialogs = [[{"from": "human", "value": "Which?"}, {"from": "gpt", "value": str(number)}] for number in range(3)]
    lines = [json.dumps({"id": str(number), "conversations": dialog}) for number, dialog in enumerate(dialogs)]
    file.write_text("\n".join([lines[0], "{cut", *lines[1:], '{"id": "x"}']) + "\n", encoding="utf-8")
    assert [turns[1].text for turns in read_conversations(str(file))] == ["0", "1", "2"]
    said = f"Text-only baseline: 2 of 5 samples of {file} are invalid, and skipped.\n"
    assert capsys.readouterr().out == said
    rows = [{"path": str(file), "index": index} for index in (1, 3, 4)]
    exclude.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    assert [turns[1].text for turns in read_conversations(str(file), str(exclude))] == ["0", "1"]
    assert capsys.readouterr().out == "", "all invalid samples are excluded"
