"""The command `score`: scores of answer files, and scores that other harnesses gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.answers import read_answers
from lightning_switchkd.evaluation.benchmarks.definition import DATA_ROOT, Benchmark
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.judgements import Judgements
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.benchmarks.tables import find, read_rows
from lightning_switchkd.evaluation.harness import harness_files, read_harness_result
from lightning_switchkd.evaluation.labels import upgrade_result
from lightning_switchkd.evaluation.matching import Matched, match
from lightning_switchkd.evaluation.results import QUESTIONS, Result
from lightning_switchkd.evaluation.server_files import export


def read_results(folder: Path) -> dict[str, Result]:
    """Read the results in a folder, by the names of their files. Names of version 0.1.0 become the present ones.

    Samples of lmms-eval and scored files of VLMEvalKit are results too, by the names of task and harness. Those in
    subfolders count if the folder itself has no results.

    Raises:
        UserError: The folder does not exist, or has two results of the same name.
    """
    if not folder.is_dir():
        raise UserError(f"Folder {folder} does not exist. Give a folder that `score --output` or `evaluate` wrote.")
    names = sorted(file.name.removesuffix(QUESTIONS) for file in folder.glob(f"*{QUESTIONS}"))
    results = {upgrade_result(name): Result.read(folder / f"{name}.json") for name in names}
    for file in harness_files(folder, in_subfolders=not results):
        result = read_harness_result(file)
        if result.benchmark in results:
            first = results[result.benchmark].answers
            raise UserError(f"{first} and {file} are both results of '{result.benchmark}'. Move one away.")
        results[result.benchmark] = result
    return results


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
    tally = benchmark.rules(protocol).tally
    result.set_scores(tally, labeled, metric.judged())
    result.pairs = [tally.pair(index, item) for index, item in enumerate(labeled)]
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
    answers: str,
    benchmark: str | None = None,
    annotations: str | None = None,
    output: str | None = None,
    protocol: str = "llava",
    strict: bool = False,
    allow_missing: bool = False,
    answer_column: str | None = None,
    id_column: str | None = None,
    metric: str | None = None,
    max_score: float = 1.0,
    server_file: str | None = None,
    data_root: str = DATA_ROOT,
) -> None:
    """Score any system's answer file on a benchmark, or read the scores that another harness gave.

    Missing answers score 0. Missing, doubled, unknown and damaged answers are counted and listed.

    Args:
        answers: JSONL, JSON, CSV, TSV or XLSX with an id and an answer per row, JSON {id: text}, samples of lmms-eval,
            or predictions of VLMEvalKit; .gz and .zip are read.
        benchmark: name in conf/benchmarks.yaml, a YAML file, or a LLaVA file, whose last turns are asked. Without it,
            the scores in a file of lmms-eval or VLMEvalKit count, whatever its task.
        annotations: folder of the benchmark's files, or its only file; by default the folder in its definition.
        output: JSON file of the result; every answer and its score are written to a file next to it.
        protocol: llava, lmms or vlmevalkit: rules to apply where the harnesses disagree.
        strict: stop if an answer is missing, doubled, unknown or damaged.
        allow_missing: accept a file that answers less than half of the questions.
        answer_column: column of the answers. Default: recognized by its name.
        id_column: column of the ids. Default: recognized by its name.
        metric: without a benchmark: metric or column of the scores. Default: the only one.
        max_score: without a benchmark: score of a perfect answer.
        server_file: also write the file that the benchmark's server requires (its test labels are hidden).
        data_root: value of {root} in the benchmark's definition.
    """
    if output is not None and Path(output).suffix != ".json":
        name = Benchmark.read(benchmark).name if benchmark else "TASK"
        raise UserError(f"--output: '{output}' is not a .json file. Use FOLDER/{name}.json, which `report` reads.")
    if benchmark is None:
        for_benchmark = {"annotations": annotations, "strict": strict, "allow_missing": allow_missing}
        for_benchmark |= {"answer_column": answer_column, "id_column": id_column, "server_file": server_file}
        for_benchmark |= {"protocol": protocol != "llava", "data_root": data_root != DATA_ROOT}
        _refuse(for_benchmark, "is for scoring by our rules. Add --benchmark")
        result = read_harness_result(Path(answers), metric, max_score)
    else:
        _refuse({"metric": metric, "max_score": max_score != 1}, "is for scores of a harness. Remove --benchmark")
        rules, definition = check_protocol(protocol), Benchmark.read(benchmark)
        definition.rules(rules)  # refused before any file is read
        folder = definition.folder(data_root, annotations)
        items = definition.items(folder)
        matched = match(items, *read_answers(Path(answers), answer_column, id_column))
        if not allow_missing:
            matched.check(answers, definition.name)
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


def _refuse(flags: Mapping[str, object], reason: str) -> None:
    """Refuse flags that would be ignored.

    Args:
        flags: Name and value of each.
        reason: Reason and fix, for messages.

    Raises:
        UserError: A flag is set.
    """
    if given := next((name for name, value in flags.items() if value), None):
        raise UserError(f"--{given} {reason}, or remove --{given}.")


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
