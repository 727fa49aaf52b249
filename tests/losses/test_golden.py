"""Every value of the golden file, which was made by brute force elsewhere. A missing or unknown key fails."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_switchkd.losses import (
    FixedTopK,
    Kneedle,
    dbild,
    forward_kl,
    jensen_shannon,
    logits_difference_kl,
    reverse_kl,
)

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / "dbild.json").read_text())["cases"]
SETTINGS = {"kind", "teacher", "student", "real_vocabulary", "temperature", "window", "min_k", "max_k"}
VALUES = {"teacher_led", "student_led", "loss", "bild", "jsd_0.5", "jsd_0.9", "full_fkl", "full_rkl"}
LED = {"k", "indices", "rkl", "fkl"}

every_case = pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case['kind']}" for i, case in enumerate(CASES)])
padding = pytest.mark.parametrize("padding", ["cut", "hidden"])


def exactly(value: float) -> Any:
    return pytest.approx(value, abs=1e-9, rel=0)


def pathways(case: dict[str, Any], padding: str) -> tuple[Tensor, Tensor]:
    """Teacher and student ``[1, V]`` float64, their padding columns cut off or hidden."""
    both = torch.tensor([case["teacher"], case["student"]], dtype=torch.float64)
    if padding == "cut":
        both = both[:, : case["real_vocabulary"]]
    else:
        both[:, case["real_vocabulary"] :] = -math.inf
    return both[:1], both[1:]


def test_the_file_holds_what_is_tested() -> None:
    assert len(CASES) == 20
    for case in CASES:
        assert set(case) == SETTINGS | VALUES
        assert set(case["teacher_led"]) == set(case["student_led"]) == LED
    assert {case["kind"] for case in CASES} == {"plain", "ties", "padding", "flat"}


@padding
@every_case
def test_dbild(case: dict[str, Any], padding: str) -> None:
    teacher, student = pathways(case, padding)
    select = Kneedle(window=case["window"], min_k=case["min_k"], max_k=case["max_k"])
    for leader, golden in ((teacher, case["teacher_led"]), (student, case["student_led"])):
        indices, mask = select(leader)
        assert int(mask.sum()) == golden["k"]
        assert indices[mask].tolist() == golden["indices"]
        for name, reverse in (("rkl", True), ("fkl", False)):
            value = logits_difference_kl(
                teacher=teacher.gather(-1, indices),
                student=student.gather(-1, indices),
                mask=mask,
                temperature=case["temperature"],
                reverse=reverse,
            )
            assert value.item() == exactly(golden[name])
    value = dbild(teacher=teacher, student=student, temperature=case["temperature"], select=select)
    assert value.item() == exactly(case["loss"])


@padding
@every_case
def test_bild(case: dict[str, Any], padding: str) -> None:
    teacher, student = pathways(case, padding)
    value = dbild(teacher=teacher, student=student, temperature=3.0, select=FixedTopK(k=8), reverse=False)
    assert value.item() == exactly(case["bild"])


@padding
@every_case
def test_full_vocabulary(case: dict[str, Any], padding: str) -> None:
    teacher, student = pathways(case, padding)
    logits = {"teacher": teacher, "student": student, "temperature": case["temperature"]}
    assert forward_kl(**logits).item() == exactly(case["full_fkl"])
    assert reverse_kl(**logits).item() == exactly(case["full_rkl"])
    assert jensen_shannon(**logits, beta=0.5).item() == exactly(case["jsd_0.5"])
    assert jensen_shannon(**logits, beta=0.9).item() == exactly(case["jsd_0.9"])


def test_a_batch_of_rows_of_different_k_gives_each_row_its_own_value() -> None:
    """All cases of one setting side by side: rows do not see each other, nor the padding of the selection."""
    alike = [case for case in CASES if (case["temperature"], case["max_k"], case["min_k"]) == (3.0, None, 4)]
    widest = max(len(case["teacher"]) for case in alike)
    teacher, student = (torch.full((len(alike), widest), -math.inf, dtype=torch.float64) for _ in range(2))
    for row, case in enumerate(alike):
        one = pathways(case, "cut")
        teacher[row, : case["real_vocabulary"]], student[row, : case["real_vocabulary"]] = one[0][0], one[1][0]
    value = dbild(teacher=teacher, student=student, select=Kneedle(window=None, min_k=4))
    assert len(alike) > 2
    assert value.tolist() == [exactly(case["loss"]) for case in alike]
