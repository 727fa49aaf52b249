"""How the files of each benchmark become questions: one function a layout that no table of columns can describe."""

from __future__ import annotations

import ast
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.samples import IMAGE_TOKEN, ImageRef
from lightning_switchkd.data.sources import open_source, read_sample
from lightning_switchkd.evaluation.benchmarks.items import Base64Picture, FilePicture, Item, Picture
from lightning_switchkd.evaluation.benchmarks.tables import Row, cell, find, read_rows

Columns = Mapping[str, Any]
NUMBER = "#"
"""Column of a row's number, for tables without ids."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")


def table(
    root: Path,
    rows: str,
    columns: Columns,
    at: str = "",
    join: Mapping[str, Any] | None = None,
    where: Mapping[str, Any] | None = None,
    images: str = ".",
) -> list[Item]:
    """Any table.

    Args:
        root: folder of the benchmark.
        rows: its file or files (a pattern), below ``root``: JSON, JSONL, Parquet, TSV, CSV.
        columns: which column is the item's ``id``, ``question``, ``answers``, ``options``, ``image``, ``category``,
            ``hint``, ``ocr``, ``prompt``, ``group`` (what several questions share; else their image). ``#`` is the
            row's number. A dot leads into a column, a text with ``{column}`` is filled in. ``options`` and ``image``
            may be lists of columns. ``{from: COLUMN, pattern: REGEX}`` takes the first group.
        at: key of the rows in a JSON object.
        join: ``{rows, at, by: COLUMN or [ours, theirs]}``: another table, whose columns are added.
        where: only rows whose columns have these values; ``true`` and ``false``: something, nothing.
        images: folder below ``root`` that image names are relative to.
    """
    folder = ImageFolder(root / images)
    found: Iterable[Row] = read_rows(find(root, rows), at)
    if join is not None:
        found = _joined(root, found, join)
    kept = [{NUMBER: n, **row} for n, row in enumerate(found) if _matches(row, where or {})]
    texts = {str(cell(row, columns["id"])): row for row in kept}  # rows of a table may show another row's image
    items = [_item(row, columns, folder, texts) for row in kept]
    if len({item.id for item in items}) < len(items):
        items = [replace(item, id=f"{item.id}#{n}") for n, item in enumerate(items)]
    return items


def _joined(root: Path, rows: Iterable[Row], join: Mapping[str, Any]) -> Iterable[Row]:
    ours, theirs = join["by"] if isinstance(join["by"], list) else (join["by"], join["by"])
    others = {str(cell(row, theirs)): row for row in read_rows(find(root, join["rows"]), join.get("at", ""))}
    for row in rows:
        yield {**others.get(str(cell(row, ours)), {}), **row}


def _matches(row: Row, where: Mapping[str, Any]) -> bool:
    return all(
        bool(cell(row, name)) == value if isinstance(value, bool) else str(cell(row, name)) == str(value)
        for name, value in where.items()
    )


def _item(row: Row, columns: Columns, folder: ImageFolder, rows: Mapping[str, Row]) -> Item:
    def text(name: str) -> str:
        spec = columns.get(name, "")
        if isinstance(spec, Mapping):
            found = re.search(spec["pattern"], str(cell(row, spec["from"])))
            return found[1] if found else ""
        value = cell(row, spec) if spec else None
        return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    if not text("id"):
        raise UserError(
            f"a row has no '{columns['id']}' for its id, but {list(row)[:12]}: mend 'columns' of the layout."
        )
    options = _options(row, columns.get("options"))
    named = columns.get("image", [])
    pictures = [_picture(row, spec, folder, rows) for spec in (named if isinstance(named, list) else [named])]
    return Item(
        id=text("id"),
        question=text("question"),
        answers=_answers(cell(row, columns["answers"]) if "answers" in columns else None, options),
        options=options,
        pictures=tuple(picture for picture in pictures if picture is not None),
        image=text("group") or next((p.ref.path for p in pictures if isinstance(p, FilePicture)), ""),
        category=text("category"),
        hint="" if text("hint") == "nan" else text("hint"),
        ocr=text("ocr"),
        prompt=text("prompt").replace(IMAGE_TOKEN, "").strip(),
    )


def literal(value: Any) -> Any:
    """A list or mapping that a table holds as text; anything else as it is.

    >>> literal("['cat', 'dog']"), literal("[sic]")
    (['cat', 'dog'], '[sic]')
    """
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pass
    return value


def _options(row: Row, spec: Any) -> dict[str, str]:
    """By letter. The first column that is empty ends them; "None" and "NA" are texts like others."""
    if spec is None:
        return {}
    value = [cell(row, name) for name in spec] if isinstance(spec, list) else literal(cell(row, spec))
    if isinstance(value, Mapping):
        return {str(letter): str(text) for letter, text in value.items()}
    texts = list(value or ())
    end = next((n for n, text in enumerate(texts) if text is None or str(text) == "nan"), len(texts))
    return dict(zip(string.ascii_uppercase, map(str, texts[:end]), strict=False))


def _answers(value: Any, options: Mapping[str, str]) -> tuple[str, ...]:
    """Texts; of a multiple choice, the letter."""
    value = literal(value)
    if value is None:
        return ()
    values = [v.get("answer") if isinstance(v, Mapping) else v for v in (value if isinstance(value, list) else [value])]
    if not options:
        return tuple(map(str, values))
    letters = {text: letter for letter, text in reversed(list(options.items()))}
    return tuple(
        list(options)[v] if isinstance(v, int) else str(v) if str(v) in options else letters.get(str(v), str(v))
        for v in values
    )


def _picture(row: Row, spec: str, folder: ImageFolder, rows: Mapping[str, Row]) -> Picture | None:
    value = cell(row, spec) if spec else None
    if value is None or value == "":
        return None
    if callable(value):
        picture: Picture = value
        return picture
    if isinstance(value, str) and not value.lower().endswith(IMAGE_SUFFIXES):
        if value in rows and value != (other := cell(rows[value], spec)):
            value = other  # a number stands for that row's image
        return Base64Picture(f"'{spec}'", str(value))
    return FilePicture(folder, ImageRef(str(value)))


def textvqa(root: Path, questions: str, truth: str, images: str) -> list[Item]:
    """TextVQA as LLaVA has it: prompts with OCR words in one file, ten answers each in another.

    A question's id there is its image's; image and question together are what is unique.
    """
    folder = ImageFolder(root / images)
    prompts = {
        (str(row["question_id"]), row["text"].split("\n")[0].strip().lower()): row
        for row in read_rows(find(root, questions))
    }
    items = []
    for row in read_rows(find(root, truth), at="data"):
        image, asked = str(row["image_id"]), row["question"].strip()
        ready = prompts.get((image, asked.lower()), {})
        picture = FilePicture(folder, ImageRef(ready.get("image", f"{image}.jpg")))
        answers = tuple(map(str, row.get("answers", ())))
        items.append(Item(image, asked, answers, {}, (picture,), image, prompt=ready.get("text", "")))
    return items


def mme(root: Path, release: str = ".") -> list[Item]:
    """MME's release: a folder a category, with ``images`` and ``questions_answers_YN`` in it, or all files together.

    Raises:
        UserError: an image has not exactly two questions.
    """
    items = []
    for folder in sorted(path for path in (root / release).iterdir() if path.is_dir()):
        texts = folder / "questions_answers_YN" if (folder / "questions_answers_YN").is_dir() else folder
        pictures = folder / "images" if (folder / "images").is_dir() else folder
        for file in sorted(texts.glob("*.txt")):
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            if len(lines) != 2 or any(line.count("\t") != 1 for line in lines):
                raise UserError(f"{file} must hold two lines, question and answer with a tab between them each.")
            image = next((p.name for p in sorted(pictures.glob(f"{file.stem}.*")) if p.suffix != ".txt"), "")
            name = f"{folder.name}/{image or file.stem}"
            ref = FilePicture(ImageFolder(pictures), ImageRef(image or f"{file.stem}.png"))
            for line in lines:
                asked, answer = line.split("\t")
                items.append(Item(name, _without_request(asked), (answer.strip(),), {}, (ref,), name, folder.name))
    return items


def _without_request(asked: str) -> str:
    return re.sub(r"\s*Please answer yes or no\.?\s*$", "", asked.strip())


def mme_table(root: Path, rows: str, columns: Columns) -> list[Item]:
    """MME as the hub has it."""
    items = table(root, rows, columns)
    names = [item.id.split("#")[0] for item in items]
    if wrong := {name for name, count in Counter(names).items() if count != 2}:
        raise UserError(f"{root}: {len(wrong)} images of MME have not exactly two questions, '{min(wrong)}' for one.")
    return [
        replace(item, id=name, image=name, question=_without_request(item.question))
        for item, name in zip(items, names, strict=True)
    ]


def pope(root: Path, questions: str, truth: Mapping[str, str], images: str) -> list[Item]:
    """POPE as LLaVA has it: questions of all splits in one file, the labels of each split in another.

    They are joined by split, image and the question itself: ids repeat over splits, and the files that go round differ
    in length and order.
    """
    folder = ImageFolder(root / images)
    labels = {
        (split, row["image"], _object(row["text"])): str(row["label"]).strip().lower()
        for split, pattern in truth.items()
        for row in read_rows(find(root, pattern))
    }
    items = []
    for row in read_rows(find(root, questions)):
        asked = row["text"].split("\n")[0].strip()
        label = labels.get((row["category"], row["image"], _object(asked)))
        picture = FilePicture(folder, ImageRef(row["image"]))
        known = () if label is None else (label,)
        items.append(Item(str(row["question_id"]), asked, known, {}, (picture,), row["image"], row["category"]))
    return items


def _object(question: str) -> str:
    """What is asked for, "imange" or "image" whichever is written."""
    found = re.search(r"is there (?:an? )?(.+?) in the im(?:an|a)?ge", question.lower())
    return found[1] if found else question.lower()


def llava(root: Path, records: str, images: str = "images") -> list[Item]:
    """LLaVA records, as training data are: the last answer of each is right, its ``source`` the category."""
    source = open_source(root / records, ImageFolder(root / images))
    found = [read_sample(source, i) for i in range(len(source))]
    unique = len({record.id for record in found}) == len(found)
    items = []
    for number, record in enumerate(found):
        *history, last, _ = record.turns
        images_of = record.location.images
        items.append(
            Item(
                id=record.id if unique else f"{record.id}#{number}",
                question=last.text_only,
                answers=(record.answer.strip(),),
                pictures=tuple(FilePicture(images_of, ref) for ref in record.images) if images_of else (),
                image=record.images[0].path if record.images else record.id,
                category=record.source,
                prompt=last.text,
                history=tuple(history),
            )
        )
    return items


READERS: dict[str, Callable[..., list[Item]]] = {
    "table": table,
    "textvqa": textvqa,
    "mme": mme,
    "mme_table": mme_table,
    "pope": pope,
    "llava": llava,
}


def layout_files(layout: Mapping[str, Any]) -> Sequence[str]:
    """The patterns that must be there for a layout to be the one, its joined tables and labels among them."""
    named = [layout[name] for name in ("rows", "questions", "records", "release") if name in layout]
    truth = layout.get("truth", [])
    joined = [layout["join"]["rows"]] if "join" in layout else []
    return [*named, *(truth.values() if isinstance(truth, Mapping) else [truth] if truth else []), *joined]
