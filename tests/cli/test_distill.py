"""The command distill: models and data of your own, without a configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import yaml

from lightning_switchkd.cli.distill import json_files
from lightning_switchkd.cli.main import main


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_pair(tmp_path_factory.mktemp("pair"))


def distill(pair: Path, output: Path, **changed: str) -> list[str]:
    values = {
        "teacher": str(pair / "teacher"),
        "student": str(pair / "student"),
        "data": str(pair / "records.json"),
        "images": str(pair / "images"),
        "output": str(output),
        "trainer": "cpu",
        "flags": f"--trainer.max_steps=2 --data.processor={pair / 'processor'} --data.num_workers=0",
    }
    return ["distill", *(f"--{key}={value}" for key, value in (values | changed).items())]


def test_a_run_and_its_configuration(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It distills with the method's objective, and config.yaml has everything to repeat it."""
    main(distill(pair, tmp_path / "run", overlays="debug gradient_split"))
    assert f"evaluate --run {tmp_path / 'run'} --benchmarks '[FILE]' --image_root FOLDER\n" in capsys.readouterr().out
    assert (tmp_path / "run" / "student" / "config.json").is_file()
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["objective"]["class_path"].endswith("SwitchKDObjective")
    assert config["model"]["teacher"]["checkpoint"] == str(pair / "teacher")
    assert config["data"]["train"][0]["image_root"] == str(pair / "images")
    assert config["trainer"]["max_steps"] == 2
    assert config["answer_panel"]["num_samples"] == 4
    assert config["vision_gradients"]["split_every_n_steps"] == 10


def test_another_command(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It gets the settings of the training, and nothing is trained."""
    flags = f"--output={tmp_path / 'report'} --workers=0 --data.processor={pair / 'processor'}"
    main(distill(pair, tmp_path / "run", command="validate-data", flags=flags))
    assert "train: 48 of 48 samples are valid" in capsys.readouterr().out
    assert (tmp_path / "report" / "exclude.jsonl").is_file()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"command": "train"}, "--command: unknown command 'train'. Available: fit, validate, test, validate-data"),
        ({"data": "none.json"}, "data.train.annotations: The file none.json does not exist."),
        ({"images": "none"}, "data.train.image_root: the folder none does not exist."),
        ({"method": "my_kd"}, "conf/method/my_kd.yaml does not exist. Available in conf/method: align_kd"),
        ({"overlays": "my_logger"}, "conf/overlay/my_logger.yaml does not exist. Available in conf/overlay: best"),
        ({"trainer": "my_gpu"}, "conf/trainer/my_gpu.yaml does not exist."),
        ({"flags": "max_steps=2"}, "'max_steps=2' is not a flag."),
        ({"teacher": "./none"}, "folder './none' does not exist"),
    ],
)
def test_mistakes(
    pair: Path, tmp_path: Path, changed: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(distill(pair, tmp_path / "run", **changed))
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.max_steps=2"], "Unknown flag --trainer.max_steps. Settings of a training go into --flags='--"),
        (["--model.lr=2"], "Unknown flag --model.lr. Settings of a training go into --flags='--model.lr=…'."),
        (["--flags", "--model.lr=2"], "--flags needs a value. If the value starts with --, write --flags='--key="),
    ],
)
def test_settings_of_the_training(
    pair: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*distill(pair, tmp_path / "run"), *arguments])
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_image_files_without_their_folder(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [argument for argument in distill(pair, tmp_path / "run") if not argument.startswith("--images")]
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "is a path, but image_root is not set. Set it (IMAGES=, --images)." in capsys.readouterr().err


def test_a_folder_of_json_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "photo.png"):
        (tmp_path / name).touch()
    assert json_files(str(tmp_path)) == [str(tmp_path / "a.json"), str(tmp_path / "b.jsonl")]
    assert json_files("https://example.org/a.parquet") == ["https://example.org/a.parquet"]
    (tmp_path / "shards").mkdir()
    assert json_files(str(tmp_path / "shards")) == [str(tmp_path / "shards")], "the data module opens it"
