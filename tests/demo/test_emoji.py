"""Tests of emoji scenes as LLaVA data: disjoint splits, and answers that are true of the drawn scene."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.formats import parse_sample
from lightning_switchkd.data.samples import SampleLocation
from lightning_switchkd.demo import emoji
from lightning_switchkd.demo.digits import PLACES
from lightning_switchkd.demo.emoji import Settings, write
from lightning_switchkd.demo.emoji_questions import ABILITIES
from lightning_switchkd.demo.emoji_scenes import split_of
from lightning_switchkd.demo.emoji_things import FAMILIES, HELD_OUT, held_out, openmoji, things

SETTINGS = Settings(scenes=600, small_scenes=150, val_scenes=60, test_scenes=80)
FILES = ("captions.json", "train.json", "train_small.json", "val.json", "test.json", "test_glyphs.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("emoji") / "data"
    assert write(SETTINGS, output)
    return output


def samples(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def shown(sample: dict[str, Any]) -> list[str]:
    return [name for name in sample["things"] if name]


def turns(sample: dict[str, Any]) -> list[tuple[str, str]]:
    texts = [turn["value"].replace("<image>", "").strip() for turn in sample["conversations"]]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_every_sample_is_llava(folder: Path) -> None:
    for name in FILES:
        for i, raw in enumerate(samples(folder, name)):
            sample = parse_sample(raw, SampleLocation(name, i))
            with Image.open(folder / "images" / sample.images[0].path) as picture:
                assert (picture.size, picture.mode) == ((72, 72), "RGB")
    assert len(samples(folder, "train_small.json")) == SETTINGS.small_scenes
    assert "CC BY-SA 4.0" in (folder / "ATTRIBUTION.txt").read_text(encoding="utf-8")


def test_splits_share_no_set_of_things(folder: Path) -> None:
    splits = {
        name: {tuple(sorted(shown(r))) for r in samples(folder, f"{name}.json")} for name in ("train", "val", "test")
    }
    assert not splits["train"] & splits["val"]
    assert not (splits["train"] | splits["val"]) & splits["test"]
    assert all(split_of(things) == split for split, sets in splits.items() for things in sets)


def test_held_out_things_appear_in_test_glyphs_only(folder: Path) -> None:
    assert set(HELD_OUT) < set(FAMILIES), "look-alikes are held out together"
    for name in FILES:
        seen = {thing for sample in samples(folder, name) for thing in shown(sample)}
        text = " ".join(part for sample in samples(folder, name) for turn in turns(sample) for part in turn)
        for thing in held_out():
            assert (thing in seen) == (name == "test_glyphs.json"), (name, thing)
            assert name == "test_glyphs.json" or f" {thing}?" not in text
    assert all(set(shown(sample)) & set(held_out()) for sample in samples(folder, "test_glyphs.json"))


def test_words_and_scans_are_split(folder: Path) -> None:
    words = {
        name: {
            r
            for sample in samples(folder, f"{name}.json")
            for q, r in turns(sample)
            if q in ("Spell the word.", "What is written?")
        }
        for name in ("train", "val", "test")
    }
    assert all(len(spelled) > 3 for spelled in words.values())
    assert not words["train"] & words["val"]
    assert not (words["train"] | words["val"]) & words["test"]


@pytest.mark.parametrize("name", ["train.json", "val.json", "test.json", "test_glyphs.json"])
def test_answers_are_true(folder: Path, name: str) -> None:
    """Compute each answer from the cells, independently of the code that wrote it."""
    colors, places = openmoji().colors, PLACES[3]
    checked: Counter[str] = Counter()
    for sample in samples(folder, name):
        cells, present = sample["things"], shown(sample)
        for question, answer in turns(sample):
            place = next((i for i, where in enumerate(places) if f" {where}" in question), None)
            words = question.rstrip("?.").split()
            if question.startswith(("Is there a", "Can you see a")):
                wanted, kind = "yes" if words[-1] in present else "no", "exists"
            elif question.startswith(("How many of", "Count: ")):
                thing = words[3] if words[0] == "How" else words[1]
                wanted, kind = str(present.count(thing)), "count"
            elif question.startswith(("Where is the", "Find the")):
                wanted, kind = places[cells.index(words[-1])], "position"
            elif question.startswith("Which is higher"):
                a, b = words[4].rstrip(","), words[7]
                wanted, kind = (a if cells.index(a) // 3 < cells.index(b) // 3 else b), "higher"
            elif question.startswith("Are there more of"):
                groups = [things()[thing].group for thing in present]
                wanted, kind = "yes" if groups.count(words[4]) > groups.count(words[7]) else "no", "compare"
            elif question.startswith("Is any"):
                kinds = {things()[thing].kind for thing in present}
                wanted, kind = "yes" if " ".join(words[2:-1]) in kinds else "no", "any of kind"
            elif place is None:
                continue  # words and digits are not among the cells' things
            elif "colour" in question:
                wanted, kind = colors[cells[place]], "colour"
            elif "animal" in question:
                wanted, kind = things()[cells[place]].group, "group"
            elif "kind" in question:
                wanted, kind = things()[cells[place]].kind, "kind"
            else:
                wanted, kind = cells[place], "name"
            assert answer == wanted, (sample["id"], question)
            checked[kind] += 1
    assert len(checked) == 10, checked


def test_abilities_are_asked_equally_and_yes_as_often_as_no(folder: Path) -> None:
    test = samples(folder, "test.json")
    assert Counter(sample["source"] for sample in test) == dict.fromkeys(ABILITIES, SETTINGS.test_scenes)
    assert json.loads((folder / "sources.json").read_text(encoding="utf-8")) == ABILITIES
    answers = Counter(turns(sample)[0][1] for sample in test if sample["source"] == "hallucination")
    assert answers["yes"] == answers["no"] == SETTINGS.test_scenes / 2


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert write(SETTINGS, again)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((folder / file).read_bytes() == (again / file).read_bytes() for file in files)
    assert not write(SETTINGS, again), "the data set exists already"


def test_colors_match_the_drawings() -> None:
    colors = openmoji().colors
    wanted = {"apple": "red", "banana": "yellow", "frog": "green", "carrot": "orange", "pig": "pink", "cloud": "grey"}
    wanted |= {"eggplant": "purple", "bear": "brown", "butterfly": "blue"}
    assert {name: colors[name] for name in wanted} == wanted
    assert "panda" not in colors or colors["panda"] in ("white", "grey"), "black outlines do not count as a color"


def test_another_style(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second style uses the same font here, because its own may not be installed."""
    monkeypatch.setattr(emoji, "noto", openmoji)
    assert write(SETTINGS, tmp_path / "both")
    style = samples(tmp_path / "both", "test_style.json")
    assert len(style) == len(ABILITIES) * SETTINGS.test_scenes
    assert not any("colour" in turns(sample)[0][0] for sample in style), "the colors of another style are unknown"
    assert {split_of(shown(sample)) for sample in style} == {"test"}
    assert "Noto" in (tmp_path / "both" / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    assert samples(tmp_path / "both", "test.json") == samples(folder, "test.json")


def test_settings_out_of_bounds() -> None:
    with pytest.raises(UserError, match="--small-scenes must be between 1 and 10, got 11"):
        Settings(scenes=10, small_scenes=11)
