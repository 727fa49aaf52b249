"""Scenes of real drawings with truthful questions in five abilities, written to disk as ordinary LLaVA JSON and PNG.

    python -m lightning_switchkd.data.demo.emoji --output datasets/emoji --scenes 12000 --seed 0

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
    captions.json     what stands in each cell of a training scene: a vision tower is trained on it
    train.json        several questions a training scene, as turns of one record
    train_small.json  the first of these records: what the student is given
    val.json, test.json, test_glyphs.json, test_style.json   one question a record, its ability under "source"
    processor/, manifest.json, ATTRIBUTION.txt
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from tqdm import tqdm

from lightning_switchkd.data.demo.digits import PLACES, split_scans
from lightning_switchkd.data.demo.embedded import (
    check_limits,
    command_line,
    conversation,
    dump,
    write_processor,
    write_whole,
)
from lightning_switchkd.data.demo.emoji_things import Style, attribution, held_out, noto, openmoji, things

Record = dict[str, Any]
VERSION = 2  # raised whenever equal settings would give other files
CELL, GRID, PATCH = 24, 3, 24
SIDES = ("train", "val", "test", "glyphs", "style")
TURNS = 8
ABILITIES = ("perception", "reasoning", "ocr", "hallucination", "domain")
WORDS = (
    "ACE ADD AGE AIR ARM ART ASK BAD BAG BED BIG BIT BOX BOY BUY CAN CAP CRY CUP CUT DAY DIG DOT DRY EAR EAT EGG END "
    "EYE FAR FEW FIT FLY FUN GAP GET GUM HAT HOT ICE INK JAM JOB JOY KIT LAW LEG LID LOW MAN MAP MIX MUD NET NEW NUT "
    "OAK OIL OLD PAN PEN PIN POT RAW RED RIB ROW RUG SAD SEA SIX SKY SUM TAP TEN TIP TOE TOP TOY VAN WAR WAX WET WIN "
    "YES ZIP"
)
"""Read when held out: one half in validation, one in tests. In training, other letters stand side by side."""


_digits = cache(load_digits)


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


@dataclass(frozen=True)
class Scene:
    """What is shown.

    Attributes:
        cells: name of the thing in each cell, in reading order; None where there is none.
        word: its letters, and the row it stands in.
        digit: the row of ``load_digits``, and its cell.
    """

    cells: tuple[str | None, ...]
    word: tuple[str, int] | None = None
    digit: tuple[int, int] | None = None

    @property
    def shown(self) -> list[str]:
        """All things, each as often as it is there."""
        return [name for name in self.cells if name is not None]

    def place(self, name: str) -> str:
        """Where a thing is that is there once."""
        return PLACES[GRID][self.cells.index(name)]


def side_of(shown: Sequence[str]) -> str:
    """The side that scenes of these things belong to, whatever their places: 1 of 12 is validation, 1 of 12 test.

    >>> side_of(["cat", "dog"]) == side_of(["dog", "cat"])
    True
    """
    number = hashlib.sha256(" ".join(sorted(shown)).encode()).digest()[0] % 12
    return {0: "val", 1: "test"}.get(number, "train")


class Composer:
    """Makes up the scenes of one side."""

    def __init__(self, side: str, seed: int) -> None:
        self.side, self.rng = side, np.random.default_rng([seed, SIDES.index(side)])
        fixed = np.random.default_rng(seed)  # the same for all sides
        names = fixed.permutation(sorted(things())).tolist()
        self.names = [name for name in names if name not in held_out()]
        self.weights = 1 / (np.arange(len(self.names)) + 20.0)  # some things are seen more often than others
        words = fixed.permutation(WORDS.split()).tolist()
        self.words = words[::2] if side == "val" else words[1::2]
        self.scans = split_scans(seed, 100)[side if side in ("train", "val") else "test"]

    def compose(self) -> Scene:
        """A scene that belongs to this side."""
        side = {"glyphs": None, "style": "test"}.get(self.side, self.side)
        while True:
            shown = self._things()
            if side is None or side_of(shown) == side:
                break
        cells: list[str | None] = [None] * GRID**2
        free = list(range(GRID**2))
        word = digit = None
        reading = self.rng.random() if self.side == "train" else 0.7 * self.rng.random()  # held out: always something
        if reading < 0.5:
            word = self._word(), int(self.rng.integers(GRID))
            free = [cell for cell in free if cell // GRID != word[1]]
        if 0.3 < reading < 0.7:
            digit = int(self.rng.choice(self.scans)), int(self.rng.choice(free))
            free.remove(digit[1])
        for cell, name in zip(self.rng.permutation(free).tolist(), shown, strict=False):
            cells[cell] = name
        return Scene(tuple(cells), word, digit)

    def _word(self) -> str:
        """A word; in training any three letters but one, so that reading is by letters."""
        while self.side == "train":
            letters = "".join(self.rng.choice(list(ascii_uppercase), 3).tolist())
            if letters not in WORDS.split():
                return letters
        return str(self.rng.choice(self.words))

    def _things(self) -> list[str]:
        """Two to five, often of one group, often one of them several times."""
        names, weights = self.names, self.weights
        if self.rng.random() < 0.5:
            group = str(self.rng.choice(["animal", "food", "travel", "object"]))
            chosen = np.array([things()[name].group == group for name in names])
            weights = weights * chosen
        number = int(self.rng.integers(2, 6))
        shown = self.rng.choice(names, number, replace=False, p=weights / weights.sum()).tolist()
        if self.side == "glyphs":
            shown[0] = str(self.rng.choice(held_out()))
        if self.rng.random() < 0.4:
            times = int(self.rng.integers(2, number + 1))
            shown[:times] = shown[:1] * times
        return list(map(str, shown))


class Painter:
    """Draws scenes: cells of 24 × 24 pixels on one light colour.

    Args:
        style: of the emojis.
        rng: of sizes, places, angles and colours.
        jitter: whether they vary beyond the size.
    """

    def __init__(self, style: Style, rng: np.random.Generator, jitter: bool) -> None:
        self.style, self.rng, self.jitter = style, rng, jitter
        self.digits = (_digits().images * 255 / 16).astype(np.uint8)
        self.font = ImageFont.load_default(22)

    def draw(self, scene: Scene) -> Image.Image:
        """The scene's picture."""
        paper = tuple(self.rng.integers(215, 256, 3).tolist())
        picture = Image.new("RGB", (CELL * GRID, CELL * GRID), paper)
        for cell, name in enumerate(scene.cells):
            if name is not None:
                self._put(picture, cell, self.style.draw(name))
        if scene.word is not None:
            letters, row = scene.word
            for column, letter in enumerate(letters):
                self._put(picture, GRID * row + column, self._letter(letter))
        if scene.digit is not None:
            scan = Image.fromarray(self.digits[scene.digit[0]]).resize((60, 60), Image.Resampling.BICUBIC)
            ink = Image.new("RGBA", scan.size, (20, 20, 60, 255))
            ink.putalpha(scan)
            self._put(picture, scene.digit[1], ink)
        return picture

    def _letter(self, letter: str) -> Image.Image:
        picture = Image.new("RGBA", (24, 24))
        ImageDraw.Draw(picture).text((12, 12), letter, font=self.font, fill=(0, 0, 0, 255), anchor="mm")
        return picture

    def _put(self, picture: Image.Image, cell: int, drawing: Image.Image) -> None:
        size, angle, dx, dy = self.rng.uniform(-1, 1, 4)
        if self.jitter:
            drawing = drawing.rotate(12 * angle, Image.Resampling.BICUBIC, expand=True)
        longest = CELL - 3 + (2 * size if self.jitter else 0)
        scale = longest / max(drawing.size)
        drawing = drawing.resize([max(1, round(scale * side)) for side in drawing.size], Image.Resampling.LANCZOS)
        left, top = (
            CELL * place + (CELL - side) // 2 + (round(1.5 * shift) if self.jitter else 0)
            for place, side, shift in zip((cell % GRID, cell // GRID), drawing.size, (dx, dy), strict=True)
        )
        picture.paste(drawing, (left, top), drawing)


@dataclass
class Asker:
    """Asks truthful questions about scenes; of each yes-no question, yes and no alternate."""

    names: Sequence[str]
    colours: dict[str, str] | None
    rng: np.random.Generator
    _turn: dict[str, int] = field(default_factory=dict)

    def ask(self, ability: str, scene: Scene) -> tuple[str, str, str] | None:
        """Kind, question, answer; None where the scene allows none of the ability."""
        kinds: dict[str, tuple[Callable[[Scene], tuple[str, str] | None], ...]] = {
            "perception": (self._name, self._colour, self._group),
            "reasoning": (self._count, self._position, self._compare, self._higher),
            "ocr": (self._word, self._digit),
            "hallucination": (self._exists,),
            "domain": (self._kind, self._any_of_kind),
        }
        for i in self.rng.permutation(len(kinds[ability])).tolist():
            if (found := kinds[ability][i](scene)) is not None:
                return kinds[ability][i].__name__.removeprefix("_"), *found
        return None

    def _alternate(self, what: str, of: int = 2) -> int:
        self._turn[what] = self._turn.get(what, -1) + 1
        return self._turn[what] % of

    def _choose(self, options: Sequence[str]) -> str:
        return str(self.rng.choice(list(options)))

    def _somewhere(self, scene: Scene) -> tuple[str, str]:
        cell = int(self.rng.choice([i for i, name in enumerate(scene.cells) if name is not None]))
        return str(scene.cells[cell]), PLACES[GRID][cell]

    def _name(self, scene: Scene) -> tuple[str, str]:
        name, place = self._somewhere(scene)
        return self._choose([f"What is {place}?", f"Name the thing {place}."]), name

    def _colour(self, scene: Scene) -> tuple[str, str] | None:
        name, place = self._somewhere(scene)
        if self.colours is None or name not in self.colours:
            return None
        return self._choose([f"What colour is the thing {place}?", f"Which colour is {place}?"]), self.colours[name]

    def _group(self, scene: Scene) -> tuple[str, str]:
        name, place = self._somewhere(scene)
        return f"Is the thing {place} an animal, food, travel, an object or an activity?", things()[name].group

    def _count(self, scene: Scene) -> tuple[str, str]:
        """Each number that the scene has is equally likely, none included."""
        shown = scene.shown
        number = int(self.rng.choice(sorted({0, *map(shown.count, shown)})))
        name = self._choose(self._absent(scene) if number == 0 else [n for n in shown if shown.count(n) == number])
        return self._choose([f"How many of {name} are there?", f"Count: {name}."]), str(number)

    def _position(self, scene: Scene) -> tuple[str, str] | None:
        once = [name for name in scene.shown if scene.shown.count(name) == 1]
        if not once:
            return None
        name = self._choose(once)
        return self._choose([f"Where is the {name}?", f"Find the {name}."]), scene.place(name)

    def _compare(self, scene: Scene) -> tuple[str, str] | None:
        groups = [things()[name].group for name in scene.shown]
        a, b = self.rng.permutation(sorted({"animal", "food", "travel", "object"}))[:2].tolist()
        yes = groups.count(a) > groups.count(b)
        if yes != (self._alternate("compare") == 0):
            a, b, yes = b, a, groups.count(b) > groups.count(a)
        return f"Are there more of {a} than of {b}?", "yes" if yes else "no"

    def _higher(self, scene: Scene) -> tuple[str, str] | None:
        rows = {name: i // GRID for i, name in enumerate(scene.cells) if name and scene.shown.count(name) == 1}
        pairs = [(a, b) for a in rows for b in rows if rows[a] < rows[b]]
        if not pairs:
            return None
        a, b = pairs[int(self.rng.integers(len(pairs)))]
        first, second = (a, b) if self.rng.random() < 0.5 else (b, a)
        return f"Which is higher, the {first} or the {second}?", a

    def _word(self, scene: Scene) -> tuple[str, str] | None:
        if scene.word is None:
            return None
        return self._choose(["Spell the word.", "What is written?"]), " ".join(scene.word[0])

    def _digit(self, scene: Scene) -> tuple[str, str] | None:
        if scene.digit is None:
            return None
        return self._choose(["Which digit is written?", "Read the digit."]), str(_digits().target[scene.digit[0]])

    def _absent(self, scene: Scene) -> list[str]:
        return [name for name in self.names if name not in scene.shown]

    def _exists(self, scene: Scene) -> tuple[str, str]:
        if self._alternate("exists") == 0:
            name, reply = self._choose(scene.shown), "yes"
        else:
            absent = self._absent(scene)
            kinds = {things()[shown].kind for shown in scene.shown}
            negatives = (absent, absent[:12], [n for n in absent if things()[n].kind in kinds] or absent)
            name, reply = self._choose(negatives[self._alternate("absent", of=3)]), "no"
        article = "an" if name[0] in "aeiou" else "a"
        return self._choose([f"Is there {article} {name}?", f"Can you see {article} {name}?"]), reply

    def _kind(self, scene: Scene) -> tuple[str, str]:
        name, place = self._somewhere(scene)
        return f"What kind of thing is {place}?", things()[name].kind

    def _any_of_kind(self, scene: Scene) -> tuple[str, str]:
        kinds = {things()[name].kind for name in scene.shown}
        yes = self._alternate("any_of_kind") == 0
        others = {things()[name].kind for name in self.names} - kinds
        return f"Is any {self._choose(sorted(kinds if yes else others))} there?", "yes" if yes else "no"


def caption(scene: Scene) -> str:
    """Every cell in reading order: one word each, so that a word's place in the text is its place in the picture.

    >>> caption(Scene((None, "cat", *[None] * 7), word=("ICE", 2)))
    'nothing cat nothing nothing nothing nothing I C E'
    """
    said = [name or "nothing" for name in scene.cells]
    if scene.word is not None:
        letters, row = scene.word
        said[GRID * row : GRID * (row + 1)] = letters
    if scene.digit is not None:
        said[scene.digit[1]] = str(_digits().target[scene.digit[0]])
    return " ".join(said)


def _scenes(settings: Settings, side: str, style: Style, folder: Path) -> Iterator[tuple[Record, Scene, Asker]]:
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
    records, captions, text = list[Record](), list[Record](), list[str]()
    for keys, scene, asker in _scenes(settings, "train", style, folder):
        turns: dict[str, str] = {}
        for ability in asker.rng.permutation(ABILITIES * 2).tolist()[:TURNS]:
            if (asked := asker.ask(ability, scene)) is not None:
                turns.setdefault(*asked[1:])
        records.append(keys | {"conversations": conversation(list(turns.items()))})
        captions.append(keys | {"conversations": conversation([("", caption(scene))])})
        text += [part for turn in turns.items() for part in turn] + [caption(scene)]
    dump(records, folder / "train.json")
    dump(records[: settings.small_scenes], folder / "train_small.json")
    dump(captions, folder / "captions.json")
    return text


def _write_questions(settings: Settings, side: str, style: Style, folder: Path) -> None:
    records = []
    for keys, scene, asker in _scenes(settings, side, style, folder):
        for ability in ABILITIES:
            if (asked := asker.ask(ability, scene)) is not None:
                kind, *turn = asked
                extra = {"source": ability, "kind": kind, "conversations": conversation([(turn[0], turn[1])])}
                records.append(keys | {"id": f"{keys['id']}-{ability}"} | extra)
    dump(records, folder / f"{side if side in ('val', 'test') else f'test_{side}'}.json")


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
        write_processor(text, folder / "processor", CELL * GRID, PATCH, vocab_size=768)

    return write_whole("emoji", VERSION, settings, fill, output)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    command_line("emoji", __doc__, Settings, write, arguments)


if __name__ == "__main__":
    main()
