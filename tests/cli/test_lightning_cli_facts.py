"""Tests of the facts about LightningCLI that this package relies on or changes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import ROOT, configs, fit_arguments
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_switchkd.cli.lightning import CALLBACKS
from lightning_switchkd.cli.main import main

BASE = ["fit", *configs("digits", "digits", "cpu", "switch_kd")]
OVERLAYS = sorted(path.stem for path in (ROOT / "conf" / "overlay").glob("*.yaml"))
EXTRA_PACKAGES = ("wandb", "mlflow")
"""Overlays that need a package of the same name, which is not installed by default."""


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run, with a checkpoint of step 2 and the best one of the validations."""
    run = tmp_path_factory.mktemp("runs") / "first"
    main(
        fit_arguments(
            folder, run, "--checkpoint.every_n_train_steps=2", "--checkpoint.save_top_k=-1", extra=("overlay/best",)
        )
    )
    return run


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--print_config"])
    assert stop.value.code == 0
    return dict(yaml.safe_load(capsys.readouterr().out))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code not in (0, None)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def written(tmp_path: Path, text: str, name: str = "mine.yaml") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return f"--config={tmp_path / name}"


def test_interpolations_follow_later_files_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_file = printed(capsys, *BASE, written(tmp_path, "trainer: {default_root_dir: runs/file}"))
    by_flag = printed(capsys, *BASE, "--trainer.default_root_dir=runs/flag", "--seed_everything=5")
    assert by_file["checkpoint"]["dirpath"] == "runs/file/checkpoints"
    assert by_flag["checkpoint"]["dirpath"] == "runs/flag/checkpoints"
    assert by_flag["data"]["seed"] == 5
    assert {logger["init_args"]["save_dir"] for logger in by_flag["trainer"]["logger"]} == {"runs/flag"}


def test_a_file_for_one_section_cannot_refer_to_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.yaml").write_text("lr: ${data.max_length}\n", encoding="utf-8")
    assert "not in a file for one section" in refused(capsys, *BASE, f"--model={tmp_path / 'model.yaml'}")
    full = printed(capsys, *BASE, written(tmp_path, "model: {lr: '${data.max_length}'}"))
    assert full["model"]["lr"] == 256


def test_lists_are_replaced_or_appended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`callbacks:` replaces the list, but not the callbacks of every run. `callbacks+:` and `logger+:` append."""

    def classes(config: dict[str, Any], key: str) -> list[str]:
        return [entry["class_path"].rpartition(".")[2] for entry in config["trainer"][key]]

    summary, stats = (
        f"{{class_path: lightning.pytorch.callbacks.{c}}}" for c in ("ModelSummary", "DeviceStatsMonitor")
    )
    one = written(tmp_path, f"trainer: {{callbacks: [{summary}]}}", "one.yaml")
    other = written(tmp_path, f"trainer: {{callbacks: [{stats}]}}", "other.yaml")
    more = written(tmp_path, f"trainer: {{callbacks+: [{stats}]}}", "more.yaml")
    assert classes(printed(capsys, *BASE, one, other), "callbacks") == ["DeviceStatsMonitor"]
    assert classes(printed(capsys, *BASE, one, more), "callbacks") == ["ModelSummary", "DeviceStatsMonitor"]
    assert CALLBACKS.keys() - {"interruption", "data_health"} <= printed(capsys, *BASE, other).keys(), (
        "callbacks of every run have sections, independent of the list"
    )
    flag = "--trainer.logger+=lightning.pytorch.loggers.CSVLogger"
    loggers = classes(printed(capsys, *BASE, flag, "--trainer.logger.init_args.save_dir=x"), "logger")
    assert loggers == ["TensorBoardLogger", "CSVLogger", "CSVLogger"]


@pytest.mark.parametrize("by", ["file", "flag", "dict"])
def test_another_objective_starts_from_its_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    """KD has a `temperature` too. It must not inherit the value of the previous objective."""
    path = "lightning_switchkd.objectives.KD"
    changed = "--model.objective.init_args.temperature=7"
    switch = {
        "file": [written(tmp_path, f"model: {{objective: {{class_path: {path}}}}}")],
        "flag": [f"--model.objective={path}"],
        "dict": [f'--model.objective={{"class_path": "{path}", "init_args": {{"weight": 2.0}}}}'],
    }[by]
    config = printed(capsys, *BASE, changed, *switch)["model"]["objective"]
    assert config["class_path"] == path
    assert config["init_args"]["temperature"] == 3.0
    again = printed(capsys, *BASE, *switch, changed)["model"]["objective"]
    assert again["init_args"]["temperature"] == 7.0, "flags after the switch apply to the new objective"
    kept = printed(capsys, *BASE, changed, "--model.objective.init_args.lambda_vsd=2")["model"]["objective"]
    assert kept["init_args"] | {"temperature": 7.0, "lambda_vsd": 2.0} == kept["init_args"]


def test_a_linked_setting_cannot_be_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A linked setting in a file is overwritten silently. Hence this package uses interpolation instead of links."""

    class Model(LightningModule):
        def __init__(self, size: int = 1) -> None:
            super().__init__()

    class Data(LightningDataModule):
        def __init__(self, size: int = 2) -> None:
            super().__init__()

    class Linked(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.link_arguments("data.size", "model.size")

    (tmp_path / "link.yaml").write_text("model: {size: 9}\n", encoding="utf-8")
    cli = Linked(Model, Data, run=False, args=["--config", str(tmp_path / "link.yaml")])
    assert cli.config["model"]["size"] == 2
    with pytest.raises(SystemExit):
        Linked(Model, Data, run=False, args=["--model.size=9"])
    capsys.readouterr()
    assert "link_arguments" not in (ROOT / "lightning_switchkd" / "cli" / "lightning.py").read_text(encoding="utf-8")


def test_flags_win_over_a_checkpoint(folder: Path, run: Path, tmp_path: Path) -> None:
    """Learning rate, decay and betas too, which the checkpoint of the optimizer holds. The schedule continues."""
    changed = [
        "--model.lr=0.5",
        "--model.weight_decay=0.25",
        "--model.betas=[0.5,0.6]",
        "--model.warmup=0",
        "--model.min_lr_ratio=1",
    ]
    checkpoint = run / "checkpoints" / "step000002.ckpt"
    main(fit_arguments(folder, tmp_path / "run", *changed, f"--ckpt_path={checkpoint}"))
    rows = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    column = rows[0].split(",").index("lr-AdamW/lm/decay")
    assert {float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]} == {0.5}


