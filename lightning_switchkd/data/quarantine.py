"""The quarantine of invalid samples: each is skipped and recorded once, and too many stop the run."""

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
from lightning_switchkd.data.sources.shards import absolute_name

log = logging.getLogger(__name__)

OnError = Literal["quarantine", "raise"]

MIN_READ_BEFORE_STOP = 1000
"""Samples that are read before the fraction of invalid ones can stop a run."""

MAX_BAD_PROBE_FRACTION = 0.05
"""Fraction of invalid samples above which `probe` stops the run."""

MAX_LOGGED_DEFECTS = 5
"""Invalid samples that are logged. The file lists all of them."""


def defect_of(error: SampleError) -> Defect:
    """Describe an invalid sample for the quarantine file."""
    assert error.location is not None, "only a sample of a data set can be quarantined"
    id = None if error.id is None else str(error.id)
    return Defect(error.location.path, error.location.index, id, error.source, error.code, error.problem)


class Quarantine:
    """The invalid samples that one process has read.

    Each process appends them to its own file, one JSON object per line. A sample that any of the files already lists
    is not written again, even after an interruption or by another process in a later epoch.

    Args:
        folder: Folder of the files. None writes no files.
        max_bad_fraction: A higher fraction of invalid samples stops the run, once enough samples are read.
        max_bad_run: As many samples in successive batches without a valid sample stop the run.
        rank: This process.
        world_size: Number of processes.

    Attributes:
        counts: Quarantined samples by code. The sum over all processes is their number.
    """

    def __init__(
        self, folder: Path | None, max_bad_fraction: float, max_bad_run: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.folder, self.rank, self.world_size = folder, rank, world_size
        self.max_bad_fraction, self.max_bad_run = max_bad_fraction, max_bad_run
        self.counts: Counter[DefectCode] = Counter()
        self._known: set[tuple[str, int]] = set()
        self._num_read = self._num_bad = self._bad_run = self._num_logged = 0

    @property
    def file(self) -> Path | None:
        """The file of this process."""
        return self.folder / f"rank{self.rank}.jsonl" if self.folder else None

    def read_existing(self) -> None:
        """Read the samples that are already recorded. Called at the start of each iteration."""
        files = sorted(self.folder.glob("rank*.jsonl")) if self.folder else []
        self.counts = Counter() if files else self.counts
        for file in files:
            rows = list(read_jsonl(file, allow_cut=True))
            self._known |= {(row["path"], row["index"]) for row in rows}
            rank = int(file.stem.removeprefix("rank"))
            if rank == self.rank or (self.rank == 0 and rank >= self.world_size):  # of a run with more processes
                self.counts.update(row["code"] for row in rows)

    def add(self, num_read: int, defects: Sequence[Defect], **context: Any) -> None:
        """Record the invalid samples of a batch.

        Args:
            num_read: Samples of the batch, valid or not.
            defects: The invalid ones.
            context: Stored with each invalid sample, such as the epoch.

        Raises:
            UserError: There are too many invalid samples.
        """
        self._num_read += num_read
        self._num_bad += len(defects)
        self._bad_run = self._bad_run + num_read if defects and len(defects) == num_read else 0
        for defect in defects:
            if (defect.path, defect.index) not in self._known:
                self._known.add((defect.path, defect.index))
                self.counts[defect.code] += 1
                self._write(defect, context)
        if self._bad_run >= self.max_bad_run:
            raise self._too_many(f"the last {self._bad_run} samples are all invalid", defects[-1], "data.max_bad_run")
        if (
            defects
            and self._num_read >= MIN_READ_BEFORE_STOP
            and self._num_bad > self.max_bad_fraction * self._num_read
        ):
            fraction = f"{self._num_bad} of {self._num_read} samples are invalid, more than {self.max_bad_fraction:.1%}"
            raise self._too_many(fraction, defects[-1], "data.max_bad_fraction")

    def _write(self, defect: Defect, context: Mapping[str, Any]) -> None:
        if self.file is not None:
            append_jsonl(self.file, [{**context, **asdict(defect)}])
        self._num_logged += 1
        if self._num_logged <= MAX_LOGGED_DEFECTS:
            is_last = self._num_logged == MAX_LOGGED_DEFECTS and self.file is not None
            more = f" {self.file} lists all further ones." if is_last else ""
            log.warning(f"Skipped sample {defect.index} of {defect.path}: {defect.error} [{defect.code}]{more}")

    def _too_many(self, problem: str, last: Defect, setting: str) -> UserError:
        listed = f" {self.file} lists all of them." if self.file else ""
        return UserError(
            f"Too many invalid samples: {problem} ({format_counts(self.counts)}). "
            f"The last one is sample {last.index} of {last.path}: {last.error}{listed} "
            f"Run `validate-data` to check the whole data set, or raise {setting}."
        )


def format_counts(counts: Mapping[DefectCode, int]) -> str:
    """Format counts as ``image_missing 12, bad_json 1``, the most frequent first."""
    return ", ".join(f"{code} {count}" for code, count in Counter(counts).most_common())


def read_exclusions(path: str, source: Source) -> list[int]:
    """Return the samples of a source that an exclusion list names, sorted.

    Args:
        path: JSON lines with ``path`` and ``index``, as `validate-data` and the quarantine of a run write them.
        source: The samples. Lines of other files are ignored.

    Raises:
        UserError: The file is missing or not an exclusion list, or names a sample that does not exist.
    """
    if not Path(path).is_file():
        raise UserError(f"data.exclude: the file {path} does not exist. Check the path.")
    files = source.files()
    indices: set[int] = set()
    for row in read_jsonl(Path(path), allow_cut=True):
        name, index = row.get("path"), row.get("index")
        if not isinstance(name, str) or not isinstance(index, int):
            raise UserError(f"data.exclude: each line of {path} must have 'path' and 'index', got {row}.")
        if (span := files.get(absolute_name(name))) is None:
            continue
        if not 0 <= index < len(span):
            raise UserError(
                f"data.exclude: {path} names sample {index} of {name}, which has {len(span)} samples. "
                "Create the list again with `validate-data`."
            )
        indices.add(span[index])
    return sorted(indices)


def probe(dataset: VisionTextDataset, seed: int, count: int) -> None:
    """Read the first samples of training with their images, to find a wrong path before the models are loaded.

    Args:
        dataset: The training samples.
        seed: Seed of the shuffle.
        count: Number of samples to read.

    Raises:
        UserError: More than `MAX_BAD_PROBE_FRACTION` are invalid, which indicates a wrong path.
    """
    indices = epoch_order(seed, 0, dataset.shares())[:count]
    defects: list[Defect] = []
    for index in tqdm(indices.tolist(), desc="Checking data", unit="sample", delay=2, leave=False):
        try:
            dataset.sample(index).load_images()
        except SampleError as error:
            defects.append(defect_of(error))
    if len(defects) > MAX_BAD_PROBE_FRACTION * len(indices):
        counts = Counter(defect.code for defect in defects)
        example = next(defect for defect in defects if defect.code == counts.most_common(1)[0][0])
        raise UserError(
            f"{len(defects)} of {len(indices)} samples checked before training are invalid ({format_counts(counts)}). "
            f"Example: sample {example.index} of {example.path}: {example.error}"
        )
