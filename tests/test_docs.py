"""README and docs say what is there: commands parse, make targets resolve, links and paths lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from command import ROOT
from jsonargparse import auto_parser

from lightning_switchkd.cli.commands import COMMANDS, switched_on
from lightning_switchkd.cli.lightning import LIGHTNING_COMMANDS
from lightning_switchkd.cli.main import main

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = ("pip", "sbatch", "srun", "vllm", "apt", "python run.py")
"""Commands of other programs."""


def commands() -> list[tuple[str, str]]:
    """Page and command of every line of shell in a fenced block."""
    found = []
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            if language in ("", "bash", "sh"):
                for line in block.replace("\\\n", " ").splitlines():
                    for part in line.split(" && "):
                        if text := re.sub(r"\s+#.*", "", part).strip():
                            found.append((page.name, text))
    return [(page, text) for page, text in found if re.match(r"(make|python|\.venv|pip|srun|sbatch)\b", text)]


COMMANDS_OF_PAGES = sorted(set(commands()))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This one, with the configurations that the pages have a reader write."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name != "conf":
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "conf", folder / "conf")
    for own in ("experiment/my_method", "data/mine", "model/mine"):
        file = Path("conf", f"{own}.yaml")
        assert any(str(file) in page.read_text(encoding="utf-8") for page in PAGES), file
        (folder / file).touch()
    return folder


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Says what it would do."""
    command = ["make", "--dry-run", "--no-print-directory", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("text", sorted({text for _, text in COMMANDS_OF_PAGES if text.startswith("make")}))
def test_make_knows_what_to_do(text: str, checkout: Path) -> None:
    done = make(checkout, *(shlex.split(text)[1:] or ["help"]))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["EXP", "DATA", "MODEL", "TRAINER", "WITH", "STAGE", "STAGES", "STUDY", "BENCHMARKS"])
def test_a_name_that_nothing_has_is_said_before_anything_is_made(name: str) -> None:
    done = make(ROOT, "train", f"{name}=nope")
    assert done.returncode == 2
    assert not done.stdout
    assert f"{name}=nope: there is no conf/" in done.stderr
    assert "There are: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("asked", ["QUICK=1", "DATA=digits"])
@pytest.mark.parametrize("study", ["student_init_seeds", "student_sizes", "teacher_sizes"])
def test_a_study_that_this_data_lacks_stages_for(study: str, asked: str) -> None:
    done = make(ROOT, "ablation", f"SWEEP={study}", asked)
    assert done.returncode == 2
    assert "stages that only DATA=emoji has" in done.stderr


@pytest.mark.parametrize("text", sorted({text for _, text in COMMANDS_OF_PAGES if not text.startswith("make")}))
def test_commands_are_understood(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    if text.startswith(ELSEWHERE) or ".venv-lmms" in text:
        return
    words = shlex.split(text)
    if "-m" not in words:
        assert (ROOT / words[1]).is_file(), text
        return
    module, *arguments = words[words.index("-m") + 1 :]
    assert importlib.util.find_spec(module) is not None, text
    if module != "lightning_switchkd":
        return
    if arguments[0] in COMMANDS:
        command = COMMANDS[arguments[0]]
        auto_parser(command, as_positional=False).parse_args(switched_on(command, arguments[1:]))
    else:
        assert arguments[0] in LIGHTNING_COMMANDS
        with pytest.raises(SystemExit) as stopped:
            main([arguments[0], "--help"])
        assert stopped.value.code == 0
        said = capsys.readouterr().out
        flags = [word.split("=")[0] for word in arguments[1:] if word.startswith("--")]
        assert all(flag in said or flag in ("--help", "--config") for flag in flags), text


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for path in re.findall(r"`((?:lightning_switchkd|conf|tests|benchmarks|notebooks|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists() or "mine" in path or "my_" in path, path
