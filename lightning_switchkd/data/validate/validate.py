"""Check a whole data set before training: read and tokenize every sample, and decode its images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.extras import pyplot
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

CHUNK = 32
"""Samples that a worker reads at a time."""


class _SampleChecks(Dataset["list[SampleCheck] | UserError"]):
    """Checks samples by indices."""

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
        image_hashes = tuple(_hash(ref.data or f"{root}/{ref.path}") for ref in sample.images)
        supervised = sum(label != IGNORE_INDEX for label in encoded.labels)
        return SampleCheck(
            index,
            sample.source,
            _hash(sample.id),
            len(encoded.input_ids),
            supervised,
            image_hashes,
            encoded.truncated,
        )


def _hash(value: str | bytes) -> int:
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return int.from_bytes(blake2b(data, digest_size=8).digest())


def validate_data(
    data: LLaVADataModule, output: Path, workers: int, accumulate: int = 1, world_size: int | None = 1
) -> bool:
    """Check every sample of every split, write a report, and return whether all samples are valid.

    Args:
        data: Opens the splits.
        output: Folder of ``report.md``, ``report.json``, ``lengths.png`` and ``exclude.jsonl``. This list includes the
            samples of ``data.exclude``, so that it can replace that file.
        workers: Worker processes. 0 reads in this process.
        accumulate: Micro-batches of an optimizer step, to report the steps of an epoch.
        world_size: Training processes, to report the steps of an epoch. None: unknown, reported for one process.

    Raises:
        UserError: No split is set, or the data cannot be read at all.
    """
    pyplot("validate-data")  # report a missing package before all samples are read
    if not (splits := data.splits):
        raise UserError("No data to check. Set data.train.annotations and data.train.image_root.")
    for split in splits:  # reports a wrong path before any split is read
        data.dataset(split)
    stream = data.stream("train", accumulate, world_size or 1) if "train" in splits else None
    output.mkdir(parents=True, exist_ok=True)
    exclude = data.hparams["exclude"]
    with atomic_path(output / "exclude.jsonl") as partial:
        append_jsonl(partial, read_jsonl(Path(exclude), allow_cut=True) if exclude else [])
        findings = [check_split(data, split, workers, partial) for split in splits]
    report = write_report(output, findings, stream, data.hparams, world_size_known=world_size is not None)
    for name, numbers in report.items():
        invalid = f". Invalid: {format_counts(numbers['codes'])}" if numbers["bad"] else ""
        print(f"{name}: {numbers['usable']} of {numbers['records']} samples are valid{invalid}")
    print(f"Report: {output / 'report.md'}")
    return not any(of_split.codes for of_split in findings)


def check_split(data: LLaVADataModule, split: Split, workers: int, exclude: Path) -> Findings:
    """Check all samples of a split, and append the invalid ones to a list for ``data.exclude``.

    Args:
        data: Opens the split.
        split: The split.
        workers: Worker processes. 0 reads in this process.
        exclude: The list.

    Raises:
        UserError: The data cannot be read at all.
    """
    dataset = data.dataset(split)
    n, samples = len(dataset), dataset.samples
    findings = Findings(
        split,
        dataset.source.path,
        tokens=np.zeros(n, np.int32),
        images=np.zeros(n, np.int32),
        id_hashes=np.zeros(n, np.uint64),
        num_excluded=n - len(samples),
    )
    chunks: Iterator[Indices] = (samples[i : i + CHUNK] for i in range(0, len(samples), CHUNK))
    with tqdm(total=len(samples), desc=split, unit="sample") as progress:
        for checks in prefetch(_SampleChecks(dataset), chunks, workers):
            for check in checks:
                findings.add(check)
            append_jsonl(exclude, [asdict(check.defect) for check in checks if check.defect is not None])
            progress.update(len(checks))
            progress.set_postfix(invalid=findings.codes.total(), refresh=False)
    return findings
