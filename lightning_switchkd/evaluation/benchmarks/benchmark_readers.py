"""Readers of MME, POPE and TextVQA, in layouts that the columns of a table cannot describe."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.samples import ImageRef
from lightning_switchkd.evaluation.benchmarks.items import FilePicture, Item
from lightning_switchkd.evaluation.benchmarks.readers import Columns, table
from lightning_switchkd.evaluation.benchmarks.tables import find, read_rows


def textvqa(root: Path, questions: str, truth: str, images: str) -> list[Item]:
    """Read TextVQA in LLaVA's layout: one file with prompts that contain OCR words, another with ten answers each.

    LLaVA's question id is the id of the image. Only image and question together are unique.
    """
    folder = ImageFolder(root / images)
    prompts = {
        (str(row["question_id"]), row["text"].split("\n")[0].strip().lower()): row
        for row in read_rows(find(root, questions))
    }
    items = []
    for row in read_rows(find(root, truth), at="data"):
        image, question = str(row["image_id"]), row["question"].strip()
        prompt = prompts.get((image, question.lower()), {})
        picture = FilePicture(folder, ImageRef(prompt.get("image", f"{image}.jpg")))
        answers = tuple(map(str, row.get("answers", ())))
        items.append(Item(image, question, answers, {}, (picture,), image, prompt=prompt.get("text", "")))
    return items


def mme(root: Path, release: str = ".") -> list[Item]:
    """Read MME's release: one folder per category.

    A category has the folders ``images`` and ``questions_answers_YN``, or contains all files itself.

    Raises:
        UserError: An image does not have exactly two questions.
    """
    items = []
    for folder in sorted(path for path in (root / release).iterdir() if path.is_dir()):
        texts = folder / "questions_answers_YN" if (folder / "questions_answers_YN").is_dir() else folder
        pictures = folder / "images" if (folder / "images").is_dir() else folder
        for file in sorted(texts.glob("*.txt")):
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            if len(lines) != 2 or any(line.count("\t") != 1 for line in lines):
                raise UserError(
                    f"{file} must contain two lines, got {len(lines)}. Write question, tab and answer in each line."
                )
            image = next((p.name for p in sorted(pictures.glob(f"{file.stem}.*")) if p.suffix != ".txt"), "")
            name = f"{folder.name}/{image or file.stem}"
            ref = FilePicture(ImageFolder(pictures), ImageRef(image or f"{file.stem}.png"))
            for line in lines:
                question, answer = line.split("\t")
                items.append(Item(name, _without_request(question), (answer.strip(),), {}, (ref,), name, folder.name))
    return items


def _without_request(question: str) -> str:
    return re.sub(r"\s*Please answer yes or no\.?\s*$", "", question.strip())


def mme_table(root: Path, rows: str, columns: Columns) -> list[Item]:
    """Read MME from a table. Without a ``group``, the id names the image, as in the hub's layout.

    Raises:
        UserError: An image does not have exactly two questions.
    """
    items = table(root, rows, columns)
    if "group" not in columns:
        items = [replace(item, id=name, image=name) for item in items for name in [item.id.split("#")[0]]]
    if wrong := {name for name, count in Counter(item.image for item in items).items() if count != 2}:
        raise UserError(
            f"{root}: {len(wrong)} images of MME do not have exactly two questions, such as '{min(wrong)}'. "
            "Download the files again."
        )
    return [replace(item, question=_without_request(item.question)) for item in items]


def mme_lists(root: Path, rows: str) -> list[Item]:
    """Read MME from one list per category, as its evaluation tool does: ``CATEGORY.txt`` with image, question, answer.

    Raises:
        UserError: A line has fewer than three cells between tabs.
    """
    items = []
    for file in find(root, rows):
        folder = ImageFolder(root / file.stem)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            image, *cells = line.split("\t")
            if len(cells) < 2:
                raise UserError(f"{file}, line {number} must contain image, question and answer, between tabs.")
            name, picture = f"{file.stem}/{image}", FilePicture(folder, ImageRef(image))
            items.append(Item(name, _without_request(cells[0]), (cells[1],), {}, (picture,), name, file.stem))
    return items


def pope(root: Path, questions: str, truth: Mapping[str, str], images: str) -> list[Item]:
    """Read POPE in LLaVA's layout: one file with the questions of all splits, and one file of labels per split.

    Split, image and question join them. Ids do not, because they repeat over splits, and the published files differ in
    length and order.
    """
    folder = ImageFolder(root / images)
    labels = {
        (split, row["image"], _object(row["text"])): str(row["label"]).strip().lower()
        for split, pattern in truth.items()
        for row in read_rows(find(root, pattern))
    }
    items = []
    for row in read_rows(find(root, questions)):
        question = row["text"].split("\n")[0].strip()
        label = labels.get((row["category"], row["image"], _object(question)))
        picture = FilePicture(folder, ImageRef(row["image"]))
        answers = () if label is None else (label,)
        items.append(Item(str(row["question_id"]), question, answers, {}, (picture,), row["image"], row["category"]))
    return items


def pope_table(root: Path, rows: str, columns: Columns) -> list[Item]:
    """Read POPE from a table in which a question may belong to several splits: ``adversarial,popular``."""
    items = table(root, rows, columns)
    return [replace(item, category=split.strip()) for item in items for split in item.category.split(",")]


def _object(question: str) -> str:
    """Return the object that a question asks for. Some published files write "imange"."""
    match = re.search(r"is there (?:an? )?(.+?) in the im(?:an|a)?ge", question.lower())
    return match[1] if match else question.lower()
