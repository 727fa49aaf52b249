"""The worked example of docs/explanation/method.md against the package: its code, its tables and its figure."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import numpy as np
import pytest
import torch
from command import ROOT

from lightning_switchkd.losses import Kneedle, dbild, logits_difference_kl

PAGE = (ROOT / "docs" / "explanation" / "method.md").read_text(encoding="utf-8")
SELECT = Kneedle(min_k=3)


@pytest.fixture
def example() -> dict[str, Any]:
    """Return the names that the page's code defines."""
    names: dict[str, Any] = {}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, names)
    return names


def test_the_code_equals_dbild(example: dict[str, Any]) -> None:
    """On the page's row, and on random rows of 60 logits."""
    random = np.random.default_rng(0)
    rows = [(example["teacher"], example["student"])]
    rows += [(random.normal(0, 3, 60), random.normal(0, 3, 60)) for _ in range(20)]
    sizes = set()
    for teacher, student in rows:
        example["teacher"], example["student"] = teacher, student
        loss = example["led_by"](teacher) + example["led_by"](student)
        expected = dbild(teacher=torch.tensor(teacher), student=torch.tensor(student), temperature=1.0, select=SELECT)
        assert loss == pytest.approx(float(expected), rel=1e-9)
        sizes.add(example["knee"](np.sort(teacher)[::-1]))
    assert len(sizes) > 3


def test_the_documented_call_gives_the_value_of_the_page(example: dict[str, Any]) -> None:
    assert "`temperature=1, select=Kneedle(min_k=3)`" in " ".join(PAGE.split())
    sides = {name: torch.tensor(example[name]) for name in ("teacher", "student")}
    assert f"{float(dbild(**sides, temperature=1, select=Kneedle(min_k=3))):.4f}" == "0.0379"


def test_the_tables_are_right(example: dict[str, Any]) -> None:
    teacher, student = torch.tensor(example["teacher"]), torch.tensor(example["student"])
    for name, row in {"teacher": teacher, "student": student}.items():
        assert f"| {name} | {' | '.join(map(str, row.tolist()))} |" in PAGE
    assert f"DBiLD is {example['loss']:.4f} nats" in PAGE
    i, j = torch.triu_indices(3, 3, 1)
    t, s = (teacher[i] - teacher[j]), (student[i] - student[j])
    p, q = t.softmax(0), s.softmax(0)
    for n, nats in enumerate(q * (q / p).log()):
        numbers = [f"{t[n]:.1f}", f"{s[n]:.1f}", f"{p[n]:.3f}", f"{q[n]:.3f}", f"{nats:.3f}".replace("-", "−")]
        assert f"| {i[n] + 1}, {j[n] + 1} | {' | '.join(numbers)} |" in PAGE

    def over(k: int, other: torch.Tensor) -> str:
        mask = torch.ones(1, k, dtype=torch.bool)
        sides = {"teacher": teacher[None, :k], "student": other[None, :k]}
        return f"{abs(float(logits_difference_kl(**sides, mask=mask, temperature=1.0))):.4f}"

    tail = teacher - torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0])
    for other in (student, tail):
        log_p, log_q = teacher[:3].log_softmax(0), other[:3].log_softmax(0)
        top = f"{float((log_q.exp() * (log_q - log_p)).sum()):.4f}"
        assert f"| {top} | {over(3, other)} | {over(5, other)} |" in PAGE
    assert f"{float(teacher.softmax(0)[4]):.4f}" == "0.0003"


def test_the_figure_shows_the_example(example: dict[str, Any]) -> None:
    spec = importlib.util.spec_from_file_location("dbild_example", ROOT / "notebooks" / "dbild_example.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TEACHER.tolist() == example["teacher"].tolist()
    assert script.STUDENT.tolist() == example["student"].tolist()
    texts = [text.get_text() for text in script.draw().findobj() if hasattr(text, "get_text")]
    assert {"knee: k = 3", "5.5", "0.883", "0.926"} <= set(texts)
    assert script.FILE.is_file()
