"""Files behind URLs (``https://``, ``s3://``, ``hf://``): downloaded whole, once per machine, into a bounded cache.

fsspec implements the services. Its file systems do not survive a fork, so each process creates its own.
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
from lightning_switchkd.core.extras import requires
from lightning_switchkd.core.files import PARTIAL, retry
from lightning_switchkd.data.sources.index import fingerprint, user_cache
from lightning_switchkd.data.sources.shards import expand

WAITS = (0.5, 2.0, 8.0, 30.0)
"""Seconds before each further attempt. Servers take longer to recover than disks."""

TIMEOUT = 30.0
"""Seconds without data after which a request fails."""

_SUFFIX = ".shard"  # of cached files, which may be removed. The folder may contain others
_VERSIONS = ("ETag", "blob_id", "md5Hash", "Content-MD5", "Digest", "Last-Modified", "LastModified", "mtime")
_TRANSIENT_STATUS = {408, 425, 429}  # HTTP statuses below 500 that are worth a retry


class ShardCache:
    """A folder of downloaded files that all processes of a machine share.

    Files appear only when complete. An open file stays readable after its removal.

    Args:
        folder: The folder. None: the user's cache folder.
        gigabytes: Maximum size. The least recently used files are removed to stay below it.
        data_sets: Number of remote data sets that are read together. Each gets an equal part of the size.
    """

    def __init__(self, folder: str | None = None, gigabytes: float = 20.0, data_sets: int = 1) -> None:
        self.folder = user_cache() / "shards" if folder is None else Path(folder).expanduser()
        self._locks = self.folder / "locks"
        self.bytes = round(gigabytes * 1e9)
        self.share = self.bytes // max(1, data_sets)

    def open(self, shard: RemoteShard) -> BinaryIO:
        """Open a file of the cache. Download it if it is missing.

        Raises:
            ReadError: The server or the network failed on every attempt.
            UserError: The file does not exist or access is denied, or the cache folder is not writable.
        """
        path = self.folder / f"{PurePosixPath(shard.name).name[-100:]}.{fingerprint(shard.key)}{_SUFFIX}"
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
            if (file := _opened(path)) is None:
                with self._locked(path.name):  # another process may have downloaded it meanwhile
                    file = _opened(path) or self._download(shard, path)
            os.utime(file.fileno())  # the most recently used file
            return file
        except OSError as error:
            raise UserError(
                f"Cannot store {shard.name} in {self.folder}: {error}. Free disk space, or set data.cache_dir."
            ) from error

    def _download(self, shard: RemoteShard, path: Path) -> BinaryIO:
        partial = path.with_name(f"{path.name}{PARTIAL}")
        while not self._reserve(partial, shard.size):
            time.sleep(0.05)
        try:
            retry(lambda: _fetch(shard, partial), shard.name, WAITS)
            with self._locked("space"):
                partial.replace(path)
                return path.open("rb", buffering=0)
        except BaseException:
            with self._locked("space"):
                partial.unlink(missing_ok=True)
            raise

    def _reserve(self, partial: Path, size: int) -> bool:
        """Create an empty file of `size` bytes and free the space. False while other downloads need too much of it."""
        with self._locked("space"):
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
        """Remove a file, unless a running process is downloading it."""
        if file.suffix != PARTIAL:
            file.unlink()
            return True
        with suppress(BlockingIOError), self._locked(file.name.removesuffix(PARTIAL), fcntl.LOCK_NB):
            file.unlink()
            return True
        return False

    @contextmanager
    def _locked(self, name: str, flags: int = 0) -> Iterator[None]:
        """Hold a lock between processes. The system releases the lock of a process that dies."""
        with (self._locks / name).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | flags)
            yield


class RemoteShard:
    """One file of a data set behind a URL (see `shards.Shard`).

    Args:
        url: The URL.
        size: Bytes.
        version: Checksum or time of change, if the server reports one.
        cache: Stores its content.
        window: Number of files that the cache holds at a time. None: all of them.
    """

    folder: Path | None = None

    def __init__(self, url: str, size: int, version: str, cache: ShardCache, window: int | None) -> None:
        self.name = self.absolute_name = url
        self.size, self.cache, self.window = size, cache, window
        self.key: object = (url, size, version)

    def open(self) -> BinaryIO:
        """Open the cached file (see `ShardCache.open`)."""
        return self.cache.open(self)


def find_remote(pattern: str, suffix: str, cache: ShardCache) -> list[RemoteShard]:
    """Find the files of a URL: ``https://host/x-{000..012}.tar``, ``hf://datasets/owner/name/*.parquet``.

    Raises:
        UserError: A file is missing or access is denied, its service is unknown or not installed, its format cannot be
            read from a URL, or the cache is too small.
        ReadError: The server or the network failed on every attempt.
    """
    if suffix not in (".tar", ".parquet"):
        raise UserError(f"{pattern}: only .tar and .parquet files can be read from a URL. Download other files first.")
    system, urls = _file_system(pattern), list(expand(pattern))
    with ThreadPoolExecutor(16) as pool:
        facts = pool.map(lambda url: retry(lambda: _facts(system, url), url, WAITS), urls)
        files = [file for group in facts for file in group]
    if not files:
        raise UserError(f"{pattern} matches no {suffix} file. Check the pattern.")
    total, largest = sum(size for _, size, _ in files), max(size for _, size, _ in files)
    window = None if total <= cache.share else cache.share // (2 * largest)
    if window == 0:
        raise UserError(
            f"data.cache_gb is too small for {pattern}: the largest file has {largest / 1e9:.3g} GB, and two such "
            f"files must fit into its part of the cache, {cache.share / 1e9:.3g} GB. Raise data.cache_gb, or use "
            "smaller files."
        )
    return [RemoteShard(*file, cache, window) for file in files]


def _facts(system: Any, pattern: str) -> list[tuple[str, int, str]]:
    """Return URL, size and version of each file of a URL, which may contain ``*``."""
    is_glob = "*" in pattern
    if is_glob and pattern.startswith("http"):
        raise UserError(f"{pattern}: a web server cannot list its files. Replace * by a range such as {{000..012}}.")
    with _errors_of(pattern):
        infos: Mapping[str, Any] = system.glob(pattern, detail=True) if is_glob else {pattern: system.info(pattern)}
    files = []
    for name, info in sorted(infos.items()):
        url = system.unstrip_protocol(name) if is_glob else name
        if info.get("type", "file") != "file" or info.get("size") is None:
            raise UserError(f"{url} is not a file, or its server does not report the size. Download it first.")
        files.append((url, int(info["size"]), next((str(info[key]) for key in _VERSIONS if info.get(key)), "")))
    return files


def _fetch(shard: RemoteShard, partial: Path) -> None:
    """Download the content into `partial` and flush it to the disk."""
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
        raise ConnectionError(f"received {done} of {shard.size} bytes")


def _stream(shard: RemoteShard) -> Iterator[bytes]:
    system = _file_system(shard.name)
    with (
        _errors_of(shard.name),
        system.open(shard.name, "rb", block_size=0, size=shard.size) as stream,
    ):  # 0: one stream
        while chunk := stream.read(4 * 2**20):
            yield chunk


def _opened(path: Path) -> BinaryIO | None:
    with suppress(FileNotFoundError):
        return path.open("rb", buffering=0)
    return None


def _file_system(url: str) -> Any:
    """Return the fsspec file system of a URL for this process."""
    try:
        return _new_file_system(url.split("://")[0], TIMEOUT, os.getpid())
    except UserError:  # a missing extra
        raise
    except (ImportError, ValueError) as error:
        raise UserError(
            f"Cannot open {url}: {error}. Install the package of its service, or download the files."
        ) from None


@functools.cache
def _new_file_system(protocol: str, seconds: float, process: int) -> Any:
    """Create a file system that is never freed. Freeing the parent's in a fork would wait for a missing thread."""
    with requires("remote", f"Reading {protocol}:// files"):
        import fsspec

    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        with requires("remote", f"Reading {protocol}:// files"):
            from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
        options = {"client_kwargs": {"timeout": timeout, "trust_env": True}}  # proxies from the environment
    elif protocol in ("s3", "s3a"):
        options = {"config_kwargs": {"connect_timeout": seconds, "read_timeout": seconds}}
    return fsspec.filesystem(protocol, skip_instance_cache=True, **options)


@contextmanager
def _errors_of(url: str) -> Iterator[None]:
    """Convert the errors of fsspec: permanent ones to UserError, transient ones to ConnectionError."""
    try:
        yield
    except Exception as error:
        origin = error.__cause__ if isinstance(error, FileNotFoundError) else None  # fsspec raises it for any failure
        cause = origin if isinstance(origin, Exception) else error
        status = getattr(cause, "status", None) or getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, FileNotFoundError) or status in (404, 410):
            raise UserError(f"The file {url} does not exist ({cause}). Check the URL.") from None
        name = type(cause).__name__
        if isinstance(cause, PermissionError) or status in (401, 403) or "Credentials" in name:
            raise UserError(f"Access to {url} is denied: {cause}. Grant this machine access.") from None
        if isinstance(cause, ImportError | ValueError) or (status and status < 500 and status not in _TRANSIENT_STATUS):
            raise UserError(f"Cannot read {url}: {cause}. Check the URL.") from None
        raise ConnectionError(f"{name}: {cause}") from error
