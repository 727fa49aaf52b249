"""Convert a data set to JSON, JSONL, Parquet or tar. Samples and image files stay the same, byte for byte."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import atomic_path
from lightning_switchkd.data.formats import parse_sample
from lightning_switchkd.data.images import EXTENSIONS, ImageFolder
from lightning_switchkd.data.quarantine import read_exclusions
from lightning_switchkd.data.samples import Role, Sample
from lightning_switchkd.data.sources import Source, open_source

ROW_GROUP = 100
"""Rows of a Parquet row group, which are read together."""

_NAMES: dict[Role, str] = {"system": "system", "user": "human", "assistant": "gpt"}


@dataclass(frozen=True)
class Row:
    """One sample to write.

    Attributes:
        raw: The raw sample without images.
        sample: The validated sample.
        images: Name and bytes of each image file.
    """

    raw: dict[str, Any]
    sample: Sample
    images: list[tuple[str, bytes]]

    def named(self, names: list[str]) -> dict[str, Any]:
        """Return the raw sample with its images by name."""
        return {**self.raw, **({"image": names[0] if len(names) == 1 else names} if names else {})}


def repack(
    annotations: str,
    output: str,
    image_root: str | None = None,
    exclude: str | None = None,
    samples_per_shard: int = 10_000,
) -> None:
    """Convert a data set to another format. Images go into .parquet or .tar files, or next to a .json or .jsonl file.

    The order of samples stays, so training uses the same batches. An invalid sample stops the command with an error.
    `validate-data` finds all invalid samples and writes a list for ``--exclude``.

    Args:
        annotations: The data set: a .json, .jsonl, .parquet or .tar file, or a folder or pattern of such files.
        output: The file to write. Its suffix defines the format. Several .parquet or .tar files are numbered.
        image_root: Folder that image paths are relative to.
        exclude: List of samples to skip.
        samples_per_shard: Maximum number of samples in one .parquet or .tar file.
    """
    target = Path(output)
    if target.suffix not in WRITERS:
        raise UserError(f"--output must end in one of {', '.join(WRITERS)}, got {output}.")
    if target.exists():
        raise UserError(f"--output: {output} already exists. Choose another name, or move it away.")
    source = open_source(annotations, ImageFolder(image_root))
    excluded = [] if exclude is None else read_exclusions(exclude, source)
    indices = np.delete(np.arange(len(source)), np.array(excluded, dtype=np.int64)).tolist()
    rows = iter(tqdm(_rows(source, indices), total=len(indices), desc=f"Writing {target.name}", unit="sample"))
    size = samples_per_shard if target.suffix in (".parquet", ".tar") else len(indices)
    shards = -(-len(indices) // size)
    target.parent.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        number = f"-{shard:05d}-of-{shards:05d}" if shards > 1 else ""
        path = target.with_name(f"{target.stem}{number}{target.suffix}")
        with atomic_path(path) as partial:
            WRITERS[target.suffix](partial, path, islice(rows, size))
    print(f"Wrote {len(indices)} samples of {annotations} to {output}" + (f" ({shards} files)" if shards > 1 else ""))


def _rows(source: Source, indices: list[int]) -> Iterator[Row]:
    for index in indices:
        raw = source.read(index)
        sample = parse_sample(raw, source.location(index))
        images = []
        for number, (ref, data) in enumerate(zip(sample.images, sample.image_bytes(), strict=True)):
            name = ref.path if Path(ref.path).suffix else f"{index:09d}.{number:02d}{_extension(data)}"
            images.append((name, data))
        yield Row({k: v for k, v in raw.items() if k not in ("image", "images")}, sample, images)


def _extension(data: bytes) -> str:
    extensions = {b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp"}
    return extensions.get(data[:4], ".jpg")


def _write_json(partial: Path, path: Path, rows: Iterator[Row]) -> None:
    with partial.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write(("[\n" if number == 0 else ",\n") + _unpacked(row, path))
        file.write("\n]\n")


def _write_lines(partial: Path, path: Path, rows: Iterator[Row]) -> None:
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(_unpacked(row, path) + "\n" for row in rows)


def _unpacked(row: Row, path: Path) -> str:
    """Return the sample as JSON. Write images that it contains as files, to a folder next to `path` with its name."""
    names = []
    for (name, data), ref in zip(row.images, row.sample.images, strict=True):
        if ref.data is not None:
            safe = Path(path.stem, Path(name).name)
            (path.parent / safe).parent.mkdir(parents=True, exist_ok=True)
            name = str(safe.with_name(f"{row.sample.location.index:09d}-{safe.name}"))
            (path.parent / name).write_bytes(data)
        names.append(name)
    return json.dumps(row.named(names), ensure_ascii=False)


def _write_tar(partial: Path, path: Path, rows: Iterator[Row]) -> None:
    with tarfile.open(partial, "w") as tar:
        for number, row in enumerate(rows):
            text = json.dumps(row.named([name for name, _ in row.images]), ensure_ascii=False).encode()
            _add(tar, f"{number:09d}.json", text)
            for position, (name, data) in enumerate(row.images):
                suffix = Path(name).suffix.lower()
                _add(tar, f"{number:09d}.{position}{suffix if suffix in EXTENSIONS else _extension(data)}", data)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, BytesIO(data))


def _write_parquet(partial: Path, path: Path, rows: Iterator[Row]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    turn = pa.struct({"from": pa.string(), "value": pa.string()})
    columns = {"id": pa.string(), "images": pa.list_(image), "conversations": pa.list_(turn), "source": pa.string()}
    schema = pa.schema(columns)
    with parquet.ParquetWriter(partial, schema) as writer:
        while group := list(islice(rows, ROW_GROUP)):
            values = [
                {
                    "id": row.sample.id,
                    "images": [{"bytes": data, "path": name} for name, data in row.images],
                    "conversations": [{"from": _NAMES[t.role], "value": t.text} for t in row.sample.turns],
                    "source": row.sample.source,
                }
                for row in group
            ]
            writer.write_table(pa.Table.from_pylist(values, schema=schema), row_group_size=ROW_GROUP)


WRITERS: dict[str, Callable[[Path, Path, Iterator[Row]], None]] = {
    ".json": _write_json,
    ".jsonl": _write_lines,
    ".parquet": _write_parquet,
    ".tar": _write_tar,
}
