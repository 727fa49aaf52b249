"""Charts of reports and sweeps, and the metrics of a run that they show."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_switchkd.core.renamed import upgrade_metric
from lightning_switchkd.evaluation.labels import NO_IMAGE, TEXT_ONLY_BASELINE, label

Curves = dict[str, list[tuple[int, float]]]


def pyplot() -> Any:
    """Return matplotlib's pyplot, set to draw to files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


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


def grouped_bars(
    axis: Any,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    no_image: Mapping[str, Sequence[float]],
    colors: Mapping[str, Any],
    text_only_baseline: Sequence[float] | None = None,
) -> None:
    """Draw a group of bars for each name.

    Args:
        axis: Axis.
        names: Labels of the groups.
        series: Values in percent by system.
        no_image: Values with blank images by system, drawn as hatched bars.
        colors: Colors by system.
        text_only_baseline: Values of the text-only baseline, drawn as dashed lines.
    """
    width = 0.8 / max(1, len(series))
    hatched = label(NO_IMAGE)
    for position, (name, values) in enumerate(series.items()):
        x = [i + (position - (len(series) - 1) / 2) * width for i in range(len(names))]
        bars = axis.bar(x, values, width * 0.9, label=name, color=colors.get(name))
        if name in no_image:
            style: dict[str, Any] = {"fill": False, "hatch": "///", "edgecolor": "black", "linewidth": 0.5}
            axis.bar(x, no_image[name], width * 0.9, label=hatched, **style)
            hatched = "_"  # one entry in the legend is enough
        axis.bar_label(bars, fmt="%.0f", fontsize=7)
    if text_only_baseline is not None:
        ends = [i - 0.45 for i in range(len(names))], [i + 0.45 for i in range(len(names))]
        style = {"colors": "black", "linestyles": "dashed", "linewidth": 1}
        axis.hlines(text_only_baseline, *ends, label=label(TEXT_ONLY_BASELINE), **style)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_ylabel("%")
    axis.set_ylim(0, 122)
    axis.legend(fontsize=8, ncols=len(series) + 2, loc="upper center")


def loss_curves(axis: Any, curves: Curves) -> None:
    """Draw the loss terms on validation data by step."""
    for name, points in curves.items():
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name.split("/")[-1])
    axis.set_yscale("log")
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("nats per token")
    axis.set_title("Loss terms, validation")
    axis.legend(fontsize=8)


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
