"""Files: atomic writes, JSON lines and retries. The only place for each of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import orjson

from lightning_switchkd.core.errors import UserError

T = TypeVar("T")

PARTIAL = ".partial"
"""Suffix of a file or folder that is still being written."""

RETRY_WAITS = (0.1, 0.5, 2.0)
"""Seconds before each further attempt."""

TRANSIENT = {
    getattr(errno, name)
    for name in ("EIO", "EAGAIN", "EINTR", "EBUSY", "ESTALE", "ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED",
                 "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO", "ENFILE", "EMFILE")
    if hasattr(errno, name)
}  # fmt: skip
"""Errors that a network file system or a busy machine reports for a file that exists."""


class ReadError(UserError):
    """A read that failed on every attempt although the data exists."""


def retry(read: Callable[[], T], name: str, waits: Sequence[float] = RETRY_WAITS) -> T:
    """Call `read` and return its result. Repeat the call after a transient error.

    Args:
        read: The function to call.
        name: What it reads, for messages.
        waits: Seconds before each further attempt.

    Raises:
        ReadError: Every attempt failed.
        OSError: The error is permanent, such as a missing file.
    """
    for wait in (*waits, None):
        try:
            return read()
        except OSError as error:
            if error.errno not in TRANSIENT and not isinstance(error, TimeoutError | ConnectionError):
                raise
            if wait is None:
                raise ReadError(
                    f"Cannot read {name} after {len(waits) + 1} attempts: {error}. The data itself is not invalid. "
                    "Check the disk or the network, then resume the run."
                ) from error
            time.sleep(wait)
    raise AssertionError


def read_bytes(path: Path) -> bytes:
    """Read a whole file, with retries."""
    return retry(path.read_bytes, str(path))


def pread(file: int, length: int, offset: int) -> bytes:
    """Read part of an open file, with retries."""
    return retry(lambda: os.pread(file, length, offset), f"byte {offset} of an open file")


def file_version(path: Path) -> str:
    """Return a text that changes when the file changes: its full path, size and time of the last change."""
    try:
        status = path.stat()
    except OSError:
        return f"{path.absolute()} missing"
    return f"{path.absolute()} {status.st_size} {status.st_mtime_ns}"


@contextmanager
def atomic_path(path: Path, *, unique: bool = False, fsync: bool = False) -> Iterator[Path]:
    """Write a file or a folder atomically: readers see the old content or the complete new one.

    The block writes to a temporary path next to `path`, which replaces `path` when the block ends. An error deletes
    the temporary path and leaves `path` unchanged. An existing folder is deleted just before it is replaced.

    Args:
        path: The target. Its parent folders are created.
        unique: Choose a new temporary name each time, because other processes may write the same target.
        fsync: Flush a file to the disk before it replaces the target.

    Yields:
        The temporary path, which does not exist yet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{f'.{uuid.uuid4().hex[:8]}' if unique else ''}{PARTIAL}")
    _remove(temporary)  # of a process that was killed
    try:
        yield temporary
        if fsync:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        if path.is_dir() and temporary.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_atomic(path: Path, data: str | bytes, *, fsync: bool = False) -> None:
    """Write a whole file atomically (see :func:`atomic_path`). Text is encoded as UTF-8."""
    with atomic_path(path, fsync=fsync) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def iter_jsonl(path: Path) -> Iterator[tuple[int, bytes, Any]]:
    """Yield number, text and value of each line that is not blank. The value is None if the line is not valid JSON."""
    for number, line in enumerate(read_bytes(path).splitlines(keepends=True), 1):
        if line.strip():
            try:
                yield number, line, orjson.loads(line)
            except orjson.JSONDecodeError:
                yield number, line, None


def read_jsonl(path: Path, *, allow_cut: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file.

    Args:
        path: The file.
        allow_cut: Ignore an incomplete last line, which a crash during :func:`append_jsonl` leaves.

    Raises:
        UserError: A line is not a JSON object.
    """
    for number, line, value in iter_jsonl(path):
        if isinstance(value, dict):
            yield value
        elif not allow_cut or line.endswith(b"\n"):  # only a last line can lack its end
            text = line.decode(errors="replace").strip()
            raise UserError(f"{path}, line {number} is not a JSON object: {text[:60]!r}. Fix or delete the line.")


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append objects to a JSON-lines file. Create the file and its folder if missing.

    An incomplete last line of a process that was killed is deleted first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _end_last_line(file)
        file.write(_json_lines(rows))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole JSON-lines file atomically."""
    write_atomic(path, _json_lines(rows))


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _end_last_line(file: BinaryIO) -> None:
    """Complete the last line of a file opened with "a+b", or delete it if it was cut."""
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    try:
        orjson.loads(content[start:])
        file.write(b"\n")
    except orjson.JSONDecodeError:
        file.truncate(start)
