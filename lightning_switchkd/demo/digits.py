"""Boards of handwritten digits as LLaVA JSON and PNG, with a processor.

    python -m lightning_switchkd demo-data digits --output datasets/digits --boards 12000 --grid 2 --seed 0

scikit-learn includes 1,797 scans of digits. The scans are split into training, validation and test scans first. A board
uses the scans of its split only, so training never sees a held-out scan.

    images/{train,small,val,test}/000000.png
    captions.json     one caption per training board, to train the vision encoder
    train.json        several questions and answers per training board, in random order
    train_small.json  the same, from boards of a few training scans only: the student's training data
    val.json, test.json   one question per sample, its kind as "source"; scans without jitter
    sources.json      what each kind of question asks
    processor/        tokenizer (trained on the training text), image processor, LlavaProcessor
    manifest.json     the settings; equal settings are not written again

Every sample has two more keys: "digits" in reading order, and "scans", the rows of ``sklearn.datasets.load_digits``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from lightning_switchkd.core.extras import requires
from lightning_switchkd.demo.common import DemoDataset, Sample, check_settings, conversation, dump, write_processor

CELL = 16  # height and width of a digit, in pixels
N_VAL_SCANS, N_TEST_SCANS = 150, 300
SPLITS = ("train", "small", "val", "test")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "position": ("Which digit is {where}?", "Read the digit {where}.", "What is written {where}?"),
    "board": ("Read all digits.", "What is on the board?", "Read the board row by row."),
    "exists": ("Is there a {digit}?", "Does a {digit} appear?", "Can you see a {digit}?"),
    "count": ("How many {digit}s are there?", "Count the {digit}s.", "How often do you see a {digit}?"),
    "sum": ("What is the sum?", "Add all digits.", "What do the digits add up to?"),
    "largest": ("What is the largest digit?", "Which digit is the largest?", "Name the largest digit."),
}
SOURCES = {
    "position": "the digit at a place.",
    "board": "all digits, row by row.",
    "exists": "whether a digit is there.",
    "count": "how often a digit is there.",
    "sum": "the sum of all digits.",
    "largest": "the largest digit.",
}
PLACES = {
    2: ("at the top left", "at the top right", "at the bottom left", "at the bottom right"),
    3: tuple(f"at the {row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right")),
}


@dataclass(frozen=True)
class Settings:
    """Settings that the files depend on. The annotations are the help texts of the flags."""

    grid: Annotated[int, "rows and columns of a board, 2 or 3"] = 2
    boards: Annotated[int, "training boards (train.json, captions.json)"] = 12000
    small_boards: Annotated[int, "training boards of train_small.json"] = 3000
    small_scans: Annotated[int, "training scans of train_small.json"] = 300
    val_boards: Annotated[int, "boards of val.json, with six questions each"] = 200
    test_boards: Annotated[int, "boards of test.json, with six questions each"] = 500
    turns: Annotated[int, "questions per training board, at most six"] = 6
    jitter: Annotated[float, "strength of rotation, shift, scale and shear of training digits; 0 disables them"] = 1.0
    seed: Annotated[int, "seed of the split, the boards and the questions"] = 0

    def __post_init__(self) -> None:
        """Check the limits, before anything is written."""
        limits = {"grid": (2, 3), "turns": (1, len(TEMPLATES)), "small_scans": (100, 1000), "jitter": (0, 3)}
        limits |= dict.fromkeys(("boards", "small_boards", "val_boards", "test_boards"), (1, 999_999))
        check_settings("digits", self, limits)


@cache
def all_scans() -> Any:
    """Return the result of ``sklearn.datasets.load_digits``: all scans, and their digits.

    Raises:
        UserError: scikit-learn is not installed.
    """
    with requires("demo", "The demo data"):
        from sklearn.datasets import load_digits

    return load_digits()


def split_scans(seed: int, small_scans: int) -> dict[str, NDArray[np.int64]]:
    """Split the scans into ``train``, ``val`` and ``test``, which share none. ``small`` is a part of ``train``."""
    order = np.random.default_rng(seed).permutation(len(all_scans().target)).astype(np.int64)
    test, val, train = np.split(order, [N_TEST_SCANS, N_TEST_SCANS + N_VAL_SCANS])
    return {"train": train, "small": train[:small_scans], "val": val, "test": test}


class Painter:
    """Draws boards from the scans of one split.

    Args:
        scans: Rows of ``load_digits``.
        grid: Rows and columns of a board.
        jitter: Strength of the random transformations.
        rng: Random numbers of the split.
    """

    def __init__(self, scans: NDArray[np.int64], grid: int, jitter: float, rng: np.random.Generator) -> None:
        source = all_scans()
        self.grid, self.jitter, self.rng = grid, jitter, rng
        self.by_digit = [scans[source.target[scans] == digit] for digit in range(10)]
        self.pictures = (source.images * 255 / 16).astype(np.uint8)

    def layout(self) -> tuple[list[int], list[int]]:
        """Choose digits and scans of a board. All digits are equally frequent. Half of the boards repeat a digit."""
        cells = self.grid**2
        digits = self.rng.integers(10, size=cells)
        if self.rng.random() < 0.5:
            repeated = self.rng.permutation(cells)[: self.rng.integers(2, cells + 1)]
            digits[repeated] = self.rng.integers(10)
        return digits.tolist(), [int(self.rng.choice(self.by_digit[digit])) for digit in digits]

    def draw(self, scans: Sequence[int]) -> Image.Image:
        """Draw the board of these scans, in grayscale."""
        board = Image.new("L", (CELL * self.grid, CELL * self.grid))
        for cell, scan in enumerate(scans):
            picture = Image.fromarray(self.pictures[scan]).resize((CELL, CELL), Image.Resampling.BICUBIC)
            picture = self._jittered(picture) if self.jitter else picture
            board.paste(picture, (CELL * (cell % self.grid), CELL * (cell // self.grid)))
        return board

    def _jittered(self, picture: Image.Image) -> Image.Image:
        """Rotate by up to 12°, shear by 0.1, scale by 12 %, shift by 1.5 pixels, each times ``jitter``."""
        angle, shear, scale_x, scale_y, dx, dy = self.jitter * self.rng.uniform(-1, 1, 6)
        angle, middle = np.deg2rad(12 * angle), (CELL - 1) / 2
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = turn @ np.array([[1 + 0.12 * scale_x, 0.1 * shear], [0, 1 + 0.12 * scale_y]])
        offset = middle - linear @ np.array([middle + 1.5 * dx, middle + 1.5 * dy])
        matrix = (*linear[0].tolist(), float(offset[0]), *linear[1].tolist(), float(offset[1]))
        return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


class Asker:
    """Writes questions about boards. In every template of ``exists`` the answers alternate between yes and no.

    Args:
        grid: Rows and columns of a board.
        rng: Random numbers of the split.
    """

    def __init__(self, grid: int, rng: np.random.Generator) -> None:
        self.grid, self.rng = grid, rng
        self.next_is_yes = dict.fromkeys(TEMPLATES["exists"], True)

    def ask(self, kind: str, digits: Sequence[int]) -> tuple[str, str]:
        """Write a question of this kind about a board, and its answer."""
        template = str(self.rng.choice(TEMPLATES[kind]))
        cell = int(self.rng.integers(len(digits)))
        digit = self._digit(kind, template, digits)
        question = template.format(where=PLACES[self.grid][cell], digit=digit)
        return question, answer(kind, digits, cell=cell, digit=digit)

    def _digit(self, kind: str, template: str, digits: Sequence[int]) -> int:
        """Choose the digit of a question: yes and no alternate; all counts of the board are equally likely."""
        counts = np.bincount(digits, minlength=10)
        if kind == "exists":
            wanted = counts > 0 if self.next_is_yes[template] else counts == 0
            self.next_is_yes[template] = not self.next_is_yes[template]
        else:
            wanted = counts == self.rng.choice(np.unique(counts))
        return int(self.rng.choice(np.flatnonzero(wanted)))


def answer(kind: str, digits: Sequence[int], *, cell: int = 0, digit: int = 0) -> str:
    """Return the answer to a question.

    Args:
        kind: Kind of the question.
        digits: Digits of the board, in reading order.
        cell: Cell of a ``position`` question.
        digit: Digit of an ``exists`` or ``count`` question.

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


