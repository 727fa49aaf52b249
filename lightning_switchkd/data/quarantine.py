"""What happens to a bad record: its slot is dropped, it is written down once, and too many of them stop the run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import append_jsonl, read_jsonl
from lightning_switchkd.core.types import Defect, DefectCode
from lightning_switchkd.data.dataset import VisionTextDataset
from lightning_switchkd.data.order import epoch_order
from lightning_switchkd.data.samples import SampleError
from lightning_switchkd.data.sources import Source
from lightning_switchkd.data.sources.shards import full_name

log = logging.getLogger(__name__)

OnError = Literal["quarantine", "raise"]

MIN_READ_BEFORE_STOP = 1000
"""Records that are read before their bad share can stop a run."""

MAX_BAD_PROBE_FRACTION = 0.05

MAX_LOGGED_DEFECTS = 5  # bad records named on the console; all of them are in the file


def defect_of(error: SampleError) -> Defect:
    """Describe an invalid sample for the quarantine file."""
    assert error.location is not None, "only a sample of a data set can be quarantined"
    name = None if error.id is None else str(error.id)
    return Defect(error.location.path, error.location.index, name, error.source, error.code, error.problem)


class Quarantine:
    """The bad records that one process met.

    Each process writes them to a file of its own, one JSON object a line. A record that any of the files names already,
    from before an interruption or from another process in an earlier epoch, is not written again.

    Args:
        folder: where the files are; None keeps none.
        max_share: more than this share of the records read stops the run, once there are enough to judge.
        max_run: so many records in batches without a good one stop the run.
        rank: this process.
        world_size: processes.

    Attributes:
        counts: records in quarantine by code, such that the sum over all processes is the number of them.
    """

    def __init__(self, folder: Path | None, max_share: float, max_run: int, rank: int = 0, world_size: int = 1) -> None:
        self.folder, self.rank, self.world_size = folder, rank, world_size
        self.max_share, self.max_run = max_share, max_run
        self.counts: Counter[DefectCode] = Counter()
        self._known: set[tuple[str, int]] = set()
        self._read = self._bad = self._run = self._said = 0

    @property
    def file(self) -> Path | None:
        """This process's file."""
        return self.folder / f"rank{self.rank}.jsonl" if self.folder else None

    def begin(self) -> None:
        """Looks at what is written down already; called whenever an iteration begins."""
        written = sorted(self.folder.glob("rank*.jsonl")) if self.folder else []
        self.counts = Counter() if written else self.counts
        for file in written:
            lines = list(read_jsonl(file, allow_cut=True))
            self._known |= {(line["path"], line["index"]) for line in lines}
            rank = int(file.stem.removeprefix("rank"))
            if rank == self.rank or (self.rank == 0 and rank >= self.world_size):  # of a run on more processes
                self.counts.update(line["code"] for line in lines)

    def note(self, read: int, defects: Sequence[Defect], **when: Any) -> None:
        """Takes note of a batch.

        Args:
            read: records that were asked for.
            defects: those of them that are bad.
            when: written beside each, such as the epoch.

        Raises:
            UserError: there are too many.
        """
        self._read += read
        self._bad += len(defects)
        self._run = self._run + read if defects and len(defects) == read else 0
        for defect in defects:
            if (defect.path, defect.index) not in self._known:
                self._known.add((defect.path, defect.index))
                self.counts[defect.code] += 1
                self._write(defect, when)
        if self._run >= self.max_run:
            raise self._too_many(f"the last {self._run} records are all bad", defects[-1], "data.max_bad_run")
        if defects and self._read >= MIN_READ_BEFORE_STOP and self._bad > self.max_share * self._read:
            share = f"{self._bad} of {self._read} records are bad, more than {self.max_share:.1%}"
            raise self._too_many(share, defects[-1], "data.max_bad_fraction")

    def _write(self, defect: Defect, when: Mapping[str, Any]) -> None:
        if self.file is not None:
            append_jsonl(self.file, [{**when, **asdict(defect)}])
        self._said += 1
        if self._said <= MAX_LOGGED_DEFECTS:
            more = f" Further ones are only written to {self.file}." if self._said == MAX_LOGGED_DEFECTS and self.file else ""
            log.warning(f"Left out: record {defect.index} of {defect.path}: {defect.error} [{defect.code}].{more}")

    def _too_many(self, what: str, last: Defect, setting: str) -> UserError:
        where = f" All are in {self.file}." if self.file else ""
        return UserError(
            f"too much of the data cannot be used: {what} ({format_counts(self.counts)}). The last one: record "
            f"{last.index} of {last.path}: {last.error}.{where} `validate-data` looks at everything at once; "
            f"{setting} allows more"
        )


def format_counts(counts: Mapping[DefectCode, int]) -> str:
    """``image_missing 12, bad_json 1``, the most frequent first."""
    return ", ".join(f"{code} {count}" for code, count in Counter(counts).most_common())


def read_exclusions(path: str, source: Source) -> list[int]:
    """The records of a source that an exclusion list names, sorted.

    Args:
        path: JSON lines with ``path`` and ``index``, as `validate-data` and a run's quarantine write them.
        source: the records; lines of other files are passed over.

    Raises:
        UserError: there is no such file, or it is no such list, or it names a record that is not there.
    """
    if not Path(path).is_file():
        raise UserError(f"data.exclude: there is no file {path}")
    starts = source.files()
    found: set[int] = set()
    for line in read_jsonl(Path(path), allow_cut=True):
        name, index = line.get("path"), line.get("index")
        if not isinstance(name, str) or not isinstance(index, int):
            raise UserError(f"data.exclude: {path}: a line must have path and index, not {line}")
        if (span := starts.get(full_name(name))) is None:
            continue
        if not 0 <= index < len(span):
            raise UserError(f"data.exclude: {path} names record {index} of {name}, which has {len(span)}: make it anew")
        found.add(span[index])
    return sorted(found)


def probe(dataset: VisionTextDataset, seed: int, count: int) -> None:
    """Reads the first records that training will take, images and all, before anything expensive begins.

    Raises:
        UserError: more than one in twenty cannot be used: rather a wrong path than bad records.
    """
    indices = epoch_order(seed, 0, dataset.shares())[:count]
    defects: list[Defect] = []
    for index in tqdm(indices.tolist(), desc="looking at the data", unit="record", delay=2, leave=False):
        try:
            dataset.sample(index).load_images()
        except SampleError as error:
            defects.append(defect_of(error))
    if len(defects) > MAX_BAD_PROBE_FRACTION * len(indices):
        counts = Counter(defect.code for defect in defects)
        example = next(defect for defect in defects if defect.code == counts.most_common(1)[0][0])
        raise UserError(
            f"{len(defects)} of {len(indices)} records looked at before training cannot be used "
            f"({format_counts(counts)}). For example record {example.index} of {example.path}: {example.error}."
        )
