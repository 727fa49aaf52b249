"""Scores by kind, runs of one model grouped, curves read from a run's metrics."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lightning_switchkd.data.records import Turn
from lightning_switchkd.evaluation.evaluate import Scores, exact_match
from lightning_switchkd.evaluation.generate import Question
from lightning_switchkd.evaluation.report import examples_page, table_of, validation_curves

ASKED = [
    Question((Turn("user", "<image>\nWhich <b>?"),), (Image.new("L", (4, 4)),), answer=answer, source=source)
    for answer, source in (("7", "position"), ("3", "position"), ("yes", "exists"))
]


def scores(*answers: str) -> Scores:
    blind = exact_match(["", "", "yes"], ASKED)
    return Scores(list(answers), exact_match(answers, ASKED), blind)


def test_table_groups_runs_and_shows_blind_scores() -> None:
    table = table_of(
        {"teacher": scores("7", "3", "yes"), "sft/0": scores("7", "3", "no"), "sft/1": scores("7", "1", "no")}
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["exact match, %", "teacher", "blind", "sft", "blind"]
    assert rows[2:] == [
        ["exists", "100.0", "100.0", "0.0 ± 0.0", "100.0 ± 0.0"],
        ["position", "100.0", "0.0", "75.0 ± 35.4", "0.0 ± 0.0"],
        ["average", "100.0", "50.0", "37.5 ± 17.7", "50.0 ± 0.0"],
    ]


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
