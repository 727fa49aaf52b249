"""Tests of the report of several systems."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.text import program
from lightning_switchkd.evaluation.report import charts
from lightning_switchkd.evaluation.report.comparison import compare, sentence
from lightning_switchkd.evaluation.report.curves import METRICS, read_metrics, training_section
from lightning_switchkd.evaluation.report.examples import examples_of
from lightning_switchkd.evaluation.report.report import describe
from lightning_switchkd.evaluation.results import Result
from lightning_switchkd.evaluation.significance import interval_of_score, mcnemar, resample_sums
from lightning_switchkd.objectives import KD, AlignKD, LLaVAKD, SwitchKDObjective


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


def rows_of(markdown: str) -> list[list[str]]:
    """Return the cells of all table rows."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line[:1] == "|"]


def test_terminal_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The terminal shows one small table and one sentence, the files all else."""
    systems = write_results(
        tmp_path,
        text_only_baseline={"digits": result("7", "7", "no")},
        teacher={"digits": result("7", "3", "yes"), "digits.no_image": result("", "", "yes")},
        sft={"digits": result("7", "<b>", "no")},
    )
    main(["report", *systems, f"--output={tmp_path / 'out'}", "--baseline=teacher"])
    printed = capsys.readouterr().out
    assert rows_of(printed) == [
        ["Digits, 3 questions", "score, %", "95 % interval"],
        ["-" * 21, "-" * 10, "-" * 15],
        ["text-only baseline", "33.3", "0.0 to 100.0"],
        ["teacher", "100.0", "0.0 to 100.0"],
        ["sft", "33.3", "0.0 to 100.0"],
    ]
    sentence = "Sft is not clearly different from teacher: -66.7 points (p = 0.5, paired, n = 3)."
    assert printed.splitlines()[-2:] == [
        sentence,
        f"Report: {tmp_path}/out/report.html, report.md, results.json",
    ]
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    rows = rows_of(text)
    assert rows[0] == ["", "score, %", "95 % interval", "no image", "points above text-only baseline"]
    assert rows[2:5] == [
        ["text-only baseline", "33.3", "0.0 to 100.0", "", ""],
        ["teacher", "100.0", "0.0 to 100.0", "33.3", "+66.7"],
        ["sft", "33.3", "0.0 to 100.0", "", "+0.0"],
    ]
    assert rows[5] == ["kind of question, %", "text-only baseline", "teacher", "sft"]
    assert rows[7:10] == [
        ["exists", "0.0", "100.0", "0.0"],
        ["position", "50.0", "100.0", "50.0"],
        ["average", "25.0", "100.0", "25.0"],
    ]
    assert ["sft", "teacher", "digits", "-66.7", "0", "2", "0.5"] in rows
    assert "\nPrompts and scoring follow the rules of LLaVA (--protocol=llava).\n" in text
    assert "![Scores by kind of question](scores.png)" in text
    assert "single run" not in text, "these systems come from no run of ours"
    assert "- **no image**: the same model with blank images." in text
    assert "student (before)" not in text, "only the terms that the report uses are explained"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert '<td class="wrong">&lt;b&gt;</td>' in page
    assert "<th>teacher</th>" in page
    assert f'<p class="result">{sentence}</p>' in page
    assert f"<td>command</td><td>{program()}" in page
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["result"] == sentence
    assert results["about"].keys() == {"evaluated", "command"}
    assert results["pairs"] == [
        {
            "benchmark": "digits",
            "systems": ["teacher", "sft"],
            "points": pytest.approx(-200 / 3),
            "interval": None,
            "first": 2,
            "second": 0,
            "both": 1,
            "neither": 0,
            "p": 0.5,
        }
    ]


def many(correct: int, total: int = 200) -> Result:
    """Return a result on many questions, of which the first ones are answered correctly."""
    scores = [float(number < correct) for number in range(total)]
    resamples = resample_sums(np.array([scores, [1.0] * total]).T)
    return Result(
        "digits", "digits.yaml", "Digits", "llava", "nowhere", "x", total, 100 * correct / total,
        pairs=list(map(str, range(total))), ids=list(map(str, range(total))), scores=scores, texts=[""] * total,
        resamples=(100 * resamples[:, 0] / resamples[:, 1]).tolist(),
    )  # fmt: skip


def test_sentence_of_a_clear_difference() -> None:
    systems = {name: {"digits": many(n)} for name, n in (("student_init", 100), ("fine_tuned", 120), ("student", 140))}
    comparison = compare(systems, "digits", "student", "fine_tuned")
    assert comparison is not None
    assert comparison.interval is not None
    low, high = comparison.interval
    assert 5 < low < comparison.points == 10 < high < 16, "narrower than that of independent samples, about 10 ± 9.5"
    text = f"Student (distilled) is 10.0 points above student (fine-tuned) (95 % interval +{low:.1f} to +{high:.1f}"
    assert sentence([comparison], systems) == f"{text}, p < 0.001, paired, n = 200)."
    reverse = compare(systems, "digits", "student_init", "student")
    assert reverse is not None
    assert "is 20.0 points below student (distilled) (95 % interval -" in sentence([reverse], systems)


@pytest.mark.parametrize("other", [{"digits": many(9, 10)}, {"digits": many(9), "digits.no_image": many(9, 10)}])
def test_different_questions_are_not_compared(
    other: dict[str, Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    systems = write_results(tmp_path, a={"digits": many(9)}, b=other)
    with pytest.raises(SystemExit, match="2"):
        main(["report", *systems, f"--output={tmp_path / 'out'}"])
    error = capsys.readouterr().err
    assert "Results of 'digits' are on different questions: 200 questions in x (a), 10 questions in x (b)." in error
    assert not (tmp_path / "out").exists()


def test_two_systems_are_compared_without_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in `make compare`: the last system with the first one."""
    systems = write_results(tmp_path, **{name: {"digits": many(n)} for name, n in (("a", 100), ("b", 150))})
    main(["report", *systems, f"--output={tmp_path / 'out'}"])
    assert "\nB is 25.0 points above a (95 % interval " in capsys.readouterr().out
    main(["report", systems[0], f"--output={tmp_path / 'out'}"])
    assert "interval +" not in capsys.readouterr().out, "one system is compared with nothing"


