"""The files that a data set is cut into: found by folder or pattern; each opened by itself."""

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
        name: path or URL, as messages name it.
        full_name: the same from wherever it is named.
        size: bytes.
        key: equal as long as the content is: what an index of it depends on.
        folder: where it lies; None where it is remote.
        together: how many files like it are read at a time, where not all can be at hand; None: any number.
    """

    name: str
    full_name: str
    size: int
    key: object
    folder: Path | None
    together: int | None

    def open(self) -> BinaryIO:
        """The content, by place. It stays readable as long as it is open."""
        ...


class LocalShard:
    """A file on disk."""

    together: int | None = None

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        stat = self._path.stat()
        self.name, self.size = str(path), stat.st_size
        self.folder: Path | None = self._path.parent
        self.full_name = full_name(self._path)
        self.key: object = (self.full_name, stat.st_size, stat.st_mtime_ns)

    def open(self) -> BinaryIO:
        return self._path.open("rb", buffering=0)


def full_name(name: str | Path) -> str:
    """The name of a file from wherever it is named; a URL is one."""
    return str(name) if "://" in str(name) else str(Path(name).resolve())


def expand(pattern: str) -> Iterator[str]:
    """``{000..012}`` and ``{a,b}`` written out, as a shell does.

    >>> list(expand("part-{08..10}.tar"))
    ['part-08.tar', 'part-09.tar', 'part-10.tar']
    """
    if found := _RANGE.search(pattern):
        low, high = found.groups()
        choices = [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    elif found := _CHOICE.search(pattern):
        choices = found[1].split(",")
    else:
        yield pattern
        return
    for choice in choices:
        yield from expand(pattern[: found.start()] + choice + pattern[found.end() :])


def find_shards(path: str, suffix: str) -> list[Shard]:
    """The files with `suffix` that a folder, a pattern (``*``, ``{000..012}``) or one path stands for, in name order.

    Raises:
        UserError: there are none, or a file of a written-out pattern is missing.
    """
    if Path(path).is_dir():
        files = sorted(glob.glob(glob.escape(path) + f"/**/*{suffix}", recursive=True))
    else:
        files = [file for one in expand(path) for file in (sorted(glob.glob(one)) if glob.has_magic(one) else [one])]
    if not files:
        raise UserError(f"{path} stands for no {suffix} file: check folder and pattern")
    if missing := [file for file in files if not Path(file).is_file()]:
        raise UserError(f"there is no file {missing[0]}" + (f" (one of {len(files)} of {path})" if files[1:] else ""))
    return list(map(LocalShard, files))


def data_set_name(path: str) -> str:
    """What records of sharded files are grouped by: folder or file name without the numbers of shards.

    >>> [data_set_name(p) for p in ("a/vqa/", "b/vqa-{000..012}.tar", "vqa-00001-of-00009.parquet", "a/*.tar")]
    ['vqa', 'vqa', 'vqa', 'a']
    """
    cut = re.sub(r"\{[^{}]*\}|[*?\[\]]|\d+-of-\d+|\.(tar|parquet)$", "", path.rstrip("/"))
    return Path(re.sub(r"[-_.]*\d*[-_.]*$", "", cut)).name