def _boards(settings: Settings, split: str, folder: Path) -> Iterator[tuple[Sample, Asker]]:
    """Draw and save the boards of one split. Yields the keys of each board and the writer of its questions."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split)])
    scans = split_scans(settings.seed, settings.small_scans)[split]
    painter = Painter(scans, settings.grid, settings.jitter if split in ("train", "small") else 0.0, rng)
    asker = Asker(settings.grid, rng)
    (folder / "images" / split).mkdir(parents=True)
    boards = range(getattr(settings, "boards" if split == "train" else f"{split}_boards"))
    for number in tqdm(boards, desc=f"digits: {split}", unit=" boards"):
        digits, drawn = painter.layout()
        image = f"{split}/{number:06d}.png"
        painter.draw(drawn).save(folder / "images" / image)
        yield {"id": f"{split}-{number:06d}", "image": image, "digits": digits, "scans": drawn}, asker


def _write_samples(settings: Settings, folder: Path) -> list[str]:
    """Write boards and questions. Returns the training text."""
    kinds, text = list(TEMPLATES), list[str]()
    for split in ("train", "small"):
        samples = []
        for keys, asker in _boards(settings, split, folder):
            turns = [asker.ask(kinds[k], keys["digits"]) for k in asker.rng.permutation(len(kinds))[: settings.turns]]
            samples.append(keys | {"conversations": conversation(turns)})
            text += [part for turn in turns for part in turn]
        dump(samples, folder / ("train.json" if split == "train" else "train_small.json"))
        if split == "train":
            captions = [
                {"conversations": conversation([("", answer("board", sample["digits"]))])} for sample in samples
            ]
            dump([r | c for r, c in zip(samples, captions, strict=True)], folder / "captions.json")
    for split in ("val", "test"):
        samples = []
        for keys, asker in _boards(settings, split, folder):
            for kind in kinds:
                extra = {"source": kind, "conversations": conversation([asker.ask(kind, keys["digits"])])}
                samples.append(keys | {"id": f"{keys['id']}-{kind}"} | extra)
        dump(samples, folder / f"{split}.json")
    return text


def _fill(settings: Settings, folder: Path) -> None:
    text = _write_samples(settings, folder)
    write_processor(text, folder / "processor", CELL * settings.grid, CELL // 2)  # two by two patches per digit


DATASET = DemoDataset("digits", version=1, doc=__doc__, settings=Settings, sources=SOURCES, fill=_fill)
write, main = DATASET.write, DATASET.main