def test_no_difference_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal resamples say nothing about other questions."""
    main(
        ["report", *write_results(tmp_path, **{name: {"digits": many(0, 10)} for name in "ab"}), f"--output={tmp_path}"]
    )
    assert "\nB is not clearly different from a: +0.0 points (p = 1, paired, n = 10).\n" in capsys.readouterr().out


def test_interval_of_only_correct_or_only_wrong_answers() -> None:
    """It equals Wilson's, by its formula."""
    share = 1.959964**2 / (20 + 1.959964**2)
    assert interval_of_score(np.zeros(9), 20) == pytest.approx((0, 100 * share), abs=1e-4)
    assert interval_of_score(np.full(9, 100.0), 20) == pytest.approx((100 - 100 * share, 100), abs=1e-4)
    assert interval_of_score(np.full(9, 50.0), 20) == (50, 50)
    assert interval_of_score(np.zeros(9), 0) == (0, 0)


def test_several_benchmarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = result("7", "3", "no"), result("", "", "no")
    results = {system: dict.fromkeys("abc", bad if n == 6 else good) for n, system in enumerate("tuvwxyz")}
    results["z"] = {"a": bad, "b": good, "c": result("7", "3", "yes")}
    main(["report", *write_results(tmp_path, **results), f"--output={tmp_path / 'out'}", "--baseline=t"])
    printed = capsys.readouterr().out
    rows = rows_of(printed)
    assert [len(row) for row in rows] == [6] * 5 + [3] * 5, "at most six columns"
    assert rows[0] == ["score, % [95 % interval]", "t", "u", "v", "w", "x"]
    assert rows[2] == ["Digits, 3 questions", *["66.7 [0.0, 100.0]"] * 5]
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    headings = [row for row in rows_of(text) if row[:2] == ["A", "B"]]
    assert headings == [["A", "B", "benchmark", "A − B [95 % interval]", "only A correct", "only B correct", "p"]]
    clear = "(0 clearly, p < 0.05, paired)"
    assert f"Z is above t on 1 of 3 benchmarks {clear}, and below on 1 of 3 benchmarks {clear}." in printed
    assert (tmp_path / "out" / "scores.png").stat().st_size > 1000
    assert "## Scores" in text
    assert "![Scores by benchmark](scores.png)" in text


