"""Emoji scenes: their content, their split, and their images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lightning_switchkd.demo.digits import PLACES, all_scans, split_scans
from lightning_switchkd.demo.emoji_things import Style, held_out, things

CELL, GRID = 24, 3  # height and width of a cell in pixels, cells per row and column
SPLITS = ("train", "val", "test", "glyphs", "style")
WORDS = (
    "ACE ADD AGE AIR ARM ART ASK BAD BAG BED BIG BIT BOX BOY BUY CAN CAP CRY CUP CUT DAY DIG DOT DRY EAR EAT EGG END "
    "EYE FAR FEW FIT FLY FUN GAP GET GUM HAT HOT ICE INK JAM JOB JOY KIT LAW LEG LID LOW MAN MAP MIX MUD NET NEW NUT "
    "OAK OIL OLD PAN PEN PIN POT RAW RED RIB ROW RUG SAD SEA SIX SKY SUM TAP TEN TIP TOE TOP TOY VAN WAR WAX WET WIN "
    "YES ZIP"
)
"""Words of held-out scenes, one half in validation, one half in tests. Training scenes show other letters."""


@dataclass(frozen=True)
class Scene:
    """The content of a scene.

    Attributes:
        cells: Name of the thing in each cell, in reading order. None for an empty cell.
        word: Its letters and its row.
        digit: The row of ``load_digits`` and the cell.
    """

    cells: tuple[str | None, ...]
    word: tuple[str, int] | None = None
    digit: tuple[int, int] | None = None

    @property
    def shown(self) -> list[str]:
        """All things, each as often as it appears."""
        return [name for name in self.cells if name is not None]

    @property
    def seen(self) -> list[str]:
        """One word per cell.

        >>> Scene((None, "cat", *[None] * 7), word=("ICE", 2)).seen[:2]
        ['nothing', 'cat']
        """
        words = [name or "nothing" for name in self.cells]
        if self.word is not None:
            letters, row = self.word
            words[GRID * row : GRID * (row + 1)] = letters
        if self.digit is not None:
            words[self.digit[1]] = str(all_scans().target[self.digit[0]])
        return words

    def place(self, name: str) -> str:
        """Return the place of a thing that appears once."""
        return PLACES[GRID][self.cells.index(name)]


def split_of(shown: Sequence[str]) -> str:
    """Return the split of all scenes with these things, in any place. 1 of 12 is validation, 1 of 12 is test.

    >>> split_of(["cat", "dog"]) == split_of(["dog", "cat"])
    True
    """
    number = hashlib.sha256(" ".join(sorted(shown)).encode()).digest()[0] % 12
    return {0: "val", 1: "test"}.get(number, "train")


class Composer:
    """Composes the scenes of one split.

    Args:
        split: ``train``, ``val``, ``test``, ``glyphs`` or ``style``.
        seed: Seed of the data set.
    """

    def __init__(self, split: str, seed: int) -> None:
        self.split, self.rng = split, np.random.default_rng([seed, SPLITS.index(split)])
        fixed = np.random.default_rng(seed)  # the same for all splits
        names = fixed.permutation(sorted(things())).tolist()
        self.names = [name for name in names if name not in held_out()]
        self.weights = 1 / (np.arange(len(self.names)) + 20.0)  # some things appear more often than others
        words = fixed.permutation(WORDS.split()).tolist()
        self.words = words[::2] if split == "val" else words[1::2]
        self.scans = split_scans(seed, 100)[split if split in ("train", "val") else "test"]

    def compose(self) -> Scene:
        """Compose a scene that belongs to this split."""
        scene_split = {"glyphs": None, "style": "test"}.get(self.split, self.split)
        while True:
            shown = self._things()
            if scene_split is None or split_of(shown) == scene_split:
                break
        cells: list[str | None] = [None] * GRID**2
        free = list(range(GRID**2))
        word = digit = None
        reading = (
            self.rng.random() if self.split == "train" else 0.7 * self.rng.random()
        )  # held-out scenes always have a word or a digit
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
        """Choose a word. Training uses random letters instead of words, so that a model reads letter by letter."""
        while self.split == "train":
            letters = "".join(self.rng.choice(list(ascii_uppercase), 3).tolist())
            if letters not in WORDS.split():
                return letters
        return str(self.rng.choice(self.words))

    def _things(self) -> list[str]:
        """Choose two to five things, often of one group, often one of them several times."""
        names, weights = self.names, self.weights
        if self.rng.random() < 0.5:
            group = str(self.rng.choice(["animal", "food", "travel", "object"]))
            chosen = np.array([things()[name].group == group for name in names])
            weights = weights * chosen
        number = int(self.rng.integers(2, 6))
        shown = self.rng.choice(names, number, replace=False, p=weights / weights.sum()).tolist()
        if self.split == "glyphs":
            shown[0] = str(self.rng.choice(held_out()))
        if self.rng.random() < 0.4:
            times = int(self.rng.integers(2, number + 1))
            shown[:times] = shown[:1] * times
        return list(map(str, shown))


class Painter:
    """Draws scenes: cells of 24 × 24 pixels on one light color.

    Args:
        style: Style of the emojis.
        rng: Random numbers for sizes, places, angles and colors.
        jitter: Vary size, angle and place of the drawings.
    """

    def __init__(self, style: Style, rng: np.random.Generator, jitter: bool) -> None:
        self.style, self.rng, self.jitter = style, rng, jitter
        self.digits = (all_scans().images * 255 / 16).astype(np.uint8)
        self.font = ImageFont.load_default(22)

    def draw(self, scene: Scene) -> Image.Image:
        """Draw a scene."""
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
        drawing = drawing.resize([max(1, round(scale * length)) for length in drawing.size], Image.Resampling.LANCZOS)
        left, top = (
            CELL * place + (CELL - length) // 2 + (round(1.5 * shift) if self.jitter else 0)
            for place, length, shift in zip((cell % GRID, cell // GRID), drawing.size, (dx, dy), strict=True)
        )
        picture.paste(drawing, (left, top), drawing)
