"""The teacher's final hidden states on disk: computed once, read in every later epoch and run.

A cache of hidden states is exact where a cache of top-k logits is not: student-led terms ask for logits at ids that the
student chooses (docs/explanation/method.md, section 4). Any number of runs and ranks read one folder and add to it at
the same time.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
import weakref
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import pread
from lightning_switchkd.core.renamed import upgrade_setting
from lightning_switchkd.core.types import Batch
from lightning_switchkd.models.adapter import VLMAdapter

log = logging.getLogger(__name__)

KEY = "key.json"
ENTRY = np.dtype([("record", "<i8"), ("offset", "<i8"), ("rows", "<i4"), ("crc", "<u4")])
"""One entry of an index file: sample number, byte offset, number of hidden states, and CRC-32 of their bytes."""


@dataclass
class TeacherCache:
    """The settings of the teacher cache.

    Attributes:
        folder: The cache folder. Created if missing. Runs with the same teacher and data settings share it.
        max_gb: Size limit in gigabytes. Samples beyond it are computed every time.
    """

    folder: str
    max_gb: float = 50.0

    def __post_init__(self) -> None:
        if not self.max_gb > 0:
            raise UserError(f"model.teacher_cache.max_gb must be above 0, got {self.max_gb}. Set it to 50.")

    def open(
        self, teacher: VLMAdapter, settings: Mapping[str, Any], data: str, samples: int, world_size: int = 1
    ) -> HiddenStateCache:
        """Open the hidden states of one data set.

        Args:
            teacher: The model that computes them.
            settings: Everything else that hidden states depend on besides the sample, as plain values by setting.
            data: Fingerprint of the data set.
            samples: Number of samples in the data set.
            world_size: Number of processes that share the remaining space.

        Raises:
            UserError: The folder was filled with other settings. The message names the first that differs.
        """
        folder, head = Path(self.folder), teacher.head
        key = {
            **settings,
            "model.teacher.dtype": str(head.weight.dtype),
            "model.teacher.attn_implementation": teacher.attention,
            "model.teacher.feature_layer": str(teacher.feature_space),
            "row dtype": str(head.dtype).removeprefix("torch."),
            "row width": head.weight.shape[1],
        }
        try:
            (folder / data).mkdir(parents=True, exist_ok=True)
            _check_key(folder, key)
        except OSError as error:
            raise UserError(
                f"model.teacher_cache.folder: cannot write to {folder} ({error}). Choose another folder."
            ) from None

        def free_bytes() -> int:
            used = sum(file.stat().st_size for file in folder.rglob("*.rows"))
            return max(0, int(self.max_gb * 1e9) - used) // world_size

        return HiddenStateCache(folder / data, samples, head.weight.shape[1], head.dtype, free_bytes)


def _check_key(folder: Path, key: Mapping[str, Any]) -> None:
    file = folder / KEY
    if not file.is_file():
        temporary = folder / f"{KEY}.{uuid.uuid4().hex}"
        temporary.write_text(json.dumps(key, indent=1), encoding="utf-8")
        try:
            os.link(temporary, file)  # complete from the start, and the first process wins
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    try:
        stored = {upgrade_setting(name): value for name, value in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"The teacher cache {folder} has a damaged {KEY} ({error}). Delete the folder.") from None
    current = json.loads(json.dumps(key))
    for setting in [*current, *(stored.keys() - current.keys())]:
        if stored.get(setting) != current.get(setting):
            raise UserError(
                f"The teacher cache {folder} (model.teacher_cache.folder) was filled with another {setting}: "
                f"{stored.get(setting)!r} in the cache, {current.get(setting)!r} in this run. Choose another folder, "
                "or delete this one."
            )


class HiddenStateCache:
    """Hidden states by sample number, in append-only files. Each process writes its own files and reads all.

    Args:
        folder: Folder of one data set.
        samples: Number of samples in the data set.
        width: H.
        dtype: Of the hidden states.
        free_bytes: Returns how many bytes this process may still add.
        refresh_seconds: Seconds between two looks for entries of other processes.
    """

    def __init__(
        self,
        folder: Path,
        samples: int,
        width: int,
        dtype: torch.dtype,
        free_bytes: Callable[[], int],
        refresh_seconds: float = 10.0,
    ) -> None:
        self.folder, self.width, self.dtype = folder, width, dtype
        self._ask_free_bytes, self._refresh_seconds = free_bytes, refresh_seconds
        self._state_bytes = width * torch.empty(0, dtype=dtype).element_size()
        self._entries = np.zeros(samples, ENTRY)
        self._file_of = np.full(samples, -1, np.int32)  # -1: not in the cache
        self._files: list[int] = []
        self._indexes: dict[Path, tuple[int, int]] = {}  # index file -> its number in _files, entries read
        self._own: tuple[BinaryIO, BinaryIO] | None = None
        self._full = False
        self._open_files = ExitStack()
        weakref.finalize(self, self._open_files.close)
        self._refresh()

    def __len__(self) -> int:
        """Count the samples in the cache."""
        return int((self._file_of >= 0).sum())

    def describe(self, states_per_sample: float) -> str:
        """Describe what the cache holds and how large it will become.

        Args:
            states_per_sample: Mean number of hidden states of a sample.
        """
        total = len(self._file_of) * states_per_sample * self._state_bytes / 1e9
        return (
            f"The teacher cache {self.folder} holds {len(self):,} of {len(self._file_of):,} samples. All samples take "
            f"about {total:,.3g} GB ({states_per_sample:.0f} hidden states of {self._state_bytes:,} bytes each). "
            f"This process may add {self._free_bytes / 1e9:,.3g} GB (model.teacher_cache.max_gb)."
        )

    def read(self, batch: Batch, positions: Tensor) -> list[Tensor | None]:
        """Read the hidden states of a batch, sample by sample.

        Args:
            batch: One micro-batch.
            positions: ``[K]`` of the hidden states in the flattened ``[B * T]`` axis, ascending.

        Returns:
            For each sample ``[k, H]`` on the CPU, or None where the cache does not hold the sample.
        """
        if time.monotonic() > self._next_refresh:
            self._refresh()
        numbers = batch.sample_index.tolist()
        return [self._read(*pair) for pair in zip(numbers, _states_per_sample(batch, positions), strict=True)]

    def write(self, batch: Batch, positions: Tensor, hidden: Tensor) -> list[Tensor]:
        """Store the hidden states of a batch, as far as there is space.

        Args:
            batch: Samples that the cache does not hold.
            positions: ``[K]`` of their hidden states in the flattened ``[B * T]`` axis, ascending.
            hidden: ``[B * T, H]``.

        Returns:
            For each sample ``[k, H]`` in the dtype of the cache.
        """
        states = list(hidden[positions].to(self.dtype).split(_states_per_sample(batch, positions)))
        for number, of_sample in zip(batch.sample_index.tolist(), states, strict=True):
            data = of_sample.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if len(data) > self._free_bytes:
                self._stop_writing("is full")
                break
            try:
                self._append(number, len(of_sample), data)
            except OSError as error:
                self._stop_writing(f"cannot be written ({error})")
                break
        return states

    def _read(self, number: int, count: int) -> Tensor | None:
        if count == 0:
            return torch.empty(0, self.width, dtype=self.dtype)
        if self._file_of[number] < 0:
            return None
        entry = self._entries[number]
        data = pread(self._files[self._file_of[number]], int(entry["rows"]) * self._state_bytes, int(entry["offset"]))
        if zlib.crc32(data) != entry["crc"] or entry["rows"] != count:
            log.warning("The teacher cache %s: sample %d is damaged and computed again.", self.folder, number)
            self._file_of[number] = -1
            return None
        return torch.frombuffer(bytearray(data), dtype=self.dtype).view(count, self.width)

    def _append(self, number: int, count: int, data: bytes) -> None:
        if self._own is None:
            name = self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            keep = self._open_files.enter_context
            self._own = keep(name.with_suffix(".rows").open("xb")), keep(name.with_suffix(".index").open("xb"))
            self._indexes[name.with_suffix(".index")] = self._open(name.with_suffix(".rows")), 0
        states, index = self._own
        file, entries_read = self._indexes[Path(index.name)]
        entry = np.array([(number, states.tell(), count, zlib.crc32(data))], ENTRY)
        for out, content in ((states, data), (index, entry.tobytes())):  # data first: an index names complete data
            out.write(content)
            out.flush()
        self._entries[number], self._file_of[number] = entry[0], file
        self._indexes[Path(index.name)] = file, entries_read + 1
        self._free_bytes -= len(data)

    def _stop_writing(self, reason: str) -> None:
        if not self._full:
            log.warning("The teacher cache %s %s: other samples are computed every time.", self.folder, reason)
        self._full, self._free_bytes = True, 0

    def _refresh(self) -> None:
        """Read the complete entries that other processes have added."""
        for index in sorted(self.folder.glob("*.index")):
            states = index.with_suffix(".rows")
            if not states.is_file():
                continue
            file, entries_read = self._indexes.get(index) or (self._open(states), 0)
            entries = np.fromfile(index, ENTRY, offset=entries_read * ENTRY.itemsize)
            self._indexes[index] = file, entries_read + len(entries)
            ends = entries["offset"] + entries["rows"].astype(np.int64) * self._state_bytes
            valid = (entries["record"] >= 0) & (entries["record"] < len(self._entries))
            entries = entries[valid & (ends <= states.stat().st_size)]
            self._entries[entries["record"]], self._file_of[entries["record"]] = entries, file
        self._free_bytes = 0 if self._full else self._ask_free_bytes()
        self._next_refresh = time.monotonic() + self._refresh_seconds

    def _open(self, states: Path) -> int:
        self._files.append(os.open(states, os.O_RDONLY))
        self._open_files.callback(os.close, self._files[-1])
        return len(self._files) - 1


def _states_per_sample(batch: Batch, positions: Tensor) -> list[int]:
    counts: list[int] = batch.sample_of[positions].bincount(minlength=len(batch)).tolist()
    return counts
