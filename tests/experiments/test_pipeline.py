"""Pipelines: definitions are checked before anything runs, finished stages are kept, changes run again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from command import ROOT
from safetensors.torch import load, load_file

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.experiments.pipeline import Pipeline, as_flags, load_definition, run_pipeline, stages_of
from lightning_switchkd.experiments.prepared import copy_prepared, usable
from lightning_switchkd.experiments.save_prepared import save_prepared
from lightning_switchkd.experiments.stage import Stage

COMMON: dict[str, Any] = {"folder": "runs/x", "base": [], "seeds": [0], "targets": ["last"], "color": "red"}


def never(arguments: list[str]) -> None:
    raise AssertionError("nothing may run")


def write(folder: Path, stages: dict[str, Any], **fields: Any) -> str:
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump({**COMMON, **fields, "stages": stages}), encoding="utf-8")
    return str(file)


def command(*inputs: str, output: str) -> dict[str, Any]:
    return {"command": ["ask", *(f"--model={name}" for name in inputs), f"--output={output}"], "output": output}


def test_a_stage_follows_the_stages_that_make_its_inputs(tmp_path: Path) -> None:
    stages = {
        "last": command("runs/x/b.json", output="runs/x/c.json"),
        "first": command(output="runs/x/a.json"),
        "middle": command("runs/x/a.json", output="runs/x/b.json"),
        "unrelated": command(output="runs/x/d.json"),
    }
    file = write(tmp_path, stages)
    pipeline = Pipeline(stages_of(load_definition(file, "pipeline"), {}, file), file)
    assert [stage.name for stage in pipeline.needed(["last"])] == ["first", "middle", "last"]
    assert pipeline.needs == {"last": ["middle"], "first": [], "middle": ["first"], "unrelated": []}


@pytest.mark.parametrize(
    ("stages", "variables", "targets", "message"),
    [
        ({"last": command("runs/x/b", output="runs/x/a"), "b": command("runs/x/a", output="runs/x/b")}, {}, None,
         "read each other's outputs: "),
        ({"last": command("runs/x/none", output="runs/x/a")}, {}, None,
         "Stage 'last': --model=runs/x/none does not exist, and no other stage makes it."),
        ({"last": command(output="runs/x/a")}, {}, ["lst"], "has no stage 'lst'. Its stages: last."),
        ({"last": command(output="runs/x/a")}, {"colour": "blue"}, None, "no variable 'colour'. Its variables: color."),
        ({"last": {"unheard": []}}, {}, None, "stage 'last' has an unknown field 'unheard'. Known fields: command, "),
        ({"last": command("${colour}", output="runs/x/a")}, {}, None, "Interpolation key 'colour' not found"),
        ({"last": {"configs": ["conf/method/my_typo.yaml"]}}, {}, None,
         "conf/method/my_typo.yaml does not exist. Available in conf/method: align_kd, bild"),
        ({"last": {"settings": {"data": {"train": {"annotations": "none.json"}}}}}, {}, None,
         "Stage 'last': data.train.annotations=none.json does not exist"),
        ({"last": {"flags": "max_steps=3"}}, {}, None, "'max_steps=3' is not a flag. Write --key=value."),
    ],
)  # fmt: skip
def test_mistakes_are_reported_before_anything_runs(
    tmp_path: Path, stages: dict[str, Any], variables: dict[str, str], targets: list[str] | None, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        run_pipeline(never, write(tmp_path, stages), variables, targets)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_lists_the_others() -> None:
    with pytest.raises(UserError, match="Available in conf/pipeline: demo, digits, easy_vqa, emoji"):
        run_pipeline(never, "conf/pipeline/my_emoji.yaml")


def test_fields_of_another_file(tmp_path: Path) -> None:
    """A file takes the fields it does not set, and the stages of both."""
    write(tmp_path, {"first": command(output="runs/x/a.json")})
    other = tmp_path / "other.yaml"
    more = {"extends": "pipeline.yaml", "color": "blue", "stages": {"last": command("${color}/x", output="b")}}
    other.write_text(yaml.safe_dump(more), encoding="utf-8")
    stages = stages_of(load_definition(other, "pipeline"), {}, "other")
    assert [(stage.name, stage.command) for stage in stages] == [
        ("first", ("ask", "--output=runs/x/a.json")),
        ("last", ("ask", "--model=blue/x", "--output=b")),
    ]


def test_one_stage_per_seed(tmp_path: Path) -> None:
    settings = {"model": {"student": {"checkpoint": "runs/x/start.${seed}/student"}}}
    file = write(tmp_path, {"tuned": {"each_seed": True, "settings": settings}}, seeds=[4, 5])
    stages = stages_of(load_definition(file, "pipeline"), {}, file)
    assert [stage.name for stage in stages] == ["tuned.4", "tuned.5"]
    assert stages[1].inputs() == {"runs/x/start.5/student": "model.student.checkpoint"}
    assert "--seed_everything=5" in stages[1].arguments()


def test_flags_with_a_blank() -> None:
    assert as_flags("--hardware a100-80g --data.train '{annotations: a b.json}'") == [
        "--hardware=a100-80g",
        "--data.train={annotations: a b.json}",
    ]


def test_effective_settings(tmp_path: Path) -> None:
    """Later files win, then the stage's settings, then flags. References between settings are resolved."""
    file = tmp_path / "a.yaml"
    file.write_text("{data: {processor: '${model.student.checkpoint}'}, model: {lr: 1, student: {checkpoint: s}}}")
    flag = "--model.student.checkpoint=other"
    stage = Stage("x", tmp_path / "run", ("fit", flag), tmp_path, (str(file),), {"model": {"lr": 2}})
    settings = stage.effective_settings
    assert settings["model"] == {"lr": 2, "student": {"checkpoint": "other"}}
    assert settings["data"] == {"processor": "other"}
    assert stage.digest()["settings"]["model"] == settings["model"]


