"""Figures of the tables of :mod:`lightning_switchkd.explore`. Each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pandas import DataFrame
from PIL.Image import Image
from torch import Tensor

from lightning_switchkd.core.types import Pathway
from lightning_switchkd.evaluation.labels import NO_IMAGE, label
from lightning_switchkd.explore.inspection import Inspection
from lightning_switchkd.losses.select import Kneedle, Selection

COLORS = {"teacher": "#1f77b4", "student": "#ff7f0e", "switch": "#2ca02c"}
"""Colors of the pathways, the same in every figure."""

TITLES = {
    "entropy_student": "entropy of the student (nats)",
    "entropy_teacher": "entropy of the teacher (nats)",
    "k_teacher": "k: tokens in the teacher's set",
    "k_student": "k: tokens in the student's set",
    "overlap": "tokens in both sets /\ntokens in either set",
    "student_mass_in_teacher_set": "student's probability\nin the teacher's set",
    "dbild": "DBiLD, teacher to student (nats)",
    "source": "kind of question",
    "position": "token of the answer (0: first)",
}
"""Titles of the columns of :meth:`Inspection.statistics`. Other columns keep their names."""


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    plt.close(figure)  # a notebook shows the figure that a cell returns; an open one would be shown twice
    return figure, axes


def tokens(inspections: Mapping[str, Inspection], count: int = 5, max_positions: int = 6) -> Figure:
    """Plot the likeliest tokens at the first positions of an answer.

    Each inspection and pathway has a row of panels, each position a column.

    Args:
        inspections: Inspections of one and the same sample, by name: "before", "after".
        count: Tokens per panel.
        max_positions: Number of positions, at most.
    """
    first, last = next(iter(inspections.values())), list(inspections)[-1]
    lines = [
        (name, pathway)
        for pathway in sorted(first.tokens.hidden, key=("student", "switch", "teacher").index)
        for name in inspections
        if pathway != "teacher" or name == last  # distillation does not change the teacher
    ]
    columns = min(len(first), max_positions)
    figure, axes = _grid(len(lines), columns, 2.3, 1.5)
    tables = {name: inspection.top(count) for name, inspection in inspections.items()}
    for y, (name, pathway) in enumerate(lines):
        for x in range(columns):
            axis, table = axes[y][x], tables[name]
            shown = table[(table["row"] == x) & (table["pathway"] == pathway)]
            colors = ["#2a9d3a" if right else "0.65" for right in shown["right"]]
            axis.barh(range(len(shown)), shown["probability"], color=colors)
            axis.set_yticks(range(len(shown)), [_plain(token) for token in shown["token"]], fontsize=8)
            axis.invert_yaxis()
            axis.set_xlim(0, 1)
            axis.tick_params(axis="x", labelsize=7)
            if y == len(lines) - 1:
                axis.set_xlabel("probability", fontsize=8)
            if y == 0:
                axis.set_title(f"→ {_plain(first.about['token'][x])}", fontsize=10)
            if x == 0:
                axis.set_ylabel(pathway if pathway == "teacher" else f"{pathway}\n({name})", fontsize=9)
    figure.tight_layout()
    return figure


def _plain(text: str, length: int = 14) -> str:
    """Return the start of a text, as every font and matplotlib's math parser can show it."""
    shown = "".join(c if c.isprintable() else "·" for c in text)
    return shown[:length].replace("$", r"\$")


def knee(inspection: Inspection, row: int, select: Selection = Kneedle(), window: int = 256) -> Figure:  # noqa: B008 (frozen)
    """Plot the sorted logits of a row by pathway, with their chord and the cut at k."""
    figure, axes = _grid(1, len(inspection.tokens.hidden), 4.2, 3.2)
    for axis, pathway in zip(axes[0], inspection.tokens.hidden, strict=True):
        curve = inspection.curve(row, pathway, window)
        k = int(select(inspection.logits(row, pathway)[None])[1].sum())
        axis.plot(range(1, len(curve) + 1), curve["logit"], color=COLORS[pathway], label="logits")
        axis.plot(range(1, len(curve) + 1), curve["chord"], color="0.6", linewidth=0.8, label="chord")
        axis.axvline(k, color="black", linestyle="dashed", linewidth=0.9, label=f"k = {k}")
        axis.set_title(pathway)
        axis.set_xlabel("rank")
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("logit")
    figure.tight_layout()
    return figure


