"""Emoji scenes with questions about five abilities, as LLaVA JSON and PNG, with a processor.

    python -m lightning_switchkd demo-data emoji --output datasets/emoji --scenes 12000 --seed 0

A scene has three by three cells: two to five emojis, often three letters in a row, often one handwritten digit. The
questions follow the axes of the paper's benchmarks (``emoji_questions.ABILITIES``).

Nothing leaks between splits:

- A hash of a scene's things, regardless of their places, decides its split.
- Words and scans of digits are split as well.
- Some things, together with those that look alike, appear in ``test_glyphs.json`` only.
- If the font of a second style is installed, ``test_style.json`` draws test scenes in this style.

    images/{train,val,test,glyphs,style}/000000.png
    captions.json     what each cell of a training scene shows, to train the vision encoder
    train.json        several questions per training scene, as turns of one sample
    train_small.json  the first of these samples: the student's training data
    val.json, test.json, test_glyphs.json, test_style.json   one question per sample, its ability as "source"
    sources.json      what each ability asks
    processor/, manifest.json, ATTRIBUTION.txt
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tqdm import tqdm

from lightning_switchkd.demo.common import DemoDataset, Sample, check_settings, conversation, dump, write_processor
from lightning_switchkd.demo.emoji_questions import ABILITIES, Asker
from lightning_switchkd.demo.emoji_scenes import CELL, GRID, Composer, Painter, Scene
from lightning_switchkd.demo.emoji_things import Style, attribution, held_out, noto, openmoji

TURNS = 8


@dataclass(frozen=True)
class Settings:
    """Settings that the files depend on. The annotations are the help texts of the flags."""

    scenes: Annotated[int, "training scenes (train.json, captions.json)"] = 12000
    small_scenes: Annotated[int, "training scenes of train_small.json"] = 1500
    val_scenes: Annotated[int, "scenes of val.json, with five questions each"] = 200
    test_scenes: Annotated[int, "scenes of each test file, with five questions each"] = 500
    seed: Annotated[int, "seed of the split, the scenes and the questions"] = 0

    def __post_init__(self) -> None:
        """Check the limits, before anything is written."""
        limits = dict.fromkeys(("scenes", "val_scenes", "test_scenes"), (1, 999_999))
        limits["small_scenes"] = (1, self.scenes)
        check_settings("emoji", self, limits)


def _scenes(settings: Settings, split: str, style: Style, folder: Path) -> Iterator[tuple[Sample, Scene, Asker]]:
    """Draw and save the scenes of one split. Yields each scene with its keys and the writer of its questions."""
    composer = Composer(split, settings.seed)
    painter = Painter(style, composer.rng, jitter=split == "train")
    names = composer.names + (list(held_out()) if split == "glyphs" else [])
    asker = Asker(names, None if split == "style" else style.colors, composer.rng)
    (folder / "images" / split).mkdir(parents=True)
    number = settings.scenes if split == "train" else settings.val_scenes if split == "val" else settings.test_scenes
    for i in tqdm(range(number), desc=f"emoji: {split}", unit=" scenes"):
        scene = composer.compose()
        image = f"{split}/{i:06d}.png"
        painter.draw(scene).save(folder / "images" / image)
        yield {"id": f"{split}-{i:06d}", "image": image, "things": scene.cells}, scene, asker


def _write_training(settings: Settings, style: Style, folder: Path) -> list[str]:
    samples, captions, text = list[Sample](), list[Sample](), list[str]()
    for keys, scene, asker in _scenes(settings, "train", style, folder):
        turns: dict[str, str] = {}
        for ability in asker.rng.permutation([*ABILITIES] * 2).tolist()[:TURNS]:
            if (question := asker.ask(ability, scene)) is not None:
                turns.setdefault(*question[1:])
        caption = asker.describe(scene)
        samples.append(keys | {"conversations": conversation(list(turns.items()))})
        captions.append(keys | {"conversations": conversation([("", caption)])})
        text += [part for turn in turns.items() for part in turn] + [caption]
    dump(samples, folder / "train.json")
    dump(samples[: settings.small_scenes], folder / "train_small.json")
    dump(captions, folder / "captions.json")
    return text


def _write_questions(settings: Settings, split: str, style: Style, folder: Path) -> None:
    samples = []
    for keys, scene, asker in _scenes(settings, split, style, folder):
        for ability in ABILITIES:
            if (question := asker.ask(ability, scene)) is not None:
                kind, *turn = question
                extra = {"source": ability, "kind": kind, "conversations": conversation([(turn[0], turn[1])])}
                samples.append(keys | {"id": f"{keys['id']}-{ability}"} | extra)
    dump(samples, folder / f"{split if split in ('val', 'test') else f'test_{split}'}.json")


def _fill(settings: Settings, folder: Path) -> None:
    style, other_style = openmoji(), noto()
    text = _write_training(settings, style, folder)
    styles = dict.fromkeys(("val", "test", "glyphs"), style) | ({"style": other_style} if other_style else {})
    for split, split_style in styles.items():
        _write_questions(settings, split, split_style, folder)
    if other_style is None:
        print("emoji: test_style.json is skipped: its font is not installed (apt install fonts-noto-color-emoji)")
    (folder / "ATTRIBUTION.txt").write_text(attribution(list(styles)), encoding="utf-8")
    # one patch per cell
    write_processor(text, folder / "processor", CELL * GRID, CELL, vocab_size=768, vision="siglip")


DATASET = DemoDataset("emoji", version=3, doc=__doc__, settings=Settings, sources=ABILITIES, fill=_fill)
write, main = DATASET.write, DATASET.main
