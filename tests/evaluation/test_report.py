"""Scores by kind, curves read from a run's metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lightning_switchkd.data.records import Turn
from lightning_switchkd.evaluation.evaluate import Scores, exact_match
from lightning_switchkd.evaluation.generate import Question
from lightning_switchkd.evaluation.report import above_majority, examples_page, plot, table_of, validation_curves

ASKED = [
    Question((Turn("user", "<image>\nWhich <b>?"),), (Image.new("L", (4, 4)),), answer=answer, source=source)
    for answer, source in (("7", "position"), ("3", "position"), ("yes", "exists"))
]


def scores(*answers: str) -> Scores:
    blind = exact_match(["", "", "yes"], ASKED)
    return Scores(list(answers), exact_match(answers, ASKED), blind)


def test_table_shows_blind_scores() -> None:
    table = table_of({"teacher": scores("7", "3", "yes"), "sft": scores("7", "1", "no")})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["exact match, %", "teacher", "blind", "sft", "blind"]
    assert rows[2:] == [
        ["exists", "100.0", "100.0", "0.0", "100.0"],
        ["position", "100.0", "0.0", "50.0", "0.0"],
        ["average", "100.0", "50.0", "25.0", "50.0"],
        ["all questions", "100.0", "33.3", "33.3", "33.3"],
    ]


def test_all_questions_have_a_row_only_where_kinds_have_different_sizes() -> None:
    assert "all questions" not in exact_match(["7", "yes"], ASKED[1:])
    assert exact_match(["7", "1", "yes"], ASKED)["all questions"] == pytest.approx(2 / 3)


def test_majority_is_one_column_and_what_models_are_measured_against(tmp_path: Path) -> None:
    guessed = ["7", "7", "no"]
    columns = {
        "majority": Scores(guessed, exact_match(guessed, ASKED)),
        "teacher": scores("7", "3", "yes"),
        "sft": scores("1", "3", "no"),
    }
    header = [cell.strip() for cell in table_of(columns).splitlines()[0].split("|")[1:-1]]
    assert header == ["exact match, %", "majority", "teacher", "blind", "sft", "blind"]
    assert above_majority(columns) == [
        "Points above the majority of training answers (33.3 in all questions): teacher 66.7, sft 0.0."
    ]
    assert above_majority({"teacher": columns["teacher"]}) == []
    plot(tmp_path / "report.png", columns, None)
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_examples_are_escaped_and_marked() -> None:
    page = examples_page(ASKED, {"student": scores("7", "<script>", "yes")})
    assert "Which &lt;b&gt;?" in page
    assert '<td class="wrong">&lt;script&gt;</td>' in page
    assert '<td class="right">7</td>' in page
    assert page.count("data:image/png;base64,") == 3


def test_curves_of_a_run(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(
        "step,train/loss/ce,val/loss/ce,val/accuracy\n9,1.5,,\n9,,1.25,0.5\n19,,1.0,0.6\n", encoding="utf-8"
    )
    assert validation_curves(metrics) == {"ce": [(9, 1.25), (19, 1.0)]}
    assert validation_curves(tmp_path / "none.csv") == {}
