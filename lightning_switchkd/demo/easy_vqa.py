"""The published easy-VQA set, written to disk as ordinary LLaVA JSON and PNG, with a processor of its own.

    python -m lightning_switchkd.demo.easy_vqa --output datasets/easy_vqa --val-images 500 --seed 0

The package `easy-vqa` (Victor Zhou, MIT) brings 5,000 pictures of one coloured shape each and 48,248 questions about
them. Its test split stays whole. Validation is carved from its training pictures, so no picture is on two sides.

    images/{train,test}/0.png   the package's pictures under their own numbers
    captions.json     colour and shape of a training picture, where its questions tell both: the tower learns them
    train.json        all questions of a training picture as turns of one record, in random order
    train_balanced.json   of the yes-no questions about what a picture does not show, only as many as about what it
                      does (all of them are 82 in 100, and tempt to answer by the text); what the teacher is given
    train_small.json  a part of these records: what the student is given
    val.json, test.json   one question a record, its kind under "source"; val.json's pictures lie in images/train
    processor/        tokenizer trained on the training text, image processor (24 × 24), LlavaProcessor
    manifest.json     the settings all this was made with; equal settings are not written again
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.demo.embedded import (
    check_limits,
    command_line,
    conversation,
    dump,
    write_processor,
    write_whole,
)

Sample = dict[str, Any]
Turns = dict[int, list[tuple[str, str]]]  # question and answer pairs by number of the picture
VERSION = 1  # raised whenever equal settings would give other files
TRAIN_IMAGES = 4000
IMAGE_SIZE, PATCH_SIZE = 24, 4
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


@dataclass(frozen=True)
class Settings:
    """What the files depend on; the notes are the command line's help."""

    val_images: Annotated[int, "training pictures kept for val.json"] = 500
    small_images: Annotated[int, "training pictures of train_small.json"] = 1000
    seed: Annotated[int, "decides the split and the order of the turns"] = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be carved, before anything is written."""
        limits = {"val_images": (1, TRAIN_IMAGES - 1), "small_images": (1, TRAIN_IMAGES - self.val_images)}
        check_limits("easy_vqa", self, limits | {"seed": (0, 2**32 - 1)})


def published(split: str) -> tuple[Turns, Path]:
    """The questions of ``train`` or ``test`` by picture, in the package's order, and the folder of its pictures.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import easy_vqa
    except ImportError:
        raise UserError("easy_vqa: the package that holds the data is missing: pip install easy-vqa==1.0") from None
    turns: Turns = {}
    for question, reply, image in zip(*getattr(easy_vqa, f"get_{split}_questions")(), strict=True):
        turns.setdefault(image, []).append((question, reply))
    return turns, Path(easy_vqa.__file__).parent / "data" / split / "images"


def kind_of(question: str) -> str:
    """The kind of a question: what is asked for, and whether the picture shall show it or not.

    >>> kind_of("what color is the circle?"), kind_of("is no teal shape present?"), kind_of("is there a circle?")
    ('color', 'color_absent', 'shape_present')
    """
    words = question.rstrip("?").split()
    if words[0] == "what":
        return "color" if "color" in words else "shape"
    asked = "shape" if set(words) & set(SHAPES) else "color"
    return f"{asked}_absent" if {"no", "not"} & set(words) else f"{asked}_present"


def shown(turn: tuple[str, str]) -> bool:
    """Whether a turn names what the picture shows: all but the yes-no questions about something else.

    >>> shown(("is a circle present?", "yes")), shown(("is no circle present?", "yes")), shown(("what is …?", "circle"))
    (True, False, True)
    """
    question, reply = turn
    return reply not in ("yes", "no") or (reply == "yes") == kind_of(question).endswith("_present")


def caption(turns: Sequence[tuple[str, str]]) -> str:
    """Colour and shape as questions and answers tell them; less where they tell less.

    >>> caption([("is a circle present?", "yes"), ("is no teal shape present?", "no"), ("is there a red shape?", "no")])
    'a teal circle'
    """
    told = {word for turn in turns if shown(turn) for word in (*turn[0].rstrip("?").split(), turn[1])}
    return " ".join(["a", *(name for name in (*COLORS, *SHAPES) if name in told)])


def balanced(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """All turns about what is shown; of the others, which outnumber them, the first so many as these have yes or no.

    >>> red, teal, blue = (f"is there a {color} shape?" for color in ("red", "teal", "blue"))
    >>> balanced([(red, "no"), (teal, "no"), (blue, "yes"), ("what color is the shape?", "blue")])
    [('is there a red shape?', 'no'), ('is there a blue shape?', 'yes'), ('what color is the shape?', 'blue')]
    """
    others = [turn for turn in turns if not shown(turn)]
    dropped = others[sum(shown(turn) and turn[1] in ("yes", "no") for turn in turns) :]
    return [turn for turn in turns if turn not in dropped]


def _write_records(settings: Settings, folder: Path) -> list[str]:
    """Copies the pictures and writes the questions; returns the training text."""
    rng = np.random.default_rng(settings.seed)
    turns, text = dict[str, Turns](), list[str]()
    for split in ("train", "test"):
        turns[split], images = published(split)
        shutil.copytree(images, folder / "images" / split)
    held_out, given = np.split(rng.permutation(sorted(turns["train"])), [settings.val_images])
    samples, halves, captions = list[Sample](), list[Sample](), list[Sample]()
    for image in given.tolist():
        said = [turns["train"][image][i] for i in rng.permutation(len(turns["train"][image]))]
        keys = {"id": f"train-{image}", "image": f"train/{image}.png"}
        samples.append(keys | {"conversations": conversation(said)})
        halves += [keys | {"conversations": conversation(kept)}] if (kept := balanced(said)) else []
        captions.append(keys | {"conversations": conversation([("", caption(said))])})
        text += [part for turn in said for part in turn]
    whole = [sample for sample in captions if len(sample["conversations"][1]["value"].split()) == 3]
    dump(whole, folder / "captions.json")
    dump(samples, folder / "train.json")
    dump(halves, folder / "train_balanced.json")
    dump(halves[: settings.small_images], folder / "train_small.json")
    dump(_asked_singly("train", sorted(held_out.tolist()), turns["train"]), folder / "val.json")
    dump(_asked_singly("test", sorted(turns["test"]), turns["test"]), folder / "test.json")
    return text


def _asked_singly(split: str, images: Sequence[int], turns: Turns) -> list[Sample]:
    """One question a record."""
    return [
        {
            "id": f"{split}-{image}-{i}",
            "image": f"{split}/{image}.png",
            "source": kind_of(turn[0]),
            "conversations": conversation([turn]),
        }
        for image in images
        for i, turn in enumerate(turns[image])
    ]


def write(settings: Settings, output: Path) -> bool:
    """Writes everything to ``output``, whole or not at all; False if it was there already, made with equal settings.

    Raises:
        UserError: ``output`` holds something that this module did not write, or the package is not installed.
    """

    def fill(folder: Path) -> None:
        text = _write_records(settings, folder)
        write_processor(text, folder / "processor", IMAGE_SIZE, PATCH_SIZE)

    return write_whole("easy_vqa", VERSION, settings, fill, output)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    command_line("easy_vqa", __doc__, Settings, write, arguments)


if __name__ == "__main__":
    main()
