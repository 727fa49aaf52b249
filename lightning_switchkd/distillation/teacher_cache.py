"""The teacher's final hidden rows on disk: what its pathway computes once is read ever after, and its head applied.

Exact where a cache of top-k logits is not: student-led terms ask for logits at ids that the student chooses (METHOD
section 4). Rows lie per record; any number of runs and ranks read and add to one folder at a time.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import pread
from lightning_switchkd.core.types import Batch

log = logging.getLogger(__name__)

KEY = "key.json"
ENTRY = np.dtype([("record", "<i8"), ("offset", "<i8"), ("rows", "<i4"), ("crc", "<u4")])
"""A line of a file's index: where a record's rows lie, how many they are, and the CRC-32 of their bytes."""


@dataclass
class TeacherCache:
    """Where the teacher's hidden rows are kept.

    Attributes:
        folder: the cache; made where it is not there. Runs with the same teacher and data settings share it.
        max_gb: most gigabytes that it may take up; records beyond are computed every time.
    """

    folder: str
    max_gb: float = 50.0

    def __post_init__(self) -> None:
        if not self.max_gb > 0:
            raise UserError(f"model.teacher_cache.max_gb is {self.max_gb}: a cache needs some room. Set it above 0.")

    def open(
        self, key: Mapping[str, Any], data: str, samples: int, width: int, dtype: torch.dtype, world_size: int = 1
    ) -> HiddenStateCache:
        """The rows of one data set.

        Args:
            key: all that rows depend on, besides the record; plain values by the name of their setting.
            data: fingerprint of the data set.
            records: of the data set.
            width: H of a row.
            dtype: of a row.
            world_size: processes that share the room left.

        Raises:
            UserError: the folder holds rows made otherwise; the message names what differs.
        """
        folder = Path(self.folder)
        try:
            (folder / data).mkdir(parents=True, exist_ok=True)
            _check_key(folder, {**key, "row dtype": str(dtype).removeprefix("torch."), "row width": width})
        except OSError as error:
            raise UserError(f"model.teacher_cache.folder: {folder} cannot be written: {error}") from None

        def room() -> int:
            taken = sum(file.stat().st_size for file in folder.rglob("*.rows"))
            return max(0, int(self.max_gb * 1e9) - taken) // world_size

        return HiddenStateCache(folder / data, samples, width, dtype, room)


def _check_key(folder: Path, key: Mapping[str, Any]) -> None:
    file = folder / KEY
    if not file.is_file():
        temporary = folder / f"{KEY}.{uuid.uuid4().hex}"
        temporary.write_text(json.dumps(key, indent=1), encoding="utf-8")
        try:
            os.link(temporary, file)  # whole, and the first one stays
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    try:
        theirs = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"the teacher cache {folder} has a broken {KEY} ({error}): remove the folder") from None
    ours = json.loads(json.dumps(key))
    for field in [*ours, *(theirs.keys() - ours.keys())]:
        if theirs.get(field) != ours.get(field):
            raise UserError(
                f"the teacher cache {folder} (model.teacher_cache.folder) was filled with another {field}: "
                f"{theirs.get(field)!r} there, {ours.get(field)!r} here. Its rows are not this run's: give another "
                "folder, or remove this one"
            )


class HiddenStateCache:
    """Hidden rows by record number, in append-only files: each process writes its own, all read all.

    Args:
        folder: of one data set.
        records: of the data set.
        width: H.
        dtype: of the rows.
        room: bytes that this process may add at present.
        looks: seconds between looks at what other processes have added.
    """

    def __init__(
        self,
        folder: Path,
        samples: int,
        width: int,
        dtype: torch.dtype,
        room: Callable[[], int],
        looks: float = 10.0,
    ) -> None:
        self.folder, self.width, self.dtype = folder, width, dtype
        self._ask_room, self._looks = room, looks
        self._row_bytes = width * torch.empty(0, dtype=dtype).element_size()
        self._entries = np.zeros(samples, ENTRY)
        self._file = np.full(samples, -1, np.int32)
        self._files: list[int] = []
        self._known: dict[Path, tuple[int, int]] = {}  # a file's index: its place in _files, entries taken in
        self._own: tuple[BinaryIO, BinaryIO] | None = None
        self._stopped = False
        self._look()

    def __len__(self) -> int:
        """Records that are here."""
        return int((self._file >= 0).sum())

    def announcement(self, rows_of_a_record: float) -> str:
        """What is here and what all of it takes, to be said before it is filled.

        Args:
            rows_of_a_record: supervised tokens, on average.
        """
        total = len(self._file) * rows_of_a_record * self._row_bytes / 1e9
        return (
            f"The teacher cache {self.folder} holds {len(self):,} of {len(self._file):,} records. All of them take "
            f"about {total:,.3g} GB ({rows_of_a_record:.0f} rows of {self._row_bytes:,} bytes a record); there is room "
            f"for {self._room / 1e9:,.3g} GB more in this process (model.teacher_cache.max_gb)."
        )

    def rows(self, batch: Batch, positions: Tensor, compute: Callable[[Batch], Tensor]) -> Tensor:
        """The teacher's rows ``[N, H]`` of a batch; those of records that are not here are made and kept.

        Args:
            batch: one micro-batch.
            positions: ``[N]`` of the rows in the flattened ``[B * T]`` axis, ascending.
            compute: the teacher pathway, from a batch to its rows; not called where all records are here.
        """
        counts = batch.sample_of[positions].bincount(minlength=len(batch)).tolist()
        numbers, device = batch.sample_index.tolist(), batch.input_ids.device
        if time.monotonic() > self._next_look:
            self._look()
        found = [self._read(number, count) for number, count in zip(numbers, counts, strict=True)]
        if missing := [place for place, rows in enumerate(found) if rows is None]:
            made = compute(batch if len(missing) == len(found) else batch.only(missing)).to(self.dtype)
            of_each = made.split([counts[place] for place in missing])
            self._keep([numbers[place] for place in missing], of_each)
            for place, rows in zip(missing, of_each, strict=True):
                found[place] = rows
        return torch.cat([rows.to(device, non_blocking=True) for rows in found if rows is not None])

    def _read(self, number: int, count: int) -> Tensor | None:
        if count == 0:
            return torch.empty(0, self.width, dtype=self.dtype)
        if self._file[number] < 0:
            return None
        entry = self._entries[number]
        data = pread(self._files[self._file[number]], int(entry["rows"]) * self._row_bytes, int(entry["offset"]))
        if zlib.crc32(data) != entry["crc"] or entry["rows"] != count:
            log.warning("The teacher cache %s: record %d is damaged; it is computed anew.", self.folder, number)
            self._file[number] = -1
            return None
        return torch.frombuffer(bytearray(data), dtype=self.dtype).view(count, self.width)

    def _keep(self, numbers: list[int], rows: Sequence[Tensor]) -> None:
        for number, some in zip(numbers, rows, strict=True):
            data = some.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if len(data) > self._room:
                self._stop("is full")
                break
            try:
                self._append(number, len(some), data)
            except OSError as error:
                self._stop(f"cannot be written ({error})")
                break

    def _append(self, number: int, count: int, data: bytes) -> None:
        if self._own is None:
            name = self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self._own = open(name.with_suffix(".rows"), "xb"), open(name.with_suffix(".index"), "xb")  # noqa: SIM115
            self._known[name.with_suffix(".index")] = self._opened(name.with_suffix(".rows")), 0
        rows, index = self._own
        file, taken = self._known[Path(index.name)]
        entry = np.array([(number, rows.tell(), count, zlib.crc32(data))], ENTRY)
        for out, content in ((rows, data), (index, entry.tobytes())):  # what an index names is there already
            out.write(content)
            out.flush()
        self._entries[number], self._file[number] = entry[0], file
        self._known[Path(index.name)] = file, taken + 1
        self._room -= len(data)

    def _stop(self, why: str) -> None:
        if not self._stopped:
            log.warning("The teacher cache %s %s: other records are computed every time.", self.folder, why)
        self._stopped, self._room = True, 0

    def _look(self) -> None:
        """Takes in what other processes have added, as far as it is whole."""
        for index in sorted(self.folder.glob("*.index")):
            rows = index.with_suffix(".rows")
            if not rows.is_file():
                continue
            file, taken = self._known.get(index) or (self._opened(rows), 0)
            entries = np.fromfile(index, ENTRY, offset=taken * ENTRY.itemsize)
            self._known[index] = file, taken + len(entries)
            ends = entries["offset"] + entries["rows"].astype(np.int64) * self._row_bytes
            right = (entries["record"] >= 0) & (entries["record"] < len(self._entries))
            entries = entries[right & (ends <= rows.stat().st_size)]
            self._entries[entries["record"]], self._file[entries["record"]] = entries, file
        self._room = 0 if self._stopped else self._ask_room()
        self._next_look = time.monotonic() + self._looks

    def _opened(self, rows: Path) -> int:
        self._files.append(os.open(rows, os.O_RDONLY))
        return len(self._files) - 1
