"""The whole of a data set looked at before training: every record read, tokenised, and its images decoded."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from lightning_switchkd.core.types import IGNORE
from lightning_switchkd.data.datamodule import LLaVADataModule, Split
from lightning_switchkd.data.dataset import VisionTextDataset
from lightning_switchkd.data.order import Indices
from lightning_switchkd.data.quarantine import Defect, read_lines, said_counts
from lightning_switchkd.data.samples import Code, RecordError
from lightning_switchkd.data.validate.report import write_report
from lightning_switchkd.data.workers import read_ahead
from lightning_switchkd.core.errors import UserError

CHUNK = 32  # records that a worker reads at a time
EXAMPLES = 3  # records shown of each code


@dataclass(frozen=True)
class Look:
    """One record.

    Attributes:
        index: its number in the source.
        source: its data set.
        id: 64 bits of its own id.
        tokens: of its text and images, as training would have them.
        supervised: those of them that are learnt.
        images: 64 bits each, of the bytes or the path.
        whole: `max_length` cut nothing off.
        defect: why it cannot be used; then the numbers say nothing.
    """

    index: int
    source: str
    id: int = 0
    tokens: int = 0
    supervised: int = 0
    images: tuple[int, ...] = ()
    whole: bool = True
    defect: Defect | None = None


@dataclass
class Findings:
    """What one split is like, in a few numbers a record.

    Attributes:
        split: its name.
        path: its files.
        tokens: ``[n]`` int32 by record; 0 where it is bad or excluded.
        images: ``[n]`` int32 by record.
        ids: ``[n]`` uint64 by record.
        supervised: tokens of all records that are learnt.
        cut: records of which `max_length` leaves only a part.
        excluded: records that were not looked at.
        pictures: 64 bits of every image.
        read: records of each data set.
        bad: the bad ones among them.
        codes: bad records by code.
        examples: some of them.
    """

    split: Split
    path: str
    tokens: NDArray[np.int32]
    images: NDArray[np.int32]
    ids: NDArray[np.uint64]
    supervised: int = 0
    cut: int = 0
    excluded: int = 0
    pictures: array[int] = field(default_factory=lambda: array("Q"))
    read: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    codes: Counter[Code] = field(default_factory=Counter)
    examples: dict[Code, list[Defect]] = field(default_factory=dict)

    @property
    def good(self) -> Indices:
        """``[g]`` the records that can be used."""
        return np.flatnonzero(self.tokens)

    def add(self, look: Look) -> None:
        """Takes note of a record."""
        self.read[look.source] += 1
        if (defect := look.defect) is not None:
            self.bad[look.source] += 1
            self.codes[defect.code] += 1
            if len(shown := self.examples.setdefault(defect.code, [])) < EXAMPLES:
                shown.append(defect)
            return
        self.tokens[look.index], self.images[look.index] = look.tokens, len(look.images)
        self.ids[look.index] = look.id
        self.pictures.extend(look.images)
        self.supervised += look.supervised
        self.cut += not look.whole


class _Looks(Dataset["list[Look] | UserError"]):
    """Indices -> looks at the records."""

    def __init__(self, dataset: VisionTextDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: Indices) -> list[Look] | UserError:
        try:
            return [self._look(index) for index in indices.tolist()]
        except UserError as error:  # the disk or the network
            return error

    def _look(self, index: int) -> Look:
        try:
            record, encoded, _ = self.dataset.read(index)
        except RecordError as error:
            return Look(index, error.source, defect=Defect.of(error))
        root = record.place.images.root if record.place.images else None
        images = tuple(_key(ref.data or f"{root}/{ref.path}") for ref in record.images)
        supervised = sum(label != IGNORE for label in encoded.labels)
        tokens = len(encoded.input_ids)
        return Look(index, record.source, _key(record.id), tokens, supervised, images, encoded.whole)


def _key(what: str | bytes) -> int:
    data = what.encode("utf-8", "surrogatepass") if isinstance(what, str) else what
    return int.from_bytes(blake2b(data, digest_size=8).digest())


def validate_data(
    data: LLaVADataModule, output: Path, workers: int, accumulate: int = 1, world_size: int | None = 1
) -> bool:
    """Reads every record of every split that is set, writes a report, and says whether all can be used.

    Args:
        data: opens the splits.
        output: folder of ``report.md``, ``report.json``, ``lengths.png`` and ``exclude.jsonl``. The list names what
            ``data.exclude`` names as well, so that it may take that file's place.
        workers: processes that read; 0 reads here.
        accumulate: micro-batches of an optimizer step, to say how many steps an epoch takes.
        world_size: processes that train, for the same; None, where nobody knows, counts as one.

    Raises:
        UserError: no split is set, or the data cannot be read at all.
    """
    if not (splits := data.splits):
        raise UserError("there is no data to look at: give data.train.annotations and data.train.image_root")
    for split in splits:  # a wrong path is said before any of them is read
        data.dataset(split)
    stream = data.stream("train", accumulate, world_size or 1) if "train" in splits else None
    output.mkdir(parents=True, exist_ok=True)
    partial = output / "exclude.jsonl.partial"
    before = data.hparams["exclude"]
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in read_lines(Path(before))] if before else []
    partial.write_text("".join(lines), encoding="utf-8")
    found = [look_at(data, split, workers, partial) for split in splits]
    partial.replace(output / "exclude.jsonl")
    numbers = write_report(output, found, stream, data.hparams, guessed=world_size is None)
    for name, of_split in numbers.items():
        codes = f": {said_counts(of_split['codes'])}" if of_split["bad"] else ""
        print(f"{name}: {of_split['usable']} of {of_split['records']} records can be used{codes}")
    print(f"The report is in {output / 'report.md'}.")
    return not any(findings.codes for findings in found)


def look_at(data: LLaVADataModule, split: Split, workers: int, exclude: Path) -> Findings:
    """Reads all records of a split, and appends the bad ones to a list for ``data.exclude``.

    Args:
        data: opens the split.
        split: which.
        workers: processes that read; 0 reads here.
        exclude: the list.

    Raises:
        UserError: the data cannot be read at all.
    """
    dataset = data.dataset(split)
    n, records = len(dataset), dataset.records
    findings = Findings(
        split,
        dataset.source.path,
        tokens=np.zeros(n, np.int32),
        images=np.zeros(n, np.int32),
        ids=np.zeros(n, np.uint64),
        excluded=n - len(records),
    )
    chunks: Iterator[Indices] = (records[i : i + CHUNK] for i in range(0, len(records), CHUNK))
    with exclude.open("a", encoding="utf-8") as file, tqdm(total=len(records), desc=split, unit="record") as progress:
        for looks in read_ahead(_Looks(dataset), chunks, workers):
            for look in looks:
                findings.add(look)
                if look.defect is not None:
                    file.write(json.dumps(asdict(look.defect), ensure_ascii=False) + "\n")
            progress.update(len(looks))
            progress.set_postfix(bad=findings.codes.total(), refresh=False)
    return findings
