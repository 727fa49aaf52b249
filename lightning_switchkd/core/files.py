"""Reading bytes from disks and networks that fail for a moment: tried again, never taken for bad data."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from lightning_switchkd.core.errors import UserError

T = TypeVar("T")

WAITS = (0.1, 0.5, 2.0)
"""Seconds before each further attempt."""

TRANSIENT = {
    getattr(errno, name)
    for name in ("EIO", "EAGAIN", "EINTR", "EBUSY", "ESTALE", "ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED",
                 "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO", "ENFILE", "EMFILE")
    if hasattr(errno, name)
}  # fmt: skip
"""What a network file system or a busy machine says of a file that is there."""


class ReadError(UserError):
    """Data that is there could not be read, though it was tried several times."""


def retried(read: Callable[[], T], what: str, waits: Sequence[float] = WAITS) -> T:
    """What `read` gives; it is tried again where it fails for a reason that may pass.

    Args:
        read: reads.
        what: it reads, for messages.
        waits: seconds before each further attempt.

    Raises:
        ReadError: it failed every time.
        OSError: it failed for a reason that stays, such as a missing file.
    """
    for wait in (*waits, None):
        try:
            return read()
        except OSError as error:
            if error.errno not in TRANSIENT and not isinstance(error, TimeoutError | ConnectionError):
                raise
            if wait is None:
                raise ReadError(
                    f"{what} cannot be read, tried {len(waits) + 1} times: {error}. The data is not at fault: look at "
                    "the disk or the network, then continue the run"
                ) from error
            time.sleep(wait)
    raise AssertionError


def read_bytes(path: Path) -> bytes:
    """A whole file."""
    return retried(path.read_bytes, str(path))


def pread(file: int, length: int, offset: int) -> bytes:
    """A part of an open file."""
    return retried(lambda: os.pread(file, length, offset), f"byte {offset} of an open file")
