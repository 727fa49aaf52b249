"""The benchmarks run and fill their tables. What they measure is never asserted: machines are noisy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from command import ROOT

ROWS = (
    "index of .json",
    "index of .jsonl",
    "USS that a rank and 2 workers",
    "images a second",
    "padding",
    "first batch",
)


@pytest.mark.slow
def test_the_data_benchmark_fills_its_table(tmp_path: Path) -> None:
    arguments = ["--records", "1200", "--workers", "2", "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert all(any(line.startswith(f"| {row}") for line in table) for row in ROWS), done.stdout
    assert all(line.count("|") == 6 for line in table)


@pytest.mark.slow
def test_asking_and_scoring_fill_theirs(tmp_path: Path) -> None:
    folder = tiny.write_pair(tmp_path)
    (folder / "tiny.yaml").write_text(
        f"title: x\nscoring: exact\nannotations: {folder}\nlayouts: [{{reader: llava, records: records.json}}]\n"
        "max_new_tokens: 3\n",
        encoding="utf-8",
    )
    arguments = ["--model", folder / "teacher", "--benchmark", folder / "tiny.yaml", "--rounds", "1", "--answers", "99"]
    command = [sys.executable, "-m", "benchmarks.generate", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["| 1", "| 4", "| 16", "| 64", "| scored"]
    assert all(row[3] == "48 of 48 |" for row in rows[2:6])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "rows"),
    [
        (
            "loss_head",
            ["--rows=12", "--vocabulary=600", "--rounds=1"],
            ["ours, N = 12", "materialised", "256 (12 rows)"],
        ),
        ("step", ["--steps=1", "--vocabulary=384"], ["optimizer", "whole step", "teacher's rows from a warm cache"]),
        ("observing", ["--steps=1", "--vocabulary=384"], ["384 | sets and pathways (the default)"]),
        ("scaling", ["--vocabulary=384"], ["DDP reduces, a step", "FSDP2 holds: student", "FSDP2 holds: teacher"]),
        ("switches", ["--steps=1"], ["plain (float32, sdpa)", "compile: both"]),
    ],
)
def test_the_others_fill_theirs(name: str, arguments: list[str], rows: list[str]) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert all(any(line.startswith(f"| {row}") for line in table) for row in rows), done.stdout
