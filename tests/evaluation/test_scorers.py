"""Tests of the scorers on every worked example of the reference codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers import llava, lmms, vlmevalkit
from lightning_switchkd.evaluation.benchmarks.scorers.documents import anls, edit_distance, relaxed_match
from lightning_switchkd.evaluation.benchmarks.scorers.mmmu import contains
from lightning_switchkd.evaluation.benchmarks.scorers.short_answer import challenge, consensus, evalai, official
from lightning_switchkd.evaluation.benchmarks.tallies import COGNITION, MME, PERCEPTION, POPE, Circular
from lightning_switchkd.evaluation.significance import Floats

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "scorers.json").read_text("utf-8"))
USED = {
    *("vqa", "vqa_normalise_evalai", "vqa_normalise_official", "gqa", "mme_parse", "mme_score", "pope_parse"),
    *("pope_f1", "scienceqa", "mmbench_extract", "mmbench_circular", "mmmu_mc", "mmmu_open", "averages"),
}


def as_judged(rows: list[tuple[float, float]]) -> Floats:
    """Return an array of scores and replies."""
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def cases(name: str) -> Any:
    return pytest.mark.parametrize("case", GOLDEN[name], ids=lambda case: str(case.get("pred", ""))[:30])


def test_every_golden_example_is_used() -> None:
    assert GOLDEN.keys() == USED


@cases("vqa")
def test_consensus(case: dict[str, Any]) -> None:
    assert consensus(case["pred"], case["gold"]) == pytest.approx(case["evalai"])
    assert challenge(case["pred"], case["gold"]) == pytest.approx(case["official"])


def test_normalizers() -> None:
    assert {text: evalai(text) for text in GOLDEN["vqa_normalise_evalai"]} == GOLDEN["vqa_normalise_evalai"]
    assert {text: official(text) for text in GOLDEN["vqa_normalise_official"]} == GOLDEN["vqa_normalise_official"]


@cases("gqa")
def test_gqa(case: dict[str, Any]) -> None:
    for name, rules in (("llava", llava), ("lmms", lmms), ("vlmevalkit", vlmevalkit)):
        assert rules.gqa(case["pred"], case["gold"]) == bool(case[name]), name


@cases("mme_parse")
def test_mme(case: dict[str, Any]) -> None:
    assert llava.mme(case["pred"]) == case["official"]
    assert lmms.mme(case["pred"]) == case["lmms"]


@pytest.mark.parametrize("case", GOLDEN["mme_score"])
def test_mme_scores(case: dict[str, Any]) -> None:
    if "pairs" in case:
        items = [Item(str(n), "", image=str(n), category="count") for n in range(len(case["pairs"])) for _ in range(2)]
        judged = as_judged([(correct, 0) for pair in case["pairs"] for correct in pair])
        assert MME().category(items, judged) == pytest.approx(case["category_score"])
    else:
        share = case["perception_total"] / len(PERCEPTION)
        categories = dict.fromkeys(PERCEPTION, share) | dict.fromkeys(COGNITION, 50.0)
        figures = MME().figures([], as_judged([]), categories)
        assert figures["perception"] / 20 == pytest.approx(case["percent"])
        assert figures["cognition"] == 200
        items = [Item(f"{c}{n}", "", image=f"{c}{n}", category=c) for c in PERCEPTION for n in range(1000)]
        judged = as_judged([(n < 5 * share, 0) for _ in PERCEPTION for n in range(1000)])
        assert MME().score(items, judged) == pytest.approx(case["percent"], abs=0.1)


@cases("pope_parse")
def test_pope(case: dict[str, Any]) -> None:
    names = {"Yes": "yes", "No": "no", "Unknown": "other", None: "other", "yes": "yes", "no": "no"}
    assert llava.pope(case["pred"]) == case["llava"]
    assert lmms.pope(case["pred"]) == names[case["lmms_equal_to"]]
    assert vlmevalkit.yes_no(case["pred"]) == names[case["vlmevalkit"]]


def detection(replies: list[str], labels: list[str]) -> tuple[float, dict[str, float]]:
    """Return F1 and the other figures of one split, from replies and labels."""
    items = [Item(str(n), "", (label,)) for n, label in enumerate(labels)]
    values = {"yes": 1, "no": -1, "other": 0}
    judged = as_judged([(reply == label, values[reply]) for reply, label in zip(replies, labels, strict=True)])
    return POPE().score(items, judged), POPE().figures(items, judged, {})


@pytest.mark.parametrize("case", GOLDEN["pope_f1"])
def test_pope_scores(case: dict[str, Any]) -> None:
    if "pred" in case:
        f1, figures = detection(case["pred"], case["gold"])
        names = {"pooled F1": "f1", "mean F1": "f1", "accuracy": "acc", "yes ratio": "yes_ratio"}
        assert f1 == pytest.approx(100 * case["f1"])
        assert figures == pytest.approx({name: 100 * case[names.get(name, name)] for name in figures})
    else:
        assert 100 * sum(case["split_f1"]) / 3 == pytest.approx(case["reported"], abs=0.005)


@cases("scienceqa")
def test_scienceqa(case: dict[str, Any]) -> None:
    options = dict.fromkeys("ABCDE"[: case["choices"]], "")
    for name, parse in (("llava", llava.scienceqa), ("lmms", lmms.scienceqa)):
        assert (parse(case["pred"], options) == "ABCDE"[case["gold"]]) == bool(case[name]), name


@cases("mmbench_extract")
def test_mmbench(case: dict[str, Any]) -> None:
    assert vlmevalkit.choice(case["pred"], case["options"]) == case["vlmevalkit"]
    assert (lmms.trace(case["pred"], case["options"]) or "") == case["lmms_static_extractor"]


@pytest.mark.parametrize("case", GOLDEN["mmbench_circular"])
def test_circular(case: dict[str, Any]) -> None:
    items = [
        Item(str(7 + turn * 1_000_000), "", (correct,), dict.fromkeys("ABCD", ""))
        for turn, (correct, _) in enumerate(case["rows"])
    ]
    judged = as_judged([(correct == letter, 0) for correct, letter in case["rows"]])
    assert Circular().score(items, judged) == 100 * case["hit"]


@cases("mmmu_mc")
def test_mmmu(case: dict[str, Any]) -> None:
    for name, parse in (("official", llava.mmmu), ("lmms", lmms.mmmu)):
        assert (parse(case["pred"], case["options"]) or "RANDOM") == case[name], name


@cases("mmmu_open")
def test_mmmu_open(case: dict[str, Any]) -> None:
    answers = [case["gold"]] if isinstance(case["gold"], str) else case["gold"]
    assert contains(case["pred"], answers) == bool(case["official"])


@pytest.mark.parametrize("case", GOLDEN["averages"])
def test_averages(case: dict[str, Any]) -> None:
    assert sum(case["row"]) / len(case["row"]) == pytest.approx(case["avg10"], abs=0.005)


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("stop", ["Stop"], 1.0),  # case does not count
        ("STOD", ["stop"], 1 - 1 / 4),
        ("stop sign", ["stop"], 0.0),  # distance 5 of 9: below the threshold
        ("stop", ["halt", "stops"], 1 - 1 / 5),  # the closest answer counts
        ("ab", ["ac"], 0.5),  # the threshold itself counts
        ("", ["stop"], 0.0),
        ("1,000", ["1000"], 1 - 1 / 5),
    ],
)
def test_anls(prediction: str, answers: list[str], score: float) -> None:
    assert anls(prediction, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "answer", "correct"),
    [
        ("105", "100", True),  # within 5 % of the correct answer
        ("95", "100", True),
        ("105.1", "100", False),
        ("-98", "-100", True),
        ("98", "-100", False),
        ("21%", "0.20", True),  # a percentage is a fraction
        ("20", "20%", False),
        ("2e3", "2000", True),
        ("Yes", "yes", True),  # other texts must be equal but for case
        ("blue bar", "blue", False),
        ("about 100", "100", False),
        ("0", "0", True),  # no relative error of zero
        ("0.01", "0", False),
        ("1,000", "1000", False),
    ],
)
def test_relaxed_accuracy(prediction: str, answer: str, correct: bool) -> None:
    assert relaxed_match(prediction, answer) == correct


WORDS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20)


@given(WORDS, st.lists(WORDS, min_size=10, max_size=10), st.randoms())
def test_consensus_ignores_order_and_case(prediction: str, answers: list[str], chance: Any) -> None:
    score = consensus(prediction, answers)
    shuffled = list(answers)
    chance.shuffle(shuffled)
    assert score in (0, 0.3, 0.6, 0.9, 1)
    assert consensus(f"  {prediction.upper()} ", shuffled) == score


@given(WORDS)
def test_normalization_ignores_case_and_removes_marks(text: str) -> None:
    assert evalai(text.upper()) == evalai(text.lower())
    assert not set(evalai(text)) & set('/[]{}()=+<>@`"')


@given(
    st.lists(st.tuples(st.sampled_from(["yes", "no", "other"]), st.sampled_from(["yes", "no"])), min_size=1),
    st.randoms(),
)
def test_detection_ignores_order(pairs: list[tuple[str, str]], chance: Any) -> None:
    f1, figures = detection(*map(list, zip(*pairs, strict=True)))
    chance.shuffle(pairs)
    assert detection(*map(list, zip(*pairs, strict=True))) == (f1, figures)
    bounds = sorted((figures["precision"], figures["recall"]))
    assert bounds[0] - 1e-9 <= f1 <= bounds[1] + 1e-9


@given(WORDS, WORDS, WORDS)
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a) <= max(len(a), len(b))
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert 0 <= anls(a, [b, c]) <= 1
