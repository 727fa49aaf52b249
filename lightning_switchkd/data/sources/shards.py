"""Shards: the files of a data set, found by folder or pattern, and opened one by one."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from lightning_switchkd.core.errors import UserError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


class Shard(Protocol):
    """One file of a data set.

    Attributes:
        name: Path or URL, for messages.
        absolute_name: Absolute path or URL.
        size: Bytes.
        key: Changes with the content. The index depends on it.
        folder: Its folder. None for a remote file.
        window: Number of files that the cache holds at a time. None: all of them.
    """

    name: str
    absolute_name: str
    size: int
    key: object
    folder: Path | None
    window: int | None

    def open(self) -> BinaryIO:
        """Open the file for random access. It stays readable while open, even if it is removed."""
        ...


class LocalShard:
    """A file on disk."""

    window: int | None = None

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        stat = self._path.stat()
        self.name, self.size = str(path), stat.st_size
        self.folder: Path | None = self._path.parent
        self.absolute_name = absolute_name(self._path)
        self.key: object = (self.absolute_name, stat.st_size, stat.st_mtime_ns)

    def open(self) -> BinaryIO:
        """Open the file for random access."""
        return self._path.open("rb", buffering=0)


def absolute_name(name: str | Path) -> str:
    """Return the absolute path of a file. A URL stays as it is."""
    return str(name) if "://" in str(name) else str(Path(name).resolve())


def expand(pattern: str) -> Iterator[str]:
    """Expand ``{000..012}`` and ``{a,b}`` as a shell does.

    >>> list(expand("part-{08..10}.tar"))
    ['part-08.tar', 'part-09.tar', 'part-10.tar']
    """
    if match := _RANGE.search(pattern):
        low, high = match.groups()
        choices = [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    elif match := _CHOICE.search(pattern):
        choices = match[1].split(",")
    else:
        yield pattern
        return
    for choice in choices:
        yield from expand(pattern[: match.start()] + choice + pattern[match.end() :])


def find_shards(path: str, suffix: str) -> list[Shard]:
    """Find the files of a folder, a pattern (``*``, ``{000..012}``) or one path with `suffix`, in order of names.

    Raises:
        UserError: No file matches, or a file of an expanded pattern is missing.
    """
    if Path(path).is_dir():
        files = sorted(glob.glob(glob.escape(path) + f"/**/*{suffix}", recursive=True))
    else:
        files = [
            file for name in expand(path) for file in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])
        ]
    if not files:
        raise UserError(f"{path} matches no {suffix} file. Check the folder and the pattern.")
    if missing := [file for file in files if not Path(file).is_file()]:
        expanded = f" (one of {len(files)} files of {path})" if files[1:] else ""
        raise UserError(f"The file {missing[0]}{expanded} does not exist. Check the path.")
    return list(map(LocalShard, files))


def dataset_name(path: str) -> str:
    """Return the name that groups the samples of sharded files: the folder or file name without shard numbers.

    >>> [dataset_name(p) for p in ("a/vqa/", "b/vqa-{000..012}.tar", "vqa-00001-of-00009.parquet", "a/*.tar")]
    ['vqa', 'vqa', 'vqa', 'a']
    """
    cut = re.sub(r"\{[^{}]*\}|[*?\[\]]|\d+-of-\d+|\.(tar|parquet)$", "", path.rstrip("/"))
    return Path(re.sub(r"[-_.]*\d*[-_.]*$", "", cut)).name
