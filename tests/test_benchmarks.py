"""The benchmark of the data layer runs and fills its table. What it measures is never asserted: machines are noisy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
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
