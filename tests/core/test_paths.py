"""Files of conf/ are found from any folder. The working directory's win."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import ROOT

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.paths import CLONE, names_in, read_mapping, shipped


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_package_has_the_file() -> None:
    assert CLONE == ROOT
    assert shipped("conf/base.yaml") == shipped("./conf/base.yaml") == ROOT / "conf" / "base.yaml"


def test_a_file_of_the_working_directory_wins(elsewhere: Path) -> None:
    (elsewhere / "conf").mkdir()
    (elsewhere / "conf" / "base.yaml").touch()
    assert shipped("conf/base.yaml") == Path("conf/base.yaml")
    assert shipped("conf/published.yaml") == ROOT / "conf" / "published.yaml"


@pytest.mark.parametrize("path", ["conf/method/mine.yaml", "README.md", "tests/conf", "/conf/base.yaml"])
def test_other_paths_stay(path: str) -> None:
    assert shipped(path) == Path(path)


def test_names_are_those_of_both_folders(elsewhere: Path) -> None:
    (elsewhere / "conf" / "method").mkdir(parents=True)
    for name in ("mine", "sft"):
        (elsewhere / "conf" / "method" / f"{name}.yaml").touch()
    names = names_in("conf/method")
    assert {"mine", "switch_kd"} < set(names)
    assert names.count("sft") == 1
    assert names_in("conf/nope") == []


def test_entries_of_a_file(elsewhere: Path) -> None:
    file = Path("conf", "benchmarks.yaml")
    assert {"gqa", "pope"} < set(names_in(file))
    (elsewhere / "conf").mkdir()
    for text, message in (("shop: {}", ""), ("- shop", "is not a mapping of fields"), ("[shop", "is not valid YAML")):
        (elsewhere / file).write_text(text, encoding="utf-8")
        if message:
            with pytest.raises(UserError, match=f"--flag: {file} {message}"):
                read_mapping(file, "--flag")
        else:
            assert names_in(file) == ["shop"], "the working directory's file replaces the package's"
