"""Tests of the command line: all configurations parse, a student is exported and used, errors are one paragraph."""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from command import ROOT, configs, fit_arguments
from transformers import AutoProcessor, LlavaForConditionalGeneration

from lightning_switchkd.cli.commands import COMMANDS
from lightning_switchkd.cli.lightning import SwitchKDCLI, run_lightning
from lightning_switchkd.cli.main import find_user_error, main
from lightning_switchkd.cli.renamed import LIGHTNING_COMMANDS
from lightning_switchkd.data.datamodule import LLaVADataModule
from lightning_switchkd.experiments.pipeline import load_definition, stages_of

NAMES = {
    kind: sorted(path.stem for path in (ROOT / "conf" / kind).glob("*.yaml"))
    for kind in ("data", "model", "trainer", "method", "overlay", "sweep", "pipeline")
}

COMPOSITIONS = [
    *((data, model, "cpu", "switch_kd") for data, model in itertools.product(NAMES["data"], NAMES["model"])),
    *(("digits", "digits", *pair) for pair in itertools.product(NAMES["trainer"], NAMES["method"])),
]


def in_ci(data: str, model: str, trainer: str, method: str) -> bool:
    """Every file once, and your own data with the models that have none."""
    fits = data == (model if model in NAMES["data"] else "llava")
    return fits and (trainer == "cpu" or method == "switch_kd")


