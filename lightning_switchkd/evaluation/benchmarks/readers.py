"""Readers of benchmark files: one for tables, and one for each layout that a table of columns cannot describe."""

from __future__ import annotations

import ast
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.samples import IMAGE_TOKEN, ImageRef, Sample
from lightning_switchkd.data.sources import open_source, read_sample
from lightning_switchkd.evaluation.benchmarks.items import Base64Picture, FilePicture, Item, Picture
from lightning_switchkd.evaluation.benchmarks.tables import Row, cell, find, read_rows

Columns = Mapping[str, Any]
Turns = Literal["last", "all"]
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
    """Read the questions of a table.

    Args:
        root: Folder of the benchmark.
        rows: File or files (a pattern) below ``root``: JSON, JSONL, Parquet, TSV or CSV.
        columns: Column of each attribute of an item: ``id``, ``question``, ``answers``, ``options``, ``image``,
            ``category``, ``hint``, ``ocr``, ``prompt``, and ``group``, which several questions share (default: the
            image). ``#`` is the row's number. A dot leads into a column. In other text, ``{column}`` is replaced.
            ``options`` and ``image`` may be lists of columns. ``{from: COLUMN, pattern: REGEX}`` takes the first group.
        at: Key of the rows in a JSON object.
        join: Another table, whose columns are added: ``{rows, at, by: COLUMN or [left column, right column]}``.
        where: Values that columns must have. ``true`` matches any value that is not empty, ``false`` an empty one.
        images: Folder below ``root`` that image names are relative to.
    """
    folder = ImageFolder(root / images)
    table_rows: Iterable[Row] = read_rows(find(root, rows), at)
    if join is not None:
        table_rows = _joined(root, table_rows, join)
    selected = [{NUMBER: n, **row} for n, row in enumerate(table_rows) if _matches(row, where or {})]
    by_id = {str(cell(row, columns["id"])): row for row in selected}  # a row may refer to another row's image
    items = [_item(row, columns, folder, by_id) for row in selected]
    if len({item.id for item in items}) < len(items):
        items = [replace(item, id=f"{item.id}#{n}") for n, item in enumerate(items)]
    return items


def _joined(root: Path, rows: Iterable[Row], join: Mapping[str, Any]) -> Iterable[Row]:
    left, right = join["by"] if isinstance(join["by"], list) else (join["by"], join["by"])
    joined = {str(cell(row, right)): row for row in read_rows(find(root, join["rows"]), join.get("at", ""))}
    for row in rows:
        yield {**joined.get(str(cell(row, left)), {}), **row}


def _matches(row: Row, where: Mapping[str, Any]) -> bool:
    return all(
        bool(cell(row, name)) == value if isinstance(value, bool) else str(cell(row, name)) == str(value)
        for name, value in where.items()
    )


def _item(row: Row, columns: Columns, folder: ImageFolder, rows: Mapping[str, Row]) -> Item:
    def text(name: str) -> str:
        spec = columns.get(name, "")
        if isinstance(spec, Mapping):
            match = re.search(spec["pattern"], str(cell(row, spec["from"])))
            return match[1] if match else ""
        value = cell(row, spec) if spec else None
        return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    if not text("id"):
        raise UserError(
            f"A row has no column '{columns['id']}' for its id. It has {list(row)[:12]}. Fix 'columns' of the layout."
        )
    options = _options(row, columns.get("options"))
    specs = columns.get("image", [])
    pictures = [_picture(row, spec, folder, rows) for spec in (specs if isinstance(specs, list) else [specs])]
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
    """Parse a list or a mapping that a table contains as text. Return any other value unchanged.

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
    """Return the options by letter, up to the first empty column. "None" and "NA" are valid options."""
    if spec is None:
        return {}
    value = [cell(row, name) for name in spec] if isinstance(spec, list) else literal(cell(row, spec))
    if isinstance(value, Mapping):
        return {str(letter): str(text) for letter, text in value.items()}
    texts = list(value or ())
    end = next((n for n, text in enumerate(texts) if text is None or str(text) == "nan"), len(texts))
    return dict(zip(string.ascii_uppercase, map(str, texts[:end]), strict=False))


def _answers(value: Any, options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the correct answers as texts, or as letters if the question has options."""
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
            value = other  # the value is the id of the row with the image
        return Base64Picture(f"'{spec}'", str(value))
    return FilePicture(folder, ImageRef(str(value)))


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
    """Read MME in the hub's layout.

    Raises:
        UserError: An image does not have exactly two questions.
    """
    items = table(root, rows, columns)
    names = [item.id.split("#")[0] for item in items]
    if wrong := {name for name, count in Counter(names).items() if count != 2}:
        raise UserError(
            f"{root}: {len(wrong)} images of MME do not have exactly two questions, such as '{min(wrong)}'. "
            "Download the files again."
        )
    return [
        replace(item, id=name, image=name, question=_without_request(item.question))
        for item, name in zip(items, names, strict=True)
    ]


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