def test_columns_with_one_value_become_a_sentence(tmp_path: Path) -> None:
    systems = {name: {"digits": many(correct)} for name, correct in (("a", 0), ("b", 80), ("c", 160))}
    main(["report", *write_results(tmp_path, **systems), f"--output={tmp_path / 'out'}"])
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "\nAll rows: benchmark digits, only B correct 0, p < 0.001.\n" in text
    rows = [row for row in rows_of(text) if len(row) == 4 and row[0] in "Abc"]
    assert rows[0] == ["A", "B", "A − B [95 % interval]", "only A correct"]
    assert [(row[0], row[1], row[3]) for row in rows[1:]] == [("b", "a", "80"), ("c", "a", "160"), ("c", "b", "80")]


def test_kinds_of_question_are_explained(tmp_path: Path) -> None:
    definition = tmp_path / "digits.yaml"
    categories = {"exists": "whether a digit is there.", "sum": "not asked."}
    values = {"title": "Digits", "scoring": "exact", "layouts": [{"reader": "llava"}], "categories": categories}
    definition.write_text(json.dumps(values), encoding="utf-8")
    explained = result("7", "3", "yes")
    explained.definition = str(definition)
    main(["report", *write_results(tmp_path, a={"digits": explained}), f"--output={tmp_path / 'out'}"])
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "\n- **exists**: whether a digit is there.\n\nAn answer is correct if it equals the expected one." in text
    assert "not asked" not in text
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<p><b>exists</b>: whether a digit is there.</p>" in page


