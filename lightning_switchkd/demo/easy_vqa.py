"""The published easy-VQA data as LLaVA JSON and PNG, with a processor.

    python -m lightning_switchkd demo-data easy_vqa --output datasets/easy_vqa --val-images 500 --seed 0

The package `easy-vqa` (Victor Zhou, MIT) has 5,000 images of one colored shape each and 48,248 questions about them.
Its test split is kept as it is. The validation split is taken from its training images, so no image is in two splits.

    images/{train,test}/0.png   the images, under their original numbers
    captions.json     color and shape of each training image whose questions give both, to train the vision encoder
    train.json        all questions about a training image as turns of one sample, in random order
    train_balanced.json   the teacher's training data. Of the yes-no questions about what an image does not show, it has
                      only as many as there are about what the image shows. All of them would be 82 % of the yes-no
                      questions, which a model then answers from the text.
    train_small.json  some of these samples: the student's training data
    val.json, test.json   one question per sample, its kind as "source"; the images of val.json are in images/train
    sources.json      what each kind of question asks
    processor/        tokenizer (trained on the training text), image processor (24 × 24), LlavaProcessor
    manifest.json     the settings; equal settings are not written again
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from lightning_switchkd.core.extras import requires
from lightning_switchkd.demo.common import DemoDataset, Sample, check_settings, conversation, dump, write_processor

Turns = dict[int, list[tuple[str, str]]]  # questions and answers by image number
TRAIN_IMAGES = 4000
IMAGE_SIZE, PATCH_SIZE = 24, 4
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
SOURCES = {
    "color": "the color of the shape.",
    "shape": "the shape.",
    "color_present": "whether a color is there.",
    "color_absent": "whether a color is not there.",
    "shape_present": "whether a shape is there.",
    "shape_absent": "whether a shape is not there.",
}


@dataclass(frozen=True)
class Settings:
    """Settings that the files depend on. The annotations are the help texts of the flags."""

    val_images: Annotated[int, "training images moved to val.json"] = 500
    small_images: Annotated[int, "training images of train_small.json"] = 1000
    seed: Annotated[int, "seed of the split and of the order of turns"] = 0

    def __post_init__(self) -> None:
        """Check the limits, before anything is written."""
        limits = {"val_images": (1, TRAIN_IMAGES - 1), "small_images": (1, TRAIN_IMAGES - self.val_images)}
        check_settings("easy_vqa", self, limits)


def published(split: str) -> tuple[Turns, Path]:
    """Return the questions of ``train`` or ``test`` by image, in the package's order, and the folder of the images.

    Raises:
        UserError: The package is not installed.
    """
    with requires("demo", "The demo data"):
        import easy_vqa

    turns: Turns = {}
    for question, reply, image in zip(*getattr(easy_vqa, f"get_{split}_questions")(), strict=True):
        turns.setdefault(image, []).append((question, reply))
    return turns, Path(easy_vqa.__file__).parent / "data" / split / "images"


def kind_of(question: str) -> str:
    """Return the kind of a question: the property in question, and for yes-no questions ``present`` or ``absent``.

    >>> kind_of("what color is the circle?"), kind_of("is no teal shape present?"), kind_of("is there a circle?")
    ('color', 'color_absent', 'shape_present')
    """
    words = question.rstrip("?").split()
    if words[0] == "what":
        return "color" if "color" in words else "shape"
    attribute = "shape" if set(words) & set(SHAPES) else "color"
    return f"{attribute}_absent" if {"no", "not"} & set(words) else f"{attribute}_present"


def shown(turn: tuple[str, str]) -> bool:
    """Return whether a turn names what the image shows. Only yes-no questions about something else do not.

    >>> shown(("is a circle present?", "yes")), shown(("is no circle present?", "yes")), shown(("what is …?", "circle"))
    (True, False, True)
    """
    question, reply = turn
    return reply not in ("yes", "no") or (reply == "yes") == kind_of(question).endswith("_present")


def caption(turns: Sequence[tuple[str, str]]) -> str:
    """Write a caption of the color and shape that the questions and answers give.

    A caption is shorter if they give less.

    >>> caption([("is a circle present?", "yes"), ("is no teal shape present?", "no"), ("is there a red shape?", "no")])
    'a teal circle'
    """
    words = {word for turn in turns if shown(turn) for word in (*turn[0].rstrip("?").split(), turn[1])}
    return " ".join(["a", *(name for name in (*COLORS, *SHAPES) if name in words)])


def balanced(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Drop the surplus of turns about what an image does not show.

    The first of these turns are kept, as many as there are yes-no turns about what the image shows.

    >>> red, teal, blue = (f"is there a {color} shape?" for color in ("red", "teal", "blue"))
    >>> balanced([(red, "no"), (teal, "no"), (blue, "yes"), ("what color is the shape?", "blue")])
    [('is there a red shape?', 'no'), ('is there a blue shape?', 'yes'), ('what color is the shape?', 'blue')]
    """
    others = [turn for turn in turns if not shown(turn)]
    dropped = others[sum(shown(turn) and turn[1] in ("yes", "no") for turn in turns) :]
    return [turn for turn in turns if turn not in dropped]


def _write_samples(settings: Settings, folder: Path) -> list[str]:
    """Copy the images and write the questions. Returns the training text."""
    rng = np.random.default_rng(settings.seed)
    turns, text = dict[str, Turns](), list[str]()
    for split in ("train", "test"):
        turns[split], images = published(split)
        shutil.copytree(images, folder / "images" / split)
    held_out, training = np.split(rng.permutation(sorted(turns["train"])), [settings.val_images])
    samples, balanced_samples, captions = list[Sample](), list[Sample](), list[Sample]()
    for image in training.tolist():
        image_turns = [turns["train"][image][i] for i in rng.permutation(len(turns["train"][image]))]
        keys = {"id": f"train-{image}", "image": f"train/{image}.png"}
        samples.append(keys | {"conversations": conversation(image_turns)})
        balanced_samples += [keys | {"conversations": conversation(kept)}] if (kept := balanced(image_turns)) else []
        captions.append(keys | {"conversations": conversation([("", caption(image_turns))])})
        text += [part for turn in image_turns for part in turn]
    complete = [sample for sample in captions if len(sample["conversations"][1]["value"].split()) == 3]
    dump(complete, folder / "captions.json")
    dump(samples, folder / "train.json")
    dump(balanced_samples, folder / "train_balanced.json")
    dump(balanced_samples[: settings.small_images], folder / "train_small.json")
    dump(_single_questions("train", sorted(held_out.tolist()), turns["train"]), folder / "val.json")
    dump(_single_questions("test", sorted(turns["test"]), turns["test"]), folder / "test.json")
    return text


def _single_questions(split: str, images: Sequence[int], turns: Turns) -> list[Sample]:
    """Return one sample per question."""
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


def _fill(settings: Settings, folder: Path) -> None:
    text = _write_samples(settings, folder)
    write_processor(text, folder / "processor", IMAGE_SIZE, PATCH_SIZE)


DATASET = DemoDataset("easy_vqa", version=1, doc=__doc__, settings=Settings, sources=SOURCES, fill=_fill)
write, main = DATASET.write, DATASET.main
