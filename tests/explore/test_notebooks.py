"""Tests of the notebooks: on a small run, and on the run of ``make train``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from command import ROOT, fit_arguments

from lightning_switchkd.cli.main import main

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = ROOT / "runs" / "digits" / "switch_kd"


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


@pytest.mark.slow  # a kernel for each notebook
def test_notebooks_run(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "notebooks" / "run.py", "--run", run, "--figures", tmp_path]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "Warning" not in process.stderr
    for notebook in NOTEBOOKS:
        assert f"{notebook.stem}: " in process.stdout
    figures = {path.name.rsplit("-", 1)[0] for path in tmp_path.glob("*.png")}
    assert figures == {notebook.stem for notebook in NOTEBOOKS if notebook.stem != "06_bring_your_own"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_cleared(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


@pytest.mark.slow
@pytest.mark.skipif(not (RUN / "report" / "results.json").is_file(), reason="needs a run: make train")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_on_make_train(notebook: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    os.environ["PYTHONPATH"] = str(ROOT)
    opened = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(opened, timeout=300, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    outputs = [out for cell in opened.cells if cell.cell_type == "code" for out in cell.outputs]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    warnings = [out.text for out in outputs if out.output_type == "stream" and "Warning" in out.text]
    assert all("IProgress not found" in text for text in warnings), (
        warnings
    )  # tqdm misses ipywidgets, which `make lab` installs
