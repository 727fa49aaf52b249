"""Rows of answer files: JSON, JSON lines, tables and Excel, also compressed. Pickles are never read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import orjson

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.extras import requires
from lightning_switchkd.core.files import read_bytes

Rows = Iterator[tuple[str, Any]]
"""Place and value of each row. The value is None if the row cannot be read."""

MAX_DAMAGED = 0.1
"""Largest fraction of a file that may be unreadable."""

NUM_SHOWN = 5

PICKLES = (".pkl", ".pickle", ".pt", ".pth")


def read_answer_rows(path: Path) -> list[tuple[str, Any]]:
    """Read the rows of an answer file.

    Args:
        path: A file whose suffix is in ``FORMATS``, alone or compressed (``.gz``, or a ``.zip`` with one file). Or a
            folder in the format of MME's evaluation tool.

    Returns:
        Place and value of each row. The value is None if the row cannot be read.

    Raises:
        UserError: The file is missing, has another format, or is damaged.
    """
    if path.is_dir():
        return list(_mme_rows(path))
    if not path.is_file():
        raise UserError(f"--answers: file {path} does not exist. Give the file with the answers.")
    name, content = _decompressed(path)
    suffix = PurePath(name).suffix.lower()
    if suffix in PICKLES:
        raise UserError(f"{path} is a pickle. Reading it would run its code. Write the answers as .jsonl or .xlsx.")
    if suffix not in FORMATS:
        raise UserError(f"{path}: '{suffix}' is not a format of answers. Use one of {', '.join(FORMATS)}, .gz, .zip.")
    try:
        return list(FORMATS[suffix](content))
    except (ValueError, csv.Error, zipfile.BadZipFile, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not valid {suffix[1:].upper()}: {error}. Write the file again.") from None


def shorten(names: Sequence[str]) -> str:
    """List the first names."""
    return ", ".join(names[:NUM_SHOWN]) + (", …" if len(names) > NUM_SHOWN else "")


def check_readable(path: Path, total: int, damaged: Sequence[str]) -> None:
    """Check that most of a file was read.

    Args:
        path: The file.
        total: Number of its rows.
        damaged: Rows that cannot be read.

    Raises:
        UserError: The file has no rows, or too many cannot be read.
    """
    if total == 0 or len(damaged) > MAX_DAMAGED * total:
        raise UserError(
            f"{path}: {len(damaged)} of {total} answers cannot be read{': ' * bool(damaged)}{shorten(damaged)}. "
            "Write one answer with id and text per row."
        )


def _decompressed(path: Path) -> tuple[str, bytes]:
    """Return name and content of the file, or of the only file in an archive."""
    suffix, content = path.suffix.lower(), read_bytes(path)
    try:
        if suffix == ".gz":
            return path.stem, gzip.decompress(content)
        if suffix == ".zip":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
                if len(names) != 1:
                    raise UserError(f"{path} contains {len(names)} files. Compress the file with the answers alone.")
                return names[0], archive.read(names[0])
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise UserError(f"{path} is not a valid {suffix} file: {error}. Write the file again.") from None
    return path.name, content


def _json(content: bytes) -> Rows:
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        value = _parsed(content)
    except ValueError:
        first = next(iter(content.split(b"\n", 1)))
        if not first.strip().endswith(b"}") or not isinstance(_parsed(first), dict):
            raise
        yield from _json_lines(content)  # JSON lines, although the file ends in .json
        return
    if isinstance(value, Mapping):
        value = [{"id": name, **(row if isinstance(row, Mapping) else {"text": row})} for name, row in value.items()]
    yield from ((f"entry {number}", row) for number, row in enumerate(value if isinstance(value, list) else [value]))


def _json_lines(content: bytes) -> Rows:
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", _parsed(line)
            except ValueError:
                yield f"line {number}", None


def _parsed(text: bytes) -> Any:
    """Parse JSON. Python's own parser also accepts the NaN that pandas writes."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


def _separated(delimiter: str) -> Callable[[bytes], Rows]:
    def read(content: bytes) -> Rows:
        csv.field_size_limit(sys.maxsize)  # cells may contain images
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter)
        for number, row in enumerate(reader):
            yield f"row {number}", None if None in row or None in row.values() else row

    return read


def _excel(content: bytes) -> Rows:
    with requires("report", "Reading Excel files"):
        from openpyxl import load_workbook

    book = load_workbook(io.BytesIO(content), read_only=True)
    try:
        rows = book.worksheets[0].iter_rows(values_only=True)
        heading = [str(cell) for cell in next(rows, ())]
        for number, cells in enumerate(rows):
            yield f"row {number}", dict(zip(heading, ("" if cell is None else cell for cell in cells), strict=False))
    finally:
        book.close()


def _mme_rows(folder: Path) -> Rows:
    """Yield the rows of ``CATEGORY.txt``: image, question, correct answer and the model's answer, between tabs."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise UserError(f"--answers: folder {folder} has no CATEGORY.txt. Give the file with the answers.")
    for file in files:
        for number, line in enumerate(read_bytes(file).decode("utf-8", "replace").splitlines(), 1):
            if line.strip():
                image, *cells = line.split("\t")
                row = {"id": f"{file.stem}/{image}", "prompt": cells[0], "prediction": cells[2]} if cells[2:] else None
                yield f"{file.name}, line {number}", row


FORMATS: dict[str, Callable[[bytes], Rows]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".xlsx": _excel,
}
"""Readers by suffix."""
