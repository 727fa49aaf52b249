"""Sweeps: finished runs are kept, a change repeats them, and the report agrees with the numbers."""

from __future__ import annotations

import hashlib
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
from command import ROOT, configs, fit_arguments

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.runs import hyperparameters
from lightning_switchkd.experiments.definition import Search, SweepDefinition, merge
from lightning_switchkd.experiments.pipeline import load_definition
from lightning_switchkd.experiments.sweep_report import Column, Questions, summary, table_of


def make_questions(abilities: list[str], groups: list[int]) -> Questions:
    return Questions(["yes"] * len(abilities), abilities, np.array(groups), [])


SWEEP = SweepDefinition(
    *("Description.", "x", "", "runs", [], {}, {"sft": [], "kd": []}, [0, 1], "sft", {}, {}, "", ""), [["sft", "kd"]]
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


@pytest.mark.parametrize(
    ("better", "said"),
    [
        ([[1, 1, 0, 0], [1, 0, 0, 0]], "in this order, but within the spread over seeds (12.5): +12.5 points."),
        ([[0, 0, 0, 0], [1, 0, 0, 0]], "not in this order, but within the spread over seeds (12.5): -12.5 points."),
        ([[1, 1, 0, 0]], "in this order, with an unknown spread over seeds: +25.0 points."),
    ],
)
def test_order_within_the_spread(better: list[list[int]], said: str) -> None:
    questions = make_questions(["see", "read"] * 2, list(range(4)))
    columns = {name: Column({"test": np.array(right, dtype=float)}, None) for name, right in
               (("sft", [[1, 0, 0, 0]] * len(better)), ("kd", better))}  # fmt: skip
    words = summary(SWEEP, questions, "test", columns, {})
    assert f"- kd > sft: {said}" in words


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
    assert "- kd > sft: in this order, beyond the spread over seeds (0.0): +20.0 points." in words
    table = table_of({"test": questions}, columns, gains)
    assert table.splitlines()[0].split("|")[2:5] == [" see        ", " read       ", " average    "]
    reversed_ = summary(
        SWEEP, questions, "test", {"sft": columns["kd"], "kd": columns["sft"]}, {"kd": (-0.2, -0.3, -0.1)}
    )
    assert "worse than sft" in reversed_
    assert "- kd > sft: not in this order, beyond the spread over seeds (0.0): -20.0 points." in reversed_


def test_invalid_definitions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        SweepDefinition.read(tmp_path / "none.yaml", {})
    file = tmp_path / "sweep.yaml"
    file.write_text("methods: {}\n", encoding="utf-8")
    with pytest.raises(UserError, match="exactly these fields: base"):
        SweepDefinition.read(file, {})
    file.write_text("methods: {}\nabout: x\nexpected: []\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"renamed in 0\.2\. Change them: about -> description, expected -> expected_order"
    ):
        SweepDefinition.read(file, {})


def test_shipped_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is valid. All keep their runs in one folder, so a name means the same in all of them.

    The settings of every run are those of version 0.1.0 (tests/golden/sweeps.json holds their hashes).
    """
    monkeypatch.chdir(ROOT)
    expected = json.loads((ROOT / "tests" / "golden" / "sweeps.json").read_text(encoding="utf-8"))
    seen: dict[str, object] = {}
    found = {}
    for file in sorted(Path("conf/sweep").glob("*.yaml")):
        sweep = SweepDefinition.read(file, {"data": "emoji"}, seed=1)
        assert sweep.folder == "runs/emoji/sweep"
        assert not sweep.methods.keys() & sweep.models.keys()
        for name, value in [*sweep.methods.items(), *sweep.models.items()]:
            assert seen.setdefault(name, value) == value
        for method in sweep.methods:
            settings = hyperparameters(sweep.training(method, 1, "").effective_settings)
            settings = {name: value for name, value in settings.items() if name not in ("method", "data/processor")}
            text = json.dumps(settings, sort_keys=True)
            found[f"{file.stem}/{method}"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert found == expected


def test_seed_in_a_method() -> None:
    """The seed replaces ``${seed}`` in the settings of a run and in existing models."""
    file = ROOT / "conf" / "sweep" / "student_init_seeds.yaml"
    sweep = SweepDefinition.read(file, {}, seed=2)
    stage = sweep.training("own_init_sft", 2, "--model.lr=3")
    assert stage.effective_settings["model"]["student"]["checkpoint"] == "runs/emoji/student_init.2/student"
    assert stage.command == ("fit", "--seed_everything=2", "--model.lr=3")
    assert sweep.models == {"teacher": "runs/emoji/teacher/student", "own_init": "runs/emoji/student_init.2/student"}


def test_combinations_of_a_search() -> None:
    grid = Search({"model.lr": [1, 2], "model.warmup": [0, 0.1]})
    assert grid.combinations()[1] == {"model.lr": 1, "model.warmup": 0.1}
    assert len(grid.combinations()) == 4
    some = Search(grid.settings, samples=2, seed=3)
    assert len(some.combinations()) == 2
    assert some.combinations() == some.combinations()
    assert all(combination in grid.combinations() for combination in some.combinations())


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"setting": {}}, "`search` takes settings, metric, mode, samples, seed. Its mode is max or min."),
        ({"settings": {"model.lr": [1]}, "mode": "best"}, "Its mode is max or min."),
        ({"settings": {"model.lr": 1}}, "`search.settings` lists values by setting"),
        ({"metric": "val/loss/ce"}, "`search.settings` lists values by setting"),
    ],
)
def test_a_wrong_search(tmp_path: Path, search: dict[str, object], message: str) -> None:
    file = tmp_path / "sweep.yaml"
    raw = load_definition(ROOT / "conf" / "sweep" / "methods.yaml", "sweep")
    file.write_text(yaml.safe_dump({**raw, "search": search}), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        SweepDefinition.read(file, {})
    assert message in str(caught.value)


def write_sweep_file(folder: Path, root: Path, **fields: object) -> Path:
    """Two methods, two seeds, four steps on the tiny pair."""
    common = fit_arguments(folder, root, method="sft")[1:]
    flags = [a for a in common if a.startswith("--") and "default_root_dir" not in a and a != "--config"]
    base = [c for c in configs("digits", "digits", "cpu", None) if c != "--config"]
    settings: dict[str, object] = {}
    for key, _, value in (flag.removeprefix("--").partition("=") for flag in flags):
        for name in reversed(key.split(".")):
            value = {name: value}  # type: ignore[assignment]
        settings = merge(settings, value)  # type: ignore[arg-type]
    settings = merge(settings, {"trainer": {"max_steps": 4, "val_check_interval": 2, "log_every_n_steps": 1}})
    settings = merge(settings, {"data": {"batch_size": 8}})
    records = str(folder / "records.json")
    (root / "pipeline.yaml").write_text(yaml.safe_dump({"folder": "x", "base": [], "seeds": [0]}), encoding="utf-8")
    sweep = {
        "description": "Two methods.",
        "data": "x",
        "pipeline": str(root / "pipeline.yaml"),
        "folder": str(root / "runs"),
        "base": base,
        "settings": settings,
        "methods": {name: [str(Path("conf/method", f"{name}.yaml").resolve())] for name in ("sft", "switch_kd")},
        "seeds": [0, 1],
        "baseline": "sft",
        "models": {"teacher": str(folder / "teacher")},
        "questions": {"test": records},
        "image_root": str(folder / "images"),
        "text_only_baseline": records,
        "expected_order": [["sft", "switch_kd"]],
        **fields,
    }
    file = root / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")
    return file


@pytest.mark.slow
def test_a_killed_sweep_resumes(tmp_path: Path) -> None:
    folder = tiny.write_pair(tmp_path / "pair")
    file = write_sweep_file(folder, tmp_path)
    command = [sys.executable, "-m", "lightning_switchkd", "sweep", f"--sweep={file}", "--jobs=2"]
    command += [f"--output={tmp_path / 'report'}"]
    process = subprocess.Popen(command, start_new_session=True)
    runs = tmp_path / "runs"
    while not list(runs.glob("*/[01].answers.json")):  # until a run is finished
        assert process.poll() is None
        time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in runs.glob("*/[01].answers.json")}
    assert kept
    main(command[3:])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished runs are kept"
    answers = sorted(path.relative_to(runs).as_posix() for path in runs.glob("*/[01].answers.json"))
    assert answers == [f"{name}/{seed}.answers.json" for name in ("sft", "switch_kd") for seed in (0, 1)]
    results = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert set(results["scores"]) == {"text_only_baseline", "teacher", "sft", "switch_kd"}
    for picture in ("bars.png", "radar.png", "curves.png"):
        assert (tmp_path / "report" / picture).stat().st_size > 5000

    def made() -> dict[str, int]:
        return {f"{path.parent.name}/{path.name[0]}": path.stat().st_mtime_ns for path in runs.glob("*/?.answers.json")}

    before = made()
    changed = file.read_text(encoding="utf-8").replace("method/sft.yaml", "method/sft.yaml\n  - model: {lr: 0.02}")
    file.write_text(changed, encoding="utf-8")
    main(command[3:])
    after = made()
    assert {name for name in before if after[name] != before[name]} == {"sft/0", "sft/1"}, "a change repeats its runs"


@pytest.mark.slow
def test_a_search_chooses_on_validation_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny learning rate learns nothing, so the other one wins, and every seed uses it."""
    folder = tiny.write_pair(tmp_path / "pair")
    search = {"settings": {"model.lr": [1e-9, 0.01]}, "metric": "val/loss/ce", "mode": "min"}
    methods = {"sft": [str(ROOT / "conf/method/sft.yaml")]}
    fields = {"search": search, "methods": methods, "expected_order": []}
    file = write_sweep_file(folder, tmp_path, **fields)
    main(["sweep", f"--sweep={file}", f"--output={tmp_path / 'report'}"])
    assert "sft: val/loss/ce is best" in (said := capsys.readouterr().out)
    assert "with {'model.lr': 0.01}" in said
    tried = json.loads((tmp_path / "runs" / "sft" / "search.json").read_text(encoding="utf-8"))
    assert [trial["settings"] for trial in tried] == [{"model.lr": 1e-9}, {"model.lr": 0.01}]
    for seed in (0, 1):
        config = (tmp_path / "runs" / "sft" / str(seed) / "config.yaml").read_text(encoding="utf-8")
        assert yaml.safe_load(config)["model"]["lr"] == 0.01


@pytest.mark.slow
def test_an_interrupted_sweep_tells_how_to_resume(tmp_path: Path) -> None:
    folder = tiny.write_pair(tmp_path / "pair")
    file = write_sweep_file(folder, tmp_path)
    command = [sys.executable, "-m", "lightning_switchkd", "sweep", f"--sweep={file}", "--jobs=1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "runs" / "sft" / "0.log").is_file():
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Interrupted. Run the same command to resume." in said
    assert "Traceback" not in said