def printed(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> dict[str, Any]:
    import yaml

    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--print_config"])
    assert stop.value.code == 0
    return dict(yaml.safe_load(capsys.readouterr().out))


@pytest.mark.parametrize(
    "names", [pytest.param(c, id="+".join(c), marks=() if in_ci(*c) else pytest.mark.slow) for c in COMPOSITIONS]
)
def test_every_composition_parses(names: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", *configs(*names), "--trainer.default_root_dir=runs/here", "--seed_everything=7"]
    config = printed(capsys, arguments)
    assert config["data"]["seed"] == 7
    assert config["checkpoint"]["dirpath"] == "runs/here/checkpoints"
    assert {logger["init_args"]["save_dir"] for logger in config["trainer"]["logger"]} == {"runs/here"}


def test_configurations_ship_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of conf/ are found from another folder. The folder's own files win."""
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "sft.yaml").write_text("model: {lr: 0.5}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    files = ["--config", "conf/base.yaml", "--config=conf/data/digits.yaml", "-c", "conf/model/digits.yaml"]
    config = printed(capsys, ["fit", *files, "--config=conf/method/sft.yaml"])
    assert config["data"]["processor"] == "datasets/digits/processor"
    assert config["model"]["lr"] == 0.5
    main(["pipeline", "--pipeline=conf/pipeline/digits.yaml", "--dry"])
    assert "distilled: fit --config=conf/base.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("python", "script", "program"),
    [
        ("/usr/bin/python3", "/bin/switchkd", "switchkd"),
        ("/usr/bin/python3", "__main__.py", "python -m lightning_switchkd"),
        (str(Path.cwd() / ".venv/bin/python"), "__main__.py", ".venv/bin/python -m lightning_switchkd"),
    ],
)
def test_messages_name_the_program_as_it_was_started(
    python: str, script: str, program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.executable", python)
    monkeypatch.setattr("sys.argv", [script])
    main([])
    assert capsys.readouterr().out.startswith(f"usage: {program} COMMAND")


@pytest.mark.parametrize(("overlay", "setting"), [("wandb", "name"), ("mlflow", "run_name")])
def test_a_run_is_named_by_method_and_folder(overlay: str, setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = configs("digits", "digits", "cpu", "dbild", f"overlay/{overlay}")
    config = printed(capsys, ["fit", *files, "--trainer.default_root_dir=runs/here"])
    assert config["trainer"]["logger"][-1]["init_args"][setting] == "dbild runs/here"


def test_every_file_of_conf_is_tested() -> None:
    tested = {f"{kind}/{name}" for kind, names in NAMES.items() for name in names} | {"base", "benchmarks", "published"}
    files = {str(path.relative_to(ROOT / "conf").with_suffix("")) for path in (ROOT / "conf").rglob("*.yaml")}
    assert files == tested


@pytest.mark.parametrize("name", ["digits", "easy_vqa", "emoji", "full_size"])
def test_every_stage_of_a_pipeline_parses(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    file = f"conf/pipeline/{name}.yaml"
    definition = load_definition(file, "pipeline")
    for stage in stages_of(definition, {"folder": str(tmp_path), "run": str(tmp_path / "run")}, file):
        if stage.trains:
            config = printed(capsys, stage.arguments())
            assert config["trainer"]["default_root_dir"] == str(stage.folder)
            own = stage.effective_settings["model"]
            assert config["model"]["lr"] == own["lr"]
            assert config["model"]["student"]["checkpoint"] == own["student"].get("checkpoint")


@pytest.mark.parametrize("data", ["digits", "easy_vqa", "emoji"])
def test_a_data_set_and_its_stages_refer_to_no_other(data: str) -> None:
    files = (ROOT / "conf" / kind / f"{data}.yaml" for kind in ("data", "model", "pipeline"))
    referred = {
        name for file in files for name in re.findall(r"(?:datasets|runs)/(\w+)", file.read_text(encoding="utf-8"))
    }
    assert referred <= {data, f"{data}_teacher"}


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    run = tmp_path_factory.mktemp("runs") / "first"
    main(fit_arguments(folder, run))
    return run


def test_a_run_writes_its_files(run: Path) -> None:
    for name in ("config.yaml", "metrics.csv", "checkpoints/last.ckpt", "student/config.json", "student/README.md"):
        assert (run / name).exists(), name
    header = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    expected = {
        "train/loss/ce",
        "train/loss/align",
        "train/loss/vsd",
        "val/loss/vsd",
        "val/accuracy",
        "val/exact_match",
    }
    assert expected <= set(header)
    assert list(run.glob("events.out.tfevents.*"))


def test_export_loads_with_hugging_face_alone(folder: Path, run: Path, tmp_path: Path) -> None:
    """Weights equal the training model's, and the chat template gives the token ids of the training."""
    main(["export", f"--ckpt={run / 'checkpoints' / 'last.ckpt'}", f"--output={tmp_path / 'out'}"])
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[f"_distiller.student.model.{name}"])
    again = LlavaForConditionalGeneration.from_pretrained(run / "student").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())

    data: LLaVADataModule = tiny.data_module(folder)
    question = data.dataset("val").sample(0)
    messages = [{"role": turn.role, "content": turn.text} for turn in question.turns]
    text = processor.apply_chat_template(messages)
    image = question.load_images()[0]
    inputs = processor(text=text, images=[image], return_tensors="pt")
    sample = data.dataset("val")[0]
    assert inputs["input_ids"][0].tolist() == sample.input_ids.tolist()
    assert processor.tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    torch.testing.assert_close(inputs["pixel_values"], torch.stack(sample.pixels[0]))
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


def test_generate(folder: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((folder / "images").glob("*.png"))
    main(
        ["generate", f"--model={run / 'student'}", f"--image={image}", "--question=What is in 1?", "--max_new_tokens=3"]
    )
    assert capsys.readouterr().out.endswith("\n")


def test_flags_win_on_resume(folder: Path, run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    main(fit_arguments(folder, tmp_path / "second", f"--ckpt_path={checkpoint}", "--trainer.max_steps=6"))
    assert torch.load(tmp_path / "second" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_a_finished_run_refuses_other_settings(folder: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would train nothing with them, and end with success."""
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main(fit_arguments(folder, run, "--ckpt_path=last", "--model.lr=0.5", "--trainer.log_every_n_steps=7"))
    error = capsys.readouterr().err
    assert "last.ckpt is the end of its run, so nothing would be trained with the changed settings: model.lr" in error
    assert "log_every_n_steps" not in error, "it decides no result"
    assert (run / "config.yaml").read_bytes() == before


def test_a_refused_resume_changes_no_file_of_its_run(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second mistake is found when the models are loaded, after everything else is built."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for mistake in ("--model.teacher.checkpoint=./nowhere", "--model.teacher.lora.rank=2"):
        with pytest.raises(SystemExit, match="2"):
            main(["fit", f"--config={run / 'config.yaml'}", "--ckpt_path=last", "--trainer.max_steps=6", mistake])
        assert "error: model.teacher." in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


TEMPERATURE = "objective.init_args.temperature"
SELECT = "objective.init_args.select.init_args"
FOREIGN = "is not a checkpoint of lightning_switchkd"


def user_errors(folder: Path, run: Path, tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """Return arguments and a part of the expected error message, by name."""
    not_a_list = tmp_path / "object.json"
    not_a_list.write_text('{"id": 1}', encoding="utf-8")
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, foreign)
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes()[:1000])
    typo = tmp_path / "typo.yaml"
    typo.write_text("model: {lrr: 1}", encoding="utf-8")
    video = tmp_path / "video"
    video.mkdir()
    (video / "config.json").write_text('{"model_type": "qwen2_5_vl"}', encoding="utf-8")
    new = tmp_path / "run"
    return {
        "unknown flag": (fit_arguments(folder, new, "--model.lrr=3"), "flag --model.lrr. Did you mean --model.lr?"),
        "abbreviation": (fit_arguments(folder, new, "--trainer.max_step=3"), "Did you mean --trainer.max_steps?"),
        "unknown key": (fit_arguments(folder, new, f"--config={typo}"), "setting model.lrr. Did you mean model.lr?"),
        "unknown argument": (
            fit_arguments(folder, new, "--model.objective.init_args.temprature=3"),
            "SwitchKDObjective has no setting 'temprature'. Its settings: lambda_align, lambda_vsd, temperature",
        ),
        "wrong value": (fit_arguments(folder, new, "--model.student.dtype=int8"), "dtype: unknown value 'int8'"),
        "missing": (["fit", f"--config={ROOT / 'conf' / 'base.yaml'}"], "Missing settings: data.processor. It is"),
        "flag of a command": (["score", "--benchmrk=pope"], "Unknown flag --benchmrk. Did you mean --benchmark?"),
        "wrong type": (
            fit_arguments(folder, new, "--trainer.max_steps=many"),
            "error: trainer.max_steps: expected int, got 'many'.",
        ),
        "wrong optional": (
            fit_arguments(folder, new, "--data.val_batch_size=x"),
            "error: data.val_batch_size: expected int, got 'x'.",
        ),
        "wrong value of a part": (
            fit_arguments(folder, new, "--model.teacher.dtype=int8"),
            "error: model.teacher.dtype: unknown value 'int8'. Choose one of 'float32', ",
        ),
        "wrong type of a part": (
            fit_arguments(folder, new, f"--model.{SELECT}.min_k=x"),
            "error: model.objective.select.min_k: expected int, got 'x'.",
        ),
        "unknown class": (
            fit_arguments(folder, new, "--model.objective.init_args.select=Kneedl"),
            "select: unknown class 'Kneedl'. Choose one of Kneedle, FixedTopK, CumulativeMass, or give module.Class.",
        ),
        "min_k": (fit_arguments(folder, new, f"--model.{SELECT}.min_k=2"), "min_k must be at least 3, got 2"),
        "temperature": (fit_arguments(folder, new, f"--model.{TEMPERATURE}=0"), "temperature must be positive"),
        "rate": (fit_arguments(folder, new, "--model.lr=-1"), "model.lr must be a positive number, got -1.0"),
        "batch size": (fit_arguments(folder, new, "--data.batch_size=0"), "data.batch_size must be at least 1, got 0"),
        "no steps": (fit_arguments(folder, new, "--trainer.max_steps=0"), "max_steps is 0: nothing would be trained"),
        "no GPU": (fit_arguments(folder, new, extra=("trainer/gpu",)), "Set TRAINER=cpu, or --trainer.accelerator=cpu"),
        "validation": (
            fit_arguments(folder, new, "--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=500"),
            "error: `val_check_interval` (500) must be less than or equal to the number of the training batches (6)",
        ),
        "run folder": (fit_arguments(folder, Path("/proc/nope")), "default_root_dir: cannot write to /proc/nope"),
        "package": (fit_arguments(folder, new, extra=("overlay/wandb",)), "pip install 'wandb>="),
        "no json": (fit_arguments(folder, new, "--data.train.annotations=nowhere.json"), "nowhere.json"),
        "no list": (fit_arguments(folder, new, f"--data.train.annotations={not_a_list}"), "object.json"),
        "no image root": (fit_arguments(folder, new, "--data.train.image_root=nowhere"), "data.train.image_root"),
        "no teacher folder": (fit_arguments(folder, new, "--model.teacher.checkpoint=./nowhere"), "does not exist"),
        "no teacher": (fit_arguments(folder, new, "--model.teacher=null"), "model.teacher is null"),
        "family": (fit_arguments(folder, new, f"--model.student.checkpoint={video}"), "'qwen2_5_vl' model"),
        "family without a processor": (
            fit_arguments(folder, new, f"--model.student.checkpoint={video}", f"--data.processor={video}"),
            "'qwen2_5_vl' model",
        ),
        "frozen vision": (fit_arguments(folder, new, "--model.freeze=[vision]"), "model.freeze contains 'vision'"),
        "no checkpoint": (fit_arguments(folder, new, "--ckpt_path=nowhere.ckpt"), "'nowhere.ckpt' does not exist"),
        "cut checkpoint": (fit_arguments(folder, new, f"--ckpt_path={cut}"), "cannot be read as a checkpoint"),
        "foreign checkpoint": (fit_arguments(folder, new, f"--ckpt_path={foreign}"), FOREIGN),
        "another student": (
            fit_arguments(
                folder, new, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}",
                f"--model.student.checkpoint={folder / 'teacher'}", "--trainer.max_steps=99",
            ),
            "holds another student",
        ),
        "export": (["export", f"--ckpt={foreign}", f"--output={tmp_path / 'out'}"], FOREIGN),
        "another family": (["generate", f"--model={video}", "--question=?"], f"--model = '{video}' is a 'qwen2_5"),
        "generate": (["generate", f"--model={run / 'student'}", "--question=?", "--image=nowhere.png"], "nowhere.png"),
        "configuration": (["fit", "--config=conf/method/mine.yaml"], "Available in conf/method: align_kd, bild,"),
        "no benchmark": (["score", "--benchmark=nope", "--answers=x"], "Available benchmarks: gqa,"),
        "command": (["train"], "Unknown command 'train'. Available commands: fit, validate,"),
    }  # fmt: skip


def test_user_errors_are_one_paragraph(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = (run / "checkpoints" / "last.ckpt").read_bytes()
    for name, (arguments, message) in user_errors(folder, run, tmp_path).items():
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        error = capsys.readouterr().err
        assert stop.value.code not in (0, None), name
        assert message in error, f"{name}: {error}"
        assert "Traceback" not in error, name
        assert "usage:" not in error, name
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == checkpoint


def test_classes_are_named_without_their_module(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select = "--model.objective.init_args.select"
    config = printed(capsys, fit_arguments(folder, folder, f"{select}=FixedTopK", f"{select}.init_args.k=5"))
    objective = config["model"]["objective"]["init_args"]
    assert objective["select"] == {"class_path": "lightning_switchkd.losses.FixedTopK", "init_args": {"k": 5}}


def test_a_package_that_lacks_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mlflow-skinny is such a package. A missing import of this project stays a traceback."""
    (tmp_path / "skinny.py").write_text("import not_installed", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError) as error:
        importlib.import_module("skinny")
    message = find_user_error(error.value)
    assert message is not None
    assert message.startswith("skinny needs not_installed, which is missing: ")
    assert message.endswith(" -m pip install skinny")
    with pytest.raises(ModuleNotFoundError) as own:
        exec("import not_installed", {"__name__": "lightning_switchkd.core.x"})
    assert find_user_error(own.value) is None


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    usage = capsys.readouterr().out
    for command in (*LIGHTNING_COMMANDS, *COMMANDS):
        assert f"\n  {command} " in usage


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        ("pipeline", {"torch", "lightning"}),
        ("sweep", {"torch", "lightning"}),
        ("repack", {"lightning"}),
        ("score", {"lightning"}),
    ],
)
def test_a_command_imports_only_what_it_needs(command: str, unused: set[str]) -> None:
    """Importing Lightning takes seconds, also in front of a help text or an error."""
    code = (
        "import sys, lightning_switchkd.cli.main\n"
        "from lightning_switchkd.cli.commands import command_function\n"
        f"command_function('{command}')\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not unused & set(loaded.split())


def test_the_private_hook_of_lightning_exists() -> None:
    """SwitchKDCLI overrides the hook by which checkpoint hyperparameters would override flags."""
    from lightning.pytorch.cli import LightningCLI

    assert "_parse_ckpt_path" in vars(LightningCLI)
    assert "_parse_ckpt_path" in vars(SwitchKDCLI)
    assert callable(run_lightning)