def test_chart_of_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first group is all questions. Whiskers are the intervals, as far as they are known."""
    drawn = []
    monkeypatch.setattr(charts, "save", lambda figure, file: drawn.append(figure))
    first = result("7", "3", "no")
    first.low, first.high, first.category_intervals = 30, 90, {"position": (60, 100)}
    charts.draw_scores(tmp_path / "scores.png", {"a": {"digits": first}}, ["digits"])
    axis = drawn[0].axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["all", "exists", "position"]
    whiskers, bars = axis.containers
    assert [bar.get_height() for bar in bars] == pytest.approx([200 / 3, 0, 100])
    ends = [segment[:, 1].tolist() for segment in whiskers.lines[2][0].get_segments()]
    assert np.array(ends) == pytest.approx(np.array([[30, 90], [0, 0], [60, 100]]))
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {"a", "95 % interval"}
    charts.pyplot("report").close(drawn[0])


def test_labels_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    correct = {"digits": result("7", "3", "yes")}
    systems = write_results(tmp_path, teacher=correct, student_init=correct, student=correct)
    main(["report", *systems, f"--output={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    assert [row[0] for row in rows_of(printed)[2:]] == ["teacher", "student (before)", "student (after)"]
    assert "Student (after) is not clearly different from student (before): +0.0 points (p = 1," in printed
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
        flags = write_results(folder, **systems)
        for file in folder.glob("*/*.json"):  # 0.1.0 knew neither of these
            values = json.loads(file.read_text(encoding="utf-8"))
            new_fields = ("category_intervals", "complete", "resamples")
            kept = {name: value for name, value in values.items() if name not in new_fields}
            file.write_text(json.dumps(kept), encoding="utf-8")
        main(["report", *flags, f"--output={folder / 'out'}"])
        results = json.loads((folder / "out" / "results.json").read_text("utf-8"))
        reports.append((rows_of((folder / "out" / "report.md").read_text("utf-8")), results["systems"]))
    assert reports[0] == reports[1]
    assert reports[0][0][3] == ["teacher", "100.0", "0.0 to 100.0", "33.3", "+66.7"]
    assert len(list((tmp_path / "old" / "teacher").glob("digits.blind.*"))) == 2


def test_head_and_curves_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    objective = {"class_path": "lightning_switchkd.objectives.KD"}
    (run / "config.yaml").write_text(json.dumps({"model": {"objective": objective}}), encoding="utf-8")
    assert describe(str(run))["method"] == "KD"
    config = {"method": "kd_rkl", "model": {"objective": objective}}
    (run / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    environment = {
        "command": "python -m lightning_switchkd fit",
        "started": "2026-01-02T03:04:05+00:00",
        "lightning_switchkd": "0.2.0",
        "git": {"commit": "0123456789abcdef"},
    }
    (run / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    metrics = "step,train/loss/mine,train/loss/ce,train/loss/total,val/loss/ce,val/accuracy\n"
    (run / "metrics.csv").write_text(metrics + "9,2,1.5,2,,0.5\n19,1,1.25,2,1.3,0.6\n", encoding="utf-8")
    systems = write_results(tmp_path, a={"digits": many(3)}, b={"digits": many(4)})
    main(["report", *systems, f"--output={tmp_path / 'out'}", f"--run={run}", "--baseline=a"])
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"<h1>Evaluation of {run}</h1>" in page
    assert "<td>method</td><td>kd_rkl</td>" in page
    assert "<td>trained</td><td>2026-01-02 03:04 UTC, lightning_switchkd 0.2.0, commit 0123456789</td>" in page
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert f"# Evaluation of {run}\n" in text
    result, note, chart = text.split("\n\n")[2:5]
    assert result.startswith("B is not clearly different from a: ")
    assert note.startswith("Each trained student is from a single run,")
    assert "make sweep SWEEP=demo" in note
    assert chart == "![Scores by kind of question](scores.png)"
    curves = text.partition("## Training curves\n\n")[2].splitlines()
    assert curves[0] == "![Losses and validation metrics by optimizer step](curves.png)"
    terms = ["cross-entropy (ce)", "next-token accuracy on validation data"]
    assert [line.split("**")[1] for line in curves[2:]] == terms, "a loss of one's own has its name only"
    file = tmp_path / "out" / "curves.png"
    assert file.stat().st_size > 1000
    (run / "metrics.csv").write_text("step,val/loss/ce\n9,1.5\n", encoding="utf-8")
    assert training_section(tmp_path / "out", str(run)) == []
    assert not file.exists(), "one point is not a curve"


def test_every_loss_term_is_explained() -> None:
    objectives = [SwitchKDObjective(image_tokens=True), LLaVAKD(), AlignKD(), *map(KD, ("fkl", "rkl", "jsd"))]
    names = {f"loss/{name}" for objective in objectives for name in objective.terms}
    assert names | {"exact_match", "accuracy"} == METRICS.keys()


def test_examples_show_where_two_systems_differ() -> None:
    """Ten examples: first those that only the student answers correctly, then the reverse, then others."""
    student, before = many(60), many(0)
    before.scores = [float(20 <= number < 90) for number in range(200)]  # only student: 0..19, only before: 60..89
    for count, expected in ((10, (4, 3, 3)), (0, (0, 0, 0))):
        chosen = examples_of({"before": before, "student": student}, count, "student", "before")
        numbers = [int(example.question.removeprefix("question ")) for example in chosen]
        groups = [0 if n < 20 else 1 if 60 <= n < 90 else 2 for n in numbers]
        assert groups == sorted(groups)
        assert tuple(groups.count(group) for group in range(3)) == expected
    same = examples_of({"student": student}, 4, "student", "before")
    scores = [example.answers["student"][1] for example in same]
    assert sorted(scores[:2]) == sorted(scores[2:]) == [0, 1], "correct and wrong answers in turn"


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
