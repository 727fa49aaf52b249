"""Tests of inference on benchmarks: batches, several processes, and resuming give the same answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from command import ROOT

from lightning_switchkd.cli.main import main
from lightning_switchkd.evaluation import inference
from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.benchmarks.items import as_question
from lightning_switchkd.evaluation.runner import ANSWERS, models_of
from lightning_switchkd.evaluation.score import Result
from lightning_switchkd.models.generation import load_model

NUM_SAMPLES = 48


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.write_pair(tmp_path_factory.mktemp("pair"))
    layouts = "[{reader: llava, records: records.json}]"
    text = f"title: tiny\nscoring: exact\nannotations: {folder}\nlayouts: {layouts}\ntraining: {folder}/records.json\n"
    (folder / "tiny.yaml").write_text(text + "max_new_tokens: 5\n", encoding="utf-8")
    return folder


def arguments(pair: Path, output: Path, *more: str) -> list[str]:
    return [
        "evaluate", f"--models.teacher={pair / 'teacher'}", "--benchmarks", f"[{pair / 'tiny.yaml'}]",
        f"--output={output}", "--accelerator=cpu", "--batch_size=5", *more,
    ]  # fmt: skip


def answers(output: Path, name: str = "tiny") -> list[dict[str, str]]:
    text = (output / "teacher" / f"{name}{ANSWERS}").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def evaluated(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out")
    main(arguments(pair, output, "--no_image=true"))
    return output


def test_batched_answers_equal_single_answers(pair: Path, evaluated: Path) -> None:
    model = load_model(str(pair / "teacher"), "cpu")
    benchmark = Benchmark.read(str(pair / "tiny.yaml"))
    items = benchmark.items(pair)
    for name, no_image in (("tiny", False), ("tiny.no_image", True)):
        rows = answers(evaluated, name)
        assert [row["question_id"] for row in rows] == [item.id for item in items]
        single = [model.ask([as_question(item)], 5, no_image)[0] for item in items]
        assert [row["text"] for row in rows] == single
    assert len({row["text"] for row in answers(evaluated)}) > 3, "the answers differ"


def test_report_and_finished_answers(pair: Path, evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = Result.read(evaluated / "teacher" / "tiny.json")
    assert result.questions == NUM_SAMPLES
    assert result.categories.keys() == {"kind0", "kind1"}
    assert Result.read(evaluated / "text_only_baseline" / "tiny.json").score == pytest.approx(100)  # no text repeats
    results = json.loads((evaluated / "results.json").read_text(encoding="utf-8"))
    assert results["systems"].keys() == {"teacher", "text_only_baseline"}
    assert results["systems"]["teacher"].keys() == {"tiny", "tiny.no_image"}
    before = {file: file.stat().st_mtime_ns for file in evaluated.rglob(f"*{ANSWERS}")}
    main(arguments(pair, evaluated, "--no_image=true"))
    assert {file: file.stat().st_mtime_ns for file in before} == before, "nothing was asked again"
    table = capsys.readouterr().out
    assert (evaluated / "table.md").read_text(encoding="utf-8") in table
    assert "\nPoints above the text-only baseline (100.0): teacher -" in table
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") > 3
    assert 'class="wrong"' in page


def test_a_run_folder_names_its_own_models(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    student = {"checkpoint": "${trainer.default_root_dir}/x"}
    model = {"teacher": {"checkpoint": str(pair / "teacher")}, "student": student}
    (run / "config.yaml").write_text(json.dumps({"model": model, "trainer": {"default_root_dir": str(run)}}))
    assert models_of(str(run)) == {
        "teacher": str(pair / "teacher"),
        "student_init": f"{run}/x",
        "student": f"{run}/student",
    }
    for flags, message in (
        (["--run=nowhere"], "nowhere is not a run folder"),
        ([], "Nothing to evaluate. Give a model (--models.student=DIR) or a run folder (--run)."),
    ):
        with pytest.raises(SystemExit):
            main(["evaluate", f"--benchmarks=[{pair / 'tiny.yaml'}]", f"--output={tmp_path / 'out'}", *flags])
        assert message in capsys.readouterr().err


def test_changed_settings_repeat_the_inference(pair: Path, evaluated: Path, tmp_path: Path) -> None:
    main(arguments(pair, tmp_path, "--max_new_tokens=1"))
    short = answers(tmp_path)
    main(arguments(pair, tmp_path))
    assert answers(tmp_path) != short
    assert [row["text"] for row in answers(tmp_path)] == [row["text"] for row in answers(evaluated)]


def test_two_processes_give_the_same_file(pair: Path, evaluated: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightning_switchkd", *arguments(pair, tmp_path, "--devices=2", "--no_image=true")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("tiny", "tiny.no_image"):
        assert answers(tmp_path, name) == answers(evaluated, name)
    assert not list(tmp_path.rglob("*.part-*"))
    assert done.stdout.count("Report: ") == 1


KILLED = """
import os, signal, sys
from lightning_switchkd.cli.main import main
from lightning_switchkd.evaluation.inference import AnswerLog
append = AnswerLog.append
def five_times(log, rank, lines):
    append(log, rank, lines)
    if len(log.lines()) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
AnswerLog.append = five_times
main(sys.argv[1:])
"""


def test_killed_run_resumes(pair: Path, evaluated: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, *arguments(pair, tmp_path, "--batch_size=1")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    part = tmp_path / "teacher" / "tiny.answers.part-0.jsonl"
    lines = [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 5
    with part.open("a", encoding="utf-8") as out:
        out.write('{"question_id": "7", "te')  # a line that was being written
    main(arguments(pair, tmp_path))
    assert answers(tmp_path) == answers(evaluated)


def test_damaged_images_are_reported_and_retried(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pair / "images" / "4.png"
    valid = image.read_bytes()
    image.write_bytes(b"no image")
    try:
        with pytest.raises(SystemExit) as stop:
            main(arguments(pair, tmp_path))
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert "1 of 48 questions could not be asked" in error
        assert "The first, 4: " in error
        assert "'4.png'" in error
        monkeypatch.setattr(inference, "MAX_FAILED_FRACTION", 0.05)
        main(arguments(pair, tmp_path))
        assert "Answers of teacher: 1 failed." in capsys.readouterr().out
        row = next(row for row in answers(tmp_path) if row["question_id"] == "4")
        assert row["text"] == ""
        assert "'4.png'" in row["error"]
        assert Result.read(tmp_path / "teacher" / "tiny.json").odd == {"failed": 1}
    finally:
        image.write_bytes(valid)
    main(arguments(pair, tmp_path))
    assert Result.read(tmp_path / "teacher" / "tiny.json").odd == {}


def test_image_workers(pair: Path, evaluated: Path, tmp_path: Path) -> None:
    main(arguments(pair, tmp_path, "--workers=2"))
    assert answers(tmp_path) == answers(evaluated)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--models.text_only_baseline=x"], "the name 'text_only_baseline' is reserved"),
        (["--protocol=mine"], "unknown protocol 'mine'. Use one of llava"),
        (["--published=none.yaml"], "file none.yaml does not exist"),
        (["--annotations", "{tiny: /nowhere}"], "no layout matches the files in /nowhere"),
    ],
)
def test_user_errors_come_before_loading(
    more: list[str], message: str, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments(pair, tmp_path, *more))
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
