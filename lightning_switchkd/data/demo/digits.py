"""Boards of real handwritten digits, written to disk as ordinary LLaVA JSON and PNG, with a processor of their own.

    python -m lightning_switchkd.data.demo.digits --output datasets/digits --boards 12000 --grid 2 --seed 0

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

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from tqdm import tqdm

from lightning_switchkd.errors import UserError

Ints = NDArray[np.int64]
Record = dict[str, Any]

VERSION = 1
"""Raised whenever equal settings would give other files."""
CELL = 16
"""Pixels a digit has on each side."""
N_VAL_SCANS, N_TEST_SCANS = 150, 300

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
ROLE_TEXT = ("system\n", "user\n", "assistant\n", "USER: ", " ASSISTANT: ")


@dataclass(frozen=True)
class Settings:
    """What the files depend on.

    Attributes:
        grid: Rows and columns of a board, 2 or 3.
        boards: Training boards (train.json, captions.json).
        small_boards: Training boards of train_small.json.
        small_scans: Training scans they are drawn from.
        val_boards: Boards of val.json, six questions each.
        test_boards: Boards of test.json, six questions each.
        turns: Questions a training board, at most six.
        jitter: Strength of the random rotation, shift, scale and shear of a training digit; 0 draws it as it is.
        seed: Decides the split, the boards and the questions.
    """

    grid: int = 2
    boards: int = 12000
    small_boards: int = 3000
    small_scans: int = 300
    val_boards: int = 200
    test_boards: int = 500
    turns: int = 3
    jitter: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be drawn, before anything is written."""
        if self.grid not in PLACES:
            raise UserError(f"digits: --grid must be 2 or 3, not {self.grid}.")
        if not 1 <= self.turns <= len(TEMPLATES):
            raise UserError(f"digits: --turns must lie between 1 and {len(TEMPLATES)}, not {self.turns}.")
        if min(self.boards, self.small_boards, self.val_boards, self.test_boards) < 1:
            raise UserError("digits: --boards, --small-boards, --val-boards and --test-boards must be at least 1.")
        if not 100 <= self.small_scans <= 1000:
            raise UserError(f"digits: --small-scans must lie between 100 and 1000, not {self.small_scans}.")
        if self.jitter < 0:
            raise UserError(f"digits: --jitter must not be negative, but is {self.jitter}.")


def split_scans(seed: int, small_scans: int) -> dict[str, Ints]:
    """The scans of each side: ``train``, ``val`` and ``test`` share none; ``small`` is a part of ``train``."""
    order = np.random.default_rng(seed).permutation(len(load_digits().target)).astype(np.int64)
    held = N_VAL_SCANS + N_TEST_SCANS
    train = order[held:]
    return {"train": train, "small": train[:small_scans], "val": order[N_TEST_SCANS:held], "test": order[:N_TEST_SCANS]}


class Painter:
    """Draws boards from one side's scans."""

    def __init__(self, scans: Ints, grid: int, jitter: float, rng: np.random.Generator) -> None:
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
            row, column = divmod(cell, self.grid)
            board.paste(self._jittered(picture) if self.jitter else picture, (CELL * column, CELL * row))
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
    grid = int(len(digits) ** 0.5)
    rows = ["".join(map(str, digits[start : start + grid])) for start in range(0, len(digits), grid)]
    return {
        "position": str(digits[cell]),
        "board": " ".join(rows),
        "exists": "yes" if digit in digits else "no",
        "count": str(list(digits).count(digit)),
        "sum": str(sum(digits)),
        "largest": str(max(digits)),
    }[kind]


