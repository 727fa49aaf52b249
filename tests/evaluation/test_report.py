"""Tests of the report of several systems."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_switchkd.cli.main import main
from lightning_switchkd.evaluation.report.charts import read_metrics
from lightning_switchkd.evaluation.score import Result
from lightning_switchkd.evaluation.significance import mcnemar


def result(*texts: str, name: str = "digits") -> Result:
    """Return a result on three questions, whose answers are 7, 3 and yes."""
    scores = [float(text == correct) for text, correct in zip(texts, ("7", "3", "yes"), strict=True)]
    return Result(
        name, f"{name}.yaml", "Digits", "llava", "nowhere", "x", 3, 100 * sum(scores) / 3, 0, 100,
        {"exists": 100 * scores[2], "position": 50 * sum(scores[:2])},
        {"average": 25 * sum(scores[:2]) + 50 * scores[2]},
        pairs=["0", "1", "2"], ids=["a", "b", "c"], scores=scores, texts=list(texts),
    )  # fmt: skip


def write_results(folder: Path, **systems: dict[str, Result]) -> list[str]:
    for system, results in systems.items():
        for name, of_benchmark in results.items():
            of_benchmark.write(folder / system / f"{name}.json")
    return [f"--systems.{system}={folder / system}" for system in systems]


def test_no_image_text_only_baseline_and_mcnemar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    systems = write_results(
        tmp_path,
        text_only_baseline={"digits": result("7", "7", "no")},
        teacher={"digits": result("7", "3", "yes"), "digits.no_image": result("", "", "yes")},
        sft={"digits": result("7", "<b>", "no")},
    )
    main(["report", *systems, f"--output={tmp_path / 'out'}"])
    table = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["Digits, %", "Text-only baseline", "teacher", "No image", "sft"]
    assert rows[2:6] == [
        ["exists", "0.0", "100.0", "100.0", "0.0"],
        ["position", "50.0", "100.0", "0.0", "50.0"],
        ["average", "25.0", "100.0", "50.0", "25.0"],
        ["score", "33.3", "100.0", "33.3", "33.3"],
    ]
    assert "Points above the text-only baseline (33.3): teacher 66.7, sft 0.0." in table
    assert ["McNemar's test of A, B", "benchmark", "only A correct", "only B correct", "p"] in rows
    assert ["teacher, sft", "digits", "2", "0", "0.5"] in rows
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert '<td class="wrong">&lt;b&gt;</td>' in page
    assert "<th>teacher</th>" in page
    pairs = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["pairs"]
    assert pairs == [
        {
            "benchmark": "digits",
            "systems": ["teacher", "sft"],
            "first": 2,
            "second": 0,
            "both": 1,
            "neither": 0,
            "p": 0.5,
        }
    ]


def test_labels_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    correct = {"digits": result("7", "3", "yes")}
    systems = write_results(tmp_path, teacher=correct, student_init=correct, student=correct)
    main(["report", *systems, f"--output={tmp_path / 'out'}"])
    heading = capsys.readouterr().out.splitlines()[0].split("|")
    assert [cell.strip() for cell in heading[2:-1]] == ["teacher", "student (before)", "student (after)"]
    assert "<th>student (after)</th>" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert list(results["systems"]) == ["teacher", "student_init", "student"]


def test_results_of_version_0_1_0(tmp_path: Path) -> None:
    """The folder ``majority`` and files ``NAME.blind.json`` give the same report as the present names."""
    baseline, with_image, blank = result("7", "7", "no"), result("7", "3", "yes"), result("", "", "yes")
    old = {"majority": {"digits": baseline}, "teacher": {"digits": with_image, "digits.blind": blank}}
    new = {"text_only_baseline": {"digits": baseline}, "teacher": {"digits": with_image, "digits.no_image": blank}}
    reports = []
    for version, systems in (("old", old), ("new", new)):
        folder = tmp_path / version
        main(["report", *write_results(folder, **systems), f"--output={folder / 'out'}"])
        reports.append([(folder / "out" / name).read_text("utf-8") for name in ("table.md", "results.json")])
    assert reports[0] == reports[1]
    heading = [cell.strip() for cell in reports[0][0].splitlines()[0].split("|")[2:-1]]
    assert heading == ["Text-only baseline", "teacher", "No image"]
    assert len(list((tmp_path / "old" / "teacher").glob("digits.blind.*"))) == 2


def test_chart_of_several_benchmarks(tmp_path: Path) -> None:
    results = {name: result("7", "3", "no", name=name) for name in ("a", "b", "c")}
    main(["report", *write_results(tmp_path, one=results, two=results), f"--output={tmp_path / 'out'}", "--examples=0"])
    assert (tmp_path / "out" / "report.png").stat().st_size > 1000


def test_user_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for folder, message in (("none", "does not exist. Give a folder"), ("empty", "have no results")):
        with pytest.raises(SystemExit):
            main(["report", f"--systems.a={tmp_path / folder}", f"--output={tmp_path / 'out'}"])
        assert message in capsys.readouterr().err


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_equals_the_sign_test_on_different_answers(pairs: list[tuple[bool, bool]]) -> None:
    first, second = ({str(n): pair[k] for n, pair in enumerate(pairs)} for k in (0, 1))
    test, swapped = mcnemar(first, second), mcnemar(second, first)
    assert test.p == pytest.approx(swapped.p)
    assert test.first + test.second + test.both + test.neither == len(pairs)
    n, k = test.first + test.second, min(test.first, test.second)
    assert test.p == pytest.approx(min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n))


def test_metrics_of_a_run(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(
        "step,train/loss/ce,val/loss/ce,val/accuracy\n9,1.5,,\n9,,1.25,0.5\n19,,1.0,0.6\n", encoding="utf-8"
    )
    assert read_metrics(tmp_path) == {
        "train/loss/ce": [(9, 1.5)],
        "val/loss/ce": [(9, 1.25), (19, 1.0)],
        "val/accuracy": [(9, 0.5), (19, 0.6)],
    }
    assert read_metrics(tmp_path / "none") == {}
