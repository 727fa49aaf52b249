"""Files behind URLs (``https://``, ``s3://``, ``hf://``): each downloaded whole, once a machine, into a bounded folder.

fsspec knows the services. Its file systems do not survive a fork, so each process makes its own.
"""

from __future__ import annotations

import fcntl
import functools
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import retry
from lightning_switchkd.data.sources.index import fingerprint, user_cache
from lightning_switchkd.data.sources.shards import expand

WAITS = (0.5, 2.0, 8.0, 30.0)
"""Seconds before each further attempt: servers take longer than disks to come back."""

STALLED = 30.0
"""Seconds without a byte after which a server counts as failed."""

_SUFFIX = ".shard"  # of files that may have to make way: the folder may hold others
_VERSIONS = ("ETag", "blob_id", "md5Hash", "Content-MD5", "Digest", "Last-Modified", "LastModified", "mtime")
_PASSING = {408, 425, 429}  # of the HTTP statuses below 500, those that may pass


class ShardCache:
    """A folder of downloaded files, which all processes of a machine share.

    A file is there whole or not at all. One that is being read stays readable after it had to make way.

    Args:
        folder: where they lie; None is the user's cache folder.
        gigabytes: they never take up more; those used longest ago make way.
        data_sets: how many remote data sets are read side by side, each of which gets its part.
    """

    def __init__(self, folder: str | None = None, gigabytes: float = 20.0, data_sets: int = 1) -> None:
        self.folder = user_cache() / "shards" if folder is None else Path(folder).expanduser()
        self._locks = self.folder / "locks"
        self.bytes = round(gigabytes * 1e9)
        self.share = self.bytes // max(1, data_sets)

    def open(self, shard: RemoteShard) -> BinaryIO:
        """A file of the cache, downloaded where it is not there.

        Raises:
            ReadError: the server or the network fails, time after time.
            UserError: the server has no such file or does not give it, or the cache folder cannot be written.
        """
        path = self.folder / f"{PurePosixPath(shard.name).name[-100:]}.{fingerprint(shard.key)}{_SUFFIX}"
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
            if (file := _opened(path)) is None:
                with self._locked(path.name):  # another process may have been downloading it
                    file = _opened(path) or self._download(shard, path)
            os.utime(file.fileno())  # used last now
            return file
        except OSError as error:
            said = f"{shard.name} cannot be kept in {self.folder}: {error}. Free the disk, or set data.cache_dir"
            raise UserError(said) from error

    def _download(self, shard: RemoteShard, path: Path) -> BinaryIO:
        partial = path.with_name(f"{path.name}.partial")
        while not self._reserve(partial, shard.size):
            time.sleep(0.05)
        try:
            retry(lambda: _fetch(shard, partial), shard.name, WAITS)
            with self._locked("room"):
                partial.replace(path)
                return path.open("rb", buffering=0)
        except BaseException:
            with self._locked("room"):
                partial.unlink(missing_ok=True)
            raise

    def _reserve(self, partial: Path, size: int) -> bool:
        """Makes an empty file of `size` bytes, and room for it; False while others download too much for that."""
        with self._locked("room"):
            partial.unlink(missing_ok=True)  # of a process that was killed
            files = [(file.stat(), file) for file in self.folder.glob(f"*{_SUFFIX}*")]
            excess = sum(stat.st_size for stat, _ in files) + size - self.bytes
            for stat, file in sorted(files, key=lambda pair: pair[0].st_mtime_ns):
                if excess > 0 and self._remove(file):
                    excess -= stat.st_size
            if excess <= 0:
                with partial.open("wb") as empty:
                    empty.truncate(size)
            return excess <= 0

    def _remove(self, file: Path) -> bool:
        """Removes a file, unless a living process is downloading it."""
        if file.suffix != ".partial":
            file.unlink()
            return True
        with suppress(BlockingIOError), self._locked(file.name.removesuffix(".partial"), fcntl.LOCK_NB):
            file.unlink()
            return True
        return False

    @contextmanager
    def _locked(self, name: str, flags: int = 0) -> Iterator[None]:
        """One process at a time; the system lets go of the lock of a process that dies."""
        with (self._locks / name).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | flags)
            yield


class RemoteShard:
    """One file of a data set behind a URL, as `shards.Shard` has it.

    Args:
        url: its URL.
        size: bytes.
        version: checksum or time of change, as far as the server tells.
        cache: where its content is kept.
        together: how many files like it are read at a time, where not all fit into the cache.
    """

    folder: Path | None = None

    def __init__(self, url: str, size: int, version: str, cache: ShardCache, together: int | None) -> None:
        self.name = self.full_name = url
        self.size, self.cache, self.together = size, cache, together
        self.key: object = (url, size, version)

    def open(self) -> BinaryIO:
        """The content; its errors are those of `ShardCache.open`."""
        return self.cache.open(self)