def test_prepared_models_fit_their_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are complete, and the settings of their stages are those they were made with."""
    file = "conf/pipeline/emoji.yaml"
    monkeypatch.chdir(tmp_path)
    stages = {stage.name: stage for stage in stages_of(load_definition(file, "pipeline"), {}, file)}
    pipeline = Pipeline(stages.values(), file)
    assert pipeline.copied == {"vision_encoder", "teacher", "student_init"}
    assert [stage.name for stage in pipeline.needed(["distilled"])] == ["data", "teacher", "student_init", "distilled"]
    copy_prepared(stages["vision_encoder"])
    assert usable(stages["teacher"]), "it was made from this vision encoder"


def test_inputs_of_a_stage(tmp_path: Path) -> None:
    """A training does not read the test samples. A command reads its flags' files; a run counts by its student."""
    data = {name: {"annotations": f"{name}.json"} for name in ("train", "val", "test")}
    training = Stage("x", tmp_path / "run", ("fit",), tmp_path, settings={"data": data})
    assert training.inputs() == {"train.json": "data.train.annotations", "val.json": "data.val.annotations"}
    command = Stage("y", tmp_path / "y", ("evaluate", f"--run={tmp_path}/run", "--output=a/b"), Path("a/b"))
    assert command.inputs() == {f"{tmp_path}/run": "--run"}
    hashes = []
    for content in (b"one", b"two"):
        (tmp_path / "run" / "student").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "student" / "model.safetensors").write_bytes(content)
        hashes.append(command.digest()["inputs"])
    assert hashes[0] != hashes[1]


