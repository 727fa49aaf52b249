"""Data behind URLs, from a server of this test's own that fails in every way a server fails: a long file."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from raws import samples

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import ReadError
from lightning_switchkd.data import DataPaths, LLaVADataModule
from lightning_switchkd.data.quarantine import read_exclusions
from lightning_switchkd.data.repack import repack
from lightning_switchkd.data.sources import ShardCache, open_source, read_sample, remote

SHARDS = 6


class Server(ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        faults: what goes wrong next, in turn: a status, "cut" (half the body) or "stall" (half, then nothing).
        slow: seconds before each body.
        asked: requests by method and file.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_port}"
        self.faults: list[int | str] = []
        self.slow = 0.0
        self.asked: Counter[tuple[str, str]] = Counter()
        self.over = threading.Event()

    def pattern(self, kind: str) -> str:
        return f"{self.url}/part-{{00000..0000{SHARDS - 1}}}-of-0000{SHARDS}.{kind}"

    def shard(self, number: int, kind: str = "tar") -> str:
        return f"part-0000{number}-of-0000{SHARDS}.{kind}"

    def gets(self) -> list[int]:
        return [count for (method, _), count in sorted(self.asked.items()) if method == "GET"]


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.asked[self.command, name] += 1
        fault = self.server.faults.pop(0) if self.command == "GET" and self.server.faults else None
        if isinstance(fault, int) or not (file := self.server.folder / name).is_file():
            return self.send_error(fault if isinstance(fault, int) else 404)
        body = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(body)}"')
        self.end_headers()
        if self.command == "GET":
            time.sleep(self.server.slow)
            self.wfile.write(body[: len(body) // 2] if fault else body)
            if fault == "stall":
                self.wfile.flush()
                self.server.over.wait(5)
            self.close_connection = True
        return None

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def paths(write: Callable[[Sequence[dict[str, Any]]], DataPaths]) -> DataPaths:
    return write(samples(41))


@pytest.fixture
def server(tmp_path: Path, paths: DataPaths, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The records in six files of each kind; waits and time-outs that suit a test."""
    for kind in ("tar", "parquet"):
        repack(paths.annotations, str(tmp_path / "served" / f"part.{kind}"), paths.image_root, samples_per_shard=7)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(remote, "TIMEOUT", 0.3)
    with Server(tmp_path / "served") as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02), daemon=True)
        thread.start()
        yield server
        server.over.set()
        server.shutdown()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def kept(cache: Path) -> dict[str, int]:
    """Name and size of what lies in the cache."""
    return {file.name.split(".", 1)[0]: file.stat().st_size for file in cache.iterdir() if file.is_file()}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


# -- the same data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_as_of_local_files(
    make_data: Callable[..., LLaVADataModule], server: Server, cache: Path, kind: str, workers: int
) -> None:
    settings = {"batch_size": 4, "group_window": 3, "num_workers": workers, "cache_dir": str(cache)}
    local, far = (
        make_data(train=DataPaths(pattern), **settings).train_dataloader()
        for pattern in (str(server.folder / f"*.{kind}"), server.pattern(kind))
    )
    assert server.gets() == [1] * SHARDS
    if workers:  # they have to download, though their parent has used the network before it forked
        shutil.rmtree(cache)
    far.load_state_dict(local.state_dict())
    batches = list(zip(local, far, strict=True))
    assert len(batches) == 10
    for one, other in batches:
        assert all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    assert server.gets() == [2 if workers else 1] * SHARDS, "each file once"
    assert len(kept(cache)) == SHARDS
    assert not list(cache.glob("*.partial"))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_the_cache_holds(
    make_data: Callable[..., LLaVADataModule], server: Server, cache: Path, kind: str, workers: int
) -> None:
    """It stays within its bound, and as an epoch keeps to a few files at a time, hardly any comes twice."""
    bound = int(2.5 * max(file.stat().st_size for file in server.folder.glob(f"*.{kind}")))
    settings = {"batch_size": 4, "group_window": 3, "num_workers": workers, "cache_dir": str(cache)}
    data = make_data(train=DataPaths(server.pattern(kind)), cache_gb=bound / 1e9, **settings)
    stream = data.train_dataloader()
    server.asked.clear()
    seen: list[int] = []
    for batch in stream:
        seen += batch.sample_index.tolist()
        assert sum(kept(cache).values()) <= bound
    assert len(set(seen)) == 40
    if workers == 0:
        assert max(server.gets()) == 1
    assert sum(server.gets()) <= SHARDS * (1 + workers)
    larger = make_data(train=DataPaths(server.pattern(kind)), cache_gb=1, **settings).train_dataloader()
    with pytest.raises(UserError, match=r"data\.cache_gb"):
        larger.load_state_dict(stream.state_dict())


