"""Tests of inference on benchmarks: batches, several processes, and resuming give the same answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import layouts
import pytest
import tiny
from command import ROOT

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation import inference
from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.benchmarks.items import as_question
from lightning_switchkd.evaluation.results import Result
from lightning_switchkd.evaluation.runner import models_of
from lightning_switchkd.evaluation.tasks import ANSWERS, EXTRA_TOKENS, TaskReader
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
        f"--output={output}", f"--answer_store={output / 'store'}", "--accelerator=cpu", "--batch_size=5", *more,
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
    before = {file: file.stat().st_mtime_ns for file in (evaluated / "store").rglob("*.jsonl")}
    main(arguments(pair, evaluated, "--no_image=true"))
    assert {file: file.stat().st_mtime_ns for file in before} == before, "nothing was asked again"
    assert len(before) == 2
    printed = capsys.readouterr()
    assert "teacher, tiny: 48 questions, all answered before" in printed.err
    assert "| tiny, 48 questions " in printed.out
    assert "no image" not in printed.out, "only in the report's files"
    assert "tiny: last of up to 2 turns asked. To ask all, set --turns=all." in printed.out
    text = (evaluated / "report.md").read_text(encoding="utf-8")
    assert "| points above text-only baseline |" in text
    assert "| no image |" in text
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") > 3
    assert 'class="wrong"' in page


@pytest.fixture
def run(pair: Path, tmp_path: Path) -> Path:
    """Write a run folder as far as `evaluate` reads it."""
    run = tmp_path / "run"
    shutil.copytree(pair / "student", run / "student")
    shutil.copytree(pair / "processor", run / "student", dirs_exist_ok=True)
    data = {"annotations": str(pair / "records.json"), "image_root": str(pair / "images")}
    config = {
        "model": {
            "teacher": {"checkpoint": str(pair / "teacher")},
            "student": {"checkpoint": "${trainer.default_root_dir}/student"},
        },
        "data": {"train": [data], "test": data},
        "trainer": {"default_root_dir": str(run)},
    }
    (run / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    return run


def test_meanings_of_sources(pair: Path, tmp_path: Path) -> None:
    shutil.copy(pair / "records.json", tmp_path / "test.json")
    reader = TaskReader(None, tmp_path, str(pair / "images"), "last", "", {}, "llava", 4)
    assert reader.read([str(tmp_path / "test.json")], [])[0].benchmark.categories == {}
    meanings = tmp_path / "sources.json"
    meanings.write_text('{"kind0": "the first kind"}', encoding="utf-8")
    benchmark = reader.read([str(tmp_path / "test.json")], [])[0].benchmark
    benchmark.write()
    assert Benchmark.read(benchmark.source).categories == {"kind0": "the first kind"}
    meanings.write_text('["kind0"]', encoding="utf-8")
    with pytest.raises(UserError, match="must map the sources of samples to texts"):
        reader.read([str(tmp_path / "test.json")], [])


def test_a_run_names_its_models(run: Path, pair: Path) -> None:
    models = models_of(str(run), {"fine_tuned": "x"})
    assert list(models) == ["teacher", "student_init", "fine_tuned", "student"], "the run's student is the last"
    assert models["teacher"] == str(pair / "teacher")
    assert models["student_init"] == models["student"] == f"{run}/student"
    assert models_of(str(run), {"teacher": "x"})["teacher"] == "x"
    assert models_of(None, {"a": "x"}) == {"a": "x"}


def test_a_run_asks_its_own_test_samples(run: Path, pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = f"--answer_store={run.parent / 'store'}"
    fine_tuned = f"--models.fine_tuned={pair / 'teacher'}"
    main(["evaluate", f"--run={run}", fine_tuned, "--baseline=fine_tuned", "--accelerator=cpu", "--limit=9", store])
    printed = capsys.readouterr()
    assert "teacher, test: 9 questions, 0:" in printed.err
    assert "student (fine-tuned), test: 9 questions, all answered before" in printed.err, "the weights of the teacher"
    assert "Student (distilled) is not clearly different from student (fine-tuned): " in printed.out
    assert "p = 1, paired, n = 9)." in printed.out
    report = json.loads((run / "report" / "results.json").read_text(encoding="utf-8"))
    assert report["about"]["run"] == str(run)
    assert report["systems"]["text_only_baseline"]["test"]["score"] == 100
    assert Benchmark.read(str(run / "report" / "test.yaml")).training == [str(pair / "records.json")]
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert "Training curves" not in page, "the run has no metrics"
    assert page.count('class="shot"') > 3, "examples have their images"


def test_an_invalid_training_sample(run: Path, pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text-only baseline skips the samples that the run excluded, and other invalid ones with their number."""
    bad, exclude = run / "bad.jsonl", run / "exclude.jsonl"
    rows = json.loads((pair / "records.json").read_text(encoding="utf-8"))
    bad.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "{cut\n", encoding="utf-8")
    exclude.write_text(json.dumps({"path": str(bad), "index": len(rows)}) + "\n", encoding="utf-8")
    config = json.loads((run / "config.yaml").read_text(encoding="utf-8"))
    config["data"]["train"][0]["annotations"] = str(bad)
    flags = [f"--run={run}", "--accelerator=cpu", "--limit=3", "--max_new_tokens=2", f"--answer_store={run / 'store'}"]
    for listed, said in (
        (None, f"Text-only baseline: 1 of {len(rows) + 1} samples of {bad} are invalid"),
        (exclude, ""),
    ):
        config["data"]["exclude"] = listed and str(listed)
        (run / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        main(["evaluate", *flags])
        printed = capsys.readouterr().out
        assert said in printed
        assert ("Text-only" in printed) == bool(said)
        assert "| text-only baseline | 100.0" in printed


def test_other_questions_never_mix_with_earlier_results(
    run: Path, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another file of the same name is refused. The same file with other samples replaces all results of it."""
    shutil.copy(pair / "records.json", tmp_path / "test.json")
    common = [f"--models.teacher={pair / 'teacher'}", f"--output={tmp_path / 'out'}", f"--answer_store={tmp_path}"]
    common += ["--accelerator=cpu", "--max_new_tokens=2", f"--image_root={pair / 'images'}"]
    main(["evaluate", *common, f"--benchmarks={tmp_path / 'test.json'}", "--no_image=true", "--limit=9"])
    before = sorted(file.name for file in (tmp_path / "out" / "teacher").iterdir())
    assert "test.no_image.json" in before
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", f"--run={run}", *common, "--limit=4"])
    error = capsys.readouterr().err
    assert (
        f"{tmp_path / 'out'} already has results of 'test' on other questions ({tmp_path / 'test.json'}, now " in error
    )
    assert sorted(file.name for file in (tmp_path / "out" / "teacher").iterdir()) == before
    main(["evaluate", *common, f"--benchmarks={tmp_path / 'test.json'}", "--limit=4"])
    assert sorted(file.name for file in (tmp_path / "out" / "teacher").iterdir()) == [
        "test.answers.jsonl", "test.json", "test.questions.json",
    ]  # fmt: skip
    assert "| test, 4 questions | score, % |" in capsys.readouterr().out


def test_a_llava_file_is_a_benchmark(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    common = [f"--models.teacher={pair / 'teacher'}", f"--output={output}", f"--answer_store={tmp_path}"]
    file = f"--benchmarks={pair / 'records.json'}"
    main(["evaluate", *common, file, "--accelerator=cpu", "--turns=all", "--max_new_tokens=3"])
    rows = answers(output, "records")
    assert len(rows) == NUM_SAMPLES * 3 // 2, "every other sample has two turns"
    assert [row["question_id"] for row in rows[:3]] == ["0/0", "1/0", "1/2"]
    assert "turns asked" not in capsys.readouterr().out
    benchmark = Benchmark.read(str(output / "records.yaml"))
    items = benchmark.items(Path(benchmark.annotations))
    assert [len(item.history) for item in items[:3]] == [0, 0, 2]
    assert items[2].history[1].text.startswith("a cat"), "the correct answer to the earlier turn"
    assert benchmark.max_new_tokens == max(len(item.answers[0]) for item in items) + EXTRA_TOKENS
    assert not benchmark.training
    image = as_question(items[2], benchmark.prompt_of(items[2])).images
    assert len(image) == 1
    with pytest.raises(SystemExit):
        main(["evaluate", *common, file, "--image_root=nowhere", "--accelerator=cpu"])
    assert "nowhere" in capsys.readouterr().err


def test_a_llava_file_is_scored(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = json.loads((pair / "records.json").read_text(encoding="utf-8"))
    file, given, output = pair / "records.json", tmp_path / "answers.json", tmp_path / "theirs" / "records.json"
    last = {sample["id"]: sample["conversations"][-1]["value"] for sample in samples}
    given.write_text(json.dumps({**last, samples[0]["id"]: "wrong"}), encoding="utf-8")
    main(["score", f"--benchmark={file}", f"--answers={given}", f"--output={output}", "--strict=true"])
    assert (
        f"records, protocol llava: {NUM_SAMPLES} questions, {100 - 100 / NUM_SAMPLES:.2f} %" in capsys.readouterr().out
    )
    main(["report", f"--systems.theirs={output.parent}", f"--output={tmp_path / 'out'}"])
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count('class="shot"') > 3, "examples have their images"
    with pytest.raises(SystemExit, match="2"):
        main(["score", "--benchmark=none.json", f"--answers={given}"])
    assert "none.json" in capsys.readouterr().err


def test_missing_benchmarks(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All missing benchmarks are named at once, and those that are present can be chosen."""
    layouts.gqa(tmp_path / "eval" / "gqa")
    common = [f"--models.teacher={pair / 'teacher'}", f"--output={tmp_path / 'out'}", f"--answer_store={tmp_path}"]
    common += [f"--data_root={tmp_path / 'eval'}", "--accelerator=cpu", "--max_new_tokens=2"]
    with pytest.raises(SystemExit):
        main(["evaluate", *common])
    error = capsys.readouterr().err
    assert "The files of 9 benchmarks are missing." in error
    assert f"- mme: {tmp_path / 'eval' / 'mme'}\n" in error
    assert "gqa" not in error
    main(["evaluate", *common, "--benchmarks=present"])
    count = len(Benchmark.read("gqa").items(tmp_path / "eval" / "gqa"))
    assert f"GQA, {count} of 12,578 questions" in capsys.readouterr().out
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert f"Only a part was asked: gqa: {count} of 12,578 questions." in text
    assert sum(line.count("0.0*") == 2 for line in text.splitlines()) == 2, "score and average in both tables"


def test_a_changed_image_is_asked_again(pair: Path, evaluated: Path, tmp_path: Path) -> None:
    shutil.copytree(evaluated / "store", tmp_path / "store")
    lines = sum(len(f.read_text(encoding="utf-8").splitlines()) for f in (tmp_path / "store").rglob("*.jsonl"))
    image = pair / "images" / "5.png"
    os.utime(image, ns=(0, 0))
    main(arguments(pair, tmp_path))
    after = sum(len(f.read_text(encoding="utf-8").splitlines()) for f in (tmp_path / "store").rglob("*.jsonl"))
    assert after == lines + 1


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
    assert len(list((tmp_path / "store").rglob("*.jsonl"))) == 4, "one file per process and kind of images"
    assert done.stdout.count("Report: ") == 1


KILLED = """
import os, signal, sys
from lightning_switchkd.cli.main import main
from lightning_switchkd.evaluation.answer_store import AnswerLog
append = AnswerLog.append
def five_times(log, lines):
    append(log, lines)
    if len(log.unanswered()) == len(log.items) - 5:
        os.kill(os.getpid(), signal.SIGKILL)
AnswerLog.append = five_times
main(sys.argv[1:])
"""


def test_killed_run_resumes(pair: Path, evaluated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", KILLED, *arguments(pair, tmp_path, "--batch_size=1")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (part,) = (tmp_path / "store").rglob("*.jsonl")
    lines = [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 5
    with part.open("a", encoding="utf-8") as out:
        out.write('{"key": "7", "te')  # a line that was being written
    main(arguments(pair, tmp_path))
    assert "teacher, tiny: 48 questions (5 answered before), 0:" in capfd.readouterr().err
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
        assert "Answers of teacher to tiny: 1 failed." in capsys.readouterr().out
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
        (["--baseline=sft"], "--baseline: unknown model 'sft'. Use one of teacher."),
        (["--benchmarks=test"], "'test' needs a run folder (--run)"),
        (["--benchmarks=present", "--data_root=/nowhere"], "/nowhere has the files of none of mme, mmbench"),
        (["--benchmarks=[gqa,gqa]"], "two benchmarks have the name 'gqa'"),
        (["--output=/proc/nope"], "Cannot write to /proc/nope"),
    ],
)
def test_user_errors_come_before_loading(
    more: list[str], message: str, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments(pair, tmp_path, *more))
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run=nowhere"], "nowhere is not a run folder"),
        ([], "Nothing to evaluate. Give a model (--models.student=DIR) or a run folder (--run)."),
        (["--models.a=x"], "--output: give a folder for the report."),
    ],
)
def test_models_and_output_are_needed(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", *flags])
    assert message in capsys.readouterr().err