def test_shipped_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each can be read, and its targets need nothing that no stage makes."""
    monkeypatch.chdir(ROOT)
    for name in ("digits", "easy_vqa", "emoji"):
        file = f"conf/pipeline/{name}.yaml"
        definition = load_definition(file, "pipeline")
        pipeline = Pipeline(stages_of(definition, {"method": "dbild"}, file), file)
        for target in pipeline.stages:
            pipeline.check([target])
        order = [stage.name for stage in pipeline.needed(definition["targets"])]
        assert order[-1] == "evaluate"
        assert {"data", "fine_tuned", "distilled"} <= set(order)
        alone = Pipeline(stages_of(definition, {"method": "sft"}, file), file)
        assert "fine_tuned" not in [stage.name for stage in alone.needed(["evaluate"])]


# -- runs of tiny models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_pair(tmp_path_factory.mktemp("pair"))


def tiny_pipeline(folder: Path, pair: Path, **fields: Any) -> Path:
    """Write a pipeline of three stages: a student, a second student from the first, and its answers."""
    data = {"annotations": str(pair / "records.json"), "image_root": str(pair / "images")}
    settings = {
        "data": {"processor": str(pair / "processor"), "train": data, "val": data, "batch_size": 8, "num_workers": 0},
        "model": {
            "student": {"checkpoint": str(pair / "student")},
            "objective": {"class_path": "lightning_switchkd.objectives.SFT"},
            "lr": 1e-3,
        },
        "trainer": {"max_epochs": -1, "max_steps": 6, "limit_val_batches": 0},
        "checkpoint": {"every_n_train_steps": 1},
    }
    first = folder / "runs" / "first" / "student"
    second = {**settings, "model": {**settings["model"], "student": {"checkpoint": str(first)}}}  # type: ignore[dict-item]
    asked = ["ask", f"--model={folder}/runs/second/student", f"--questions.test={data['annotations']}",
             f"--image_root={data['image_root']}", f"--output={folder}/runs/answers.json"]  # fmt: skip
    definition = {
        "folder": str(folder / "runs"),
        "base": [str(ROOT / "conf/base.yaml"), str(ROOT / "conf/trainer/cpu.yaml")],
        "seeds": [0],
        "targets": ["answers"],
        "steps": 6,
        "stages": {
            "first": {
                "settings": settings,
                "prepared": str(folder / "prepared"),
                "flags": "--trainer.max_steps=${steps}",
            },
            "second": {"settings": second, **fields},
            "answers": {"command": asked, "output": f"{folder}/runs/answers.json"},
        },
    }
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(definition), encoding="utf-8")
    return file


def weights(folder: Path) -> dict[str, bytes]:
    return {
        name: (folder / "runs" / name / "student" / "model.safetensors").read_bytes() for name in ("first", "second")
    }


def test_kept_changed_and_prepared(tmp_path: Path, pair: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tiny_pipeline(tmp_path, pair)
    arguments = ["pipeline", f"--pipeline={file}"]

    def ends() -> dict[str, str]:
        """Run the pipeline. Return what each stage's last line says about it."""
        main(arguments)
        lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("[")]
        return {line.split()[1].rstrip(":"): line.split()[2] for line in lines}

    assert ends() == {"first": "finished", "second": "finished", "answers": "finished"}
    before = weights(tmp_path)
    assert ends() == {"first": "kept", "second": "kept", "answers": "kept"}

    (tmp_path / "runs" / "answers.json").unlink()
    assert ends() == {"first": "kept", "second": "kept", "answers": "finished"}, "a missing output"

    stage = next(s for s in stages_of(load_definition(file, "pipeline"), {}, str(file)) if s.name == "first")
    save_prepared(stage, {})
    assert not usable(stage), "a student that was trained here is never replaced"
    shutil.rmtree(tmp_path / "runs")
    assert ends()["first"] == "finished"
    rounded = load_file(tmp_path / "runs" / "first" / "student" / "model.safetensors")
    assert all(torch.equal(rounded[name], tensor.bfloat16()) for name, tensor in load(before["first"]).items())
    assert stage.state()["prepared"]
    assert ends() == {"first": "kept", "second": "kept", "answers": "kept"}

    arguments.append("--variables.steps=7")
    main(arguments)
    said = capfd.readouterr().out
    assert "first: the prepared model is not used, because it was made differently: trainer/max_steps 6 -> 7" in said
    assert "first: runs again, because it changed: trainer.max_steps 6 -> 7" in said
    assert "second: runs again, because it changed: " in said
    assert weights(tmp_path)["first"] != before["first"]

    shutil.rmtree(tmp_path / "runs")
    prepared = tmp_path / "prepared" / "model.safetensors"
    prepared.write_bytes(prepared.read_bytes()[:-1] + b"x")
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    made_from = json.loads((tmp_path / "prepared" / "made_from.json").read_text(encoding="utf-8"))
    assert f"instead of {made_from['sha256'][:16]}" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists(), "nothing ran"