def test_an_exclusion_list_names_urls(server: Server, cache: Path, tmp_path: Path) -> None:
    source = open_source(server.pattern("tar"), None, ShardCache(str(cache)))
    place = source.location(9)
    assert place.path == f"{server.url}/{server.shard(1)}"
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": place.path, "index": place.index}))
    assert read_exclusions(str(tmp_path / "list.jsonl"), source) == [9]


def test_a_pattern_is_found_where_a_service_lists_its_files(server: Server, cache: Path) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(SHARDS):
        memory.pipe(f"/bucket/{server.shard(number)}", (server.folder / server.shard(number)).read_bytes())
    near, far = open_source(server.folder / "*.tar"), open_source("memory://bucket/*.tar", None, ShardCache(str(cache)))
    assert (near.fingerprint, len(near)) == (far.fingerprint, len(far))
    assert read_sample(far, 40).turns == read_sample(near, 40).turns
    with pytest.raises(UserError, match=r"memory://bucket/b\*\.tar matches no \.tar file"):
        open_source("memory://bucket/b*.tar")


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", [[500, 500], [429], ["cut"], ["stall"], [503, "cut", "stall"]])
def test_what_passes_is_tried_again(server: Server, cache: Path, faults: list[int | str]) -> None:
    server.faults = list(faults)
    url = f"{server.url}/{server.shard(0)}"
    source = open_source(url, None, ShardCache(str(cache)))
    assert source.fingerprint == open_source(server.folder / server.shard(0)).fingerprint
    assert server.gets() == [1 + len(faults)]
    assert not list(cache.glob("*.partial"))


@pytest.mark.parametrize("fault", [500, "cut", "stall"])
def test_what_does_not_pass_ends_the_run(
    make_data: Callable[..., LLaVADataModule], server: Server, cache: Path, fault: int | str
) -> None:
    """It is no bad record: nothing goes to quarantine."""
    data = make_data(train=DataPaths(server.pattern("tar")), cache_dir=str(cache), batch_size=4)
    stream = data.train_dataloader()
    shutil.rmtree(cache)
    server.asked.clear()
    server.faults = [fault] * 50
    with pytest.raises(ReadError, match=rf"Cannot read {server.url}/part-.*\.tar after 4 attempts"):
        list(stream)
    assert server.gets() == [4]
    assert kept(cache) == {}


def test_a_server_that_is_away_is_said(server: Server, cache: Path) -> None:
    with pytest.raises(ReadError, match=r"Cannot read http://127\.0\.0\.1:9/a\.tar after 4 attempts"):
        open_source("http://127.0.0.1:9/a.tar", None, ShardCache(str(cache)))


