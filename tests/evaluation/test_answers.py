"""Tests of answer files with every possible defect."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_switchkd.cli.main import main
from lightning_switchkd.evaluation.answers import Answer, read_answers
from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.judgements import Judgements
from lightning_switchkd.evaluation.matching import match
from lightning_switchkd.evaluation.results import Result


def vqav2_of(folder: Path, count: int) -> list[str]:
    """Write VQAv2 files with `count` questions. Return answers, three quarters of them correct."""
    chance = random.Random(0)
    words = ["yes", "no", "2", "red", "blue car", "man on a horse", "t-shirt", "1,000"]
    questions = [{"question_id": n, "image_id": n // 3, "question": f"Q {n}?"} for n in range(count)]
    golds = [chance.choice(words) for _ in range(count)]
    labels = [
        {"question_id": n, "question_type": "what", "answers": layouts.people(f"{gold}*9", "other")}
        for n, gold in enumerate(golds)
    ]
    layouts.as_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    layouts.as_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": labels})
    return [gold if n % 4 else "nothing at all" for n, gold in enumerate(golds)]


@pytest.mark.parametrize("number", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_one_in_a_hundred_of_many_lines_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    texts = vqav2_of(tmp_path / "vqav2", number)
    rows = [json.dumps(layouts.answer(n, text)) for n, text in enumerate(texts)]
    damage: list[Callable[[str], str]] = [
        lambda row: row[: len(row) // 2],  # cut off
        lambda row: "null",
        lambda row: row.replace('"text"', '"txet"'),
        lambda row: row.replace('"question_id"', '"id_of_question"'),
    ]
    for n in range(0, number, 100):
        rows[n] = damage[n // 100 % 4](rows[n])
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join([*rows, "", json.dumps(layouts.answer(number + 5, "x")), rows[1]]), encoding="utf-8")
    arguments = ["score", "--benchmark=vqav2", f"--data_root={tmp_path}", f"--answers={file}"]
    main([*arguments, f"--output={tmp_path / 'out.json'}"])
    result = Result.read(tmp_path / "out.json")
    assert result.odd == {"missing": number // 100, "unknown": 1, "doubled": 1, "damaged": number // 100}
    assert result.examples_of_odd["damaged"][0] == "line 1"
    assert result.score == pytest.approx(75.0)  # the damaged lines were wrong already: every fourth is
    assert f"damaged: {number // 100} (line 1, line 101" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--strict"])
    error = capsys.readouterr().err
    assert error.startswith("error: --strict:")
    assert f"{number // 100} damaged (line 1, line 101, line 201" in error


@given(st.lists(st.tuples(st.integers(0, 30), st.text(max_size=5)), max_size=40), st.randoms())
def test_order_of_unique_answers_does_not_matter(rows: list[tuple[int, str]], chance: Any) -> None:
    items = [Item(str(n), f"Q{n}", ("yes",)) for n in range(20)]
    unique = [Answer(str(n), text) for n, text in dict(rows).items()]
    matched = match(items, unique)
    chance.shuffle(unique)
    again = match(items, unique)
    assert again.texts == matched.texts
    assert sorted(again.unknown) == sorted(matched.unknown)
    assert len(matched.missing) == sum(text is None for text in matched.texts)
    assert len(unique) == sum(text is not None for text in matched.texts) + len(matched.unknown)


def test_questions_that_share_an_id_are_matched_by_prompt_or_order() -> None:
    items = [Item("a", "Is it red?"), Item("a", "Is it red or blue?"), Item("b", "What?")]
    prompted = [Answer("a", "blue", "Is it red  or blue?\nAnswer."), Answer("a", "yes", "<image>\nIs it red?\nAnswer.")]
    assert match(items, prompted).texts == ["yes", "blue", None]
    assert match(items, [Answer("a", "1"), Answer("a", "2"), Answer("a", "3")]).texts == ["1", "2", None]
    other = match(items, [Answer("a", "x", "Is it green?")])
    assert other.unknown == ["a"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"question_id": 1, "text": " yes "}\n'),
        ("a.json", '{"1": "yes"}'),
        ("a.json", '[{"questionId": "1", "prediction": "yes"}]'),
        ("a.jsonl", '{"image": "1", "answer": "yes"}'),
    ],
)
def test_formats_of_answer_files(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_answers(tmp_path / name) == ([Answer("1", "yes")], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--answers=none.jsonl"], "file none.jsonl does not exist"),
        (["--answers={answers}", "--protocol=mine"], "unknown protocol 'mine'. Use one of llava, lmms, vlmevalkit"),
        (["--answers={answers}", "--server_file=x.json"], "has no server"),
        (["--answers={answers}", "--output=reports/gqa"], "is not a .json file. Use FOLDER/gqa.json"),
        (["--answers={folder}/damaged.json"], "is not valid JSON"),
    ],
)
def test_user_errors(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = layouts.write_answers(tmp_path, "answers", layouts.gqa(tmp_path / "gqa"))
    (tmp_path / "damaged.json").write_text("{", encoding="utf-8")
    filled = [argument.format(answers=file, folder=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        main(["score", "--benchmark=gqa", f"--data_root={tmp_path}", *filled])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_hidden_labels_need_a_server_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"question_id": 7, "image": "7.jpg", "text": "Q?"}
    layouts.lines(tmp_path / "vqav2" / "llava_vqav2_mscoco_test-dev2015.jsonl", [row])
    file = layouts.lines(tmp_path / "answers.jsonl", [layouts.answer(7, "x")])
    with pytest.raises(SystemExit):
        main(["score", "--benchmark=vqav2_test", f"--data_root={tmp_path}", f"--answers={file}"])
    assert "Set --server_file=FILE" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(layouts.LLAVA))
def test_repeated_questions_count_once(name: str, tmp_path: Path) -> None:
    """Samplers of several ranks repeat questions."""
    write, expected = layouts.LLAVA[name]
    file = layouts.write_answers(tmp_path, "answers", write(tmp_path / name))
    benchmark = Benchmark.read(name)
    items = benchmark.items(tmp_path / name)
    texts = match(items, *read_answers(file)).texts
    metric = Judgements(benchmark, items)
    order = random.Random(1).sample(range(len(items)), len(items))
    for start in range(0, len(order), 3):
        metric.update(order[start : start + 3], [texts[n] for n in order[start : start + 3]])
    metric.update(order[:4], ["something else"] * len(order[:4]))
    assert metric.compute() == pytest.approx(expected)
    again = Judgements(benchmark, items)
    assert np.array_equal(again.judged(), np.zeros((len(items), 2)))


def rank_scores(rank: int, folder: str) -> None:
    """Score half of POPE's answers on each of two ranks, and one question of the other half."""
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    benchmark = Benchmark.read("pope")
    items = benchmark.items(Path(folder, "pope"))
    texts = match(items, *read_answers(Path(folder, "answers.jsonl"))).texts
    indices = [*range(rank, len(items), 2), 1 - rank]
    metric = Judgements(benchmark, items)
    metric.update(indices, [texts[n] for n in indices])
    assert metric.compute() == pytest.approx(layouts.POPE_SCORE)
    torch.distributed.destroy_process_group()


def test_scores_add_up_over_ranks(tmp_path: Path) -> None:
    layouts.write_answers(tmp_path, "answers", layouts.pope(tmp_path / "pope"))
    tiny.on_two_ranks(rank_scores, str(tmp_path))