def test_a_finished_evaluation_shows_its_result_again(
    tmp_path: Path, pair: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The state is that of one run: another one runs for the first time, and says nothing of changes."""
    evaluation = ["evaluate", f"--models.a={pair}/teacher", f"--benchmarks={pair}/records.json", "--limit=3",
                  f"--image_root={pair}/images", "--accelerator=cpu", f"--output={tmp_path}/${{run}}/report",
                  f"--answer_store={tmp_path}/store"]  # fmt: skip
    (tmp_path / "store").mkdir()
    folder = f"{tmp_path}/${{run}}/report"
    stage = {"command": evaluation, "folder": folder, "output": f"{folder}/results.json"}
    file = write(tmp_path, {"last": stage}, run="one")
    printed = []
    for run in ("one", "one", "other"):
        main(["pipeline", f"--pipeline={file}", f"--variables.run={run}"])
        printed.append(capfd.readouterr().out.splitlines())
    first, again, other = printed
    table = next(number for number, line in enumerate(first) if line.startswith("last | | records, 3 questions"))
    assert again[:-1] == first[table:-1]
    assert again[-2].startswith(f"last | Report: {tmp_path}/one/report/report.html")
    assert again[-1].startswith("[1/1] last: kept")
    assert other[-1].startswith("[1/1] last: finished")
    assert not any("runs again" in line for line in other)


def test_a_failing_stage(tmp_path: Path, pair: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tiny_pipeline(tmp_path, pair, flags="--model.lr=-1")
    with pytest.raises(SystemExit, match="2"):
        main(["pipeline", f"--pipeline={file}"])
    out, error = capfd.readouterr()
    assert error.startswith("error: Stage 'second': model.lr")
    assert len(error.splitlines()) == 1
    assert "second | error" not in out, "an error is printed once"


def test_a_refused_training_is_still_finished(
    tmp_path: Path, pair: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings are refused before the run folder changes, so the earlier run counts."""
    command = ["pipeline", f"--pipeline={tiny_pipeline(tmp_path, pair)}", "--stages=[second]"]
    main(command)
    before = weights(tmp_path)["second"]
    with pytest.raises(SystemExit, match="2"):
        main(["pipeline", f"--pipeline={tiny_pipeline(tmp_path, pair, flags='--model.lr=-1')}", "--stages=[second]"])
    capfd.readouterr()
    tiny_pipeline(tmp_path, pair)
    main(command)
    assert "second: kept" in capfd.readouterr().out
    assert weights(tmp_path)["second"] == before
    assert not (tmp_path / "runs" / "second" / "previous").exists()


def test_flags_that_a_stage_goes_without(tmp_path: Path) -> None:
    flags = "--model.objective.init_args.temperature=2 --model.objective=KD --model.objectives=1 --trainer.max_steps=5"
    file = write(tmp_path, {"all": {"flags": flags}, "most": {"flags": flags, "without": ["model.objective"]}})
    every, most = stages_of(load_definition(file, "pipeline"), {}, str(file))
    assert every.command[1:] == tuple(flags.split())
    assert most.command[1:] == ("--model.objectives=1", "--trainer.max_steps=5")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Nothing runs, not even the stages in other folders."""
    first = command(output=str(tmp_path / "a.json")) | {"folder": str(tmp_path / "first")}
    file = write(tmp_path, {"first": first, "last": {"folder": "/proc/nope"}})
    with pytest.raises(UserError, match=r"Stage 'last': cannot write to /proc/nope .* another folder \(RUN=...\)"):
        run_pipeline(never, file, stages=["first", "last"])


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["runs/first/checkpoints/last.ckpt", "runs/second/checkpoints/last.ckpt",
                                    "runs/answers.log"])  # fmt: skip
def test_a_killed_pipeline_ends_with_the_same_results(tmp_path: Path, pair: Path, moment: str) -> None:
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    for folder in (reference, killed):
        folder.mkdir()
    main(["pipeline", f"--pipeline={tiny_pipeline(reference, pair)}"])
    command = [sys.executable, "-m", "lightning_switchkd", "pipeline", f"--pipeline={tiny_pipeline(killed, pair)}"]
    process = subprocess.Popen(command, start_new_session=True)
    while not (killed / moment).exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    states = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*.stage.json")}
    finished = {path: when for path, when in states.items() if "finished" in json.loads(path.read_text("utf-8"))}
    main(command[3:])
    assert weights(killed) == weights(reference)
    assert (killed / "runs/answers.json").read_bytes() == (reference / "runs/answers.json").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "nothing finished ran again"
