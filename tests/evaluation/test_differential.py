"""Tests of the comparison with the references (``differential/compare.py``), with references that are written here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from differential import compare as command
from differential.cases import GENERATORS, Case, generate
from differential.compare import MARKER, Known, compare, equal, main, markdown
from differential.loading import importable
from differential.rule import Rule

from lightning_switchkd.evaluation.benchmarks.scorers.contractions import CONTRACTIONS

FIRST_LETTER = """
def parse_multi_choice_response(text, letters, options):
    return text[:1]

def parse_open_response(text):
    return text

def evaluate(samples):
    correct = {s["id"]: "Correct" if s["parsed_pred"] == s["answer"] else "Wrong" for s in samples}
    return correct, {}
"""
OURS = """
from lightning_switchkd.evaluation.benchmarks.scorers import llava, mmmu

def parse_multi_choice_response(text, letters, options):
    return llava.mmmu(text, options)

def parse_open_response(text):
    return text

def evaluate(samples):
    def correct(sample):
        answers = sample["answer"] if isinstance(sample["answer"], list) else [sample["answer"]]
        if sample["question_type"] == "open":
            return mmmu.contains(sample["parsed_pred"], answers)
        return sample["parsed_pred"] in answers
    return {sample["id"]: "Correct" if correct(sample) else "Wrong" for sample in samples}, {}
