"""Draw the worked example of docs/explanation/method.md: the knee, the pairs and their weights.

python notebooks/dbild_example.py [docs/images/dbild-example.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lightning_switchkd.explore.figures import COLORS
from lightning_switchkd.losses import Kneedle

TEACHER, STUDENT = torch.tensor([8.0, 5.0, 2.5, 1.0, 0.0]), torch.tensor([8.0, 5.0, 1.5, 1.0, 0.0])
FILE = Path(__file__).parents[1] / "docs" / "images" / "dbild-example.png"


def draw() -> Figure:
    """Draw three panels: the knee of the teacher's logits, its pairs, and the weights of both sides."""
    k = int(Kneedle(min_k=3)(TEACHER[None])[1].sum())
    i, j = torch.triu_indices(k, k, 1)
    figure, (curve, ladder, weights) = plt.subplots(1, 3, figsize=(11, 3.2))
    rank = torch.arange(1, len(TEACHER) + 1)
    chord = torch.linspace(float(TEACHER[0]), float(TEACHER[-1]), len(TEACHER))
    curve.plot(rank, TEACHER, "o-", color=COLORS["teacher"], label="teacher's logits, sorted")
    curve.plot(rank, chord, color="0.6", linewidth=0.8, label="chord")
    curve.vlines(rank[1:-1], TEACHER[1:-1], chord[1:-1], color="0.6", linestyle="dotted")
    curve.axvline(k, color="black", linestyle="dashed", linewidth=0.9, label=f"knee: k = {k}")
    curve.set(title="1. Cut at the knee", xlabel="rank", ylabel="logit", xticks=rank.tolist())
    curve.legend(fontsize=8)
    ladder.hlines(TEACHER[:k], -0.4, 2.6, color=COLORS["teacher"])
    for n in range(k):
        ladder.text(-0.5, float(TEACHER[n]), f"id {n + 1}", ha="right", va="center", fontsize=9)
    for x, (first, second) in enumerate(zip(i.tolist(), j.tolist(), strict=True)):
        top, bottom = float(TEACHER[first]), float(TEACHER[second])
        ladder.annotate("", (x, bottom), (x, top), arrowprops={"arrowstyle": "<->"})
        ladder.text(x + 0.06, (top + bottom) / 2 + 0.3, f"{top - bottom:.1f}", fontsize=9)
    ladder.set(title="2. Differences of all pairs", xlim=(-1, 2.7), xticks=[], ylabel="logit")
    pairs = [f"{a + 1}, {b + 1}" for a, b in zip(i.tolist(), j.tolist(), strict=True)]
    for shift, (name, z) in zip((-0.2, 0.2), {"teacher": TEACHER, "student": STUDENT}.items(), strict=True):
        bars = weights.bar([x + shift for x in range(len(pairs))], (z[i] - z[j]).softmax(0).tolist(), 0.38, label=name)
        plt.setp(bars, color=COLORS[name])
        weights.bar_label(bars, fmt="%.3f", fontsize=8)
    weights.set(title="3. Compare their softmax", xlabel="pair", xticks=range(len(pairs)), ylim=(0, 1.05))
    weights.set_xticklabels(pairs)
    weights.legend(fontsize=8)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    draw().savefig(sys.argv[1] if len(sys.argv) > 1 else FILE, dpi=90)
