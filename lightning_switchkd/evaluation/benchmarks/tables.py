"""Tables of benchmarks: rows of JSON, JSONL, Parquet, TSV and CSV files. Images are read only on demand."""

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
from lightning_switchkd.core.files import file_version, read_jsonl
from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.samples import ImageRef, SampleError

Row = dict[str, Any]
KEY = "key"
"""Column of a row's key, for a JSON file that maps keys to rows."""


def find(root: Path, pattern: str) -> list[Path]:
    """Return the existing files below ``root`` that match a name or a pattern (``test-*.parquet``), sorted."""
    if any(sign in pattern for sign in "*?["):
        return sorted(root.glob(pattern))
    return [root / pattern] if (root / pattern).exists() else []


def read_rows(files: Sequence[Path], at: str = "") -> Iterator[Row]:
    """Yield the rows of files.

    Args:
        files: Files of one kind, in order.
        at: Key of the rows in a JSON object, such as ``questions``. Dots lead to nested keys.

    Raises:
        UserError: A file is damaged, or has an unknown suffix.
    """
    readers = {".json": _json, ".jsonl": read_jsonl, ".parquet": _parquet, ".tsv": _separated, ".csv": _separated}
    for file in files:
        if file.suffix not in readers:
            raise UserError(f"{file} has an unknown suffix. Use one of {', '.join(readers)}.")
        rows: Iterator[Row] = readers[file.suffix](file, at) if file.suffix == ".json" else readers[file.suffix](file)  # type: ignore[operator]
        yield from rows


def load_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file is not valid JSON.
    """
    try:
        return orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{file} is not valid JSON: {error}. Write or download the file again.") from None


def _json(file: Path, at: str) -> Iterator[Row]:
    try:
        content = load_json(file)
    except UserError:
        if at or file.read_bytes().lstrip()[:1] != b"{":
            raise
        yield from read_jsonl(file)  # POPE's labels are JSON lines, although the files end in .json
        return
    for name in filter(None, at.split(".")):
        if not isinstance(content, dict) or name not in content:
            raise UserError(f"{file} has no key '{at}'. Check that the file is of the expected benchmark version.")
        content = content[name]
    if isinstance(content, dict):
        content = [{KEY: key, **(row if isinstance(row, dict) else {"value": row})} for key, row in content.items()]
    for number, row in enumerate(content):
        if not isinstance(row, dict):
            raise UserError(
                f"{file}: entry {number} is not a JSON object: {str(row)[:60]!r}. Write or download the file again."
            )
        yield row


def _separated(file: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # cells contain images
    with file.open(encoding="utf-8-sig", newline="") as text:
        for number, row in enumerate(csv.DictReader(text, delimiter="\t" if file.suffix == ".tsv" else ",")):
            if None in row or None in row.values():
                raise UserError(f"{file}: row {number} has more or fewer cells than the heading. Fix the row.")
            yield {name: value for name, value in row.items() if value != ""}


@dataclass(frozen=True, slots=True)
class Cell:
    """Image in a Parquet file."""

    file: str
    row_group: int
    row: int
    column: str

    def __call__(self) -> Image.Image:
        """Read and decode the image."""
        value = _column(self.file, self.row_group, self.column)[self.row].as_py()
        if not value or not value.get("bytes"):
            problem = f"Row {self.row} of {self.file} has no image in column '{self.column}'. Check the file."
            raise SampleError("image_missing", problem)
        return ImageFolder(None).read(ImageRef(value.get("path") or Path(self.file).name, value["bytes"]))

    def version(self) -> str:
        """Return the place in the file, and the version of the file."""
        return f"{self.column} {self.row_group} {self.row} {file_version(Path(self.file))}"


@lru_cache(maxsize=4)
def _column(file: str, row_group: int, column: str) -> Any:
    """Read a column of a row group. The cache keeps a few, because questions are asked in the order of the rows."""
    from pyarrow import parquet

    with parquet.ParquetFile(file) as opened:
        return opened.read_row_group(row_group, columns=[column], use_threads=False).column(0)


def _parquet(file: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError:
        raise UserError(f"{file} needs pyarrow, which is not installed. Run: pip install pyarrow") from None
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
        raise UserError(f"{file} is not a valid Parquet file: {error}. Write or download the file again.") from None


def _present(opened: Any, group: int, column: str) -> list[bool]:
    """Return which rows have an image. The images are read only if the metadata do not say that all are present."""
    metadata = opened.metadata.row_group(group)
    statistics = {(part := metadata.column(n)).path_in_schema: part.statistics for n in range(metadata.num_columns)}
    of_bytes = statistics.get(f"{column}.bytes")
    if of_bytes is not None and of_bytes.has_null_count and of_bytes.null_count == 0:
        return [True] * metadata.num_rows
    values = opened.read_row_group(group, columns=[column], use_threads=False).column(0)
    return [value.is_valid and value["bytes"].is_valid for value in values]


def cell(row: Mapping[str, Any], spec: str) -> Any:
    """Return a value of a row, or None if the row does not have it.

    Args:
        row: The row.
        spec: Name of a column, dotted path into a column, or text with ``{column}`` placeholders.

    >>> cell({"types": {"structural": "query"}}, "types.structural")
    'query'
    >>> cell({"image_id": 42}, "COCO_val2014_{image_id:012d}.jpg")
    'COCO_val2014_000000000042.jpg'
    """
    if "{" in spec:
        columns = [name for _, name, _, _ in Formatter().parse(spec) if name]
        return spec.format(**row) if all(row.get(name) is not None for name in columns) else None
    if spec in row:
        return row[spec]
    value: Any = row
    for name in spec.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