@pytest.mark.parametrize(("status", "says"), [(404, "does not exist"), (403, "is denied")])
def test_what_stays_is_said_at_once(server: Server, cache: Path, status: int, says: str) -> None:
    server.faults = [status]
    with pytest.raises(UserError, match=says) as caught:
        open_source(f"{server.url}/{server.shard(0)}", None, ShardCache(str(cache)))
    assert f"{server.url}/{server.shard(0)}" in str(caught.value)
    assert not isinstance(caught.value, ReadError)
    assert server.gets() == [1]
    with pytest.raises(UserError, match=r"The file http.*/other-2\.tar does not exist"):
        open_source(f"{server.url}/other-{{2..3}}.tar", None, ShardCache(str(cache)))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("{}/a.json", "Download"),
        ("{}/data", r"only \.tar and \.parquet"),
        ("{}/*.tar", r"such as \{000\.\.012\}"),
        ("nosuch://a/b.tar", "nosuch"),
        pytest.param(
            "s3://a/b.tar", "s3fs", marks=pytest.mark.skipif(bool(importlib.util.find_spec("s3fs")), reason="installed")
        ),
    ],
)
def test_what_cannot_be_remote_is_refused(server: Server, url: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        open_source(url.format(server.url))
    assert not server.asked


def test_a_cache_folder_that_cannot_be_written_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot store .*set data\.cache_dir"):
        open_source(server.pattern("tar"), None, ShardCache(str(tmp_path / "file")))


def test_a_cache_too_small_is_refused_before_anything_is_downloaded(server: Server, cache: Path) -> None:
    with pytest.raises(UserError, match=r"data\.cache_gb is too small"):
        open_source(server.pattern("tar"), None, ShardCache(str(cache), 1e-6))
    assert not server.gets()


def test_data_sets_read_side_by_side_share_the_cache(
    make_data: Callable[..., LLaVADataModule], server: Server, cache: Path
) -> None:
    """Each keeps to so few files that those of both fit."""
    total = sum(file.stat().st_size for file in server.folder.glob("*.tar"))
    settings = {"cache_dir": str(cache), "cache_gb": 1.5 * total / 1e9, "batch_size": 4}
    far, near = DataPaths(server.pattern("tar")), DataPaths(str(server.folder / "*.tar"))
    both, one = (make_data(train=[far, other], **settings).dataset("train").shares() for other in (far, near))
    assert [[window for _, window in share.blocks] for share in both] == [[2], [2]]
    assert [share.blocks for share in one] == [(), ()]


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_the_file_used_longest_ago_makes_way(server: Server, cache: Path) -> None:
    """Even one that is being read; what others keep in the folder stays, what a killed process left does not."""
    source = open_source(server.pattern("tar"), None, ShardCache(str(cache)))
    shards = source.shards  # type: ignore[attr-defined]
    shutil.rmtree(cache)
    cache.mkdir()
    (cache / "mine.tar").write_bytes(bytes(1000))
    (cache / "left.tar.shard.partial").write_bytes(bytes(2 * shards[0].size))
    bounded = ShardCache(str(cache), sum(shard.size for shard in shards[:3]) / 1e9)
    for number in (0, 1, 2):
        bounded.open(shards[number]).close()
    with bounded.open(shards[0]), bounded.open(shards[1]) as read:
        bounded.open(shards[2]).close()
        bounded.open(shards[0]).close()
        bounded.open(shards[3]).close()
        assert set(kept(cache)) == {"mine", *(Path(shards[n].name).stem for n in (0, 2, 3))}
        assert read.read() == (server.folder / server.shard(1)).read_bytes()
    server.asked.clear()
    bounded.open(shards[0]).close()
    assert not server.asked


def test_a_changed_file_is_downloaded_anew(server: Server, cache: Path) -> None:
    url = f"{server.url}/{server.shard(0)}"
    first = open_source(url, None, ShardCache(str(cache)))
    shutil.copy(server.folder / server.shard(1), server.folder / server.shard(0))
    second = open_source(url, None, ShardCache(str(cache)))
    assert first.fingerprint != second.fingerprint


def test_processes_that_ask_at_once_download_once(server: Server, cache: Path) -> None:
    """And where only one file fits, one waits for the other."""
    source = open_source(server.pattern("tar"), None, ShardCache(str(cache)))
    first, second = source.shards[:2]  # type: ignore[attr-defined]
    for shards, room in (((first,) * 4, 1.0), ((first, second), 1.5 * first.size / 1e9)):
        shutil.rmtree(cache)
        server.asked.clear()
        server.slow = 0.2
        bounded = ShardCache(str(cache), room)
        fork = multiprocessing.get_context("fork")
        asking = [fork.Process(target=bounded.open, args=(shard,)) for shard in shards]
        for process in asking:
            process.start()
        for process in asking:
            process.join(10)
        assert [process.exitcode for process in asking] == [0] * len(shards)
        assert server.gets() == [1] * len(set(shards))
        assert len(kept(cache)) == 1


def test_a_process_killed_while_downloading_leaves_nothing_in_the_way(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = open_source(f"{server.url}/{server.shard(0)}", None, ShardCache(str(cache))).shards[0]  # type: ignore[attr-defined]
    shutil.rmtree(cache)
    monkeypatch.setattr(remote, "TIMEOUT", 30.0)
    server.faults = ["stall"]
    process = multiprocessing.get_context("fork").Process(target=shard.open)
    process.start()
    while not list(cache.glob("*.partial")) or server.faults:
        time.sleep(0.01)
    process.kill()
    process.join(10)
    assert list(cache.glob("*.partial"))
    with shard.open() as file:
        assert file.read() == (server.folder / server.shard(0)).read_bytes()
    assert not list(cache.glob("*.partial"))