def conversation(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """LLaVA turns with the image before the first question."""
    said: list[dict[str, str]] = []
    for question, reply in turns:
        text = question if said else f"<image>\n{question}".rstrip("\n")
        said += [{"from": "human", "value": text}, {"from": "gpt", "value": reply}]
    return said


def _boards(settings: Settings, side: str, count: int, folder: Path, bar: tqdm[Any]) -> Iterator[tuple[Record, Asker]]:
    """Draws and saves the boards of one side; yields each one's keys and who asks about it."""
    sides = list(split_scans(settings.seed, settings.small_scans).items())
    index = [name for name, _ in sides].index(side)
    rng = np.random.default_rng([settings.seed, index])
    jitter = settings.jitter if side in ("train", "small") else 0.0
    painter, asker = Painter(sides[index][1], settings.grid, jitter, rng), Asker(settings.grid, rng)
    (folder / "images" / side).mkdir(parents=True)
    for number in range(count):
        digits, scans = painter.layout()
        name = f"{side}/{number:06d}.png"
        painter.draw(scans).save(folder / "images" / name)
        bar.update()
        yield {"id": f"{side}-{number:06d}", "image": name, "digits": digits, "scans": scans}, asker


def _write_records(settings: Settings, folder: Path) -> list[str]:
    """Writes boards and questions; returns the training text for the tokenizer."""
    counts = {side: int(getattr(settings, f"{side}_boards")) for side in ("small", "val", "test")}
    kinds, text = list(TEMPLATES), list(ROLE_TEXT)
    with tqdm(total=settings.boards + sum(counts.values()), desc="digits: boards", unit="board") as bar:
        for side, name in (("train", "train"), ("small", "train_small")):
            records, captions = [], []
            for keys, asker in _boards(settings, side, counts.get(side, settings.boards), folder, bar):
                chosen = asker.rng.permutation(len(kinds))[: settings.turns]
                turns = [asker.ask(kinds[kind], keys["digits"]) for kind in chosen]
                records.append(keys | {"conversations": conversation(turns)})
                captions.append(keys | {"conversations": conversation([("", answer("board", keys["digits"]))])})
                text += [part for turn in turns for part in turn]
            _dump(records, folder / f"{name}.json")
            if side == "train":
                _dump(captions, folder / "captions.json")
        for side in ("val", "test"):
            questions = []
            for keys, asker in _boards(settings, side, counts[side], folder, bar):
                for kind in kinds:
                    turn = asker.ask(kind, keys["digits"])
                    extra = {"id": f"{keys['id']}-{kind}", "source": kind, "conversations": conversation([turn])}
                    questions.append(keys | extra)
            _dump(questions, folder / f"{side}.json")
    return text


def _dump(value: object, path: Path) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def train_tokenizer(text: Sequence[str], vocab_size: int = 384) -> Any:
    """A byte-level BPE tokenizer: any text can be encoded, every decimal digit is a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    backend.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _write_processor(settings: Settings, text: Sequence[str], folder: Path) -> None:
    from transformers import CLIPImageProcessor, LlavaProcessor

    side = CELL * settings.grid
    image_processor = CLIPImageProcessor(
        size={"height": side, "width": side}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=train_tokenizer(text),
        patch_size=CELL // 2,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)


def write(settings: Settings, output: Path) -> bool:
    """Writes everything to ``output``; False if it was there already, made with equal settings.

    The folder appears whole or not at all: all is written beside it first, then moved into place.

    Raises:
        UserError: ``output`` holds something that this module did not write.
    """
    manifest = {"data": "digits", "version": VERSION, "settings": asdict(settings)}
    there = output / "manifest.json"
    if there.is_file() and json.loads(there.read_text(encoding="utf-8")) == manifest:
        return False
    if output.exists() and not there.is_file() and any(output.iterdir()):
        raise UserError(
            f"digits: {output} exists and holds something else (no manifest.json). "
            "Choose another --output, or move that folder away."
        )
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        text = _write_records(settings, partial)
        _write_processor(settings, text, partial / "processor")
        _dump(manifest, partial / "manifest.json")
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lightning_switchkd.data.demo.digits",
        description=__doc__.split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("datasets/digits"), help="folder to write")
    meanings = dict(line.strip().split(": ", 1) for line in str(Settings.__doc__).splitlines() if ": " in line)
    for field in fields(Settings):
        kind = type(field.default)
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=kind, default=field.default, help=meanings[field.name])
    given = vars(parser.parse_args(arguments))
    output = given.pop("output")
    try:
        written = write(Settings(**given), output)
    except UserError as error:
        print(error)
        return 1
    print(f"digits: {'written to' if written else 'already there, with the same settings:'} {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
