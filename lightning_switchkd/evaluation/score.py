"""Scores answers of any system: an answer file and a benchmark's own files -> figures, as JSON and as a table."""

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
from lightning_switchkd.evaluation.significance import sums_interval

QUESTIONS = ".questions.json"
"""Ending of the file beside a result that holds every answer and what it is worth."""


@dataclass
class Result:
    """How a system did on a benchmark.

    Attributes:
        benchmark: its name.
        definition: its YAML file.
        title: its title.
        protocol: whose rules.
        annotations: the benchmark's files.
        answers: the system's file.
        questions: how many are scored.
        score: the headline in per cent; None where no label is known.
        low: lower end of its 95 % interval.
        high: upper end.
        categories: scores by category.
        figures: what else the benchmark reports.
        odd: number of missing, unknown, doubled, damaged, failed and unlabelled answers.
        examples_of_odd: some of them.
        pairs: what each scored question is compared with in another system by.
        ids: of the scored questions.
        scores: of each, 0 to 1.
        texts: what was answered; None for nothing.
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

    def right(self) -> dict[str, bool]:
        """What was right, by what it is compared by; half the points are enough."""
        found: dict[str, bool] = {}
        for pair, score in zip(self.pairs, self.scores, strict=True):
            found[pair] = found.get(pair, True) and score >= 0.5
        return found

    def write(self, file: Path) -> None:
        """``NAME.json`` with the figures and ``NAME.questions.json`` with every answer."""
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = asdict(self)
        single = {name: whole.pop(name) for name in ("pairs", "ids", "scores", "texts")}
        file.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        file.with_suffix(QUESTIONS).write_text(json.dumps(single, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Result:
        """What :meth:`write` wrote.

        Raises:
            UserError: the file is no such result.
        """
        beside = file.with_suffix(QUESTIONS)
        found: dict[str, Any] = {**load_json(file), **(load_json(beside) if beside.is_file() else {})}
        if found.keys() != {f.name for f in fields(cls)}:
            raise UserError(f"{file} and {beside.name} are no result of `score` or `evaluate`.")
        return cls(**found)


def read_results(folder: Path) -> dict[str, Result]:
    """The results in a folder, by the names of their files.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} with results of `score` or `evaluate`.")
    names = sorted(file.name.removesuffix(QUESTIONS) for file in folder.glob(f"*{QUESTIONS}"))
    return {name: Result.read(folder / f"{name}.json") for name in names}


def rate(
    benchmark: Benchmark,
    folder: Path,
    items: Sequence[Item],
    matched: Matched,
    protocol: ScoringProtocol,
    answers: str,
) -> Result:
    """Judges answers at their questions.

    Args:
        benchmark: whose rules.
        folder: its files, for the record.
        items: its questions.
        matched: their answers.
        protocol: whose rules where harnesses disagree.
        answers: where they come from, for the record.
    """
    known = [place for place, item in enumerate(items) if item.answers]
    odd = matched.oddities()
    if 0 < len(known) < len(items):
        odd["unlabelled"] = [item.id for item in items if not item.answers]
    labelled = [items[place] for place in known]
    texts = [matched.texts[place] for place in known]
    result = Result(
        benchmark.name,
        str(benchmark.file),
        benchmark.title,
        protocol,
        str(folder),
        answers,
        len(known),
        None,
        odd={kind: len(ids) for kind, ids in odd.items()},
        examples_of_odd={kind: ids[:10] for kind, ids in odd.items()},
    )
    if not known:
        return result
    metric = Judgements(benchmark, labelled, protocol)
    metric.update(range(len(labelled)), texts)
    judged = metric.judged()
    result.score, result.categories, result.figures = benchmark.scores(labelled, judged)
    result.low, result.high = sums_interval(
        benchmark.rules.tally.sums(labelled, judged), benchmark.rules.tally.headline
    )
    result.pairs = [benchmark.rules.tally.pair(place, item) for place, item in enumerate(labelled)]
    result.ids = [item.id for item in labelled]
    result.scores = judged[:, 0].tolist()
    result.texts = texts
    return result


def check_protocol(protocol: str) -> ScoringProtocol:
    """Raises ``UserError`` for one that is none."""
    if protocol not in get_args(ScoringProtocol):
        raise UserError(f"--protocol: '{protocol}' is none of {', '.join(get_args(ScoringProtocol))}.")
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
    """Scores an answer file of any system on a benchmark.

    Missing answers are wrong. They, and doubled, unknown and unreadable ones, are counted and shown.

    Args:
        benchmark: name in conf/benchmark/, or a YAML file.
        answers: JSONL with question_id and text (and prompt, where ids repeat), or JSON {id: text}.
        annotations: folder of the benchmark's files, or its file where one is enough; by default as its YAML says.
        output: JSON file of the result; every answer and its worth go to a file beside it.
        protocol: llava, lmms or vlmevalkit: whose rules hold where the harnesses disagree.
        strict: refuse a file in which anything is missing, doubled, unknown or damaged.
        server_file: also write what the benchmark's server takes (its test labels are hidden).
        data_root: what {root} stands for in the benchmark's YAML.
    """
    rules, chosen = check_protocol(protocol), Benchmark.read(benchmark)
    if output is not None and Path(output).suffix != ".json":
        raise UserError(f"--output: '{output}' must be a .json file; FOLDER/{chosen.name}.json is what `report` reads.")
    folder = chosen.folder(data_root, annotations)
    items = chosen.items(folder)
    matched = match(items, *read_answers(Path(answers)))
    if strict and matched.oddities():
        raise UserError(f"--strict: {answers} for '{chosen.name}': {matched.words()}.")
    if server_file is not None:
        if not chosen.export:
            raise UserError(f"--server_file: '{chosen.name}' has no server; its labels are in its files.")
        export(chosen.export, items, matched.texts, Path(server_file), _further_ids(chosen, folder))
        print(f"For the server: {server_file}")
    result = rate(chosen, folder, items, matched, rules, answers)
    if result.score is None and server_file is None:
        raise UserError(f"'{chosen.name}' has no labels in {folder}: its server has them. Set --server_file=FILE.")
    print(table_of_result(result))
    if output is not None:
        result.write(Path(output))
        print(f"Result: {output}")


def _further_ids(benchmark: Benchmark, folder: Path) -> list[str]:
    """Ids that a server wants besides those that are asked."""
    files = find(folder, benchmark.export_ids) if benchmark.export_ids else []
    return [str(row["question_id"]) for row in read_rows(files)]


def table_of_result(result: Result) -> str:
    """A result as lines for the terminal."""
    lines = [f"{result.title}, protocol {result.protocol}: {result.questions} questions"]
    if result.score is not None:
        lines[0] += f", {result.score:.2f} [{result.low:.2f}, {result.high:.2f}]"
        lines += [f"  {name:<28}{value:9.2f}" for name, value in {**result.figures, **result.categories}.items()]
    for kind, count in result.odd.items():
        lines.append(f"  {kind}: {count} ({', '.join(result.examples_of_odd[kind][:5])}{', …' * (count > 5)})")
    return "\n".join(lines)
