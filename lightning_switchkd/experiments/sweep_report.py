"""What a study found: table, bars, radar, curves, JSON, and plain words made from the numbers."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_switchkd import __version__
from lightning_switchkd.evaluation.benchmarks.readers import llava
from lightning_switchkd.evaluation.report.charts import pyplot, radar, read_metrics
from lightning_switchkd.evaluation.report.text_tables import MAJORITY, markdown, per_cent
from lightning_switchkd.evaluation.text_only_baseline import majority_answers, read_conversations

if TYPE_CHECKING:
    from lightning_switchkd.experiments.sweep import Job, Study

Floats = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Asked:
    """The questions of one file.

    Attributes:
        answers: right ones.
        abilities: what each question is counted under.
        groups: number of the image that each is about; questions about one image are no independent evidence.
        questions: what is asked.
    """

    answers: list[str]
    abilities: list[str]
    groups: NDArray[np.int64]
    questions: list[str]

    @classmethod
    def read(cls, file: str) -> Asked:
        """Reads a LLaVA file, its images left where they are."""
        items = llava(Path(), file)
        groups = np.unique([item.image for item in items], return_inverse=True)[1].astype(np.int64)
        return cls([i.answers[0] for i in items], [i.category for i in items], groups, [i.question for i in items])

    @cached_property
    def names(self) -> list[str]:
        """The abilities."""
        return sorted(set(self.abilities), key=self.abilities.index)

    def right(self, answers: Sequence[str]) -> Floats:
        """``[Q]``: 1 where an answer equals the right one."""
        return np.array([a == b for a, b in zip(answers, self.answers, strict=True)], dtype=np.float64)

    def by_ability(self, right: Floats, weights: Floats | None = None) -> Floats:
        """Share of right answers ``[..., abilities]`` of ``right [..., Q]``, each weighing ``weights [..., Q]``."""
        weights = np.ones_like(right) if weights is None else weights
        masks = np.array([[ability == name for ability in self.abilities] for name in self.names], dtype=np.float64)
        with np.errstate(invalid="ignore"):  # an ability of which nothing was drawn has no share
            shares: Floats = (right * weights) @ masks.T / (weights @ masks.T)
        return shares

    def gain(self, method: Floats, baseline: Floats) -> tuple[float, float, float]:
        """Gain of the mean over abilities, and its 95 % interval by bootstrap over images.

        Args:
            method: ``[runs, Q]``.
            baseline: ``[runs, Q]``.
        """
        difference = method.mean(0) - baseline.mean(0)
        random = np.random.default_rng(0)
        number = int(self.groups.max()) + 1
        counts = random.multinomial(number, np.full(number, 1 / number), size=RESAMPLES).astype(np.float64)
        resampled = self.by_ability(np.broadcast_to(difference, (RESAMPLES, len(difference))), counts[:, self.groups])
        low, high = np.percentile(np.nanmean(resampled, -1), [2.5, 97.5])
        return float(self.by_ability(difference).mean()), float(low), float(high)


@dataclass(frozen=True)
class Column:
    """What the runs of one method, or one model, answered.

    Attributes:
        right: by question file, ``[runs, Q]``.
        blind: the same with blank images, main file only; None where nothing was seen anyway.
    """

    right: dict[str, Floats]
    blind: Floats | None


def write_study(
    folder: Path,
    study: Study,
    questions: Mapping[str, str],
    models: Mapping[str, list[Job]],
    trained: Mapping[str, list[Job]],
) -> str:
    """Writes everything to ``folder``; returns the table and the words."""
    asked = {name: Asked.read(file) for name, file in questions.items()}
    main = next(iter(asked))
    columns = {name: _column(asked, jobs) for name, jobs in (*models.items(), *trained.items())}
    said = majority_answers(read_conversations(study.majority), asked[main].questions)
    columns = {MAJORITY: Column({main: asked[main].right(said)[None]}, None), **columns}
    gains = {
        name: asked[main].gain(columns[name].right[main], columns[study.baseline_of(name)].right[main])
        for name in trained
        if study.baseline_of(name) in trained and name != study.baseline_of(name)
    }
    folder.mkdir(parents=True, exist_ok=True)
    table = table_of(asked, columns, gains)
    words = summary(study, asked[main], main, columns, gains)
    results = _results(study, questions, asked, columns, gains, trained)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(f"{study.about.strip()}\n\n{table}\n\n{words}\n", encoding="utf-8")
    draw(folder, study, asked[main], main, columns, trained)
    return f"{table}\n\n{words}\n\nReport: {folder}/report.md, results.json, bars.png, radar.png, curves.png"


def _column(asked: Mapping[str, Asked], jobs: Sequence[Job]) -> Column:
    found = [json.loads(job.answers.read_text(encoding="utf-8"))["answers"] for job in jobs]
    right = {name: np.stack([of.right(one[name]["seeing"]) for one in found]) for name, of in asked.items()}
    main = next(iter(asked))
    return Column(right, np.stack([asked[main].right(one[main]["blind"]) for one in found]))


def _averages(asked: Asked, right: Floats) -> list[float]:
    """Mean over abilities of each run."""
    averages: list[float] = asked.by_ability(right).mean(-1).tolist()
    return averages


def table_of(
    asked: Mapping[str, Asked], columns: Mapping[str, Column], gains: Mapping[str, tuple[float, float, float]]
) -> str:
    """A Markdown table in per cent: a row a method, mean ± standard deviation over its runs."""
    main, *others = asked
    rows = [
        ["exact match, %", *asked[main].names, "average", "gain [95 %]", "blind", *(f"average, {o}" for o in others)]
    ]
    for name, column in columns.items():
        shares = asked[main].by_ability(column.right[main])
        rows.append(
            [
                name,
                *(per_cent(of_ability) for of_ability in shares.T.tolist()),
                per_cent(_averages(asked[main], column.right[main])),
                "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in gains[name])) if name in gains else "",
                "" if column.blind is None else per_cent(_averages(asked[main], column.blind)),
                *(per_cent(_averages(asked[o], column.right[o])) if o in column.right else "" for o in others),
            ]
        )
    return markdown(rows)


def summary(
    study: Study,
    asked: Asked,
    main: str,
    columns: Mapping[str, Column],
    gains: Mapping[str, tuple[float, float, float]],
) -> str:
    """Plain words: the best method, and which of the expected orders came out."""
    averages = {n: _averages(asked, c.right[main]) for n, c in columns.items() if n in study.methods}
    ranked = sorted(averages, key=lambda name: -float(np.mean(averages[name])))
    best = ranked[0]
    lines = [f"Best of {len(ranked)} methods: {best} with {per_cent(averages[best])} %. Order: {' > '.join(ranked)}."]
    for name in (n for n in ranked if n in gains):
        gain, low, high = (100 * x for x in gains[name])
        sure = "more than" if low > 0 else "less than" if high < 0 else "not told apart from"
        lines.append(f"- {name}: {gain:+.1f} points, [{low:+.1f}, {high:+.1f}]: {sure} {study.baseline_of(name)}.")
    for worse, better in study.expected:
        if worse in averages and better in averages:
            lines.append(_order(worse, better, averages))
    return "\n".join(lines)


def _order(worse: str, better: str, averages: Mapping[str, list[float]]) -> str:
    difference = 100 * float(np.mean(averages[better]) - np.mean(averages[worse]))
    runs = [averages[name] for name in (worse, better)]
    spread = 100 * float(np.sqrt(np.mean([np.var(run, ddof=1) if len(run) > 1 else 0.0 for run in runs])))
    verdict = "came out" if difference > 0 else "did not come out"
    beyond = "more" if abs(difference) > spread else "not more"
    return (
        f"- {better} above {worse} {verdict}: {difference:+.1f} points, {beyond} than the seeds' spread ({spread:.1f})."
    )


def _results(
    study: Study,
    questions: Mapping[str, str],
    asked: Mapping[str, Asked],
    columns: Mapping[str, Column],
    gains: Mapping[str, tuple[float, float, float]],
    trained: Mapping[str, list[Job]],
) -> dict[str, Any]:
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "lightning_switchkd": __version__,
        "torch": torch.__version__,
        "platform": platform.platform(),
        "study": study.about.strip(),
        "questions": {name: {"file": file, "number": len(asked[name].answers)} for name, file in questions.items()},
        "runs": {name: [list(job.fit) for job in jobs] for name, jobs in trained.items()},
        "scores": {
            name: {
                "runs": {
                    file: [
                        dict(zip(asked[file].names, run, strict=True)) for run in asked[file].by_ability(right).tolist()
                    ]
                    for file, right in column.right.items()
                },
                "blind": None if column.blind is None else _averages(asked[next(iter(asked))], column.blind),
            }
            for name, column in columns.items()
        },
        "gains": {
            name: {"over": study.baseline_of(name), **dict(zip(("mean", "low", "high"), gain, strict=True))}
            for name, gain in gains.items()
        },
    }


def draw(
    folder: Path,
    study: Study,
    asked: Asked,
    main: str,
    columns: Mapping[str, Column],
    trained: Mapping[str, list[Job]],
) -> None:
    """``bars.png``, ``radar.png`` and ``curves.png``."""
    plt = pyplot()
    colours = dict(zip(trained, plt.colormaps["tab20"].colors, strict=False))
    figure, axes = plt.subplots(figsize=(1.2 + 0.75 * len(columns), 4.2))
    averages = {name: [100 * x for x in _averages(asked, column.right[main])] for name, column in columns.items()}
    heights = [float(np.mean(values)) for values in averages.values()]
    spread = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in averages.values()]
    drawn = axes.bar(range(len(columns)), heights, yerr=spread, color=[colours.get(name, "0.7") for name in columns])
    blind = [np.nan if c.blind is None else 100 * float(np.mean(_averages(asked, c.blind))) for c in columns.values()]
    axes.bar(range(len(columns)), blind, fill=False, hatch="///", edgecolor="black", linewidth=0.5, label="blind")
    axes.bar_label(drawn, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(columns)), list(columns), rotation=30, ha="right")
    axes.set_ylabel("exact match, mean over abilities, %")
    axes.set_ylim(0, 1.15 * max(heights))
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "bars.png", dpi=130)
    plt.close(figure)

    figure, polar = plt.subplots(figsize=(6.4, 5), subplot_kw={"projection": "polar"})
    shown = {name: (100 * asked.by_ability(columns[name].right[main]).mean(0)).tolist() for name in trained}
    radar(polar, asked.names, shown, colours)
    figure.tight_layout()
    figure.savefig(folder / "radar.png", dpi=130, bbox_inches="tight")
    plt.close(figure)

    names = ("train/loss/ce", "k_student", "k_switch", "student_mass_in_teacher_set", "switch_mass_in_teacher_set")
    figure, grid = plt.subplots(1, len(names), figsize=(4 * len(names), 3.4))
    for axis, ending in zip(grid, names, strict=True):
        for name, jobs in trained.items():
            curves = [c for job in jobs if (c := curve(job.place, ending))]
            steps = sorted(set.intersection(*map(set, curves))) if curves else []
            if steps:
                axis.plot(steps, [np.mean([c[s] for c in curves]) for s in steps], label=name, color=colours[name])
        axis.set_title(ending, fontsize=9)
        axis.set_xlabel("optimizer step")
        if axis.has_data():
            axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=110)
    plt.close(figure)


def curve(run: Path, ending: str) -> dict[int, float]:
    """A training metric by step: the first of a run's that ends so; empty where there is none."""
    found = (of for name, of in read_metrics(run).items() if name.startswith("train/") and name.endswith(ending))
    return dict(next(found, []))
