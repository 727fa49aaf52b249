"""Charts of scores, in reports and sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_switchkd.core.extras import pyplot
from lightning_switchkd.evaluation.labels import INTERVAL, NO_IMAGE, TEXT_ONLY_BASELINE, label
from lightning_switchkd.evaluation.report.comparison import Systems, of_benchmark
from lightning_switchkd.evaluation.report.page import Chart
from lightning_switchkd.evaluation.results import Result
from lightning_switchkd.evaluation.significance import Floats

ALL = "all"
"""Label of the score of all questions, next to those of their kinds."""


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


def draw_scores(file: Path, systems: Systems, names: Sequence[str]) -> Chart:
    """Draw the scores with their intervals as groups of bars: one benchmark by category, several by benchmark.

    Hatched bars are scores with blank images. Dashed lines are the text-only baseline.
    """
    groups, values = _values(systems, names, "")
    no_image = _values(systems, names, f".{NO_IMAGE}")[1]
    baseline = values.pop(TEXT_ONLY_BASELINE, None)
    figure, axis = pyplot("report").subplots(figsize=(max(7.0, 2.0 + 0.33 * len(values) * len(groups)), 4.2))
    width = 0.8 / max(1, len(values))
    whiskers: dict[str, Any] = {"elinewidth": 0.8, "ecolor": "0.2", "label": INTERVAL}
    hatch: dict[str, Any] = {"fill": False, "hatch": "///", "edgecolor": "black", "linewidth": 0.5}
    for position, (system, (scores, low, high)) in enumerate(values.items()):
        x = np.arange(len(groups)) + (position - (len(values) - 1) / 2) * width
        style: dict[str, Any] = {"label": label(system, systems), "color": f"C{position}", "error_kw": whiskers}
        bars = axis.bar(x, scores, 0.9 * width, yerr=np.maximum(0, [scores - low, high - scores]), **style)
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0}
        axis.bar_label(bars, fmt="%.0f", fontsize=7, padding=2, bbox=white)
        if system in no_image:
            axis.bar(x, no_image[system][0], 0.9 * width, label=label(NO_IMAGE), **hatch)
    if baseline is not None:
        centers = np.arange(len(groups))
        dashed: dict[str, Any] = {"colors": "black", "linestyles": "dashed", "linewidth": 1}
        axis.hlines(baseline[0], centers - 0.45, centers + 0.45, label=label(TEXT_ONLY_BASELINE), **dashed)
    axis.margins(x=0.02)
    axis.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
    is_points = len(names) == 1 and any(result.in_points for result in of_benchmark(systems, names[0]).values())
    axis.set_ylim(0, 200 if is_points else 106)  # room for the label of 100 %
    axis.set_ylabel("points" if is_points else "score, %")
    axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))  # one entry for all hatched bars, and for all intervals
    axis.legend(entries.values(), entries.keys(), fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.03))
    save(figure, file)
    return Chart(file, f"Scores by {'kind of question' if len(names) == 1 else 'benchmark'}")


def _values(systems: Systems, names: Sequence[str], ending: str) -> tuple[list[str], dict[str, Floats]]:
    """Return the labels of the groups; and by system, scores and both ends of their intervals ``[3, groups]``."""
    shown = {name: of_benchmark(systems, name + ending) for name in names}
    asked = [system for system in systems if any(system in results for results in shown.values())]
    if len(names) > 1:
        scores = {s: [_headline(results.get(s)) for results in shown.values()] for s in asked}
        return list(names), {system: np.stack(rows, axis=1) for system, rows in scores.items()}
    results = shown[names[0]]
    categories = list(results[asked[0]].categories) if asked else []
    scores = {s: [_headline(results[s]), *(_category(results[s], name) for name in categories)] for s in asked}
    return [ALL, *categories], {system: np.stack(rows, axis=1) for system, rows in scores.items()}


def _headline(result: Result | None) -> Floats:
    """Return a score and both ends of its interval, in the unit of the categories. A missing score is 0."""
    if result is None or result.score is None:
        return np.zeros(3)
    return np.array([result.score, result.low, result.high]) * (2 if result.in_points else 1)


def _category(result: Result, name: str) -> Floats:
    score = result.categories.get(name, 0.0)
    return np.array([score, *result.category_intervals.get(name, (score, score))])


def save(figure: Any, file: Path) -> None:
    """Save and close a figure."""
    figure.savefig(file, dpi=130, bbox_inches="tight")
    pyplot("report").close(figure)
