"""Tests of the notebooks: on a small run, and on the run of ``make train``."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tiny
from command import ROOT, fit_arguments

from lightning_switchkd.cli.main import main

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = ROOT / "runs" / "emoji" / "switch_kd"
WITHOUT_FIGURES = "06_bring_your_own"  # it returns images


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small finished run with a report."""
    folder = tiny.write_pair(tmp_path_factory.mktemp("pair"))
    for file in (folder / "processor").iterdir():
        (folder / "student" / file.name).write_bytes(file.read_bytes())
    run = tmp_path_factory.mktemp("runs") / "first"
    main(fit_arguments(folder, run))
    main([
        "evaluate", f"--run={run}", f"--models.teacher={folder / 'student'}", "--accelerator=cpu", "--no_image=true",
        "--max_new_tokens=3", f"--answer_store={folder / 'store'}",
    ])  # fmt: skip
    return run


def load_script() -> ModuleType:
    """Import ``notebooks/run.py``."""
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "notebooks" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.slow  # a kernel for each notebook
def test_notebooks_run(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "notebooks" / "run.py", "--run", run, "--figures", tmp_path]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "Warning" not in process.stderr
    for notebook in NOTEBOOKS:
        assert f"{notebook.stem}: " in process.stdout
    figures = {path.name.rsplit("-", 1)[0] for path in tmp_path.glob("*.png")}
    assert figures == {notebook.stem for notebook in NOTEBOOKS if notebook.stem != WITHOUT_FIGURES}


def test_notebooks_by_name_and_by_path(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script()
    executed: list[str] = []
    monkeypatch.setattr(script, "run", lambda notebook, figures: executed.append(notebook.stem))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "argv", ["run.py", "notebooks/06_bring_your_own.ipynb", "02_dbild"])
    script.main()
    assert executed == ["02_dbild", "06_bring_your_own"]
    monkeypatch.setattr(sys, "argv", ["run.py", "nosuchnotebook"])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 2
    assert "unknown notebooks: nosuchnotebook. Available: 01_three_pathways, 02_dbild" in capsys.readouterr().err


def test_missing_packages_are_named(tmp_path: Path) -> None:
    (tmp_path / "nbformat.py").write_text("import not_installed", encoding="utf-8")
    command = [sys.executable, ROOT / "notebooks" / "run.py"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith("error: the notebooks need not_installed: ")
    assert len(process.stderr.splitlines()) == 1


def test_commands_in_cells_parse(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command is expanded by make, and its configuration is read with all flags."""
    cells = [cell for notebook in NOTEBOOKS for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    commands = [line for cell in cells for line in "".join(cell["source"]).splitlines() if line.startswith("make ")]
    assert len(commands) == 2
    for command in commands:
        words = ["make", "--dry-run", "--no-print-directory", *shlex.split(command)[1:]]
        expanded = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        line = expanded.replace("\\\n", " ").strip().splitlines()[-1]
        arguments = shlex.split(line.partition("-m lightning_switchkd ")[2])
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--print_config"])
        assert stop.value.code == 0
        assert "datasets/emoji/train_small.json" in capsys.readouterr().out


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_cleared(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


def test_all_notebooks_install_the_package_with_the_same_cell() -> None:
    cells = [json.loads(notebook.read_text(encoding="utf-8"))["cells"] for notebook in NOTEBOOKS]
    (install,) = {"".join(next(cell for cell in of if cell["cell_type"] == "code")["source"]) for of in cells}
    assert 'find_spec("lightning_switchkd") is None' in install
    assert "%pip install" in install


@pytest.mark.slow
@pytest.mark.skipif(not (RUN / "report" / "results.json").is_file(), reason="needs a run: make train")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_on_make_train(
    notebook: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "Agg")  # as on many clusters
    assert bool(load_script().run(notebook)) == (notebook.stem != WITHOUT_FIGURES)
    assert "Warning" not in capsys.readouterr().err
