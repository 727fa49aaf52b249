"""Tables of benchmarks: JSON, JSONL, Parquet, TSV and CSV files as rows, their images left where they lie."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Any

import orjson
from PIL import Image

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import read_jsonl
from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.samples import ImageRef, SampleError

Row = dict[str, Any]
KEY = "key"
"""Column of a row's key, in a JSON file that maps keys to rows."""


def find(root: Path, pattern: str) -> list[Path]:
    """The files below ``root`` that a name or pattern (``test-*.parquet``) means, sorted."""
    return sorted(root.glob(pattern)) if any(sign in pattern for sign in "*?[") else _existing(root / pattern)


def _existing(path: Path) -> list[Path]:
    return [path] if path.exists() else []


def read_rows(files: Sequence[Path], at: str = "") -> Iterator[Row]:
    """The rows of files.

    Args:
        files: of one kind, in order.
        at: key of the rows in a JSON object: ``questions``; dots lead deeper.

    Raises:
        UserError: a file is damaged, or of a kind that is not read.
    """
    readers = {".json": _json, ".jsonl": read_jsonl, ".parquet": _parquet, ".tsv": _separated, ".csv": _separated}
    for file in files:
        if file.suffix not in readers:
            raise UserError(f"{file} is none of {', '.join(readers)}.")
        rows: Iterator[Row] = readers[file.suffix](file, at) if file.suffix == ".json" else readers[file.suffix](file)  # type: ignore[operator]
        yield from rows


def load_json(file: Path) -> Any:
    """A JSON file.

    Raises:
        UserError: it is none.
    """
    try:
        return orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{file} is no JSON: {error}.") from None


def _json(file: Path, at: str) -> Iterator[Row]:
    try:
        found = load_json(file)
    except UserError:
        if at or file.read_bytes().lstrip()[:1] != b"{":
            raise
        yield from read_jsonl(file)  # POPE's labels are lines, whatever their name says
        return
    for name in filter(None, at.split(".")):
        if not isinstance(found, dict) or name not in found:
            raise UserError(f"{file} has no '{at}'. Is it another version of the benchmark?")
        found = found[name]
    if isinstance(found, dict):
        found = [{KEY: key, **(row if isinstance(row, dict) else {"value": row})} for key, row in found.items()]
    for place, row in enumerate(found):
        if not isinstance(row, dict):
            raise UserError(f"{file}: entry {place} is no JSON object, but {str(row)[:60]!r}.")
        yield row


def _separated(file: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # images are in the cells
    with file.open(encoding="utf-8-sig", newline="") as text:
        for number, row in enumerate(csv.DictReader(text, delimiter="\t" if file.suffix == ".tsv" else ",")):
            if None in row or None in row.values():  # more or fewer cells
                raise UserError(f"{file}: row {number} has not as many cells as the heading.")
            yield {name: value for name, value in row.items() if value != ""}


@dataclass(frozen=True, slots=True)
class Cell:
    """An image in a Parquet file, read when it is called."""

    file: str
    row_group: int
    row: int
    column: str

    def __call__(self) -> Image.Image:
        """The image."""
        value = _column(self.file, self.row_group, self.column)[self.row].as_py()
        if not value or not value.get("bytes"):
            raise SampleError("image_missing", f"row {self.row} of {self.file} has no image in '{self.column}'")
        return ImageFolder(None).read(ImageRef(value.get("path") or Path(self.file).name, value["bytes"]))


@lru_cache(maxsize=4)
def _column(file: str, row_group: int, column: str) -> Any:
    """A column of a row group; a few are kept, for questions are asked in their order."""
    from pyarrow import parquet

    with parquet.ParquetFile(file) as opened:
        return opened.read_row_group(row_group, columns=[column], use_threads=False).column(0)


def _parquet(file: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError:
        raise UserError(f"{file} needs pyarrow, which is not installed: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            images = [f.name for f in schema if types.is_struct(f.type) and "bytes" in {x.name for x in f.type}]
            plain = [name for name in schema.names if name not in images]
            for group in range(opened.num_row_groups):
                rows = opened.read_row_group(group, columns=plain, use_threads=False).to_pylist()
                has = {name: _present(opened, group, name) for name in images}
                for number, row in enumerate(rows):
                    cells = {name: Cell(str(file), group, number, name) for name in images if has[name][number]}
                    yield {**{name: value for name, value in row.items() if value is not None}, **cells}
    except ArrowException as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}.") from None


def _present(opened: Any, group: int, column: str) -> list[bool]:
    """Which rows have an image; read from the images themselves only where some have none."""
    about = opened.metadata.row_group(group)
    parts = {(part := about.column(n)).path_in_schema: part.statistics for n in range(about.num_columns)}
    counted = parts.get(f"{column}.bytes")
    if counted is not None and counted.has_null_count and counted.null_count == 0:
        return [True] * about.num_rows
    found = opened.read_row_group(group, columns=[column], use_threads=False).column(0)
    return [value.is_valid and value["bytes"].is_valid for value in found]


def cell(row: Mapping[str, Any], spec: str) -> Any:
    """What a column's name, a path into it, or a text with ``{columns}`` is in a row; None where it is missing.

    >>> cell({"types": {"structural": "query"}}, "types.structural")
    'query'
    >>> cell({"image_id": 42}, "COCO_val2014_{image_id:012d}.jpg")
    'COCO_val2014_000000000042.jpg'
    """
    if "{" in spec:
        named = [name for _, name, _, _ in Formatter().parse(spec) if name]
        return spec.format(**row) if all(row.get(name) is not None for name in named) else None
    if spec in row:
        return row[spec]
    found: Any = row
    for name in spec.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
