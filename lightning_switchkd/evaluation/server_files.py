"""Files for the servers of benchmarks whose test labels are hidden."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning_switchkd.core.extras import requires
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers.short_answer import evalai


def export(
    kind: str, items: Sequence[Item], texts: Sequence[str | None], file: Path, further_ids: Sequence[str] = ()
) -> None:
    """Write the file that a benchmark's server requires. An unanswered question gets an empty answer.

    Args:
        kind: Format. ``vqav2`` and ``vizwiz``: JSON for EvalAI, with answers normalized as in LLaVA. ``mmbench``: XLSX.
        items: All questions.
        texts: Their answers.
        file: File to write.
        further_ids: Ids that the server also requires. They get an empty answer.

    Raises:
        UserError: openpyxl is not installed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "mmbench":
        _xlsx(items, texts, file)
        return
    key = "image" if kind == "vizwiz" else "question_id"
    rows = [
        {
            key: item.image if kind == "vizwiz" else int(item.id) if item.id.isdecimal() else item.id,
            "answer": evalai(text or ""),
        }
        for item, text in zip(items, texts, strict=True)
    ]
    ids = {item.id for item in items}
    rows += [{key: int(name) if name.isdecimal() else name, "answer": ""} for name in further_ids if name not in ids]
    file.write_text(json.dumps(rows), encoding="utf-8")


def _xlsx(items: Sequence[Item], texts: Sequence[str | None], file: Path) -> None:
    with requires("report", "The file of MMBench's server"):
        from openpyxl import Workbook

    letters = sorted({letter for item in items for letter in item.options})
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(["index", "question", "hint", *letters, "prediction", "category"])
    for item, text in zip(items, texts, strict=True):
        options = [item.options.get(letter, "") for letter in letters]
        sheet.append([int(item.id), item.question, item.hint, *options, text or "", item.category])
    book.save(file)