def test_print_config_gives_the_same_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = ["--model.lr=0.125", "--trainer.default_root_dir=runs/x", "--val_generation.num_samples=3"]
    first = printed(capsys, *BASE, *changed)
    again = printed(capsys, "fit", written(tmp_path, yaml.safe_dump(first)))
    assert again == first


def test_a_run_can_be_reproduced_from_its_folder(run: Path, tmp_path: Path) -> None:
    header = (run / "config.yaml").read_text(encoding="utf-8").splitlines()[:3]
    assert f"fit --config {run}/config.yaml --trainer.default_root_dir=" in header[1]
    main(["fit", f"--config={run / 'config.yaml'}", f"--trainer.default_root_dir={tmp_path / 'again'}"])
    for name, tensor in torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"].items():
        reproduced = torch.load(tmp_path / "again" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert torch.equal(tensor, reproduced[name])
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    assert environment["packages"]["torch"] == torch.__version__
    assert environment.keys() >= {"command", "git", "python", "devices", "processes"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "conf" / "overlay" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"OVERLAYS={name}" in text.splitlines()[0], "the first line of a file is its command"
    if name in EXTRA_PACKAGES:
        pytest.importorskip(name)
    config = printed(capsys, *BASE, f"--config={ROOT / 'conf' / 'overlay' / f'{name}.yaml'}")
    assert config != printed(capsys, *BASE)


def test_best_checkpoint_and_early_stopping(folder: Path, run: Path, tmp_path: Path) -> None:
    assert len(list((run / "checkpoints").glob("best-step*.ckpt"))) == 1
    never = ["--trainer.callbacks.init_args.monitor=val/loss/ce", "--trainer.callbacks.init_args.mode=max"]
    more = ["--trainer.max_steps=12", "--trainer.callbacks.init_args.patience=1", *never]
    main(fit_arguments(folder, tmp_path / "run", *more, extra=("overlay/early_stopping",)))
    with (tmp_path / "run" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert max(steps) < 11, "stops when the metric no longer improves"


def test_unknown_metrics_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra in ("early_stopping", "best"):
        monitor = "--trainer.callbacks.init_args.monitor=val/nope"
        error = refused(capsys, *fit_arguments(folder, tmp_path / extra, monitor, extra=(f"overlay/{extra}",)))
        assert "val/nope" in error
        assert "val/exact_match" in error, "the error lists the available metrics"