"""


def mmmu_checkout(folder: Path, code: str) -> Path:
    """Write a checkout of MMMU with other code."""
    file = folder / "mmmu" / "utils" / "eval_utils.py"
    file.parent.mkdir(parents=True)
    file.write_text(code, encoding="utf-8")
    return folder


@pytest.mark.parametrize("benchmark", GENERATORS)
def test_cases_depend_on_the_seed_alone(benchmark: str) -> None:
    cases = generate(benchmark, 300, seed=0)
    assert cases == generate(benchmark, 300, seed=0)
    assert cases[:100] == generate(benchmark, 100, seed=0)
    assert [case.answer for case in cases] != [case.answer for case in generate(benchmark, 300, seed=1)]
    assert all(case.answer == case.answer.strip() for case in cases)
    assert len({case.answer for case in cases}) > 100
    assert all(case.item.answers[0] in case.item.options for case in cases if case.item.options)


def test_structure_of_the_cases() -> None:
    mme, mmbench = generate("mme", 56, 0), generate("mmbench", 400, 0)
    assert [len({case.item.image for case in mme}), len({case.item.category for case in mme})] == [28, 14]
    by_question: dict[str, list[Case]] = {}
    for case in mmbench:
        by_question.setdefault(case.item.image, []).append(case)
    by_question.popitem()  # its rotations may be cut off
    for cases in by_question.values():
        assert len({case.item.options[case.item.answers[0]] for case in cases}) == 1
        assert len(cases) == len({case.item.id for case in cases}) == len(cases[0].item.options)
    assert {len(case.item.answers) for case in generate("vqav2", 300, 0)} == {10}
    answers = {case.answer for case in generate("textvqa", 3000, 0)}
    assert any("\n" in answer for answer in answers)
    assert not all(answer.isascii() for answer in answers)
    assert len(CONTRACTIONS.keys() & {word for answer in answers for word in answer.split()}) > 60


def test_differences_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Scores\n\n{MARKER}\nold", encoding="utf-8")
    flags = ["--mmmu", str(mmmu_checkout(tmp_path, FIRST_LETTER)), "--answers=200", "--examples=2", f"--page={page}"]
    assert main(flags) == 1
    out = capsys.readouterr().out
    cells = [cell.strip() for cell in out.splitlines()[2].split("|")]
    assert cells[1] == "MMMU"
    assert cells[2].startswith("SHA-256 ")
    assert cells[3:6] == ["mmmu", "llava", "200"]
    assert int(cells[6]) == int(cells[7]) > 20
    assert out.count('"theirs": ') == 2
    text = page.read_text(encoding="utf-8")
    assert text == f"# Scores\n\n{MARKER}\n\nLast run: `--answers 200 --seed 0`.\n\n{out.removesuffix(chr(10))}"


def test_equal_rules_have_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mmmu", str(mmmu_checkout(tmp_path, OURS)), "--answers=500", "--benchmarks", "mmmu"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split("|")[6:8] == [" 0           ", " 0                    "]


def test_mistakes_have_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mmmu", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path} has no mmmu/utils/eval_utils.py. Give a checkout of MMMU-Benchmark/MMMU.\n"
    )
    for flag, module in command.SOURCES.items():
        assert main([f"--{flag}", str(tmp_path)]) == 2, flag
        assert capsys.readouterr().err.endswith(f"Give a checkout of {module.SOURCE}.\n")
    assert main(["--mmmu", str(mmmu_checkout(tmp_path, OURS)), f"--page={tmp_path / 'none.md'}"]) == 2
    assert capsys.readouterr().err == (
        f"--page: {tmp_path / 'none.md'} has no line '{MARKER}'. Add it where the tables belong.\n"
    )
    with pytest.raises(SystemExit, match="2"):
        main([])


def reference(benchmark: str, wrong: str, extra: float = 0.0) -> Rule:
    """Return a reference that scores as we do, except for answers with a text, and whose figure is off."""
    rule = Rule("fake", benchmark, "llava", lambda cases: [])

    def score(cases: Sequence[Case]) -> list[float | str]:
        ours = rule.our_scores(cases)
        return [0.5 if wrong in case.answer else value for case, value in zip(cases, ours, strict=True)]

    def figures(cases: Sequence[Case]) -> dict[str, float]:
        return {"headline": rule.our_figures(cases)["headline"] + extra}

    return Rule("fake", benchmark, "llava", score, figures)


def test_known_reasons_and_figures() -> None:
    cases = generate("pope", 1500, 0)
    known = Known(("fake",), ("pope",), lambda case: "not" in case.answer, "No not.", "ours")
    number = sum("dog" in case.answer for case in cases)
    outcome = compare(reference("pope", "dog"), cases, [known])
    assert len(outcome.differences) == number > 20
    explained = sum("dog" in case.answer and "not" in case.answer for case in cases)
    assert 0 < explained == number - len(outcome.unknown)
    assert (outcome.figures, outcome.differing_figures) == (1, [])  # of the images without a difference
    text = markdown([outcome], {"fake": "1"}, examples=3)
    assert f"| No not.      | fake      | pope      | {explained}" in text
    assert text.count('"theirs": 0.5') == 3

    outcome = compare(reference("pope", "no answer has this text", extra=0.01), cases)
    assert outcome.differences == []
    assert len(outcome.differing_figures) == outcome.figures == 2
    of_another = replace(known, references=("other",))
    assert len(compare(reference("pope", "dog"), cases, [of_another]).unknown) == number


def test_scores_and_texts_are_different_kinds() -> None:
    assert equal(0.3, 0.1 + 0.2)
    assert not equal(0.3, 0.3 + 1e-6)
    assert equal("a", "a")
    assert not equal("a", "A")
    with pytest.raises(TypeError):
        equal("a", 1.0)


def test_packages_of_a_checkout_run_no_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "fake_harness/__init__.py": "raise ImportError('models')",
        "fake_harness/tasks/__init__.py": "from fake_harness.tasks.pope import LABEL\nNAME = 'tasks'",
        "fake_harness/tasks/pope.py": "import fake_logger\nfrom fake_harness import util\nLABEL = util.LABEL",
        "fake_harness/util.py": "LABEL = 'yes'",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    try:
        importable(tmp_path, "fake_harness", initialized=["fake_harness.tasks"], unused=["fake_logger"])
        tasks = importlib.import_module("fake_harness.tasks")
    finally:
        for name in [name for name in sys.modules if name.startswith("fake_")]:
            del sys.modules[name]
    assert (tasks.NAME, tasks.LABEL) == ("tasks", "yes")