def pair_weights(pairs: DataFrame, pathway: Pathway = "student", max_tokens: int = 12) -> Figure:
    """Plot the weight of each pair by teacher and pathway, and the pair's share of the divergence.

    Args:
        pairs: Table of :meth:`Inspection.pairs`.
        pathway: The pathway that is compared with the teacher.
        max_tokens: Number of tokens, at most.
    """
    order = list(dict.fromkeys([*pairs["first"], *pairs["second"]]))[:max_tokens]
    figure, axes = _grid(1, 3, 4.2, 3.8)
    for axis, column in zip(axes[0], ("teacher", pathway, "kl"), strict=True):
        grid = np.full((len(order), len(order)), np.nan)
        for first, second, value in zip(pairs["first"], pairs["second"], pairs[column], strict=True):
            if first in order and second in order:
                grid[order.index(first), order.index(second)] = value
        limit = float(np.nanmax(np.abs(grid)))
        style: dict[str, Any] = (
            {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if column == "kl" else {"cmap": "viridis"}
        )
        drawn = axis.imshow(grid, **style)
        axis.set_xticks(range(len(order)), [_plain(t) for t in order], rotation=90, fontsize=7)
        axis.set_yticks(range(len(order)), [_plain(t) for t in order], fontsize=7)
        axis.set_title("share of the divergence (nats)" if column == "kl" else f"pair weight ({column})", fontsize=9)
        figure.colorbar(drawn, ax=axis, shrink=0.75)
    figure.tight_layout()
    return figure


def sizes(table: DataFrame) -> Figure:
    """Plot the distribution of k, one box per selection (:meth:`Inspection.sizes`)."""
    figure, axes = _grid(1, 1, 1.2 + 0.9 * len(table.columns), 3.4)
    axes[0][0].boxplot(
        [table[name] for name in table.columns], tick_labels=list(table.columns), whis=(5, 95), showfliers=False
    )
    axes[0][0].set_yscale("log")
    axes[0][0].set_ylabel("k")
    axes[0][0].tick_params(axis="x", rotation=20, labelsize=8)
    figure.tight_layout()
    return figure


def distributions(statistics: DataFrame, columns: list[str], by: str = "source") -> Figure:
    """Plot columns of :meth:`Inspection.statistics` as boxes.

    Args:
        statistics: The table.
        columns: One panel each.
        by: Column of the groups, one box each: ``source`` or ``position``.
    """
    groups = list(statistics.groupby(by))
    figure, axes = _grid(1, len(columns), 3.4, 3.2)
    for axis, column in zip(axes[0], columns, strict=True):
        values = [group[column].astype(float) for _, group in groups]
        axis.boxplot(values, tick_labels=[str(name) for name, _ in groups], whis=(5, 95), showfliers=False)
        axis.set_title(TITLES.get(column, column), fontsize=9)
        axis.set_xlabel(TITLES.get(by, by), fontsize=8)
        axis.tick_params(axis="x", rotation=45, labelsize=8)
    figure.tight_layout()
    return figure


def attention(image: Image, maps: Mapping[str, Tensor], question: str) -> Figure:
    """Plot attention maps over the image, on one color scale.

    Args:
        image: The image.
        maps: Maps of :meth:`Pair.attention`, by title.
        question: Title of the figure.
    """
    figure, axes = _grid(1, 1 + len(maps), 2.6, 2.9)
    shown = np.asarray(image.convert("RGB"))
    axes[0][0].imshow(shown)
    axes[0][0].set_title("image", fontsize=9)
    highest = max(float(focus.max()) for focus in maps.values())
    for axis, (name, focus) in zip(axes[0][1:], maps.items(), strict=True):
        axis.imshow(shown, cmap="gray")
        extent = (-0.5, shown.shape[1] - 0.5, shown.shape[0] - 0.5, -0.5)
        drawn = axis.imshow(focus.numpy(force=True), cmap="inferno", alpha=0.6, extent=extent, vmin=0, vmax=highest)
        axis.set_title(name, fontsize=9)
    for axis in axes[0]:
        axis.axis("off")
    figure.set_layout_engine("constrained")
    figure.colorbar(drawn, ax=list(axes[0]), shrink=0.7, label="share of the attention\nto the image, per patch")
    figure.suptitle(_plain(question, 120), fontsize=10)
    return figure


def lines(table: DataFrame, levels: DataFrame | None = None) -> Figure:
    """Plot the table of :func:`lightning_switchkd.explore.curves`: one panel per metric, one color per run.

    Args:
        table: The runs. A run with a single value of a metric is a marker.
        levels: Runs of which only the last value of each metric is shown, as a dashed line.
    """
    metrics = list(dict.fromkeys(table["metric"]))
    colors = {run: f"C{n}" for n, run in enumerate(table["run"].cat.categories)}
    figure, axes = _grid(1, len(metrics), 3.6, 3.0)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for run, points in table[table["metric"] == metric].groupby("run", observed=True):
            marker = "o" if len(points) == 1 else None
            axis.plot(points["step"], points["value"], label=str(run), color=colors[run], marker=marker)
        if levels is not None:
            of_metric = levels[levels["metric"] == metric].groupby("run", observed=True)["value"].last()
            for (run, value), gray in zip(of_metric.items(), ("0", "0.5"), strict=False):
                axis.axhline(value, label=str(run), color=gray, linestyle="dashed", linewidth=1)
        axis.set_title(metric, fontsize=9)
        axis.set_xlabel("step")
        axis.legend(fontsize=7)
    figure.tight_layout()
    return figure


def bars(scores: DataFrame) -> Figure:
    """Plot scores by category and system. Hatched bars are the scores with blank images."""
    categories = list(dict.fromkeys(scores["category"]))
    systems = list(dict.fromkeys(scores["system"]))
    figure, axes = _grid(1, 1, 1.5 + 1.2 * len(categories), 3.4)
    width = 0.8 / len(systems)
    for place, system in enumerate(systems):
        x = np.arange(len(categories)) + (place - (len(systems) - 1) / 2) * width
        for no_image in sorted(scores["no_image"].unique()):
            of_system = scores[(scores["system"] == system) & (scores["no_image"] == no_image)]
            by_category = of_system.set_index("category")["score"]
            values = [by_category.get(category, np.nan) for category in categories]
            style: dict[str, Any] = (
                {"fill": False, "hatch": "///", "linewidth": 0.5} if no_image else {"color": f"C{place}"}
            )
            named = label(system, systems) if not no_image else label(NO_IMAGE) if place == 0 else "_"
            axes[0][0].bar(x, values, width * 0.9, label=named, **style)
    axes[0][0].set_xticks(range(len(categories)), categories, rotation=20)
    axes[0][0].set_ylabel("score (%)")
    axes[0][0].legend(fontsize=8, ncols=len(systems) + 1, loc="lower left", bbox_to_anchor=(0, 1))
    figure.tight_layout()
    return figure
