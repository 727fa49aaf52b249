"""One data set as JSON array, JSONL, Parquet and tar, in one file or many: the same records, samples, batches."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from raws import samples, talk

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data import DataPaths, LLaVADataModule
from lightning_switchkd.data.collate import ProcessedSample
from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.repack import repack
from lightning_switchkd.data.samples import SampleError
from lightning_switchkd.data.sources import Mixture, Source, open_source, read_sample

FORMATS = ("json", "jsonl", "parquet", "tar")


@pytest.fixture
def paths(write: Callable[[Sequence[dict[str, Any]]], DataPaths]) -> DataPaths:
    return write(
        [*samples(40), {"id": "two", "image": ["1.png", "0.png"], "conversations": talk("<image><image>?", "b")}]
    )


def repacked(paths: DataPaths, name: str, **settings: Any) -> str:
    target = Path(paths.annotations).parent / name
    repack(paths.annotations, str(target), paths.image_root, **settings)
    return str(target)


def same(a: ProcessedSample, b: ProcessedSample) -> bool:
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in fields(ProcessedSample) if f.name != "pixels")
    ) and all(torch.equal(x, y) for x, y in zip(chain(*a.pixels), chain(*b.pixels), strict=True))


@pytest.mark.parametrize("name", [*(f"again.{f}" for f in FORMATS), "many/part.tar", "many/part.parquet"])
def test_every_format_gives_the_same_samples(
    make_data: Callable[..., LLaVADataModule], paths: DataPaths, name: str
) -> None:
    written = repacked(paths, name, samples_per_shard=7 if "many" in name else 10_000)
    if "many" in name:
        assert not Path(written).exists()
        assert len(list(Path(written).parent.iterdir())) == 6
        written = str(Path(written).parent)
    inside = not name.endswith(("json", "jsonl"))
    one = make_data(train=paths).dataset("train")
    other = make_data(train=DataPaths(written, None if inside else paths.image_root)).dataset("train")
    assert len(one) == len(other) == 41
    for index in reversed(range(41)):
        assert same(one[index], other[index])
        assert one.sample(index).source == "train"
    travelled = pickle.loads(pickle.dumps(other))
    assert same(travelled[40], one[40])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("workers", [0, 2])
def test_every_format_gives_the_same_batches(
    make_data: Callable[..., LLaVADataModule], paths: DataPaths, kind: str, workers: int
) -> None:
    written = DataPaths(repacked(paths, f"again.{kind}"), paths.image_root)
    for window in (1, 3):
        settings = {"batch_size": 4, "group_window": window, "num_workers": workers}
        streams = [make_data(train=p, **settings).train_dataloader() for p in (paths, written)]
        for epoch in (0, 1):
            for stream in streams:
                stream.set_epoch(epoch)
            seen, again = ([(b.input_ids, b.labels, b.pixel_values) for b in stream] for stream in streams)
            assert all(torch.equal(x, y) for a, b in zip(seen, again, strict=True) for x, y in zip(a, b, strict=True))


def test_images_inside_come_out_byte_for_byte(paths: DataPaths) -> None:
    packed = repacked(paths, "a.parquet")
    folder = Path(packed).parent
    repack(packed, str(folder / "out" / "b.tar"))
    repack(str(folder / "out" / "b.tar"), str(folder / "out" / "c.jsonl"))
    source = open_source(folder / "out" / "c.jsonl", ImageFolder(folder / "out"))
    for index in range(len(source)):
        sample = read_sample(source, index)
        originals = read_sample(open_source(paths.annotations, ImageFolder(paths.image_root)), index)
        assert sample.turns == originals.turns
        for mine, ref in zip(sample.images, originals.images, strict=True):
            assert (folder / "out" / mine.path).read_bytes() == (folder / ref.path).read_bytes()


def test_repack_refuses_what_it_cannot_do(paths: DataPaths) -> None:
    folder = Path(paths.annotations).parent
    with pytest.raises(UserError, match=r"must end in one of \.json"):
        repack(paths.annotations, str(folder / "a.arrow"))
    with pytest.raises(UserError, match="already"):
        repack(paths.annotations, paths.annotations)
    (folder / "1.png").unlink()
    with pytest.raises(SampleError, match=r"Sample 1 \(id 'r1'\)"):
        repack(paths.annotations, str(folder / "a.tar"), paths.image_root)
    assert not (folder / "a.tar").exists(), "whole or not at all"


# -- Parquet as others write it ----------------------------------------------------------------------------------------


def table(folder: Path, columns: dict[str, list[Any]], row_group_size: int = 2) -> Source:
    parquet.write_table(pa.table(columns), folder / "a.parquet", row_group_size=row_group_size)
    return open_source(folder / "a.parquet", ImageFolder(folder))


def test_parquet_with_one_image_column_and_conversations_as_text(tmp_path: Path) -> None:
    source = table(
        tmp_path,
        {
            "id": [7, 8, 9],
            "image": [{"bytes": b"png", "path": "a.png"}, {"bytes": b"png", "path": None}, None],
            "conversations": [json.dumps(talk("q", str(i))) for i in range(3)],
            "width": [1, 2, 3],
        },
    )
    found = [read_sample(source, i) for i in range(3)]
    assert [sample.id for sample in found] == ["7", "8", "9"]
    assert [[ref.data for ref in sample.images] for sample in found] == [[b"png"], [b"png"], []]
    assert [sample.answer for sample in found] == ["0", "1", "2"]
    (row_groups,) = source.blocks
    assert row_groups.ids.tolist() == [0, 0, 1]


def test_parquet_with_paths_and_chat_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    sample = read_sample(table(tmp_path, {"image": ["a.png"], "messages": [messages]}), 0)
    assert sample.images[0].path == "a.png"
    assert sample.id == "0"


@pytest.mark.parametrize(
    ("columns", "says"),
    [({"text": ["a"]}, "must have a column 'conversations'"), ({"conversations": []}, "contains no samples")],
)
def test_parquet_of_another_kind_is_refused(tmp_path: Path, columns: dict[str, list[Any]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        table(tmp_path, columns)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"Cannot read .*b\.parquet as Parquet"):
        open_source(tmp_path / "b.parquet")


# -- tar as others write it --------------------------------------------------------------------------------------------


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, BytesIO(data))
    return path


def turns(answer: str, **more: Any) -> bytes:
    return json.dumps({"conversations": talk("<image>" * more.pop("n", 1) + "q", answer), **more}).encode()


def test_tar_groups_by_key_and_orders_images_by_number(tmp_path: Path) -> None:
    many = {f"a/2.{i}.jpg": str(i).encode() for i in (10, 2, 1)}
    one = {"a/1.jpg": b"one", "a/1.json": turns("1"), "a/1.txt": b"ignored"}
    path = tar(tmp_path / "x.tar", {**one, **many, "a/2.json": turns("2", n=3), "b/1.json": turns("3", n=0)})
    source = open_source(path)
    assert [[ref.data for ref in read_sample(source, i).images] for i in range(3)] == [
        [b"one"],
        [b"1", b"2", b"10"],
        [],
    ]
    assert source.sizes().tolist() == [[49, 1], [63, 3], [42, 0]]


def test_tar_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sample 'a' must have one \.json member, found 0"):
        open_source(tar(tmp_path / "a.tar", {"a.jpg": b""}))
    source = open_source(
        tar(tmp_path / "b.tar", {"a.jpg": b"", "a.json": turns("1", image=["x", "y"]), "b.json": b"{"})
    )
    with pytest.raises(SampleError, match=r"Sample 0 of .*names 2 images, but the tar file has 1"):
        source.read(0)
    with pytest.raises(SampleError, match=r"Sample 1 of .*b\.tar: Invalid JSON"):
        source.read(1)
    (tmp_path / "c.tar").write_bytes(b"\x1f\x8b" + b"no tar" * 200)
    with pytest.raises(UserError, match=r"Cannot read .*c\.tar as a tar file.*Decompress"):
        open_source(tmp_path / "c.tar")


# -- folders, patterns, mixtures ---------------------------------------------------------------------------------------


def test_folders_and_patterns(tmp_path: Path) -> None:
    for number in ("08", "09", "10"):
        tar(tmp_path / f"part-{number}.tar", {"a.json": turns(number, n=0)})
    for path in (tmp_path, tmp_path / "part-{08..10}.tar", tmp_path / "part-*.tar", tmp_path / "part-{08,09,10}.tar"):
        source = open_source(path)
        assert [read_sample(source, i).answer for i in range(len(source))] == ["08", "09", "10"]
        assert source.location(2).path.endswith("part-10.tar")
        assert source.location(2).index == 0
    with pytest.raises(UserError, match=r"The file .*part-11\.tar \(one of 2"):
        open_source(tmp_path / "part-{10..11}.tar")
    with pytest.raises(UserError, match=r"matches no \.tar file"):
        open_source(tmp_path / "other-*.tar")
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="either"):
        open_source(tmp_path)


def test_a_mixture_is_its_sources_one_after_the_other(paths: DataPaths, tmp_path: Path) -> None:
    packed = open_source(repacked(paths, "a.tar"))
    plain = open_source(paths.annotations, ImageFolder(paths.image_root))
    mixture = Mixture([packed, plain], [1.0, 0.5])
    assert len(mixture) == 82
    assert read_sample(mixture, 50).location.path == paths.annotations
    assert read_sample(mixture, 50).turns == read_sample(mixture, 9).turns == read_sample(plain, 9).turns
    assert mixture.sizes().tolist() == [*packed.sizes().tolist(), *plain.sizes().tolist()]
    assert mixture.fingerprint != Mixture([packed, plain], [1.0, 1.0]).fingerprint


def test_a_mixture_trains_with_its_weights(make_data: Callable[..., LLaVADataModule], paths: DataPaths) -> None:
    """Half of one source and twice the other, each with its own images; over two epochs every record comes."""
    second = DataPaths(repacked(paths, "a.parquet"), weight=2)
    data = make_data(train=[DataPaths(paths.annotations, paths.image_root, 0.5), second], batch_size=1)
    stream = data.train_dataloader()
    seen: list[list[int]] = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        seen.append([int(batch.sample_index) for batch in stream])
    assert [len(epoch) for epoch in seen] == [20 + 82] * 2
    first = [[index for index in epoch if index < 41] for epoch in seen]
    assert len({*first[0], *first[1]}) == 40, "no record of the half comes twice before all have come"
    assert all(sorted(index for index in epoch if index >= 41) == sorted([*range(41, 82)] * 2) for epoch in seen)
