"""Scores as a table, a plot and a page of examples."""

from __future__ import annotations

import base64
import csv
import html
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from lightning_switchkd.evaluation.generate import Question

EXAMPLES_PER_KIND = 6
MAJORITY = "majority"  # the column of the text-only baseline


class ModelScores(Protocol):
    """What a report needs of ``evaluate.Scores``."""

    answers: list[str]
    seeing: dict[str, float]
    blind: dict[str, float]


def write_report(
    folder: Path, questions: Sequence[Question], scores: Mapping[str, ModelScores], run: Path | None
) -> str:
    """Writes ``table.md``, ``report.png`` and ``examples.html``; returns the table."""
    table = "\n\n".join([table_of(scores), *above_majority(scores)])
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    (folder / "examples.html").write_text(examples_page(questions, scores), encoding="utf-8")
    plot(folder / "report.png", scores, run)
    return table


def table_of(scores: Mapping[str, ModelScores]) -> str:
    """A Markdown table in per cent: a row a kind of question, two columns a model, the blind score beside the score."""
    columns: list[tuple[str, dict[str, float]]] = []
    for name, score in scores.items():
        columns += [(name, score.seeing), *([("blind", score.blind)] if score.blind else [])]
    rows = [["exact match, %", *(name for name, _ in columns)]]
    for kind in next(iter(scores.values())).seeing:
        rows.append([kind, *(per_cent([shares[kind]]) for _, shares in columns)])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first row the heading, its columns as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def above_majority(scores: Mapping[str, ModelScores]) -> list[str]:
    """A sentence: by how many points each model is above the majority over all questions; none without that column."""
    if MAJORITY not in scores:
        return []
    row = list(scores[MAJORITY].seeing)[-1]  # all questions; where kinds have equal sizes, their average is the same
    base = scores[MAJORITY].seeing[row]
    gains = [f"{name} {per_cent([score.seeing[row] - base])}" for name, score in scores.items() if name != MAJORITY]
    return [f"Points above the majority of training answers ({per_cent([base])} in {row}): {', '.join(gains)}."]


def per_cent(shares: Sequence[float]) -> str:
    """One share as ``97.5``, several as ``97.5 ± 0.3`` (mean and sample standard deviation).

    >>> per_cent([0.975]), per_cent([0.97, 0.98])
    ('97.5', '97.5 ± 0.7')
    """
    mean = f"{100 * statistics.mean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * statistics.stdev(shares):.1f}"


def plot(path: Path, scores: Mapping[str, ModelScores], run: Path | None) -> None:
    """Bars by kind of question (hatched: blind; dashed: majority) and, for a run, its held-out loss terms by step."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    curves = {} if run is None else validation_curves(run / "metrics.csv")
    figure, axes = plt.subplots(1, 2 if curves else 1, figsize=(13 if curves else 8, 4.2), squeeze=False)
    bars = axes[0][0]
    kinds = list(next(iter(scores.values())).seeing)
    models = {name: score for name, score in scores.items() if name != MAJORITY}
    width = 0.8 / len(models)
    for position, (name, score) in enumerate(models.items()):
        places = [i + (position - (len(models) - 1) / 2) * width for i in range(len(kinds))]
        drawn = bars.bar(places, [100 * score.seeing[kind] for kind in kinds], width * 0.9, label=name)
        blind = [100 * score.blind[kind] for kind in kinds]
        label = "blind" if position == 0 else None
        bars.bar(places, blind, width * 0.9, fill=False, hatch="///", edgecolor="black", linewidth=0.5, label=label)
        bars.bar_label(drawn, fmt="%.0f", fontsize=7)
    if MAJORITY in scores:
        guessed = [100 * scores[MAJORITY].seeing[kind] for kind in kinds]
        left, right = [i - 0.45 for i in range(len(kinds))], [i + 0.45 for i in range(len(kinds))]
        bars.hlines(guessed, left, right, colors="black", linestyles="dashed", linewidth=1, label=MAJORITY)
    bars.set_xticks(range(len(kinds)), kinds, rotation=20)
    bars.set_ylabel("exact match, %")
    bars.set_ylim(0, 122)
    bars.legend(fontsize=8, ncols=len(models) + 2, loc="upper center")
    bars.set_title("Held-out questions")
    if curves:
        for name, points in curves.items():
            axes[0][1].plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axes[0][1].set_yscale("log")
        axes[0][1].set_xlabel("optimizer step")
        axes[0][1].set_ylabel("nats per token")
        axes[0][1].set_title("Held-out loss terms")
        axes[0][1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def validation_curves(metrics: Path) -> dict[str, list[tuple[int, float]]]:
    """``val/loss/*`` of a run's metrics.csv: step and value, by term."""
    curves: dict[str, list[tuple[int, float]]] = {}
    if not metrics.is_file():
        return curves
    with metrics.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for column, value in row.items():
                if column and column.startswith("val/loss/") and value:
                    curves.setdefault(column.removeprefix("val/loss/"), []).append((int(row["step"]), float(value)))
    return curves


def examples_page(questions: Sequence[Question], scores: Mapping[str, ModelScores]) -> str:
    """A self-contained HTML page: images, questions, right answers, and what each model said."""
    shown: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        if len(shown.setdefault(question.source, [])) < EXAMPLES_PER_KIND:
            shown[question.source].append(i)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in scores)
    rows = "\n".join(
        _example_row(questions[i], [s.answers[i] for s in scores.values()]) for ids in shown.values() for i in ids
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Examples</title>
<style>body{{font:15px system-ui;margin:2em}}td,th{{padding:.4em .8em;border-bottom:1px solid #ddd;text-align:left}}
img{{height:96px;image-rendering:pixelated}}.right{{color:#080}}.wrong{{color:#b00}}</style>
<h1>Held-out examples</h1>
<table><tr><th>image</th><th>kind</th><th>question</th><th>right answer</th>{head}</tr>
{rows}
</table></html>
"""


def _example_row(question: Question, answers: Sequence[str]) -> str:
    asked = question.turns[-1].text_only
    pictures = "".join(f'<img alt="" src="data:image/png;base64,{_png(image)}">' for image in question.images)
    said = "".join(
        f'<td class="{"right" if answer == question.answer.strip() else "wrong"}">{html.escape(answer)}</td>'
        for answer in answers
    )
    cells = "".join(f"<td>{html.escape(text)}</td>" for text in (question.source, asked, question.answer))
    return f"<tr><td>{pictures}</td>{cells}{said}</tr>"


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
