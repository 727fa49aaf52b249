"""Tests of README and docs: commands parse, make targets exist, links and paths resolve."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command import ROOT
from jsonargparse import auto_parser

from lightning_switchkd.cli.commands import COMMANDS, command_function, expand_switches
from lightning_switchkd.cli.main import DEMO_DATA, main
from lightning_switchkd.cli.pipelines import pipeline
from lightning_switchkd.cli.renamed import LIGHTNING_COMMANDS
from lightning_switchkd.experiments.pipeline import Pipeline, load_definition, stages_of

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHER_PROGRAMS = ("pip", ".venv/bin/pip", "sbatch", "srun", "vllm", "apt", "python run.py")
"""Commands of other programs."""


def commands() -> list[tuple[str, str]]:
    """Return page and command of every shell line in a fenced block."""
    lines = []
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            if language in ("", "bash", "sh"):
                for line in block.replace("\\\n", " ").splitlines():
                    for part in line.split(" && "):
                        if text := re.sub(r"\s+#.*", "", part).strip():
                            lines.append((page.name, text))
    return [(page, text) for page, text in lines if re.match(r"(make|python|\.venv|switchkd|pip|srun|sbatch)\b", text)]


COMMANDS_OF_PAGES = sorted(set(commands()))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy this checkout, with the configurations that the pages ask a reader to write."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name != "conf":
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "conf", folder / "conf")
    for own in ("method/my_method", "data/mine", "model/mine", "sweep/mine"):
        file = Path("conf", f"{own}.yaml")
        assert any(str(file) in page.read_text(encoding="utf-8") for page in PAGES), file
        (folder / file).touch()
    return folder


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make without executing its commands."""
    command = ["make", "--dry-run", "--no-print-directory", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("text", sorted({text for _, text in COMMANDS_OF_PAGES if text.startswith("make")}))
def test_make_targets_exist(text: str, checkout: Path) -> None:
    done = make(checkout, *(shlex.split(text)[1:] or ["help"]))
    assert done.returncode == 0, done.stderr


TRAININGS = re.compile("make (train|pipeline)(?!.*(MODEL|METHOD)=(mine|my_)).* ARGS=")
"""Commands with flags, except for those with configurations that the reader writes."""


@pytest.mark.parametrize("text", sorted({text for _, text in COMMANDS_OF_PAGES if TRAININGS.match(text)}))
def test_every_training_takes_the_flags(text: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    expanded = make(checkout, *shlex.split(text)[1:]).stdout.replace("\\\n", " ").splitlines()
    arguments = shlex.split(expanded[-1].partition("-m lightning_switchkd ")[2])
    if arguments[:1] != ["pipeline"]:
        return
    known = auto_parser(pipeline, as_positional=False).parse_args(expand_switches(pipeline, arguments[1:]))
    definition, variables = load_definition(known.pipeline, "pipeline"), known.variables or {}
    stages = Pipeline(stages_of(definition, variables, known.pipeline), known.pipeline)
    targets = known.stages or definition["targets"]
    trainings = [stage for stage in stages.needed(targets) if stage.trains and stage.name not in stages.copied]
    assert trainings
    for stage in trainings:
        with pytest.raises(SystemExit) as stopped:
            main([*stage.arguments(), "--print_config"])
        assert stopped.value.code == 0, stage.name


@pytest.mark.parametrize("text", sorted({text for _, text in COMMANDS_OF_PAGES if not text.startswith("make")}))
def test_commands_parse(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    if text.startswith(OTHER_PROGRAMS) or ".venv-lmms" in text:
        return
    words = shlex.split(re.sub("^switchkd", "python -m lightning_switchkd", text))
    if "-m" not in words:
        assert (ROOT / words[1]).is_file(), text
        return
    module, *arguments = words[words.index("-m") + 1 :]
    assert importlib.util.find_spec(module) is not None, text
    if module != "lightning_switchkd" or arguments == ["--help"]:
        return
    if arguments[0] == "demo-data":
        assert arguments[1] in DEMO_DATA
    elif arguments[0] in COMMANDS:
        command = command_function(arguments[0])
        auto_parser(command, as_positional=False).parse_args(expand_switches(command, arguments[1:]))
    else:
        assert arguments[0] in LIGHTNING_COMMANDS
        with pytest.raises(SystemExit) as stopped:
            main([arguments[0], "--help"])
        assert stopped.value.code == 0
        text_of_help = capsys.readouterr().out
        flags = [word.split("=")[0] for word in arguments[1:] if word.startswith("--")]
        assert all(flag in text_of_help or flag in ("--help", "--config") for flag in flags), text


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_paths_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for path in re.findall(r"`((?:lightning_switchkd|conf|tests|benchmarks|notebooks|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists() or "mine" in path or "my_" in path, path


def test_the_page_on_python_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two examples, on a tiny pair."""
    text = (ROOT / "docs" / "how-to" / "use-from-python.md").read_text(encoding="utf-8")
    train, losses, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for old, new in {
        '"path/to/student"': repr(str(folder / "student")),
        '"path/to/teacher"': repr(str(folder / "teacher")),
        "processor=" + repr(str(folder / "student")): "processor=" + repr(str(folder / "processor")),
        '"samples.json"': repr(str(folder / "records.json")),
        '"images"': repr(str(folder / "images")),
        "max_steps=1000": f"max_steps=1, accelerator='cpu', logger=False, default_root_dir={str(tmp_path)!r}",
    }.items():
        assert old in train
        train = train.replace(old, new)
    monkeypatch.chdir(tmp_path)
    exec(train, {})
    assert (tmp_path / "student" / "config.json").is_file()
    values: dict[str, Any] = {}
    exec(losses, values)
    assert values["student_logits"].grad[:, 2:-1].abs().sum() > 0
    assert values["student_logits"].grad[:, :2].abs().sum() == 0


def test_the_answer_file_of_the_page_on_evaluation_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files of the example, its command and its output."""
    text = (ROOT / "docs" / "how-to" / "evaluate.md").read_text(encoding="utf-8")
    section = text[text.index("### The answer file") :]
    answers, questions, command, output = re.findall(r"```\w*\n(.*?)```", section, re.DOTALL)[:4]
    for name, content in {"theirs.jsonl": answers, "questions.json": questions}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    main(shlex.split(command)[3:])
    assert output in capsys.readouterr().out
