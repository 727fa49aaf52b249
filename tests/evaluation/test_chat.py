"""Tests of the chat in the terminal, and of the alternatives of each token."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import tiny
import torch

from lightning_switchkd.cli.main import main
from lightning_switchkd.data.samples import Turn
from lightning_switchkd.evaluation.chat import Chat
from lightning_switchkd.models.generation import Question, load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.write_pair(tmp_path_factory.mktemp("pair"))
    for file in (folder / "processor").iterdir():
        (folder / "student" / file.name).write_bytes(file.read_bytes())
    return folder


def test_chat_with_two_models(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = folder / "images" / "0.png"
    lines = [
        "What is there?",
        "/top",
        "And now?",
        f"/image {folder / 'images' / '4.png'}",
        "/image none.png",
        "/new",
        "/x",
        "/quit",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    main([
        "generate", f"--model={folder / 'student'}", f"--compare={folder / 'teacher'}", f"--image={image}", "--chat",
        "--max_new_tokens=3", "--device=cpu",
    ])  # fmt: skip
    output = capsys.readouterr().out
    assert output.count("student: ") == 2
    assert output.count("teacher: ") == 2
    assert "student:\n    '" in output
    assert "Started a new conversation.\n" in output
    assert "file 'none.png' does not exist. Give an image file.\n" in output
    assert output.count("leave (or Ctrl-D)") == 2


def test_second_question_follows_the_first(folder: Path) -> None:
    model = load_model(str(folder / "student"), "cpu")
    chat = Chat({"one": model}, 4)
    first = chat.ask("What is there?")["one"]
    turns = (Turn("user", "What is there?"), Turn("assistant", first), Turn("user", "And now?"))
    assert chat.ask("And now?")["one"] == model.ask([Question(turns, ())], 4)[0]


def test_alternatives_equal_the_probabilities_of_the_model(folder: Path) -> None:
    model = load_model(str(folder / "student"), "cpu")
    question = Question((Turn("user", "What?"),), ())
    alternatives = model.alternatives(question, "a cat", 3)
    tokenizer = model.prepare.processor.tokenizer
    ids = [*model.prepare([question]).input_ids[0].tolist(), *tokenizer("a cat", add_special_tokens=False).input_ids]
    with torch.no_grad():
        logits = model.vlm.model(input_ids=torch.tensor([ids])).logits[0]
    answer = len(tokenizer("a cat", add_special_tokens=False).input_ids)
    best = logits[-answer - 1 :, : len(tokenizer)].softmax(-1).topk(3)
    assert len(alternatives) == answer + 1
    for candidates, values in zip(alternatives, best.values.tolist(), strict=True):
        assert [p for _, p in candidates] == pytest.approx(values, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=x"], "--question is missing"),
        (["--model=x", "--question=y", "--image=none.png"], "file 'none.png' does not exist"),
    ],
)
def test_user_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", *arguments])
    assert message in capsys.readouterr().err
