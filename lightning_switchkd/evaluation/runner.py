"""The command `evaluate`: run models on benchmarks, score their answers, and write a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.processor import load_processor
from lightning_switchkd.evaluation.answers import Matched, match, read_answers
from lightning_switchkd.evaluation.benchmarks.definition import DATA_ROOT, Benchmark
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.inference import AnswerLog, Asker, ask, check_asked, inference_trainer
from lightning_switchkd.evaluation.labels import NO_IMAGE, TEXT_ONLY_BASELINE
from lightning_switchkd.evaluation.report.published import PUBLISHED, read_published
from lightning_switchkd.evaluation.report.report import report
from lightning_switchkd.evaluation.score import check_protocol, rate
from lightning_switchkd.evaluation.text_only_baseline import read_conversations, text_only_answers
from lightning_switchkd.models.adapter import fingerprint
from lightning_switchkd.models.generation import load_model
from lightning_switchkd.models.spec import DType
from lightning_switchkd.training.callbacks.run_files import read_config

ANSWERS = ".answers.jsonl"


def evaluate(
    output: str,
    models: dict[str, str] | None = None,
    benchmarks: list[str] | None = None,
    annotations: dict[str, str] | None = None,
    data_root: str = DATA_ROOT,
    protocol: str = "llava",
    no_image: bool = False,
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
    """Run models on benchmarks with greedy decoding, score the answers, and compare them with published results.

    The report is written as HTML, Markdown and JSON. An interrupted evaluation resumes. Finished answers are kept.

    Args:
        output: folder for answers, results and report.
        models: name and folder (or hub id) of each model, ``--models.student=DIR --models.teacher=DIR``; by default
            those of ``run``: teacher, student before, student after.
        benchmarks: names in conf/benchmark/, or YAML files; by default the ten benchmarks of the paper.
        annotations: folders of benchmark files, if not the ones in the YAML files, ``--annotations.gqa=DIR``.
        data_root: value of {root} in the YAML files.
        protocol: llava, lmms or vlmevalkit: prompts and rules to apply where the harnesses disagree.
        no_image: also evaluate with blank images, to measure how much the questions alone give away.
        run: run folder. Its metrics.csv provides the training curves of the report.
        batch_size: questions in a batch, on each device.
        max_new_tokens: maximum length of an answer; by default the benchmark's own.
        limit: number of questions of each benchmark, from the first.
        workers: processes that read images, for each device.
        accelerator: cpu, gpu or auto.
        devices: number of processes, one per device.
        dtype: dtype of the weights.
        published: YAML file with published results.
    """
    if not models:
        if run is None:
            raise UserError("Nothing to evaluate. Give a model (--models.student=DIR) or a run folder (--run).")
        models = models_of(run)
    rules = check_protocol(protocol)
    if reserved := {TEXT_ONLY_BASELINE, NO_IMAGE} & models.keys():
        raise UserError(f"--models: the name '{min(reserved)}' is reserved for the report. Choose another name.")
    papers = read_published(published)
    tasks = []
    for benchmark in map(Benchmark.read, benchmarks or papers[0].benchmarks):
        folder = benchmark.folder(data_root, (annotations or {}).get(benchmark.name))
        tasks.append(Task(benchmark, folder, benchmark.items(folder)[:limit], rules))
    for model_folder in models.values():
        load_processor(model_folder)  # report a wrong folder before the first model runs for hours
    trainer = inference_trainer(accelerator, devices)
    for name, model_folder in models.items():
        model = load_model(model_folder, "cpu", dtype)
        settings = {"model": name, "weights": fingerprint(model.vlm), "dtype": dtype}
        for task, blank in product(tasks, (False, True) if no_image else (False,)):
            length = max_new_tokens or task.benchmark.max_new_tokens
            log = task.answer_log(Path(output, name), blank, {**settings, "max_new_tokens": length})
            ask(trainer, Asker(model, log, batch_size, length, blank, workers), f"{name}, {task.stem(blank)}")
            check_asked(log)
            if trainer.is_global_zero:
                task.rate(Path(output, name), blank)
    if not trainer.is_global_zero:
        return
    systems = {name: str(Path(output, name)) for name in models}
    for task in tasks:
        if task.benchmark.training:
            task.rate_text_only_baseline(Path(output, TEXT_ONLY_BASELINE))
            systems = {TEXT_ONLY_BASELINE: str(Path(output, TEXT_ONLY_BASELINE)), **systems}
    report(systems, output, [task.benchmark.name for task in tasks], run, published)


def models_of(run: str) -> dict[str, str]:
    """Return the models of a run folder: teacher, student before, student after.

    Raises:
        UserError: The folder is not a run.
    """
    model = read_config(run)["model"]
    folders = {
        "teacher": (model.get("teacher") or {}).get("checkpoint"),
        "student_init": model["student"].get("checkpoint"),
        "student": str(Path(run, "student")),
    }
    return {name: folder for name, folder in folders.items() if folder}


@dataclass(frozen=True)
class Task:
    """The questions of one benchmark, and where answers and results of one system go.

    Attributes:
        benchmark: Its definition.
        folder: Folder of its files.
        items: The questions.
        protocol: Prompts and rules.
    """

    benchmark: Benchmark
    folder: Path
    items: Sequence[Item]
    protocol: ScoringProtocol

    def stem(self, blank: bool) -> str:
        """Return the name of the files, without their endings."""
        return f"{self.benchmark.name}.{NO_IMAGE}" if blank else self.benchmark.name

    def answer_log(self, output: Path, blank: bool, settings: Mapping[str, Any]) -> AnswerLog:
        """Return the file of a model's answers, resumable under the same settings."""
        return AnswerLog(
            file=output / f"{self.stem(blank)}{ANSWERS}",
            items=self.items,
            prompts=[self.benchmark.prompt_of(item, self.protocol) for item in self.items],
            settings={**settings, "blind": blank},  # the key of version 0.1.0, whose answers stay valid
        )

    def rate(self, output: Path, blank: bool) -> None:
        """Score a model's answers, and write the result."""
        file = output / f"{self.stem(blank)}{ANSWERS}"
        matched = match(self.items, *read_answers(file))
        result = rate(self.benchmark, self.folder, self.items, matched, self.protocol, str(file))
        result.write(output / f"{self.stem(blank)}.json")

    def rate_text_only_baseline(self, output: Path) -> None:
        """Score the most common training answer to each question, and write the result."""
        training = self.benchmark.training
        answers = text_only_answers(read_conversations(training), [item.question for item in self.items])
        result = rate(self.benchmark, self.folder, self.items, Matched(list(answers)), self.protocol, training)
        result.write(output / f"{self.benchmark.name}.json")
