"""Training curves: the metrics of a run, their explanations, and their chart."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from lightning_switchkd.core.extras import pyplot
from lightning_switchkd.core.renamed import upgrade_metric
from lightning_switchkd.evaluation.report.charts import save
from lightning_switchkd.evaluation.report.page import Chart, Section

Curves = dict[str, list[tuple[int, float]]]
"""Steps and values by metric."""

COLUMNS = 3
"""Panels side by side."""

STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": "0.65", "linewidth": 1, "label": "training"},
    "val": {"color": "C0", "marker": "o", "markersize": 3, "label": "validation"},
}


class Metric(NamedTuple):
    """Explanation of a metric: title, unit and meaning."""

    title: str
    unit: str
    meaning: str = ""


METRICS = {
    "loss/ce": Metric(
        "cross-entropy (ce)", "nats per token", "negative log-probability of the next token of the correct answer."
    ),
    "loss/align": Metric(
        "student–teacher distance (align)",
        "nats per token",
        "DBiLD between the next-token predictions of student and teacher (docs/explanation/method.md, section 3).",
    ),
    "loss/vsd": Metric(
        "switch–teacher distance (vsd)",
        "nats per token",
        "distance of the teacher and the visual switch, which is the teacher with the student's vision encoder.",
    ),
    "loss/align_image": Metric(
        "student–teacher distance (align_image)", "nats per image token", "the distance (align) at image tokens."
    ),
    "loss/vsd_image": Metric(
        "switch–teacher distance (vsd_image)", "nats per image token", "the distance (vsd) at image tokens."
    ),
    "loss/fkl": Metric("forward KL (fkl)", "nats per token", "KL(teacher ‖ student) of the next token."),
    "loss/rkl": Metric("reverse KL (rkl)", "nats per token", "KL(student ‖ teacher) of the next token."),
    "loss/jsd": Metric(
        "Jensen-Shannon (jsd)", "nats per token", "divergence of teacher and student from the mixture of both."
    ),
    "loss/text": Metric(
        "forward KL (text)", "nats per token", "KL(teacher ‖ student) of the next token of the answer."
    ),
    "loss/visual": Metric("forward KL (visual)", "nats per image token", "KL(teacher ‖ student) at image tokens."),
    "loss/relation": Metric(
        "relations in the image (relation)",
        "per image",
        "1 − cosine between student and teacher, of the similarities of an image's tokens with each other.",
    ),
    "loss/attention": Metric(
        "attention to the image (attention)",
        "per image",
        "squared error of the first layer's attention from text to image, student to teacher.",
    ),
    "loss/embeds": Metric(
        "projected images (embeds)", "per image token", "squared error of the projector's output, student to teacher."
    ),
    "loss/focus": Metric(
        "attended image tokens (focus)",
        "per image",
        "the error (embeds) at the image tokens that the teacher's text attends to most.",
    ),
    "exact_match": Metric(
        "exact match on validation data",
        "fraction of questions",
        "share of answers that equal the correct ones, on a part of the data.",
    ),
    "accuracy": Metric(
        "next-token accuracy on validation data",
        "fraction of tokens",
        "share of the answers' tokens that are predicted correctly, each after the correct earlier tokens. It is not "
        "the share of correct answers.",
    ),
}
"""The metrics that a report shows, in this order. Other loss terms follow with the names in the log."""


def training_section(folder: Path, run: str | None) -> list[Section]:
    """Draw the losses and validation metrics of a run. Return their section.

    A curve of fewer than two points is not drawn. Without any curve, the list is empty and no file is written.

    Args:
        folder: Folder for the chart.
        run: Run folder, if any.
    """
    file = folder / "curves.png"
    panels = _panels(read_metrics(Path(run))) if run else {}
    if not panels:
        file.unlink(missing_ok=True)
        return []
    _draw(file, panels)
    meanings = {metric.title: metric.meaning for metric in panels if metric.meaning}
    return [Section("Training curves", [Chart(file, "Losses and validation metrics by optimizer step"), meanings])]


def _panels(metrics: Curves) -> dict[Metric, Curves]:
    """Return the curves of each panel, by split."""
    panels: dict[str, Curves] = {}
    for name, points in metrics.items():
        split, _, metric = name.partition("/")
        is_shown = metric in METRICS or (metric.startswith("loss/") and metric != "loss/total")
        if is_shown and split in STYLES and len(points) > 1:
            panels.setdefault(metric, {})[split] = points
    order = {metric: position for position, metric in enumerate(METRICS)}
    shown = sorted(panels, key=lambda metric: order.get(metric, len(order)))
    return {METRICS.get(name, Metric(name.removeprefix("loss/"), "loss")): panels[name] for name in shown}


def _draw(file: Path, panels: Mapping[Metric, Curves]) -> None:
    rows = ceil(len(panels) / COLUMNS)
    columns = min(len(panels), COLUMNS)
    figure, axes = pyplot("report").subplots(rows, columns, figsize=(3.6 * columns, 2.9 * rows), squeeze=False)
    for axis, (metric, splits) in zip(axes.flat, panels.items(), strict=False):
        for split, points in splits.items():
            axis.plot(*zip(*points, strict=True), **STYLES[split])
        axis.set_title(metric.title, fontsize=10)
        axis.set_xlabel("optimizer step")
        axis.set_ylabel(metric.unit)
        axis.update_datalim([(0, 0)])
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    save(figure, file)


def read_metrics(run: Path) -> Curves:
    """Read a run's ``metrics.csv``. The dict is empty if the file is missing."""
    curves: Curves = {}
    if (run / "metrics.csv").is_file():
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name != "step" and value:
                        curves.setdefault(upgrade_metric(name), []).append((int(row["step"]), float(value)))
    return curves
