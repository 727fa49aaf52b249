"""The report of a sweep: table, bars, radar, curves, JSON, and a summary in words."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_switchkd import __version__
from lightning_switchkd.core.extras import pyplot
from lightning_switchkd.core.text import exact_match, markdown_table, percent
from lightning_switchkd.evaluation.benchmarks.readers import llava
from lightning_switchkd.evaluation.labels import NO_IMAGE, TEXT_ONLY_BASELINE, label
from lightning_switchkd.evaluation.report.charts import radar
from lightning_switchkd.evaluation.report.curves import read_metrics
from lightning_switchkd.evaluation.significance import interval_95, resample_groups
from lightning_switchkd.evaluation.text_only_baseline import read_conversations, text_only_answers
from lightning_switchkd.experiments.definition import SweepDefinition
from lightning_switchkd.experiments.stage import Stage

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Questions:
    """The questions of one file.

    Attributes:
        answers: The right answers.
        abilities: The ability that each question is counted under.
        groups: Number of the image of each question. Questions about one image are not independent evidence.
        texts: The questions.
    """

    answers: list[str]
    abilities: list[str]
    groups: NDArray[np.int64]
    texts: list[str]

    @classmethod
    def read(cls, file: str) -> Questions:
        """Read a LLaVA file, without its images."""
        items = llava(Path(), file)
        groups = np.unique([item.image for item in items], return_inverse=True)[1].astype(np.int64)
        return cls([i.answers[0] for i in items], [i.category for i in items], groups, [i.question for i in items])

    @cached_property
    def names(self) -> list[str]:
        """Return the abilities, in order of appearance."""
        return sorted(set(self.abilities), key=self.abilities.index)

    def right(self, answers: Sequence[str]) -> Floats:
        """Compute ``[Q]``: 1 where an answer equals the right one."""
        return np.array([exact_match(a, b) for a, b in zip(answers, self.answers, strict=True)], dtype=np.float64)

    def by_ability(self, right: Floats, weights: Floats | None = None) -> Floats:
        """Compute the share of right answers ``[..., abilities]`` of ``right [..., Q]``, weighted by ``weights``."""
        weights = np.ones_like(right) if weights is None else weights
        masks = np.array([[ability == name for ability in self.abilities] for name in self.names], dtype=np.float64)
        with np.errstate(invalid="ignore"):  # an ability of which nothing was drawn has no share (NaN)
            shares: Floats = (right * weights) @ masks.T / (weights @ masks.T)
        return shares

    def gain(self, method: Floats, baseline: Floats) -> tuple[float, float, float]:
        """Compute the gain of the mean over abilities, and its 95 % interval by bootstrap over images.

        Args:
            method: ``[runs, Q]``.
            baseline: ``[runs, Q]``.
        """
        difference = method.mean(0) - baseline.mean(0)
        counts = resample_groups(int(self.groups.max()) + 1)
        right = np.broadcast_to(difference, (len(counts), len(difference)))
        low, high = interval_95(np.nanmean(self.by_ability(right, counts[:, self.groups]), -1))
        return float(self.by_ability(difference).mean()), low, high


@dataclass(frozen=True)
class Column:
    """The answers of the runs of one method or model.

    Attributes:
        right: 1 where an answer is right, by question file, ``[runs, Q]``.
        no_image: The same with blank images, main file only. None for the text-only baseline.
    """

    right: dict[str, Floats]
    no_image: Floats | None


def write_report(
    folder: Path,
    sweep: SweepDefinition,
    answers: Mapping[str, Sequence[Stage]],
    trainings: Mapping[str, Sequence[Stage]],
) -> str:
    """Write all files of the report to ``folder``. Return the table and the summary.

    Args:
        folder: Output folder.
        sweep: The sweep.
        answers: By name of a model or method, the stages in which its models answered.
        trainings: By name of a method, its trainings.
    """
    questions = {name: Questions.read(file) for name, file in sweep.questions.items() if Path(file).is_file()}
    main = next(iter(questions))
    columns = {name: _column(questions, stages) for name, stages in answers.items()}
    baseline = text_only_answers(read_conversations(sweep.text_only_baseline), questions[main].texts)
    columns = {TEXT_ONLY_BASELINE: Column({main: questions[main].right(baseline)[None]}, None), **columns}
    gains = {
        name: questions[main].gain(columns[name].right[main], columns[sweep.baseline_of(name)].right[main])
        for name in trainings
        if sweep.baseline_of(name) in trainings and name != sweep.baseline_of(name)
    }
    folder.mkdir(parents=True, exist_ok=True)
    table = table_of(questions, columns, gains)
    words = summary(sweep, questions[main], main, columns, gains)
    results = _results(sweep, questions, columns, gains, trainings)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(f"{sweep.description.strip()}\n\n{table}\n\n{words}\n", encoding="utf-8")
    draw(folder, sweep, questions[main], main, columns, trainings)
    return f"{table}\n\n{words}\n\nReport: {folder}/report.md, results.json, bars.png, radar.png, curves.png"


def _column(questions: Mapping[str, Questions], answers: Sequence[Stage]) -> Column:
    stored = [json.loads(stage.output.read_text(encoding="utf-8")) for stage in answers]
    right = {
        name: np.stack([of_file.right(run[name]["with_image"]) for run in stored])
        for name, of_file in questions.items()
    }
    main = next(iter(questions))
    return Column(right, np.stack([questions[main].right(run[main]["no_image"]) for run in stored]))


def _averages(questions: Questions, right: Floats) -> list[float]:
    """Compute the mean over abilities of each run."""
    averages: list[float] = questions.by_ability(right).mean(-1).tolist()
    return averages


def table_of(
    questions: Mapping[str, Questions], columns: Mapping[str, Column], gains: Mapping[str, tuple[float, float, float]]
) -> str:
    """Format a Markdown table in percent: one row per method, mean ± standard deviation over its runs."""
    main, *others = questions
    rows = [
        [
            "exact match, %",
            *questions[main].names,
            "average",
            "gain [95 %]",
            label(NO_IMAGE),
            *(f"average, {o}" for o in others),
        ]
    ]
    for name, column in columns.items():
        shares = questions[main].by_ability(column.right[main])
        rows.append(
            [
                label(name, columns),
                *(percent(of_ability) for of_ability in shares.T.tolist()),
                percent(_averages(questions[main], column.right[main])),
                "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in gains[name])) if name in gains else "",
                "" if column.no_image is None else percent(_averages(questions[main], column.no_image)),
                *(percent(_averages(questions[o], column.right[o])) if o in column.right else "" for o in others),
            ]
        )
    return markdown_table(rows)


def summary(
    sweep: SweepDefinition,
    questions: Questions,
    main: str,
    columns: Mapping[str, Column],
    gains: Mapping[str, tuple[float, float, float]],
) -> str:
    """Summarize in words: the best method, and which of the expected orders hold."""
    averages = {n: _averages(questions, c.right[main]) for n, c in columns.items() if n in sweep.methods}
    ranked = sorted(averages, key=lambda name: -float(np.mean(averages[name])))
    best = ranked[0]
    lines = [f"Best of {len(ranked)} methods: {best} with {percent(averages[best])} %. Order: {' > '.join(ranked)}."]
    for name in (n for n in ranked if n in gains):
        gain, low, high = (100 * x for x in gains[name])
        verdict = "better than" if low > 0 else "worse than" if high < 0 else "not distinguishable from"
        lines.append(f"- {name}: {gain:+.1f} points, [{low:+.1f}, {high:+.1f}]: {verdict} {sweep.baseline_of(name)}.")
    for worse, better in sweep.expected_order:
        if worse in averages and better in averages:
            lines.append(_order(worse, better, averages))
    return "\n".join(lines)


def _order(worse: str, better: str, averages: Mapping[str, list[float]]) -> str:
    difference = 100 * float(np.mean(averages[better]) - np.mean(averages[worse]))
    runs = [averages[name] for name in (worse, better)]
    spread = 100 * float(np.sqrt(np.mean([np.var(run, ddof=1) if len(run) > 1 else 0.0 for run in runs])))
    order = "in this order" if difference > 0 else "not in this order"
    if min(map(len, runs)) == 1:
        order += ", with an unknown spread over seeds"
    elif abs(difference) <= spread:
        order += f", but within the spread over seeds ({spread:.1f})"
    else:
        order += f", beyond the spread over seeds ({spread:.1f})"
    return f"- {better} > {worse}: {order}: {difference:+.1f} points."


def _results(
    sweep: SweepDefinition,
    questions: Mapping[str, Questions],
    columns: Mapping[str, Column],
    gains: Mapping[str, tuple[float, float, float]],
    trainings: Mapping[str, Sequence[Stage]],
) -> dict[str, Any]:
    main = next(iter(questions.values()))
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "lightning_switchkd": __version__,
        "torch": torch.__version__,
        "platform": platform.platform(),
        "description": sweep.description.strip(),
        "questions": {name: {"file": sweep.questions[name], "number": len(q.answers)} for name, q in questions.items()},
        "runs": {name: [stage.arguments() for stage in stages] for name, stages in trainings.items()},
        "scores": {
            name: {
                "runs": {
                    file: [
                        dict(zip(questions[file].names, run, strict=True))
                        for run in questions[file].by_ability(right).tolist()
                    ]
                    for file, right in column.right.items()
                },
                "no_image": None if column.no_image is None else _averages(main, column.no_image),
            }
            for name, column in columns.items()
        },
        "gains": {
            name: {"over": sweep.baseline_of(name), **dict(zip(("mean", "low", "high"), gain, strict=True))}
            for name, gain in gains.items()
        },
    }


def draw(
    folder: Path,
    sweep: SweepDefinition,
    questions: Questions,
    main: str,
    columns: Mapping[str, Column],
    trainings: Mapping[str, Sequence[Stage]],
) -> None:
    """Draw ``bars.png``, ``radar.png`` and ``curves.png``."""
    plt = pyplot("sweep")
    colors = dict(zip(trainings, plt.colormaps["tab20"].colors, strict=False))
    figure, axes = plt.subplots(figsize=(1.2 + 0.75 * len(columns), 4.2))
    averages = {name: [100 * x for x in _averages(questions, column.right[main])] for name, column in columns.items()}
    heights = [float(np.mean(values)) for values in averages.values()]
    spread = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in averages.values()]
    drawn = axes.bar(range(len(columns)), heights, yerr=spread, color=[colors.get(name, "0.7") for name in columns])
    no_image = [
        np.nan if c.no_image is None else 100 * float(np.mean(_averages(questions, c.no_image)))
        for c in columns.values()
    ]
    axes.bar(
        range(len(columns)), no_image, fill=False, hatch="///", edgecolor="black", linewidth=0.5, label=label(NO_IMAGE)
    )
    axes.bar_label(drawn, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(columns)), [label(name, columns) for name in columns], rotation=30, ha="right")
    axes.set_ylabel("exact match, mean over abilities, %")
    axes.set_ylim(0, 1.15 * max(heights))
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "bars.png", dpi=130)
    plt.close(figure)

    figure, polar = plt.subplots(figsize=(6.4, 5), subplot_kw={"projection": "polar"})
    shown = {name: (100 * questions.by_ability(columns[name].right[main]).mean(0)).tolist() for name in trainings}
    radar(polar, questions.names, shown, colors)
    figure.tight_layout()
    figure.savefig(folder / "radar.png", dpi=130, bbox_inches="tight")
    plt.close(figure)

    names = ("train/loss/ce", "k_student", "k_switch", "student_mass_in_teacher_set", "switch_mass_in_teacher_set")
    figure, grid = plt.subplots(1, len(names), figsize=(4 * len(names), 3.4))
    for axis, ending in zip(grid, names, strict=True):
        for name, stages in trainings.items():
            curves = [c for stage in stages if (c := curve(stage.folder, ending))]
            steps = sorted(set.intersection(*map(set, curves))) if curves else []
            if steps:
                axis.plot(steps, [np.mean([c[s] for c in curves]) for s in steps], label=name, color=colors[name])
        axis.set_title(ending, fontsize=9)
        axis.set_xlabel("optimizer step")
        if axis.has_data():
            axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=110)
    plt.close(figure)


def curve(run: Path, ending: str) -> dict[int, float]:
    """Return a training metric by step: the first whose name has this ending. Empty if no metric has."""
    metrics = read_metrics(run).items()
    matching = (values for name, values in metrics if name.startswith("train/") and name.endswith(ending))
    return dict(next(matching, []))
