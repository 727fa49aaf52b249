"""The command `score`, and the results that it and `evaluate` write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.answers import Matched, export, match, read_answers
from lightning_switchkd.evaluation.benchmarks.definition import DATA_ROOT, Benchmark
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.judgements import Judgements
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.benchmarks.tables import find, load_json, read_rows
from lightning_switchkd.evaluation.labels import upgrade_result
from lightning_switchkd.evaluation.significance import interval_of_score

QUESTIONS = ".questions.json"
"""Suffix of the file next to a result, with every answer and its score."""


@dataclass
class Result:
    """Result of a system on a benchmark.

    Attributes:
        benchmark: Name of the benchmark.
        definition: Name in ``conf/benchmarks.yaml``, or YAML file of the benchmark.
        title: Title of the benchmark.
        protocol: Rules that were applied.
        annotations: Folder of the benchmark's files.
        answers: The system's answer file.
        questions: Number of scored questions.
        score: Headline score in percent. None if no labels are known.
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        categories: Scores by category.
        figures: Further figures that the benchmark reports.
        odd: Numbers of missing, unknown, doubled, damaged, failed and unlabelled answers.
        examples_of_odd: Some of their ids.
        pairs: Key of each scored question, by which it is compared with another system.
        ids: Ids of the scored questions.
        scores: Score of each, from 0 to 1.
        texts: Answer to each, or None.
        complete: Number of questions of the complete benchmark. 0 if it does not matter.
        category_intervals: 95 % intervals of the scores by category.
        resamples: The score over bootstrap resamples, which are the same for every system.
    """

    benchmark: str
    definition: str
    title: str
    protocol: ScoringProtocol
    annotations: str
    answers: str
    questions: int
    score: float | None
    low: float = 0.0
    high: float = 0.0
    categories: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    odd: dict[str, int] = field(default_factory=dict)
    examples_of_odd: dict[str, list[str]] = field(default_factory=dict)
    pairs: list[str] = field(default_factory=list, repr=False)
    ids: list[str] = field(default_factory=list, repr=False)
    scores: list[float] = field(default_factory=list, repr=False)
    texts: list[str | None] = field(default_factory=list, repr=False)
    complete: int = 0
    category_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    resamples: list[float] = field(default_factory=list, repr=False)

    @property
    def num_questions(self) -> str:
        """The number of scored questions as text. A part of the complete benchmark says so."""
        number = f"{self.questions:,}"
        return f"{number} of {self.complete:,} questions" if self.partial else f"{number} questions"

    @property
    def partial(self) -> bool:
        """True if the complete benchmark has more questions."""
        return self.questions < self.complete

    @property
    def in_points(self) -> bool:
        """True if the scores by category are points, of 200 each (MME), instead of percent."""
        return max(self.categories.values(), default=0) > 100

    def correct(self) -> dict[str, bool]:
        """Return whether each question was answered correctly, by its key. A score of 0.5 is enough."""
        correct: dict[str, bool] = {}
        for pair, score in zip(self.pairs, self.scores, strict=True):
            correct[pair] = correct.get(pair, True) and score >= 0.5
        return correct

    def write(self, file: Path) -> None:
        """Write ``NAME.json`` with the figures, and ``NAME.questions.json`` with every answer."""
        file.parent.mkdir(parents=True, exist_ok=True)
        figures = asdict(self)
        by_question = {name: figures.pop(name) for name in ("pairs", "ids", "scores", "texts", "resamples")}
        file.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        file.with_suffix(QUESTIONS).write_text(json.dumps(by_question, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Result:
        """Read a result that :meth:`write` wrote.

        Raises:
            UserError: The file is not a result.
        """
        by_question = file.with_suffix(QUESTIONS)
        values: dict[str, Any] = {**load_json(file), **(load_json(by_question) if by_question.is_file() else {})}
        known = {f.name for f in fields(cls)}
        if not known - {"category_intervals", "complete", "resamples"} <= values.keys() <= known:  # 0.1.0 has none
            raise UserError(
                f"{file} and {by_question.name} are not a result. Write them with `score --output` or `evaluate`."
            )
        return cls(**values)


def read_results(folder: Path) -> dict[str, Result]:
    """Read the results in a folder, by the names of their files. Names of version 0.1.0 become the present ones.

    Raises:
        UserError: The folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"Folder {folder} does not exist. Give a folder that `score --output` or `evaluate` wrote.")
    names = sorted(file.name.removesuffix(QUESTIONS) for file in folder.glob(f"*{QUESTIONS}"))
    return {upgrade_result(name): Result.read(folder / f"{name}.json") for name in names}


