"""Charts of reports and sweeps, and the metrics of a run that they show."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_switchkd.core.extras import pyplot
from lightning_switchkd.core.renamed import upgrade_metric
from lightning_switchkd.evaluation.labels import NO_IMAGE, TEXT_ONLY_BASELINE, label
from lightning_switchkd.evaluation.report.comparison import Systems, of_benchmark

Curves = dict[str, list[tuple[int, float]]]


def radar(axis: Any, names: Sequence[str], series: Mapping[str, Sequence[float]], colors: Mapping[str, Any]) -> None:
    """Draw closed lines on a polar axis whose center is ten below the lowest value.

    Args:
        axis: Polar axis.
        names: Labels of the spokes.
        series: Values in percent by line.
        colors: Colors by line.
    """
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    for name, values in series.items():
        axis.plot(
            [*angles, angles[0]], [*values, values[0]], label=name, color=colors.get(name), linewidth=1.3, marker="."
        )
    axis.set_xticks(angles, names)
    lowest = min((min(values) for values in series.values()), default=0.0)
    axis.set_ylim(max(0.0, lowest - 10), None)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.12, 0.5))


def draw_scores(file: Path, systems: Systems, names: Sequence[str]) -> bytes:
    """Draw the scores as groups of bars: one benchmark by category, several by benchmark. Return the file.

    Hatched bars are scores with blank images. Dashed lines are the text-only baseline.
    """
    plt = pyplot("report")
    groups, values = _values(systems, names, "")
    no_image = _values(systems, names, f".{NO_IMAGE}")[1]
    baseline = values.pop(TEXT_ONLY_BASELINE, None)
    figure, axis = plt.subplots(figsize=(max(7.0, 2.0 + 0.33 * len(values) * len(groups)), 4.2))
    width = 0.8 / max(1, len(values))
    hatch: dict[str, Any] = {"fill": False, "hatch": "///", "edgecolor": "black", "linewidth": 0.5}
    for position, (system, scores) in enumerate(values.items()):
        x = np.arange(len(groups)) + (position - (len(values) - 1) / 2) * width
        bars = axis.bar(x, scores, 0.9 * width, label=label(system, systems), color=f"C{position}")
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0}
        axis.bar_label(bars, fmt="%.0f", fontsize=7, padding=2, bbox=white)
        if system in no_image:
            axis.bar(x, no_image[system], 0.9 * width, label=label(NO_IMAGE), **hatch)
    if baseline:
        centers = np.arange(len(groups))
        style: dict[str, Any] = {"colors": "black", "linestyles": "dashed", "linewidth": 1}
        axis.hlines(baseline, centers - 0.45, centers + 0.45, label=label(TEXT_ONLY_BASELINE), **style)
    axis.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
    is_points = any(score > 100 for scores in values.values() for score in scores)
    axis.set_ylim(0, 200 if is_points else 106)  # room for the label of 100 %
    axis.set_ylabel("points" if is_points else "score, %")
    axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))  # one entry for all hatched bars
    axis.legend(entries.values(), entries.keys(), fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.03))
    return _save(figure, file)


def _values(systems: Systems, names: Sequence[str], ending: str) -> tuple[list[str], dict[str, list[float]]]:
    """Return the labels of the groups, and the values by system."""
    if len(names) == 1:
        results = of_benchmark(systems, names[0] + ending)
        groups = list(next(iter(results.values())).categories) if results else []
        if groups or not results:
            return groups, {s: [r.categories.get(name, 0.0) for name in groups] for s, r in results.items()}
    shown = [name for name in names if of_benchmark(systems, name + ending)]
    return shown, {
        s: [(of[n + ending].score if n + ending in of else None) or 0.0 for n in shown]
        for s, of in systems.items()
        if any(n + ending in of for n in shown)
    }


def draw_losses(file: Path, metrics: Curves) -> bytes | None:
    """Draw each loss term on its own axis, in training and in validation. Return the file.

    A curve of fewer than two points is not drawn. Without any curve, no file is written.
    """
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, points in metrics.items():
        split, _, term = name.partition("/loss/")
        if term and term != "total" and len(points) > 1:
            curves.setdefault(term, {})[split] = points
    if not curves:
        file.unlink(missing_ok=True)
        return None
    figure, axes = pyplot("report").subplots(1, len(curves), figsize=(3.6 * len(curves), 2.9), squeeze=False)
    styles: dict[str, dict[str, Any]] = {
        "train": {"color": "0.65", "linewidth": 1, "label": "training"},
        "val": {"color": "C0", "marker": "o", "markersize": 3, "label": "validation"},
    }
    for axis, (term, splits) in zip(axes[0], curves.items(), strict=True):
        for split, points in splits.items():
            axis.plot(*zip(*points, strict=True), **styles[split])
        axis.set_title(term, fontsize=10)
        axis.set_xlabel("optimizer step")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("nats per token")
    axes[0][0].legend(fontsize=8)
    return _save(figure, file)


def _save(figure: Any, file: Path) -> bytes:
    figure.savefig(file, dpi=130, bbox_inches="tight")
    pyplot("report").close(figure)
    return file.read_bytes()


def read_metrics(run: Path) -> Curves:
    """Read a run's ``metrics.csv``: steps and values by metric. The dict is empty if the file is missing."""
    curves: Curves = {}
    if (run / "metrics.csv").is_file():
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name != "step" and value:
                        curves.setdefault(upgrade_metric(name), []).append((int(row["step"]), float(value)))
    return curves
