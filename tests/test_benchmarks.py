"""Tests that the benchmarks run and fill their tables. Measured values are not tested, because they vary."""

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
    "USS added by a rank and 2 workers",
    "images per second",
    "padding",
    "first batch",
)


@pytest.mark.slow
def test_data(tmp_path: Path) -> None:
    arguments = ["--samples", "1200", "--workers", "2", "--rounds", "1", "--folder", str(tmp_path)]
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    table = [line for line in process.stdout.splitlines() if line.startswith("| ")]
    assert all(any(line.startswith(f"| {row}") for line in table) for row in ROWS), process.stdout
    assert all(line.count("|") == 6 for line in table)


@pytest.mark.slow
def test_the_generation_benchmark_fills_its_table(tmp_path: Path) -> None:
    folder = tiny.write_pair(tmp_path)
    samples = folder / "records.json"
    arguments = ["--model", folder / "teacher", "--samples", samples, "--rounds", "1", "--answers", "99"]
    command = [sys.executable, "-m", "benchmarks.generate", *map(str, arguments)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [line.split(" | ") for line in process.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["| 1", "| 4", "| 16", "| 64", "| scored"]
    assert all(row[3] == "48 of 48 |" for row in rows[2:6])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "rows"),
    [
        (
            "loss_head",
            ["--rows=12", "--vocabulary=600", "--rounds=1"],
            ["ours, N = 12", "materialized", "256 (12 tokens)"],
        ),
        ("step", ["--steps=1", "--vocabulary=384"], ["optimizer", "whole step", "reading the teacher cache"]),
        ("observing", ["--steps=1", "--vocabulary=384"], ["384 | sets and pathways (default)"]),
        ("scaling", ["--vocabulary=384"], ["DDP reduces per step", "FSDP2 stores: student", "FSDP2 stores: teacher"]),
        ("switches", ["--steps=1"], ["plain (float32, sdpa)", "compile: both"]),
    ],
)
def test_the_other_benchmarks_fill_their_tables(name: str, arguments: list[str], rows: list[str]) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    table = [line for line in process.stdout.splitlines() if line.startswith("| ")]
    assert all(any(line.startswith(f"| {row}") for line in table) for row in rows), process.stdout
