"""The package as users install it: dependencies and their lock, the wheel, the Dockerfile."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest
from command import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Return the requirements by name, without the extras of this package."""
    parsed = [Requirement(line) for line in lines if not line.startswith("lightning-switchkd")]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def lock(file: str) -> dict[str, Requirement]:
    """Return the pinned packages of a file."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    return requirements([line for line in lines if line and not line.startswith("-r")])


EXTRAS = {name: requirements(lines) for name, lines in PROJECT["optional-dependencies"].items()}
DEV = EXTRAS.pop("dev")
CORE = requirements(PROJECT["dependencies"])


@pytest.mark.parametrize(
    ("file", "ranges"),
    [("requirements.txt", {k: v for group in (CORE, *EXTRAS.values()) for k, v in group.items()}),
     ("requirements-dev.txt", DEV)],
    ids=["package", "dev"],
)  # fmt: skip
def test_the_lock_has_one_version_of_every_dependency(file: str, ranges: dict[str, Requirement]) -> None:
    locked = lock(file)
    assert locked.keys() == ranges.keys()
    for name, requirement in locked.items():
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert pin.version in ranges[name].specifier, name
        assert requirement.extras == ranges[name].extras, name


def test_dev_has_all_extras() -> None:
    own = next(line for line in PROJECT["optional-dependencies"]["dev"] if line.startswith("lightning-switchkd"))
    assert Requirement(own).extras == EXTRAS.keys()


def test_every_imported_package_is_a_dependency() -> None:
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "lightning_switchkd").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    names = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"lightning_switchkd"}
    distributions = packages_distributions()
    imported = {canonicalize_name(distributions[name][0]) for name in names}
    assert imported <= CORE.keys() | {name for extra in EXTRAS.values() for name in extra}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """Build the wheel from a copy of the checkout, without a network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("lightning_switchkd", "conf", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", "dist"], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = (source / "dist").glob("*.whl")
    return ZipFile(file)


@pytest.mark.slow  # builds a wheel
def test_the_wheel_has_the_package_and_its_configurations(wheel: ZipFile) -> None:
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = {
        str(path.relative_to(ROOT))
        for pattern in ("**/*.py", "demo/models/**/*")
        for path in (ROOT / "lightning_switchkd").glob(pattern)
        if path.is_file()
    }
    configurations = {f"lightning_switchkd/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert files == package | configurations | {"lightning_switchkd/py.typed"}


@pytest.mark.slow
def test_the_wheel_has_the_command(wheel: ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    entry_points = ConfigParser()
    entry_points.read_string(wheel.read(name).decode())
    assert dict(entry_points["console_scripts"]) == {"switchkd": "lightning_switchkd.__main__:run"}


@pytest.mark.slow
def test_the_wheel_runs_in_any_folder(wheel: ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "installed")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); sys.argv[0] = '/bin/switchkd'\n"
    code += "from lightning_switchkd.core.paths import CLONE; assert CLONE is None\n"
    code += "from lightning_switchkd.__main__ import run; run()"

    def switchkd(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)

    usage = switchkd("--help").stdout
    assert usage.startswith("usage: switchkd COMMAND")
    assert re.search(r"^  benchmarks .*\bgqa\b", usage, re.M)
    files = ("base", "data/digits", "model/digits", "trainer/cpu", "method/switch_kd")
    printed = switchkd("fit", *(f"--config=conf/{file}.yaml" for file in files), "--print_config")
    assert "SwitchKDObjective" in printed.stdout, printed.stderr
    assert (
        "no layout matches the files in data/eval/pope" in switchkd("score", "--benchmark=pope", "--answers=x").stderr
    )


def test_the_dockerfile_copies_files_that_exist() -> None:
    """`.dockerignore` lets through exactly these."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()]
    assert all((ROOT / name).exists() for name in copied)
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied)
    build = {"pyproject.toml", "setup.py", "lightning_switchkd", "conf", PROJECT["readme"], "LICENSE"}
    assert set(copied) == build | {"requirements.txt"}
