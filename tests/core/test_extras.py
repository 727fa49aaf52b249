"""A missing optional package gives one line, before any work is done."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from command import ROOT, fit_arguments
from fsspec.registry import _registry as FILE_SYSTEMS

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.sources.remote import _file_system, _new_file_system
from lightning_switchkd.data.validate.validate import validate_data
from lightning_switchkd.demo import digits
from lightning_switchkd.evaluation.runner import evaluate
from lightning_switchkd.experiments.sweep import run_sweep
from lightning_switchkd.models.auto import build
from lightning_switchkd.models.lora import LoRA, add_lora
from lightning_switchkd.models.spec import VLMSpec


def test_features_name_their_extra(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny.data_module(folder)
    student = build(VLMSpec(checkpoint=str(folder / "student")), data.processor.tokenizer, "student")
    features: dict[str, tuple[str, Callable[[], object]]] = {
        "evaluate needs matplotlib": ("report", lambda: evaluate(output=str(tmp_path / "out"))),
        "sweep needs matplotlib": ("report", lambda: run_sweep(main, "conf/sweep/methods.yaml", {})),
        "validate-data needs matplotlib": ("report", lambda: validate_data(data, tmp_path / "out", 0)),
        "lightning_switchkd.explore needs pandas": ("report", lambda: _reload("lightning_switchkd.explore")),
        "model.student.lora needs peft": ("lora", lambda: add_lora(student, LoRA(), "model.student.lora")),
        "Reading memory:// files needs fsspec": ("remote", lambda: _file_system("memory://x.tar")),
        "Reading https:// files needs aiohttp": ("remote", lambda: _file_system("https://x/x.tar")),
        "The demo data needs sklearn": ("demo", lambda: digits.write(digits.Settings(), tmp_path / "out")),
    }
    digits.all_scans.cache_clear()
    _new_file_system.cache_clear()
    for message, (extra, feature) in features.items():
        with monkeypatch.context() as patch:
            package = message.rpartition(" ")[2]
            for name in [package, *sys.modules]:  # other tests have imported it
                if name == package or name.startswith(f"{package}."):
                    patch.setitem(sys.modules, name, None)
            patch.delitem(FILE_SYSTEMS, "https", raising=False)
            patch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
            with pytest.raises(UserError) as error:
                feature()
            assert str(error.value) == f"{message}: pip install 'lightning-switchkd[{extra}]'"
    assert not (tmp_path / "out").exists()


def _reload(module: str) -> None:
    importlib.reload(importlib.import_module(module))


def test_training_needs_no_extra(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("matplotlib", "pandas", "sklearn", "peft", "openpyxl"):
        monkeypatch.setitem(sys.modules, package, None)
    main(fit_arguments(folder, tmp_path / "run", "--answer_panel.num_samples=2"))
    assert (tmp_path / "run" / "student" / "config.json").is_file()


def test_only_explore_imports_an_extra_at_its_top() -> None:
    optional = {"matplotlib", "pandas", "openpyxl", "sklearn", "easy_vqa", "peft", "fsspec", "aiohttp"}
    for file in (ROOT / "lightning_switchkd").rglob("*.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in body if isinstance(node, ast.ImportFrom)}
        assert file.parent.name == "explore" or not optional & {name.partition(".")[0] for name in names}, file
