"""Tests of names of version 0.1.0: each gives one line with the present name."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
from pathlib import Path

import pytest
from command import ROOT, configs

from lightning_switchkd.cli.main import main
from lightning_switchkd.cli.renamed import renamed_names
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.renamed import MAKE_TARGETS, MAKE_VARIABLES, MODULES
from lightning_switchkd.evaluation.benchmarks.definition import Benchmark

PACKAGE = "lightning_switchkd"


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--greedy.records=3"], "'--greedy.records' was renamed in 0.2: use --val_generation.num_samples."),
        (
            ["fit", "--greedy.batch_size", "3"],
            "'--greedy.batch_size' was renamed in 0.2: use --val_generation.batch_size.",
        ),
        (["validate", "--data.upright=true"], "'--data.upright' was renamed in 0.2: use --data.exif_transpose."),
        (["dry-run", "--records=3"], "'--records' was renamed in 0.2: use --num_samples."),
        (["generate", "--beside=x"], "'--beside' was renamed in 0.2: use --compare."),
        (["evaluate", "--blind"], "'--blind' was renamed in 0.2: use --no_image."),
        (["sweep", "--study=x"], "'--study' was renamed in 0.2: use --sweep."),
        (["ablation"], "Command 'ablation' was renamed in 0.2: use sweep."),
        (
            ["fit", "--model.objective.leader_gradient=true"],
            "'--model.objective.leader_gradient' was renamed in 0.2: use --model.objective.backprop_through_leader.",
        ),
        (
            ["fit", f"--trainer.strategy={PACKAGE}.strategies.FSDP2"],
            f"'{PACKAGE}.strategies.FSDP2' was renamed in 0.2: use {PACKAGE}.training.strategies.FSDP2.",
        ),
        (
            ["fit", "--config=conf/experiment/sft.yaml"],
            "'conf/experiment' was renamed in 0.2: use conf/method/sft.yaml.",
        ),
    ],
)
def test_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, *arguments) == f"error: {message}"


@pytest.mark.parametrize("equals", [True, False])
def test_a_configuration_file(tmp_path: Path, equals: bool, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"greedy: {{records: 3}}\nmodel: {{objective: {{class_path: {PACKAGE}.objectives.SwitchKDObjective, "
        "init_args: {image_rows: true}}}\n"
        "trainer: {logger: [{class_path: lightning_switchkd.loggers.CSVLogger}]}\n",
        encoding="utf-8",
    )
    arguments = [f"--config={file}"] if equals else ["--config", str(file)]
    error = error_of(capsys, "fit", *configs("digits", "digits", "cpu", "sft"), *arguments)
    assert str(file) in error
    assert "greedy.records -> val_generation.num_samples, " in error
    assert "model.objective.init_args.image_rows -> model.objective.init_args.image_tokens" in error
    assert "lightning_switchkd.loggers.CSVLogger -> lightning_switchkd.training.loggers.CSVLogger" in error


def test_present_names_pass() -> None:
    import yaml

    for file in (ROOT / "conf").rglob("*.yaml"):
        if file.parent.name != "sweep":
            assert not renamed_names(yaml.safe_load(file.read_text(encoding="utf-8"))), file


def test_files_of_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their paths stand for the entries of their names. Own files of that folder keep their names."""
    assert Benchmark.read("conf/benchmark/gqa.yaml") == Benchmark.read("gqa")
    with pytest.raises(UserError, match="Unknown benchmark 'gaq'"):
        Benchmark.read("conf/benchmark/gaq.yaml")
    own = tmp_path / "conf" / "benchmark" / "pope.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("title: own\nscoring: exact\nlayouts: []\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert Benchmark.read("pope") == Benchmark.read("conf/benchmark/pope.yaml")
    assert (Benchmark.read("pope").title, Benchmark.read("pope").name) == ("own", "pope")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules(module: str) -> None:
    assert importlib.util.find_spec(f"lightning_switchkd.{MODULES[module]}") is not None
    parent = module.rpartition(".")[0]
    with pytest.raises(ModuleNotFoundError) as error:
        exec(f"from lightning_switchkd.{module} import Name")
    name = parent if parent in MODULES and not (ROOT / "lightning_switchkd" / parent).is_dir() else module
    assert (
        str(error.value) == f"'lightning_switchkd.{name}' was renamed in 0.2: use lightning_switchkd.{MODULES[name]}."
    )


def test_an_unknown_module_stays_unknown() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'lightning_switchkd\.nope'"):
        importlib.import_module("lightning_switchkd.nope")


@pytest.mark.parametrize("where", ["command line", "environment"])
@pytest.mark.parametrize("name", sorted(MAKE_VARIABLES))
def test_make_variables(name: str, where: str) -> None:
    environment = {**os.environ, **({name: "x"} if where == "environment" else {})}
    arguments = [f"{name}=x"] if where == "command line" else []
    command = ["make", "--dry-run", "train", *arguments]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert f"{name} -> {MAKE_VARIABLES[name]}" in process.stderr
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", sorted(MAKE_TARGETS))
def test_make_targets(name: str) -> None:
    process = subprocess.run(["make", name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert f"'{name}' was renamed in 0.2: use 'make {MAKE_TARGETS[name]}'." in process.stderr
