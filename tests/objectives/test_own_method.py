"""Run the example of docs/how-to/add-a-method.md: one file and one configuration make a method."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import tiny
from command import ROOT, fit_arguments

from lightning_switchkd.cli.main import main


def test_the_documented_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "how-to" / "add-a-method.md").read_text(encoding="utf-8")
    code, settings = (re.search(rf"```{language}\n(.*?)```", page, re.DOTALL) for language in ("python", "yaml"))
    assert code is not None
    assert settings is not None
    (tmp_path / "my_method.py").write_text(code[1], encoding="utf-8")
    (tmp_path / "my_method.yaml").write_text(settings[1], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)  # `python -m` looks in the working directory, where the user's file lies
    folder, run = tiny.write_pair(tmp_path / "pair"), tmp_path / "run"
    arguments = fit_arguments(folder, run, method="sft")
    arguments[arguments.index(str(ROOT / "conf" / "method" / "sft.yaml"))] = str(tmp_path / "my_method.yaml")
    main(arguments)
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss/entropy"]]
    assert len(rows) == 4
    assert all(float(row["train/loss/entropy"]) > 0 for row in rows)
    total = [float(r["train/loss/ce"]) + 0.1 * float(r["train/loss/entropy"]) for r in rows]
    assert [float(row["train/loss/total"]) for row in rows] == pytest.approx(total, rel=1e-5)
