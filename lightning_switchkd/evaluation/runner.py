"""Model folders on benchmarks: asked, scored, and shown side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.processor import load_processor
from lightning_switchkd.evaluation.answers import Matched, match, read_answers
from lightning_switchkd.evaluation.benchmarks.definition import DATA_ROOT, Benchmark
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.inference import AnswerLog, Asker, ask, asking_trainer
from lightning_switchkd.evaluation.report.published import PUBLISHED, read_published
from lightning_switchkd.evaluation.report.report import BLIND, report
from lightning_switchkd.evaluation.report.text_tables import MAJORITY
from lightning_switchkd.evaluation.score import check_protocol, rate
from lightning_switchkd.evaluation.text_only_baseline import majority_answers, read_conversations
from lightning_switchkd.models.adapter import fingerprint
from lightning_switchkd.models.generation import load_model
from lightning_switchkd.models.spec import DType

ANSWERS = ".answers.jsonl"


def evaluate(
    models: dict[str, str],
    output: str,
    benchmarks: list[str] | None = None,
    annotations: dict[str, str] | None = None,
    data_root: str = DATA_ROOT,
    protocol: str = "llava",
    blind: bool = False,
    run: str | None = None,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    workers: int = 0,
    accelerator: str = "auto",
    devices: int = 1,
    dtype: DType = "float32",
    published: str = PUBLISHED,
) -> None:
    """Greedy answers of model folders on benchmarks, scored, beside published figures: HTML, Markdown and JSON.

    Answers are written down as they come: a run that was stopped goes on, and what is finished is not asked again.

    Args:
        models: name and folder (or hub id) of each model, ``--models.student=DIR --models.teacher=DIR``.
        output: folder of answers, results and report.
        benchmarks: names in conf/benchmark/, or YAML files; by default the ten of the paper.
        annotations: folders of benchmarks' files that lie elsewhere than their YAML says, ``--annotations.gqa=DIR``.
        data_root: what {root} stands for in the YAML files.
        protocol: llava, lmms or vlmevalkit: prompts and rules where the harnesses disagree.
        blind: ask everything with every image blanked as well: what can be guessed from the question.
        run: run folder whose metrics.csv gives the report its training curves.
        batch_size: questions asked at once, on each device.
        max_new_tokens: longest answer; by default as each benchmark says.
        limit: only the first so many questions of each.
        workers: processes that read images, for each device.
        accelerator: cpu, gpu or auto.
        devices: processes, one a device.
        dtype: of the weights.
        published: YAML file of rows to compare with.
    """
    rules = check_protocol(protocol)
    if reserved := {MAJORITY, BLIND} & models.keys():
        raise UserError(f"--models: {', '.join(sorted(reserved))} is a name of the report; take another.")
    papers = read_published(published)
    asking = []
    for one in map(Benchmark.read, benchmarks or papers[0].benchmarks):
        folder = one.folder(data_root, (annotations or {}).get(one.name))
        asking.append((one, folder, one.items(folder)[:limit]))
    for model_folder in models.values():
        load_processor(model_folder)  # a wrong name is said before the first model has been asked for hours
    trainer = asking_trainer(accelerator, devices)
    for name, model_folder in models.items():
        model = load_model(model_folder, "cpu", dtype)
        asked = {"model": name, "weights": fingerprint(model.vlm), "dtype": dtype}
        for (one, folder, items), is_blind in product(asking, (False, True) if blind else (False,)):
            longest = max_new_tokens or one.max_new_tokens
            place = Path(output, name, f"{one.name}.{BLIND}" if is_blind else one.name)
            log = AnswerLog(
                file=place.with_name(f"{place.name}{ANSWERS}"),
                items=items,
                prompts=[one.prompt_of(item, rules) for item in items],
                asked={**asked, "max_new_tokens": longest, "blind": is_blind},
            )
            ask(trainer, Asker(model, log, batch_size, longest, is_blind, workers), f"{name}, {place.name}")
            if trainer.is_global_zero:
                matched = match(items, *read_answers(log.file))
                rate(one, folder, items, matched, rules, str(log.file)).write(place.with_name(f"{place.name}.json"))
    if not trainer.is_global_zero:
        return
    systems = {name: str(Path(output, name)) for name in models}
    for one, folder, items in asking:
        if one.training:
            _majority(one, folder, items, rules, Path(output, MAJORITY))
            systems = {MAJORITY: str(Path(output, MAJORITY)), **systems}
    report(systems, output, [one.name for one, _, _ in asking], run, published)


def _majority(
    benchmark: Benchmark, folder: Path, items: Sequence[Item], protocol: ScoringProtocol, output: Path
) -> None:
    """Scores what the training answers say to each question."""
    said = majority_answers(read_conversations(benchmark.training), [item.question for item in items])
    result = rate(benchmark, folder, items, Matched(list(said)), protocol, benchmark.training)
    result.write(output / f"{benchmark.name}.json")