def _object(question: str) -> str:
    """Return the object that a question asks for. Some published files write "imange"."""
    match = re.search(r"is there (?:an? )?(.+?) in the im(?:an|a)?ge", question.lower())
    return match[1] if match else question.lower()


def llava(root: Path, records: str, images: str = "images", turns: Turns = "last") -> list[Item]:
    """Read samples in LLaVA's training format, from files below the folder of the benchmark (see :func:`samples`).

    Args:
        root: Folder of the benchmark.
        records: File with the samples, below ``root``.
        images: Folder of the images, below ``root``.
        turns: Questions of a conversation to ask.
    """
    return samples(root, str(root / records), str(root / images), turns)


def samples(_: Path, annotations: str, image_root: str | None = None, turns: Turns = "last") -> list[Item]:
    """Read samples in LLaVA's training format, from any source that training reads.

    A question comes after the earlier turns of its conversation, with their correct answers. The ``source`` of the
    sample is the category.

    Args:
        annotations: Source of the samples (``data.sources.open_source``).
        image_root: Folder that image paths are relative to. None if the samples contain their images.
        turns: Questions of a conversation to ask: the ``last`` or ``all``.

    Raises:
        UserError: ``turns`` is unknown, or a sample is invalid.
    """
    if turns not in get_args(Turns):
        raise UserError(f"turns: unknown value '{turns}'. Use one of {', '.join(get_args(Turns))}.")
    source = open_source(annotations, ImageFolder(image_root))
    read = [read_sample(source, i) for i in range(len(source))]
    unique = len({sample.id for sample in read}) == len(read)
    return [
        _item_of(sample, sample.id if unique else f"{sample.id}#{number}", position, turns)
        for number, sample in enumerate(read)
        for position in _positions(sample, turns)
    ]


def _positions(sample: Sample, turns: Turns) -> list[int]:
    """Return the positions of the questions to ask, in the turns of a sample."""
    positions = [position for position, turn in enumerate(sample.turns) if turn.role == "user"]
    return positions if turns == "all" else positions[-1:]


def _item_of(sample: Sample, name: str, position: int, turns: Turns) -> Item:
    reader, asked = sample.location.images, sample.turns[: position + 1]
    num_images = sum(turn.text.count(IMAGE_TOKEN) for turn in asked)
    return Item(
        id=name if turns == "last" else f"{name}/{position}",
        question=sample.turns[position].text_only,
        answers=(sample.turns[position + 1].text.strip(),),
        pictures=tuple(FilePicture(reader, ref) for ref in sample.images[:num_images]) if reader else (),
        image=sample.images[0].path if sample.images else sample.id,
        category=sample.source,
        prompt=sample.turns[position].text,
        history=sample.turns[:position],
    )


READERS: dict[str, Callable[..., list[Item]]] = {
    "table": table,
    "textvqa": textvqa,
    "mme": mme,
    "mme_table": mme_table,
    "pope": pope,
    "llava": llava,
    "samples": samples,
}


def layout_files(layout: Mapping[str, Any]) -> Sequence[str]:
    """List the file patterns that a layout requires, including joined tables and labels."""
    patterns = [layout[name] for name in ("rows", "questions", "records", "release") if name in layout]
    truth = layout.get("truth", [])
    joined = [layout["join"]["rows"]] if "join" in layout else []
    return [*patterns, *(truth.values() if isinstance(truth, Mapping) else [truth] if truth else []), *joined]
