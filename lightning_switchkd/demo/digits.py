"""Boards of real handwritten digits, written to disk as ordinary LLaVA JSON and PNG, with a processor of their own.

    python -m lightning_switchkd.demo.digits --output datasets/digits --boards 12000 --grid 2 --seed 0

Scikit-learn ships 1,797 scans. They are split into training, validation and test scans first; boards are drawn
afterwards, each from the scans of one side only, so no held-out scan is ever seen in training.

    images/{train,small,val,test}/000000.png
    captions.json     one caption a training board: what a vision tower is trained on
    train.json        several question-answer turns a training board, in random order
    train_small.json  the same from boards of a few training scans only: what the student is given
    val.json, test.json   one question a record, its kind under "source"; scans drawn as they are, without jitter
    processor/        tokenizer trained on the training text, image processor, LlavaProcessor
    manifest.json     the settings all this was made with; equal settings are not written again

Every record carries its truth beside the usual keys: "digits" in reading order, and "scans", the rows of
``sklearn.datasets.load_digits`` they were drawn from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from tqdm import tqdm

from lightning_switchkd.demo.embedded import (
    check_limits,
    command_line,
    conversation,
    dump,
    write_processor,
    write_whole,
)

Sample = dict[str, Any]
VERSION = 1  # raised whenever equal settings would give other files
CELL = 16  # pixels a digit has on each side
N_VAL_SCANS, N_TEST_SCANS = 150, 300
PATHWAYS = ("train", "small", "val", "test")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "position": ("Which digit is {where}?", "Read the digit {where}.", "What is written {where}?"),
    "board": ("Read all digits.", "What is on the board?", "Read the board row by row."),
    "exists": ("Is there a {digit}?", "Does a {digit} appear?", "Can you see a {digit}?"),
    "count": ("How many {digit}s are there?", "Count the {digit}s.", "How often do you see a {digit}?"),
    "sum": ("What is the sum?", "Add all digits.", "What do the digits add up to?"),
    "largest": ("What is the largest digit?", "Which digit is the largest?", "Name the largest digit."),
}
PLACES = {
    2: ("at the top left", "at the top right", "at the bottom left", "at the bottom right"),
    3: tuple(f"at the {row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right")),
}


@dataclass(frozen=True)
class Settings:
    """What the files depend on; the notes are the command line's help."""

    grid: Annotated[int, "rows and columns of a board, 2 or 3"] = 2
    boards: Annotated[int, "training boards (train.json, captions.json)"] = 12000
    small_boards: Annotated[int, "training boards of train_small.json"] = 3000
    small_scans: Annotated[int, "training scans that those are drawn from"] = 300
    val_boards: Annotated[int, "boards of val.json, six questions each"] = 200
    test_boards: Annotated[int, "boards of test.json, six questions each"] = 500
    turns: Annotated[int, "questions a training board, at most six"] = 6
    jitter: Annotated[float, "strength of rotation, shift, scale and shear of training digits; 0: none"] = 1.0
    seed: Annotated[int, "decides the split, the boards and the questions"] = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be drawn, before anything is written."""
        limits = {"grid": (2, 3), "turns": (1, len(TEMPLATES)), "small_scans": (100, 1000), "jitter": (0, 3)}
        limits |= dict.fromkeys(("boards", "small_boards", "val_boards", "test_boards"), (1, 999_999))
        check_limits("digits", self, limits | {"seed": (0, 2**32 - 1)})


def split_scans(seed: int, small_scans: int) -> dict[str, NDArray[np.int64]]:
    """The scans of each side: ``train``, ``val`` and ``test`` share none; ``small`` is a part of ``train``."""
    order = np.random.default_rng(seed).permutation(len(load_digits().target)).astype(np.int64)
    test, val, train = np.split(order, [N_TEST_SCANS, N_TEST_SCANS + N_VAL_SCANS])
    return {"train": train, "small": train[:small_scans], "val": val, "test": test}


class Painter:
    """Draws boards from one side's scans."""

    def __init__(self, scans: NDArray[np.int64], grid: int, jitter: float, rng: np.random.Generator) -> None:
        source = load_digits()
        self.grid, self.jitter, self.rng = grid, jitter, rng
        self.by_digit = [scans[source.target[scans] == digit] for digit in range(10)]
        self.pictures = (source.images * 255 / 16).astype(np.uint8)

    def layout(self) -> tuple[list[int], list[int]]:
        """Digits and scans of a board: every digit equally often anywhere; half of the boards repeat one on purpose."""
        cells = self.grid**2
        digits = self.rng.integers(10, size=cells)
        if self.rng.random() < 0.5:
            repeated = self.rng.permutation(cells)[: self.rng.integers(2, cells + 1)]
            digits[repeated] = self.rng.integers(10)
        return digits.tolist(), [int(self.rng.choice(self.by_digit[digit])) for digit in digits]

    def draw(self, scans: Sequence[int]) -> Image.Image:
        """The board of these scans, grey."""
        board = Image.new("L", (CELL * self.grid, CELL * self.grid))
        for cell, scan in enumerate(scans):
            picture = Image.fromarray(self.pictures[scan]).resize((CELL, CELL), Image.Resampling.BICUBIC)
            picture = self._jittered(picture) if self.jitter else picture
            board.paste(picture, (CELL * (cell % self.grid), CELL * (cell // self.grid)))
        return board

    def _jittered(self, picture: Image.Image) -> Image.Image:
        """Rotated by up to 12°, sheared and scaled by up to a tenth, shifted by up to 1.5 pixels (jitter 1)."""
        angle, shear, scale_x, scale_y, dx, dy = self.jitter * self.rng.uniform(-1, 1, 6)
        angle, middle = np.deg2rad(12 * angle), (CELL - 1) / 2
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = turn @ np.array([[1 + 0.12 * scale_x, 0.1 * shear], [0, 1 + 0.12 * scale_y]])
        offset = middle - linear @ np.array([middle + 1.5 * dx, middle + 1.5 * dy])
        matrix = (*linear[0].tolist(), float(offset[0]), *linear[1].tolist(), float(offset[1]))
        return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


class Asker:
    """Asks questions about boards; in every template of ``exists`` the answers alternate between yes and no."""

    def __init__(self, grid: int, rng: np.random.Generator) -> None:
        self.grid, self.rng = grid, rng
        self.next_is_yes = dict.fromkeys(TEMPLATES["exists"], True)

    def ask(self, kind: str, digits: Sequence[int]) -> tuple[str, str]:
        """A question of this kind about a board, and the true answer."""
        template = str(self.rng.choice(TEMPLATES[kind]))
        cell = int(self.rng.integers(len(digits)))
        digit = self._digit(kind, template, digits)
        question = template.format(where=PLACES[self.grid][cell], digit=digit)
        return question, answer(kind, digits, cell=cell, digit=digit)

    def _digit(self, kind: str, template: str, digits: Sequence[int]) -> int:
        """The digit asked for: yes and no alternate; each count a board has is equally likely."""
        counts = np.bincount(digits, minlength=10)
        if kind == "exists":
            wanted = counts > 0 if self.next_is_yes[template] else counts == 0
            self.next_is_yes[template] = not self.next_is_yes[template]
        else:
            wanted = counts == self.rng.choice(np.unique(counts))
        return int(self.rng.choice(np.flatnonzero(wanted)))


def answer(kind: str, digits: Sequence[int], *, cell: int = 0, digit: int = 0) -> str:
    """The true answer to a question of ``kind``; ``cell`` serves position, ``digit`` serves exists and count.

    >>> answer("board", [7, 3, 1, 9]), answer("sum", [7, 3, 1, 9]), answer("exists", [7, 3, 1, 9], digit=2)
    ('73 19', '20', 'no')
    """
    rows = np.array(digits).reshape(int(len(digits) ** 0.5), -1)
    return {
        "position": str(digits[cell]),
        "board": " ".join("".join(map(str, row)) for row in rows),
        "exists": "yes" if digit in digits else "no",
        "count": str(list(digits).count(digit)),
        "sum": str(sum(digits)),
        "largest": str(max(digits)),
    }[kind]


def _boards(settings: Settings, side: str, folder: Path) -> Iterator[tuple[Sample, Asker]]:
    """Draws and saves the boards of one side; yields each one's keys and who asks about it."""
    rng = np.random.default_rng([settings.seed, PATHWAYS.index(side)])
    scans = split_scans(settings.seed, settings.small_scans)[side]
    painter = Painter(scans, settings.grid, settings.jitter if side in ("train", "small") else 0.0, rng)
    asker = Asker(settings.grid, rng)
    (folder / "images" / side).mkdir(parents=True)
    boards = range(getattr(settings, "boards" if side == "train" else f"{side}_boards"))
    for number in tqdm(boards, desc=f"digits: {side}", unit=" boards"):
        digits, drawn = painter.layout()
        image = f"{side}/{number:06d}.png"
        painter.draw(drawn).save(folder / "images" / image)
        yield {"id": f"{side}-{number:06d}", "image": image, "digits": digits, "scans": drawn}, asker


def _write_records(settings: Settings, folder: Path) -> list[str]:
    """Writes boards and questions; returns the training text."""
    kinds, text = list(TEMPLATES), list[str]()
    for side in ("train", "small"):
        samples = []
        for keys, asker in _boards(settings, side, folder):
            turns = [asker.ask(kinds[k], keys["digits"]) for k in asker.rng.permutation(len(kinds))[: settings.turns]]
            samples.append(keys | {"conversations": conversation(turns)})
            text += [part for turn in turns for part in turn]
        dump(samples, folder / ("train.json" if side == "train" else "train_small.json"))
        if side == "train":
            said = [{"conversations": conversation([("", answer("board", sample["digits"]))])} for sample in samples]
            dump([r | c for r, c in zip(samples, said, strict=True)], folder / "captions.json")
    for side in ("val", "test"):
        samples = []
        for keys, asker in _boards(settings, side, folder):
            for kind in kinds:
                extra = {"source": kind, "conversations": conversation([asker.ask(kind, keys["digits"])])}
                samples.append(keys | {"id": f"{keys['id']}-{kind}"} | extra)
        dump(samples, folder / f"{side}.json")
    return text


def write(settings: Settings, output: Path) -> bool:
    """Writes everything to ``output``, whole or not at all; False if it was there already, made with equal settings.

    Raises:
        UserError: ``output`` holds something that this module did not write.
    """

    def fill(folder: Path) -> None:
        """The tower has two by two patches a digit."""
        text = _write_records(settings, folder)
        write_processor(text, folder / "processor", CELL * settings.grid, CELL // 2)

    return write_whole("digits", VERSION, settings, fill, output)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    command_line("digits", __doc__, Settings, write, arguments)


if __name__ == "__main__":
    main()