def rate(
    benchmark: Benchmark,
    folder: Path,
    items: Sequence[Item],
    matched: Matched,
    protocol: ScoringProtocol,
    answers: str,
) -> Result:
    """Score the answers to a benchmark's questions.

    Args:
        benchmark: The benchmark.
        folder: Folder of its files, which is written to the result.
        items: Its questions.
        matched: The answers.
        protocol: Rules to apply where evaluation harnesses disagree.
        answers: The answer file, which is written to the result.
    """
    known = [index for index, item in enumerate(items) if item.answers]
    defects = matched.defects()
    if 0 < len(known) < len(items):
        defects["unlabelled"] = [item.id for item in items if not item.answers]
    labeled = [items[index] for index in known]
    texts = [matched.texts[index] for index in known]
    result = Result(
        benchmark.name,
        benchmark.source,
        benchmark.title,
        protocol,
        str(folder),
        answers,
        len(known),
        None,
        odd={kind: len(ids) for kind, ids in defects.items()},
        examples_of_odd={kind: ids[:10] for kind, ids in defects.items()},
        complete=benchmark.questions,
    )
    if not known:
        return result
    metric = Judgements(benchmark, labeled, protocol)
    metric.update(range(len(labeled)), texts)
    judged, tally = metric.judged(), benchmark.rules.tally
    result.score, result.categories, result.figures = benchmark.scores(labeled, judged)
    result.category_intervals = benchmark.category_intervals(labeled, judged)
    resamples = tally.resamples(labeled, judged)
    result.low, result.high = interval_of_score(resamples, len(tally.sums(labeled, judged)))
    result.resamples = resamples.round(6).tolist()
    result.pairs = [tally.pair(index, item) for index, item in enumerate(labeled)]
    result.ids = [item.id for item in labeled]
    result.scores = judged[:, 0].tolist()
    result.texts = texts
    return result


def check_protocol(protocol: str) -> ScoringProtocol:
    """Return the protocol.

    Raises:
        UserError: The protocol is unknown.
    """
    if protocol not in get_args(ScoringProtocol):
        available = ", ".join(get_args(ScoringProtocol))
        raise UserError(f"--protocol: unknown protocol '{protocol}'. Use one of {available}.")
    return protocol  # type: ignore[return-value]


def score(
    benchmark: str,
    answers: str,
    annotations: str | None = None,
    output: str | None = None,
    protocol: str = "llava",
    strict: bool = False,
    server_file: str | None = None,
    data_root: str = DATA_ROOT,
) -> None:
    """Score any system's answer file on a benchmark.

    Missing answers score 0. Missing, doubled, unknown and damaged answers are counted and listed.

    Args:
        benchmark: name in conf/benchmarks.yaml, a YAML file, or a LLaVA file, whose last turns are asked.
        answers: JSONL with question_id and text (and prompt, if ids repeat), or JSON {id: text}.
        annotations: folder of the benchmark's files, or its only file; by default the folder in its definition.
        output: JSON file of the result; every answer and its score are written to a file next to it.
        protocol: llava, lmms or vlmevalkit: rules to apply where the harnesses disagree.
        strict: stop if an answer is missing, doubled, unknown or damaged.
        server_file: also write the file that the benchmark's server requires (its test labels are hidden).
        data_root: value of {root} in the benchmark's definition.
    """
    rules, definition = check_protocol(protocol), Benchmark.read(benchmark)
    if output is not None and Path(output).suffix != ".json":
        raise UserError(
            f"--output: '{output}' is not a .json file. Use FOLDER/{definition.name}.json, which `report` reads."
        )
    folder = definition.folder(data_root, annotations)
    items = definition.items(folder)
    matched = match(items, *read_answers(Path(answers)))
    if strict and matched.defects():
        raise UserError(
            f"--strict: {answers} has defects for '{definition.name}': {matched.summary()}. "
            "Fix the file, or remove --strict."
        )
    if server_file is not None:
        if not definition.export:
            raise UserError(f"--server_file: '{definition.name}' has no server. Remove this flag.")
        export(definition.export, items, matched.texts, Path(server_file), _further_ids(definition, folder))
        print(f"For the server: {server_file}")
    result = rate(definition, folder, items, matched, rules, answers)
    if result.score is None and server_file is None:
        raise UserError(
            f"'{definition.name}' has no labels in {folder}, because its server has them. Set --server_file=FILE."
        )
    print(format_result(result))
    if output is not None:
        result.write(Path(output))
        print(f"Result: {output}")


def _further_ids(benchmark: Benchmark, folder: Path) -> list[str]:
    """Return all ids that the server requires."""
    files = find(folder, benchmark.export_ids) if benchmark.export_ids else []
    return [str(row["question_id"]) for row in read_rows(files)]


def format_result(result: Result) -> str:
    """Format a result for the terminal."""
    lines = [f"{result.title}, protocol {result.protocol}: {result.num_questions}"]
    if result.score is not None:
        lines[0] += f", {result.score:.2f} % [{result.low:.2f}, {result.high:.2f}]"
        lines += [f"  {name:<28}{value:9.2f}" for name, value in {**result.figures, **result.categories}.items()]
    for kind, count in result.odd.items():
        lines.append(f"  {kind}: {count} ({', '.join(result.examples_of_odd[kind][:5])}{', …' * (count > 5)})")
    return "\n".join(lines)
