"""Test that an exported folder gives the same answers in lmms-eval.

lmms-eval pins many versions, so it has its own virtual environment. ``make harness`` and ``make test-all`` create it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
from command import ROOT

from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.benchmarks.items import as_question
from lightning_switchkd.models.generation import load_model

PYTHON = ROOT / ".venv-lmms" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".venv-lmms" / "ready").is_file(), reason="lmms-eval is missing: run make harness")
@pytest.mark.parametrize("way", [[], ["--force_simple"]], ids=["chat", "simple"])
def test_lmms_eval_gives_the_same_answers(way: list[str], tmp_path: Path) -> None:
    folder = tiny.write_pair(tmp_path)
    samples = json.loads((folder / "records.json").read_text(encoding="utf-8"))
    single = [s for s in samples if s.get("image") and len(s["conversations"]) == 2]
    (folder / "single.json").write_text(json.dumps(single), encoding="utf-8")
    task = tmp_path / "task"
    shutil.copytree(ROOT / "docs" / "how-to" / "lmms_eval", task)
    text = (task / "emoji.yaml").read_text(encoding="utf-8")
    (task / "emoji.yaml").write_text(
        text.replace("datasets/emoji/test.json", f"{folder}/single.json"), encoding="utf-8"
    )
    command: list[str | Path] = [
        PYTHON, "-m", "lmms_eval", "--model", "llava_hf", "--tasks", "emoji", "--include_path", task,
        "--model_args", f"pretrained={folder / 'teacher'},device=cpu,device_map=cpu,dtype=float32",
        "--batch_size", "1", "--log_samples", "--output_path", tmp_path / "out", *way,
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    environment = {**os.environ, **offline, "IMAGE_ROOT": str(folder / "images")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    (log,) = (tmp_path / "out").rglob("*samples*.jsonl") if done.returncode == 0 else (None,)
    assert log is not None, done.stderr[-2000:]
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    responses = [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
    answers = [(text if isinstance(text, str) else text[0]).strip() for text in responses]

    (folder / "single.yaml").write_text(
        "title: x\nscoring: exact\nlayouts: [{reader: llava, records: single.json}]\n", encoding="utf-8"
    )
    items = Benchmark.read(str(folder / "single.yaml")).items(folder)
    model = load_model(str(folder / "teacher"), "cpu")
    assert len(answers) == len(items) > 5
    assert answers == model.ask([as_question(item) for item in items], 16)
