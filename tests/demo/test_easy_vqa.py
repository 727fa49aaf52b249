"""Tests of easy-VQA as LLaVA data: the complete test split, validation split by image, the published answers."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import easy_vqa as package
import pytest
from PIL import Image
from transformers import AutoProcessor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.formats import parse_sample
from lightning_switchkd.data.samples import SampleLocation
from lightning_switchkd.demo.easy_vqa import COLORS, SHAPES, Settings, kind_of, main, shown, write
from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.matching import Matched
from lightning_switchkd.evaluation.score import rate
from lightning_switchkd.evaluation.text_only_baseline import read_conversations, text_only_answers

SETTINGS = Settings()
TRAINING = ("captions.json", "train.json", "train_balanced.json", "train_small.json")
FILES = (*TRAINING, "val.json", "test.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("easy_vqa") / "data"
    assert write(SETTINGS, output)
    return output


def samples(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def questions_in(folder: Path, name: str) -> Counter[tuple[int, str, str]]:
    """Count the image, question and answer of every turn."""
    turns: Counter[tuple[int, str, str]] = Counter()
    for i, raw in enumerate(samples(folder, name)):
        sample = parse_sample(raw, SampleLocation(name, i))
        texts = [turn.text.replace("<image>", "").strip() for turn in sample.turns]
        turns.update(
            (int(Path(sample.images[0].path).stem), *pair) for pair in zip(texts[::2], texts[1::2], strict=True)
        )
    return turns


def published(split: str) -> Counter[tuple[int, str, str]]:
    questions, answers, images = getattr(package, f"get_{split}_questions")()
    return Counter(zip(images, questions, answers, strict=True))


def test_official_test_split_is_complete(folder: Path) -> None:
    assert questions_in(folder, "test.json") == published("test")
    assert len(samples(folder, "test.json")) == 9673
    assert len(list((folder / "images" / "test").iterdir())) == 1000


def test_training_and_validation_share_no_image(folder: Path) -> None:
    images = {name: {sample["image"] for sample in samples(folder, name)} for name in FILES}
    assert not images["val.json"] & images["train.json"]
    assert all(images[name] <= images["train.json"] for name in TRAINING)
    assert images["train_small.json"] <= images["train_balanced.json"]
    assert len(images["val.json"]) == SETTINGS.val_images
    assert len(samples(folder, "train_small.json")) == SETTINGS.small_images
    assert len(images["train.json"]) == 4000 - SETTINGS.val_images
    assert questions_in(folder, "train.json") + questions_in(folder, "val.json") == published("train")


def test_balanced_training_asks_as_much_about_what_is_not_shown(folder: Path) -> None:
    kept, all_of = questions_in(folder, "train_balanced.json"), questions_in(folder, "train.json")
    assert questions_in(folder, "train_small.json") < kept < all_of
    about_shown = {turn for turn in all_of if shown(turn[1:])}
    assert {turn for turn in kept if shown(turn[1:])} == about_shown
    yes_no = [turn for turn in kept.elements() if turn[2] in ("yes", "no")]
    assert sum(turn in about_shown for turn in yes_no) == pytest.approx(len(yes_no) / 2, rel=0.02)


def test_images_are_those_of_the_package(folder: Path) -> None:
    paths = {"train": package.get_train_image_paths(), "test": package.get_test_image_paths()}
    for name in FILES:
        for image in [sample["image"] for sample in samples(folder, name)][:20]:
            split, number = Path(image).parts[0], int(Path(image).stem)
            assert (folder / "images" / image).read_bytes() == Path(paths[split][number]).read_bytes()


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("what shape does the image contain?", "shape"),
        ("what is the gray shape?", "shape"),
        ("what color is the shape?", "color"),
        ("what is the color of the triangle?", "color"),
        ("is a teal shape present?", "color_present"),
        ("does the image contain a circle?", "shape_present"),
        ("does the image not contain a red shape?", "color_absent"),
        ("is no triangle present?", "shape_absent"),
        ("is there not a rectangle in the image?", "shape_absent"),
    ],
)
def test_kinds(question: str, kind: str) -> None:
    assert kind_of(question) == kind


def test_answers_fit_their_kinds(folder: Path) -> None:
    allowed = {"color": set(COLORS), "shape": set(SHAPES)}
    for name in ("val.json", "test.json"):
        kinds = Counter(sample["source"] for sample in samples(folder, name))
        assert kinds.keys() == json.loads((folder / "sources.json").read_text(encoding="utf-8")).keys()
        assert min(kinds.values()) > 200
        for sample in samples(folder, name):
            assert sample["conversations"][1]["value"] in allowed.get(sample["source"], {"yes", "no"})
    assert {*COLORS, *SHAPES, "yes", "no"} == set(package.get_answers())


def test_captions_contradict_no_answer(folder: Path) -> None:
    captions = {sample["image"]: sample["conversations"][1]["value"] for sample in samples(folder, "captions.json")}
    words = {image: caption.removeprefix("a ").split() for image, caption in captions.items()}
    assert all(color in COLORS and shape in SHAPES for color, shape in words.values())
    for image, question, reply in published("train"):
        caption = words.get(f"train/{image}.png", [])
        if caption and reply in (*COLORS, *SHAPES):
            assert reply in caption
        elif caption:
            named = set(question.rstrip("?").split()) & {*COLORS, *SHAPES}
            assert (reply == "yes") == (named <= set(caption)) ^ kind_of(question).endswith("_absent")


def test_text_only_baseline(folder: Path) -> None:
    benchmark = Benchmark("easy_vqa", "exact", [{"reader": "llava", "records": "test.json"}])
    items = benchmark.items(folder)
    answers = text_only_answers(read_conversations(str(folder / "train.json")), [item.question for item in items])
    scores = rate(benchmark, folder, items, Matched(list(answers)), "llava", "")
    assert scores.score == pytest.approx(67.0, abs=0.3)
    assert scores.categories["shape"] < 40


def test_processor_makes_36_tokens_of_an_image(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder / "processor")
    image = Image.open(folder / "images" / "test" / "0.png")
    batch = processor(images=image, text="<image>\nwhat color is the shape?", return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 24, 24)
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == 36
    for answer in package.get_answers():
        assert processor.tokenizer.decode(processor.tokenizer(answer)["input_ids"]) == answer


def test_seed_decides_and_equal_settings_are_not_written_again(folder: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    assert write(SETTINGS, again)
    assert write(replace(SETTINGS, seed=1), other)
    for name in (*FILES, "manifest.json", "processor/tokenizer.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert samples(other, "val.json") != samples(folder, "val.json")
    assert (other / "test.json").read_bytes() == (folder / "test.json").read_bytes()
    stamp = (again / "train.json").stat().st_mtime_ns
    assert not write(SETTINGS, again)
    assert (again / "train.json").stat().st_mtime_ns == stamp


def test_a_folder_with_other_files_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"data": "digits"}', encoding="utf-8")
    with pytest.raises(UserError, match="has other files"):
        write(SETTINGS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(UserError, match=r"needs easy_vqa: pip install 'lightning-switchkd\[demo\]'"):
        write(SETTINGS, tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_command_line_refuses_sizes_out_of_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--small-images must be between 1 and 500, got 501"):
        main([f"--output={tmp_path / 'data'}", "--val-images=3500", "--small-images=501"])
