"""The Makefile refuses variables that it does not know, and passes on what it is given."""

from __future__ import annotations

import subprocess

import pytest
from command import ROOT

from lightning_switchkd.core.paths import names_in


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--dry-run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_unknown_variable() -> None:
    process = make("train", "EXPE=sft", "METHOD=dbild")
    assert process.returncode == 2
    assert "Unknown variable in: " in process.stderr
    assert "EXPE=sft" in process.stderr
    assert "Known: PYTHON VENV DATA METHOD" in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_values_with_spaces_and_equal_signs() -> None:
    printed = make(
        "train", "ARGS=--trainer.max_steps=5 --model.lr=3", "OVERLAYS=best teacher_cache", "RUN=runs/x"
    ).stdout
    assert "--variables.flags='--trainer.max_steps=5 --model.lr=3'" in printed
    assert '--variables.overlays="best teacher_cache"' in printed
    assert "--variables.run=runs/x" in printed
    assert "--variables.trainer" not in printed, "the pipeline's own"


def test_help_lists_every_target() -> None:
    """`dry-run` and `fill-cache` share a rule."""
    process = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {word for line in process.stdout.splitlines() for word in line[:20].split()}
    assert {"train", "dry-run", "fill-cache", "validate-data", "test-all"} <= listed


def test_lists() -> None:
    assert '--methods "[sft,switch_kd]"' in make("sweep", "METHODS=sft switch_kd").stdout
    printed = make("compare", "RUNS=runs/a/one runs/b/two/").stdout
    assert "--systems.one=runs/a/one/report/student --systems.two=runs/b/two/report/student --baseline=one" in printed


def test_models_of_your_own() -> None:
    own = "TEACHER=t", "STUDENT=s", "DATA=my/d.json", "IMAGES=photos", "OVERLAYS=speed best", "ARGS=--a=1"
    command = "distill --teacher=t --student=s --data='my/d.json' --images=photos --method=switch_kd"
    printed = make("train", *own).stdout
    assert command in printed
    assert printed.endswith("""--overlays="speed best" --flags='--a=1'\n""")
    printed = make("validate-data", *own).stdout
    assert command in printed
    assert printed.endswith("--flags='--output=reports/data/d --a=1' --command validate-data\n")


@pytest.mark.parametrize("variable", ["MODEL=emoji", "STAGES=distilled", "PIPELINE=emoji", "LAUNCH=srun"])
def test_variables_of_pipelines_are_refused_with_models_of_your_own(variable: str) -> None:
    done = make("train", "TEACHER=t", "STUDENT=s", "DATA=d.json", variable)
    assert done.returncode == 2
    assert "are of pipelines, not of TEACHER= STUDENT=" in done.stderr


def test_other_commands_with_the_settings_of_a_training() -> None:
    printed = make("validate-data").stdout
    assert '--stages "[distilled]"' in printed
    assert printed.endswith("--variables.flags='--output=reports/data/emoji ' --command validate-data\n")
    assert '--stages "[finetune]"' in make("dry-run", "STAGES=finetune").stdout
    assert "--stages" not in make("train").stdout


def test_help_lists_the_names_of_configurations() -> None:
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = {
        kind: of_kind.split() for kind, _, of_kind in (line.strip().partition(": ") for line in printed.splitlines())
    }
    assert sorted(names["benchmarks"]) == names_in("conf/benchmarks.yaml")
    assert sorted(names["method"]) == names_in("conf/method")
