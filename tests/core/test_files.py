"""Files survive a kill: atomic writes, JSON lines with a cut end, retries."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import (
    PARTIAL,
    ReadError,
    append_jsonl,
    atomic_path,
    read_jsonl,
    retry,
    write_atomic,
    write_jsonl,
)


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "file.txt"
    write_atomic(file, "old")

    def fail() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text("half of the new cont")
            assert file.read_text() == "old"
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert file.read_text() == "old"
    assert os.listdir(file.parent) == ["file.txt"]
    write_atomic(file, b"new", fsync=True)
    assert file.read_text() == "new"


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("old", "new"):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
            assert temporary.parent == tmp_path, "a rename is atomic only inside one file system"
    assert os.listdir(folder) == ["new"]
    assert os.listdir(tmp_path) == ["model"]


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    kill = (
        "import os, sys, pathlib; from lightning_switchkd.core.files import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('cut'); os.kill(os.getpid(), 9)\n"
    )
    file = tmp_path / "file.txt"
    assert subprocess.run([sys.executable, "-c", kill, str(file)], check=False).returncode == -9
    assert os.listdir(tmp_path) == [f".file.txt{PARTIAL}"]
    write_atomic(file, "whole")
    assert os.listdir(tmp_path) == ["file.txt"]


def test_unique_writers_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    with atomic_path(file, unique=True) as first, atomic_path(file, unique=True) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert file.read_text() == "first", "the outer block ends last"


ROWS = st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers(-9, 9), max_size=3), max_size=6)


@given(first=ROWS, more=ROWS, cut=st.integers(0, 200))
def test_appending_repairs_a_cut_last_line(
    tmp_path_factory: pytest.TempPathFactory, first: list[dict[str, object]], more: list[dict[str, object]], cut: int
) -> None:
    """After a cut at any byte, appending keeps every complete row and loses no new one."""
    file = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    write_jsonl(file, first)
    assert list(read_jsonl(file)) == first
    content = file.read_bytes()[:cut]
    file.write_bytes(content)
    readable = list(read_jsonl(file, allow_cut=True))
    assert first[: content.count(b"\n")] == readable[: content.count(b"\n")]
    append_jsonl(file, more)
    assert list(read_jsonl(file)) == readable + more


@pytest.mark.parametrize("text", ["x\u2028y", "x\u0085y", "x\x0cy", "x\ty\nz"])
def test_only_a_newline_ends_a_row(tmp_path: Path, text: str) -> None:
    append_jsonl(tmp_path / "rows.jsonl", [{"answer": text}])
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [{"answer": text}]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n\n[2]\n{"a": 3}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 3 is not a JSON object: '\[2\]'. Fix or delete the line"):
        list(read_jsonl(file, allow_cut=True))


def failing(*errors: OSError) -> Callable[[], str]:
    """Return a function that raises these errors one after the other, and then returns."""
    left = list(errors)

    def read() -> str:
        if left:
            raise left.pop(0)
        return "content"

    return read


def test_retries() -> None:
    stale, reset = OSError(errno.ESTALE, "stale"), ConnectionResetError("reset")
    assert retry(failing(stale, reset), "file", waits=(0, 0)) == "content"
    with pytest.raises(ReadError, match=r"Cannot read the file after 2 attempts: .*stale"):
        retry(failing(stale, stale), "the file", waits=(0,))
    with pytest.raises(FileNotFoundError):
        retry(failing(FileNotFoundError()), "file", waits=(0, 0))
