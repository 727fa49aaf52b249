"""Readers of any benchmark: tables, and samples in LLaVA's format."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterable, Mapping
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
            ``category``, ``ability``, ``hint``, ``ocr``, ``prompt``, and ``group``, which several questions share
            (default: the image). ``#`` is the row's number. A dot leads into a column. In other text, ``{column}`` is
            replaced. ``options`` and ``image`` may be lists of columns. ``{from: COLUMN, pattern: REGEX}`` takes the
            first group. With ``names: {NAME: [VALUE, …]}``, it becomes the name of the list that contains it.
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
            value = match[1] if match else ""
            return next((name for name, values in spec.get("names", {}).items() if value in values), value)
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
        ability=text("ability"),
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