def find_remote(pattern: str, suffix: str, cache: ShardCache) -> list[RemoteShard]:
    """The files that a URL stands for: ``https://host/x-{000..012}.tar``, ``hf://datasets/owner/name/*.parquet``.

    Raises:
        UserError: a file is not there or may not be read, its service is not known or not installed, its format is not
            read from a URL, or the cache is too small for it.
        ReadError: the server or the network fails, time after time.
    """
    if suffix not in (".tar", ".parquet"):
        raise UserError(f"{pattern}: only .tar and .parquet files are read from a URL; download others first")
    system, urls = _file_system(pattern), list(expand(pattern))
    with ThreadPoolExecutor(16) as pool:
        facts = pool.map(lambda url: retry(lambda: _facts(system, url), url, WAITS), urls)
        found = [one for some in facts for one in some]
    if not found:
        raise UserError(f"{pattern} stands for no {suffix} file: check the pattern")
    total, largest = sum(size for _, size, _ in found), max(size for _, size, _ in found)
    together = None if total <= cache.share else cache.share // (2 * largest)
    if together == 0:
        raise UserError(
            f"data.cache_gb is too small for {pattern}: the largest file has {largest / 1e9:.3g} GB, and two must "
            f"fit into {cache.share / 1e9:.3g} GB, its part of the cache: raise it, or cut the data into smaller files"
        )
    return [RemoteShard(*one, cache, together) for one in found]


def _facts(system: Any, pattern: str) -> list[tuple[str, int, str]]:
    """URL, size and version of each file of a URL, which may hold ``*``."""
    many = "*" in pattern
    if many and pattern.startswith("http"):
        raise UserError(f"{pattern}: a web server does not list its files: write {{000..012}} for *")
    with _errors_of(pattern):
        infos: Mapping[str, Any] = system.glob(pattern, detail=True) if many else {pattern: system.info(pattern)}
    files = []
    for name, info in sorted(infos.items()):
        url = system.unstrip_protocol(name) if many else name
        if info.get("type", "file") != "file" or info.get("size") is None:
            raise UserError(f"{url} is no file, or its server does not tell its size: download it first")
        files.append((url, int(info["size"]), next((str(info[key]) for key in _VERSIONS if info.get(key)), "")))
    return files


def _fetch(shard: RemoteShard, partial: Path) -> None:
    """Writes the whole content over `partial`, and to the disk."""
    done = 0
    with partial.open("r+b") as target:
        for chunk in _stream(shard):
            done += len(chunk)
            if done > shard.size:
                break
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
    if done != shard.size:
        raise ConnectionError(f"{done} of {shard.size} bytes came")


def _stream(shard: RemoteShard) -> Iterator[bytes]:
    system = _file_system(shard.name)
    with _errors_of(shard.name), system.open(shard.name, "rb", block_size=0, size=shard.size) as stream:  # 0: no blocks
        while chunk := stream.read(4 * 2**20):
            yield chunk


def _opened(path: Path) -> BinaryIO | None:
    with suppress(FileNotFoundError):
        return path.open("rb", buffering=0)
    return None


def _file_system(url: str) -> Any:
    """fsspec's file system for a URL, of this process alone."""
    try:
        return _new_file_system(url.split("://")[0], STALLED, os.getpid())
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be opened: {error}") from None


@functools.cache
def _new_file_system(protocol: str, stalled: float, process: int) -> Any:
    """Kept for ever, also in a fork: one of the parent's that is freed there waits for a thread that is not there."""
    import fsspec

    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=stalled, sock_read=stalled)
        options = {"client_kwargs": {"timeout": timeout, "trust_env": True}}  # of the environment: its proxies
    elif protocol in ("s3", "s3a"):
        options = {"config_kwargs": {"connect_timeout": stalled, "read_timeout": stalled}}
    return fsspec.filesystem(protocol, skip_instance_cache=True, **options)


@contextmanager
def _errors_of(url: str) -> Iterator[None]:
    """The errors of fsspec's libraries as two: what stays is a UserError, what may pass a ConnectionError."""
    try:
        yield
    except Exception as error:
        hidden = error.__cause__ if isinstance(error, FileNotFoundError) else None  # fsspec says so of any failure
        cause = hidden if isinstance(hidden, Exception) else error
        status = getattr(cause, "status", None) or getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, FileNotFoundError) or status in (404, 410):
            raise UserError(f"there is no file {url} ({cause})") from None
        name = type(cause).__name__
        if isinstance(cause, PermissionError) or status in (401, 403) or "Credentials" in name:
            raise UserError(f"{url} may not be read: {cause}. Give this machine access to it") from None
        if isinstance(cause, ImportError | ValueError) or (status and status < 500 and status not in _PASSING):
            raise UserError(f"{url} cannot be read: {cause}") from None
        raise ConnectionError(f"{name}: {cause}") from error
