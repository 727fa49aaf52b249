"""Several systems side by side."""

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
    """Of three questions, whose answers are 7, 3 and yes."""
    scores = [float(text == right) for text, right in zip(texts, ("7", "3", "yes"), strict=True)]
    return Result(
        name, f"{name}.yaml", "Digits", "llava", "nowhere", "x", 3, 100 * sum(scores) / 3, 0, 100,
        {"exists": 100 * scores[2], "position": 50 * sum(scores[:2])},
        {"average": 25 * sum(scores[:2]) + 50 * scores[2]},
        pairs=["0", "1", "2"], ids=["a", "b", "c"], scores=scores, texts=list(texts),
    )  # fmt: skip


def written(folder: Path, **systems: dict[str, Result]) -> list[str]:
    for system, of in systems.items():
        for name, one in of.items():
            one.write(folder / system / f"{name}.json")
    return [f"--systems.{system}={folder / system}" for system in systems]


def test_blind_scores_majority_and_mcnemar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    systems = written(
        tmp_path,
        majority={"digits": result("7", "7", "no")},
        teacher={"digits": result("7", "3", "yes"), "digits.blind": result("", "", "yes")},
        sft={"digits": result("7", "<b>", "no")},
    )
    main(["report", *systems, f"--output={tmp_path / 'out'}"])
    table = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["Digits, %", "majority", "teacher", "blind", "sft"]
    assert rows[2:6] == [
        ["exists", "0.0", "100.0", "100.0", "0.0"],
        ["position", "50.0", "100.0", "0.0", "50.0"],
        ["average", "25.0", "100.0", "50.0", "25.0"],
        ["score", "33.3", "100.0", "33.3", "33.3"],
    ]
    assert "Points above the majority of training answers (33.3): teacher 66.7, sft 0.0." in table
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


def test_benchmarks_are_drawn_where_there_are_several(tmp_path: Path) -> None:
    of = {name: result("7", "3", "no", name=name) for name in ("a", "b", "c")}
    main(["report", *written(tmp_path, one=of, two=of), f"--output={tmp_path / 'out'}", "--examples=0"])
    assert (tmp_path / "out" / "report.png").stat().st_size > 1000


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for folder, message in (("none", "there is no folder"), ("empty", "there are no results in")):
        with pytest.raises(SystemExit):
            main(["report", f"--systems.a={tmp_path / folder}", f"--output={tmp_path / 'out'}"])
        assert message in capsys.readouterr().err


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_is_the_sign_test_on_what_differs(pairs: list[tuple[bool, bool]]) -> None:
    first, second = ({str(n): pair[k] for n, pair in enumerate(pairs)} for k in (0, 1))
    found, turned = mcnemar(first, second), mcnemar(second, first)
    assert found.p == pytest.approx(turned.p)
    assert found.first + found.second + found.both + found.neither == len(pairs)
    n, k = found.first + found.second, min(found.first, found.second)
    assert found.p == pytest.approx(min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n))


def test_curves_of_a_run(tmp_path: Path) -> None:
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
