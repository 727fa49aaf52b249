"""Charts of reports and studies."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Curves = dict[str, list[tuple[int, float]]]


def pyplot() -> Any:
    """matplotlib's, drawing to files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def radar(axis: Any, names: Sequence[str], series: Mapping[str, Sequence[float]], colours: Mapping[str, Any]) -> None:
    """Closed lines on a polar axis; its centre is ten below the lowest value."""
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    for name, values in series.items():
        axis.plot(
            [*angles, angles[0]], [*values, values[0]], label=name, color=colours.get(name), linewidth=1.3, marker="."
        )
    axis.set_xticks(angles, names)
    lowest = min((min(values) for values in series.values()), default=0.0)
    axis.set_ylim(max(0.0, lowest - 10), None)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.12, 0.5))


def grouped_bars(
    axis: Any,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    blind: Mapping[str, Sequence[float]],
    colours: Mapping[str, Any],
    dashes: Sequence[float] | None = None,
) -> None:
    """A group of bars a name, in per cent; hatched: blind; dashed: what is guessed from the text."""
    width = 0.8 / max(1, len(series))
    hatched = "blind"
    for position, (name, values) in enumerate(series.items()):
        places = [i + (position - (len(series) - 1) / 2) * width for i in range(len(names))]
        drawn = axis.bar(places, values, width * 0.9, label=name, color=colours.get(name))
        if name in blind:
            style: dict[str, Any] = {"fill": False, "hatch": "///", "edgecolor": "black", "linewidth": 0.5}
            axis.bar(places, blind[name], width * 0.9, label=hatched, **style)
            hatched = "_"
        axis.bar_label(drawn, fmt="%.0f", fontsize=7)
    if dashes is not None:
        ends = [i - 0.45 for i in range(len(names))], [i + 0.45 for i in range(len(names))]
        axis.hlines(dashes, *ends, colors="black", linestyles="dashed", linewidth=1, label="majority")
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_ylabel("%")
    axis.set_ylim(0, 122)
    axis.legend(fontsize=8, ncols=len(series) + 2, loc="upper center")


def loss_curves(axis: Any, curves: Curves) -> None:
    """Held-out loss terms by step."""
    for name, points in curves.items():
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name.split("/")[-1])
    axis.set_yscale("log")
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("nats per token")
    axis.set_title("Held-out loss terms")
    axis.legend(fontsize=8)


def read_metrics(run: Path) -> Curves:
    """Everything in a run's metrics.csv: steps and values by name; nothing where there is none."""
    curves: Curves = {}
    if (run / "metrics.csv").is_file():
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name != "step" and value:
                        curves.setdefault(name, []).append((int(row["step"]), float(value)))
    return curves
