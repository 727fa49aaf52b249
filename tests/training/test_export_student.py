"""The commands that the end of a training suggests."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import tiny

from lightning_switchkd.cli.main import main
from lightning_switchkd.training.callbacks import ExportStudent


def test_suggested_commands_run_without_a_configuration(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain Trainer writes no config.yaml."""
    trainer = tiny.trainer(tmp_path, max_steps=1, callbacks=[ExportStudent()])
    trainer.fit(tiny.switch_kd(folder, dtype="float32"), datamodule=tiny.data_module(folder))
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    sample = {"FILE": str(folder / "images" / "0.png"), "TEXT": "Which?"}
    questions = {"[FILE]": f"[{folder / 'records.json'}]", "FOLDER": str(folder / "images")}
    for words, values in zip(commands, (sample, questions), strict=True):
        main(
            [values.get(word, word) for word in words[words.index("lightning_switchkd") + 1 :]] + ["--max_new_tokens=2"]
        )
    assert f"Report: {tmp_path / 'report'}/report.html" in capsys.readouterr().out
