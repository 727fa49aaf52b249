"""Scenes of real drawings with truthful questions in five abilities, written to disk as ordinary LLaVA JSON and PNG.

    python -m lightning_switchkd.demo.emoji --output datasets/emoji --scenes 12000 --seed 0

A scene is three by three cells: two to five emojis, often three letters in a row, often one handwritten
digit. Questions follow the axes of the paper's benchmarks:

    perception      what is shown, its colour, its group
    reasoning       how many, where, what is more or higher
    ocr             the word, letter by letter; the handwritten digit
    hallucination   is it there? yes to no 1:1; what is absent is random, frequent, or of a present thing's kind (POPE)
    domain          facts of the emoji metadata: what kind of thing it is, whether any of a kind is there

Nothing leaks: which side a scene belongs to is decided by a hash of the things it shows, whatever their places; words
and scans of digits are split as well; some things, look-alikes together, are shown in ``test_glyphs.json`` alone; and
where the font of another style is installed, ``test_style.json`` draws test scenes in that.

    images/{train,val,test,glyphs,style}/000000.png
    captions.json     what is where in a training scene: a vision tower is trained on it
    train.json        several questions a training scene, as turns of one record
    train_small.json  the first of these records: what the student is given
    val.json, test.json, test_glyphs.json, test_style.json   one question a record, its ability under "source"
    processor/, manifest.json, ATTRIBUTION.txt
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tqdm import tqdm

from lightning_switchkd.demo.embedded import (
    check_limits,
    command_line,
    conversation,
    dump,
    write_processor,
    write_whole,
)
from lightning_switchkd.demo.emoji_questions import ABILITIES, Asker
from lightning_switchkd.demo.emoji_scenes import CELL, GRID, Composer, Painter, Scene
from lightning_switchkd.demo.emoji_things import Style, attribution, held_out, noto, openmoji

Sample = dict[str, Any]
VERSION = 3  # raised whenever equal settings would give other files
TURNS = 8


@dataclass(frozen=True)
class Settings:
    """What the files depend on; the notes are the command line's help."""

    scenes: Annotated[int, "training scenes (train.json, captions.json)"] = 12000
    small_scenes: Annotated[int, "training scenes of train_small.json"] = 1500
    val_scenes: Annotated[int, "scenes of val.json, five questions each"] = 200
    test_scenes: Annotated[int, "scenes of each test file, five questions each"] = 500
    seed: Annotated[int, "decides the split, the scenes and the questions"] = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be drawn, before anything is written."""
        limits = dict.fromkeys(("scenes", "val_scenes", "test_scenes"), (1, 999_999))
        limits |= {"small_scenes": (1, self.scenes), "seed": (0, 2**32 - 1)}
        check_limits("emoji", self, limits)


def _scenes(settings: Settings, side: str, style: Style, folder: Path) -> Iterator[tuple[Sample, Scene, Asker]]:
    """Draws and saves the scenes of one side; yields each one's keys and who asks about it."""
    composer = Composer(side, settings.seed)
    painter = Painter(style, composer.rng, jitter=side == "train")
    names = composer.names + (list(held_out()) if side == "glyphs" else [])
    asker = Asker(names, None if side == "style" else style.colours, composer.rng)
    (folder / "images" / side).mkdir(parents=True)
    number = settings.scenes if side == "train" else settings.val_scenes if side == "val" else settings.test_scenes
    for i in tqdm(range(number), desc=f"emoji: {side}", unit=" scenes"):
        scene = composer.compose()
        image = f"{side}/{i:06d}.png"
        painter.draw(scene).save(folder / "images" / image)
        yield {"id": f"{side}-{i:06d}", "image": image, "things": scene.cells}, scene, asker


def _write_training(settings: Settings, style: Style, folder: Path) -> list[str]:
    samples, captions, text = list[Sample](), list[Sample](), list[str]()
    for keys, scene, asker in _scenes(settings, "train", style, folder):
        turns: dict[str, str] = {}
        for ability in asker.rng.permutation(ABILITIES * 2).tolist()[:TURNS]:
            if (asked := asker.ask(ability, scene)) is not None:
                turns.setdefault(*asked[1:])
        caption = asker.describe(scene)
        samples.append(keys | {"conversations": conversation(list(turns.items()))})
        captions.append(keys | {"conversations": conversation([("", caption)])})
        text += [part for turn in turns.items() for part in turn] + [caption]
    dump(samples, folder / "train.json")
    dump(samples[: settings.small_scenes], folder / "train_small.json")
    dump(captions, folder / "captions.json")
    return text


def _write_questions(settings: Settings, side: str, style: Style, folder: Path) -> None:
    samples = []
    for keys, scene, asker in _scenes(settings, side, style, folder):
        for ability in ABILITIES:
            if (asked := asker.ask(ability, scene)) is not None:
                kind, *turn = asked
                extra = {"source": ability, "kind": kind, "conversations": conversation([(turn[0], turn[1])])}
                samples.append(keys | {"id": f"{keys['id']}-{ability}"} | extra)
    dump(samples, folder / f"{side if side in ('val', 'test') else f'test_{side}'}.json")


def write(settings: Settings, output: Path) -> bool:
    """Writes everything to ``output``, whole or not at all; False if it was there already, made with equal settings.

    Raises:
        UserError: ``output`` holds something that this module did not write, or a package is missing.
    """

    def fill(folder: Path) -> None:
        drawn, other = openmoji(), noto()
        text = _write_training(settings, drawn, folder)
        sides = {"val": drawn, "test": drawn, "glyphs": drawn} | ({"style": other} if other else {})
        for side, style in sides.items():
            _write_questions(settings, side, style, folder)
        if other is None:
            print("emoji: no test_style.json: that style's font is not installed (apt install fonts-noto-color-emoji)")
        (folder / "ATTRIBUTION.txt").write_text(attribution(list(sides)), encoding="utf-8")
        # a patch a cell
        write_processor(text, folder / "processor", CELL * GRID, CELL, vocab_size=768, tower="siglip")

    return write_whole("emoji", VERSION, settings, fill, output)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    command_line("emoji", __doc__, Settings, write, arguments)


if __name__ == "__main__":
    main()
