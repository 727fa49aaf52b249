"""The whole of a data set looked at before training: every record read, tokenised, and its images decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import append_jsonl, atomic_path, read_jsonl
from lightning_switchkd.core.types import IGNORE_INDEX
from lightning_switchkd.data.datamodule import LLaVADataModule, Split
from lightning_switchkd.data.dataset import VisionTextDataset
from lightning_switchkd.data.order import Indices
from lightning_switchkd.data.quarantine import defect_of, format_counts
from lightning_switchkd.data.samples import SampleError
from lightning_switchkd.data.validate.findings import Findings, SampleCheck
from lightning_switchkd.data.validate.report import write_report
from lightning_switchkd.data.workers import prefetch

CHUNK = 32  # records that a worker reads at a time


class _SampleChecks(Dataset["list[SampleCheck] | UserError"]):
    """Indices -> looks at the records."""

    def __init__(self, dataset: VisionTextDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: Indices) -> list[SampleCheck] | UserError:
        try:
            return [self._check(index) for index in indices.tolist()]
        except UserError as error:  # the disk or the network
            return error

    def _check(self, index: int) -> SampleCheck:
        try:
            sample, encoded, _ = self.dataset.read(index)
        except SampleError as error:
            return SampleCheck(index, error.source, defect=defect_of(error))
        root = sample.location.images.root if sample.location.images else None
        images = tuple(_key(ref.data or f"{root}/{ref.path}") for ref in sample.images)
        supervised = sum(label != IGNORE_INDEX for label in encoded.labels)
        tokens = len(encoded.input_ids)
        return SampleCheck(index, sample.source, _key(sample.id), tokens, supervised, images, encoded.whole)


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
    exclude = data.hparams["exclude"]
    with atomic_path(output / "exclude.jsonl") as partial:
        append_jsonl(partial, read_jsonl(Path(exclude), allow_cut=True) if exclude else [])
        found = [check_split(data, split, workers, partial) for split in splits]
    numbers = write_report(output, found, stream, data.hparams, guessed=world_size is None)
    for name, of_split in numbers.items():
        codes = f": {format_counts(of_split['codes'])}" if of_split["bad"] else ""
        print(f"{name}: {of_split['usable']} of {of_split['records']} records can be used{codes}")
    print(f"The report is in {output / 'report.md'}.")
    return not any(findings.codes for findings in found)


def check_split(data: LLaVADataModule, split: Split, workers: int, exclude: Path) -> Findings:
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
    n, samples = len(dataset), dataset.samples
    findings = Findings(
        split,
        dataset.source.path,
        tokens=np.zeros(n, np.int32),
        images=np.zeros(n, np.int32),
        ids=np.zeros(n, np.uint64),
        excluded=n - len(samples),
    )
    chunks: Iterator[Indices] = (samples[i : i + CHUNK] for i in range(0, len(samples), CHUNK))
    with tqdm(total=len(samples), desc=split, unit="record") as progress:
        for checks in prefetch(_SampleChecks(dataset), chunks, workers):
            for check in checks:
                findings.add(check)
            append_jsonl(exclude, [asdict(check.defect) for check in checks if check.defect is not None])
            progress.update(len(checks))
            progress.set_postfix(bad=findings.codes.total(), refresh=False)
    return findings
