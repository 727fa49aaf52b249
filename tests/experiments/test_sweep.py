"""Sweeps: finished runs are kept, a change repeats them, and the report agrees with the numbers."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from command import configs, fit_arguments

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.experiments.definition import SweepDefinition
from lightning_switchkd.experiments.sweep_report import Column, Questions, summary, table_of


def make_questions(abilities: list[str], groups: list[int]) -> Questions:
    return Questions(["yes"] * len(abilities), abilities, np.array(groups), [])


SWEEP = SweepDefinition(
    "Description.", "runs", [], {"sft": [], "kd": []}, [0, 1], "sft", {}, {}, "", "", [["sft", "kd"]]
)


def test_scores_and_gain_are_those_of_loops() -> None:
    random = np.random.default_rng(0)
    questions = make_questions(["see", "read", "see", "see", "read", "see"], [0, 0, 1, 2, 2, 3])
    method, baseline = (random.integers(0, 2, (3, 6)).astype(float) for _ in range(2))
    mean, low, high = questions.gain(method, baseline)
    see, read = [0, 2, 3, 5], [1, 4]

    def average(right: np.ndarray) -> float:
        return float((right[:, see].mean() + right[:, read].mean()) / 2)

    assert questions.names == ["see", "read"]
    assert mean == pytest.approx(average(method) - average(baseline))
    assert low <= mean <= high
    everything = questions.gain(np.ones((2, 6)), np.zeros((2, 6)))
    assert everything == pytest.approx((1.0, 1.0, 1.0)), "however images are drawn"
    assert questions.right(["yes", "no", "yes", "yes", "yes", "YES"]).tolist() == [1, 0, 1, 1, 1, 0]


def test_interval_counts_images_not_questions() -> None:
    """Ten questions about one image are one piece of evidence."""
    random = np.random.default_rng(1)
    per_image = random.integers(0, 2, 40).astype(float)
    alone = make_questions(["see"] * 40, list(range(40)))
    tenfold = make_questions(["see"] * 400, [i for i in range(40) for _ in range(10)])
    _, *few = alone.gain(per_image[None], np.zeros((1, 40)))
    _, *many = tenfold.gain(per_image.repeat(10)[None], np.zeros((1, 400)))
    assert few == pytest.approx(many, abs=1e-9)


def test_words_follow_the_numbers() -> None:
    questions = make_questions(["see", "read"] * 50, list(range(100)))
    worse = np.zeros((2, 100))
    worse[:, :40] = 1
    better = worse.copy()
    better[:, 40:60] = 1
    columns = {"sft": Column({"test": worse}, worse * 0), "kd": Column({"test": better}, worse * 0)}
    gains = {"kd": questions.gain(better, worse)}
    words = summary(SWEEP, questions, "test", columns, gains)
    assert "Best of 2 methods: kd with 60.0 ± 0.0 %. Order: kd > sft." in words
    assert re.search(r"- kd: \+20\.0 points, \[\+1\d\.\d, \+2\d\.\d\]: better than sft\.", words)
    assert "- kd > sft holds: +20.0 points, more than the spread over seeds (0.0)." in words
    table = table_of({"test": questions}, columns, gains)
    assert table.splitlines()[0].split("|")[2:5] == [" see        ", " read       ", " average    "]
    reversed_ = summary(
        SWEEP, questions, "test", {"sft": columns["kd"], "kd": columns["sft"]}, {"kd": (-0.2, -0.3, -0.1)}
    )
    assert "worse than sft" in reversed_
    assert "kd > sft does not hold: -20.0 points" in reversed_


def test_invalid_definitions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        SweepDefinition.read(tmp_path / "none.yaml", "digits")
    file = tmp_path / "sweep.yaml"
    file.write_text("methods: {}\n", encoding="utf-8")
    with pytest.raises(UserError, match="exactly these fields: base"):
        SweepDefinition.read(file, "digits")
    file.write_text("like: methods.yaml\nabout: x\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"renamed in 0\.2\. Change them: about -> description, like -> extends"):
        SweepDefinition.read(file, "digits")


def test_shipped_sweeps() -> None:
    """Each is valid. All keep their runs in one folder, so a name means the same in all of them."""
    files = set((Path(__file__).parents[2] / "conf" / "sweep").glob("*.yaml"))
    sweeps = [SweepDefinition.read(file, "emoji") for file in files if file.stem not in ("lean", "from_scratch")]
    assert len(sweeps) == 6
    seen: dict[str, list[str]] = {}
    for sweep in sweeps:
        parts = [*sweep.base, *(part for parts in sweep.methods.values() for part in parts)]
        assert all(Path(part).is_file() for part in parts if not part.startswith("--"))
        assert sweep.folder == "runs/emoji/sweep"
        assert not sweep.methods.keys() & sweep.models.keys()
        for name, value in [*sweep.methods.items(), *((name, [model]) for name, model in sweep.models.items())]:
            assert seen.setdefault(name, value) == value


def test_seed_in_a_method(tmp_path: Path) -> None:
    """The seed replaces ``{seed}`` in the arguments of a run, in the models of its digest, and in existing models."""
    (tmp_path / "start.2").mkdir()
    (tmp_path / "start.2" / "model.safetensors").write_bytes(b"weights")
    sweep = SweepDefinition.read(Path(__file__).parents[2] / "conf" / "sweep" / "student_init_seeds.yaml", "emoji")
    method = [f"--model.student.checkpoint={tmp_path}/start.{{seed}}"]
    models = {"teacher": "teacher", "start": "start.{seed}"}
    sweep = dataclasses.replace(sweep, base=[], methods={"sft": method}, models=models)
    job = sweep.training_job({}, "sft", 2, "")
    assert job.fit == (f"--model.student.checkpoint={tmp_path}/start.2", "--seed_everything=2")
    assert list(job.digest()["models"]) == [f"{tmp_path}/start.2"]
    assert [(job.name, job.model) for job in sweep.model_jobs({}, "teacher", [2, 5])] == [("teacher", "teacher")]
    starts = [(job.name, job.model) for job in sweep.model_jobs({}, "start", [2, 5])]
    assert starts == [("start/2", "start.2"), ("start/5", "start.5")]


def write_sweep_file(folder: Path, root: Path) -> Path:
    """Two methods, two seeds, four steps on the tiny pair."""
    common = fit_arguments(folder, root, method="sft")[1:]
    flags = [a for a in common if a.startswith("--") and "default_root_dir" not in a and a != "--config"]
    base = [c for c in configs("digits", "digits", "cpu", None) if c != "--config"]
    records = str(folder / "records.json")
    sweep = {
        "description": "Two methods.",
        "folder": str(root / "runs"),
        "base": [*base, *flags],
        "methods": {name: [str(Path("conf/method", f"{name}.yaml").resolve())] for name in ("sft", "switch_kd")},
        "seeds": [0, 1],
        "baseline": "sft",
        "models": {"teacher": str(folder / "teacher")},
        "questions": {"test": records, "other": str(folder / "none.json")},
        "image_root": str(folder / "images"),
        "text_only_baseline": records,
        "expected_order": [["sft", "switch_kd"]],
    }
    file = root / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")
    return file


@pytest.mark.slow
def test_a_killed_sweep_resumes(tmp_path: Path) -> None:
    folder = tiny.write_pair(tmp_path / "pair")
    file = write_sweep_file(folder, tmp_path)
    command = [sys.executable, "-m", "lightning_switchkd", "sweep", f"--sweep={file}", "--jobs=2", "--data=x"]
    command += [f"--output={tmp_path / 'report'}"]
    process = subprocess.Popen(command, start_new_session=True)
    runs = tmp_path / "runs"
    while not list(runs.glob("*/[01].json")):  # until a run is finished
        assert process.poll() is None
        time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in runs.glob("*/[01].json")}
    assert kept
    main(command[3:])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished runs are kept"
    answers = sorted(path.relative_to(runs).as_posix() for path in runs.glob("*/[01].json"))
    assert answers == ["sft/0.json", "sft/1.json", "switch_kd/0.json", "switch_kd/1.json"]
    results = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert set(results["scores"]) == {"text_only_baseline", "teacher", "sft", "switch_kd"}
    for picture in ("bars.png", "radar.png", "curves.png"):
        assert (tmp_path / "report" / picture).stat().st_size > 5000

    def made() -> dict[str, int]:
        return {path.name + path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/[01].json")}

    before = made()
    changed = file.read_text(encoding="utf-8").replace("method/sft.yaml", "method/sft.yaml\n  - --model.lr=0.02")
    file.write_text(changed, encoding="utf-8")
    main(command[3:])
    after = made()
    assert {name for name in before if after[name] != before[name]} == {"0.jsonsft", "1.jsonsft"}, (
        "a change repeats its runs"
    )


@pytest.mark.slow
def test_an_interrupted_sweep_tells_how_to_resume(tmp_path: Path) -> None:
    folder = tiny.write_pair(tmp_path / "pair")
    file = write_sweep_file(folder, tmp_path)
    command = [sys.executable, "-m", "lightning_switchkd", "sweep", f"--sweep={file}", "--jobs=1", "--data=x"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "runs" / "sft" / "0.log").is_file():
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Interrupted. Finished runs are in" in said
    assert "Traceback" not in said
