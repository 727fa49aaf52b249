"""Tests of the digits data: splits, balanced questions, true answers, the processor."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoProcessor, AutoTokenizer

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.demo import digits
from lightning_switchkd.demo.digits import CELL, PLACES, TEMPLATES, Settings, main, split_scans, write

SMALL = Settings(boards=120, small_boards=40, val_boards=40, test_boards=60)
FILES = ("captions.json", "train.json", "train_small.json", "val.json", "test.json")


@pytest.fixture(scope="module", params=[2, 3])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("digits") / "data"
    assert write(replace(SMALL, grid=request.param), output)
    return output


def samples(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / name).read_text())


def turns(sample: dict[str, Any]) -> list[tuple[str, str]]:
    values = [turn["value"] for turn in sample["conversations"]]
    assert [turn["from"] for turn in sample["conversations"]] == ["human", "gpt"] * (len(values) // 2)
    assert values[0].startswith("<image>")
    assert not any("<image>" in value for value in values[1:])
    return list(zip([values[0].removeprefix("<image>").strip(), *values[2::2]], values[1::2], strict=True))


def understand(question: str) -> tuple[str, str, str, int]:
    """Parse a question into kind, template, place and digit, independently of the code that wrote it."""
    for kind, templates in TEMPLATES.items():
        for template in templates:
            pattern = (
                re.escape(template).replace(r"\{where\}", "(?P<where>at .+)").replace(r"\{digit\}", r"(?P<digit>\d)")
            )
            if match := re.fullmatch(pattern, question):
                groups = match.groupdict()
                return kind, template, groups.get("where", ""), int(groups.get("digit", -1))
    raise AssertionError(question)


def place(where: str, grid: int) -> int:
    row = 0 if "top" in where else grid - 1 if "bottom" in where else 1
    column = 0 if "left" in where else grid - 1 if "right" in where else 1
    return row * grid + column


def test_no_scan_is_in_two_splits(folder: Path) -> None:
    seen = {name: {scan for sample in samples(folder, name) for scan in sample["scans"]} for name in FILES}
    train = seen["train.json"] | seen["captions.json"] | seen["train_small.json"]
    assert not train & (seen["val.json"] | seen["test.json"])
    assert not seen["val.json"] & seen["test.json"]
    splits = split_scans(SMALL.seed, SMALL.small_scans)
    assert {*splits["train"], *splits["val"], *splits["test"]} == set(range(1797))
    assert seen["train_small.json"] <= set(splits["small"]) <= set(splits["train"])
    assert len(splits["small"]) == 300


def test_digits_are_what_the_scans_show(folder: Path) -> None:
    truth = load_digits().target
    for name in FILES:
        for sample in samples(folder, name):
            assert truth[sample["scans"]].tolist() == sample["digits"]


def test_answers_are_true(folder: Path) -> None:
    for name in FILES[1:]:
        for sample in samples(folder, name):
            shown = sample["digits"]
            grid = int(len(shown) ** 0.5)
            for question, reply in turns(sample):
                kind, _, where, digit = understand(question)
                assert sample.get("source", kind) == kind
                if kind == "position":
                    assert where in PLACES[grid]
                    assert reply == str(shown[place(where, grid)])
                elif kind == "board":
                    assert reply.split() == ["".join(map(str, row)) for row in np.reshape(shown, (grid, grid))]
                elif kind == "exists":
                    assert reply == ("yes" if shown.count(digit) else "no")
                elif kind == "count":
                    assert reply == str(sum(d == digit for d in shown))
                else:
                    assert reply == str({"sum": sum, "largest": max}[kind](shown))


def test_yes_and_no_are_equally_frequent_in_each_template(folder: Path) -> None:
    for name in FILES[1:]:
        counts = Counter(
            (understand(question)[1], reply)
            for sample in samples(folder, name)
            for question, reply in turns(sample)
            if understand(question)[0] == "exists"
        )
        for template in TEMPLATES["exists"]:
            assert abs(counts[template, "yes"] - counts[template, "no"]) <= 1


def test_held_out_boards_have_one_question_of_each_kind(folder: Path) -> None:
    for name, boards in (("val.json", SMALL.val_boards), ("test.json", SMALL.test_boards)):
        counts = Counter(sample["source"] for sample in samples(folder, name))
        assert counts == dict.fromkeys(TEMPLATES, boards)
        assert len({sample["id"] for sample in samples(folder, name)}) == boards * len(TEMPLATES)
    assert json.loads((folder / "sources.json").read_text(encoding="utf-8")).keys() == TEMPLATES.keys()


def test_training_boards_have_their_turns_and_captions(folder: Path) -> None:
    assert {len(turns(sample)) for sample in samples(folder, "train.json")} == {SMALL.turns}
    for sample in samples(folder, "captions.json"):
        assert [(q, reply.replace(" ", "")) for q, reply in turns(sample)] == [
            ("", "".join(map(str, sample["digits"])))
        ]


def test_held_out_images_show_the_scans_unchanged(folder: Path) -> None:
    source = load_digits().images
    for sample in samples(folder, "test.json")[:6]:
        board = Image.open(folder / "images" / sample["image"])
        size = int(len(sample["digits"]) ** 0.5) * CELL
        assert (board.size, board.mode) == ((size, size), "L")
        halved = np.asarray(board.resize((size // 2, size // 2), Image.Resampling.BOX), dtype=float)
        corner = source[sample["scans"][0]] * 255 / 16
        assert np.corrcoef(halved[:8, :8].ravel(), corner.ravel())[0, 1] > 0.97


def test_equal_settings_give_equal_bytes_and_are_not_written_again(tmp_path: Path) -> None:
    first, second, other = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    assert write(SMALL, first)
    assert write(SMALL, second)
    assert write(replace(SMALL, seed=1), other)
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert (first / "train.json").read_bytes() != (other / "train.json").read_bytes()
    stamp = (first / "train.json").stat().st_mtime_ns
    assert not write(SMALL, first)
    assert (first / "train.json").stat().st_mtime_ns == stamp
    assert write(replace(SMALL, turns=2), first)  # other settings replace the folder
    assert {len(turns(sample)) for sample in samples(first, "train.json")} == {2}


def test_an_interrupted_run_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(digits, "write_processor", fail)
    with pytest.raises(RuntimeError):
        write(SMALL, tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="has other files"):
        write(SMALL, tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_processor_loads_with_hugging_face(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder / "processor")
    sample = samples(folder, "val.json")[0]
    image = Image.open(folder / "images" / sample["image"])
    content = [{"type": "image"}, {"type": "text", "text": "Read all digits."}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == "<|im_start|>user\n<image>\nRead all digits.<|im_end|>\n<|im_start|>assistant\n"
    batch = processor(images=image, text=text, return_tensors="pt")
    size = image.size[0]
    assert batch["pixel_values"].shape == (1, 3, size, size)
    assert (float(batch["pixel_values"].min()), float(batch["pixel_values"].max())) == (-1, 1)
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert int((batch["input_ids"] == image_id).sum()) == (size // (CELL // 2)) ** 2
    large = processor(images=Image.new("RGB", (640, 480)), text=text, return_tensors="pt")
    assert large["pixel_values"].shape == (1, 3, size, size)


@pytest.mark.parametrize("text", ["73 19", "Is there a 7?", "  two  spaces\n\ttab", "Füße 数字 🙂 ​", "\x00\x7f~", ""])
def test_any_text_survives_the_tokenizer(folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "processor")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_and_control_tokens_are_single_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "processor")
    assert len(tokenizer) == 384
    assert [tokenizer.decode([i]) for i in tokenizer("731")["input_ids"]] == ["7", "3", "1"]
    for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<image>"):
        assert tokenizer.convert_tokens_to_ids(token) < 4
        assert tokenizer(token)["input_ids"] == [tokenizer.convert_tokens_to_ids(token)]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize("wrong", [{"grid": 4}, {"turns": 7}, {"boards": 0}, {"small_scans": 5}, {"jitter": -1.0}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--" + next(iter(wrong)).replace("_", "-")):
        replace(SMALL, **wrong)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--boards=8", "--small-boards=2", "--val-boards=2", "--test-boards=2"]
    for word in ("written to", "already written"):
        main([f"--output={tmp_path / 'data'}", *sizes])
        assert word in capsys.readouterr().out
    with pytest.raises(UserError, match="--grid must be between 2 and 3, got 5"):
        main([f"--output={tmp_path / 'other'}", "--grid=5"])
