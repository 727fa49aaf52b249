"""The command `evaluate`: run models on benchmarks, score their answers, and write a report."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.extras import pyplot
from lightning_switchkd.core.runs import read_config
from lightning_switchkd.data.processor import load_processor
from lightning_switchkd.evaluation.answer_store import STORE, answers_folder
from lightning_switchkd.evaluation.benchmarks.definition import DATA_ROOT
from lightning_switchkd.evaluation.benchmarks.readers import Turns
from lightning_switchkd.evaluation.inference import Asker, ask, check_asked, inference_trainer
from lightning_switchkd.evaluation.labels import NO_IMAGE, TEXT_ONLY_BASELINE, label
from lightning_switchkd.evaluation.report.published import PUBLISHED, read_published
from lightning_switchkd.evaluation.report.report import check_baseline, report
from lightning_switchkd.evaluation.score import check_protocol
from lightning_switchkd.evaluation.tasks import TEST, Task, TaskReader
from lightning_switchkd.models.generation import load_model
from lightning_switchkd.models.spec import DType


def evaluate(
    run: str | None = None,
    models: dict[str, str] | None = None,
    benchmarks: list[str] | str | None = None,
    baseline: str | None = None,
    output: str | None = None,
    image_root: str | None = None,
    turns: Turns = "last",
    annotations: dict[str, str] | None = None,
    data_root: str = DATA_ROOT,
    protocol: str = "llava",
    no_image: bool = False,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    workers: int = 0,
    accelerator: str = "auto",
    devices: int = 1,
    dtype: DType = "float32",
    answer_store: str = STORE,
    published: str = PUBLISHED,
) -> None:
    """Run models on benchmarks with greedy decoding, score the answers, and compare them.

    The report is written as HTML, Markdown and JSON. An interrupted evaluation resumes, because a model's answer to a
    question is stored and used by all later reports.

    Args:
        run: run folder: its teacher, the student it started from and its student are evaluated.
        models: name and folder (or hub id) of further models, ``--models.fine_tuned=DIR``.
        benchmarks: names in conf/benchmarks.yaml, YAML files or LLaVA files; ``test`` is the run's test samples,
            ``present`` the benchmarks of the paper whose files exist. Default: ``test`` with a run, else the benchmarks
            of the paper.
        baseline: model that the last one is compared with. Default: the student before, else the first model.
        output: folder for answers, results and report. Default: RUN/report.
        image_root: folder that image paths in LLaVA files are relative to. Default: the run's, or next to the file.
        turns: last or all: questions to ask of a conversation in a LLaVA file.
        annotations: folders of benchmark files, if not the ones of their definitions, ``--annotations.gqa=DIR``.
        data_root: value of {root} in definitions.
        protocol: llava, lmms or vlmevalkit: prompts and rules to apply where the harnesses disagree.
        no_image: also evaluate with blank images, to measure how much the questions alone give away.
        batch_size: questions in a batch, on each device.
        max_new_tokens: maximum length of an answer; by default the benchmark's own.
        limit: number of questions of each benchmark, from the first.
        workers: processes that read images, for each device.
        accelerator: cpu, gpu or auto.
        devices: number of processes, one per device.
        dtype: dtype of the weights.
        answer_store: folder with the answers of all evaluations.
        published: YAML file with published results.
    """
    pyplot("evaluate")  # a missing package is an error before any model runs
    models = _checked(models_of(run, models), baseline)
    if output is None and run is None:
        raise UserError("--output: give a folder for the report.")
    folder = Path(output or Path(str(run), "report"))
    rules = check_protocol(protocol)
    reader = TaskReader(run, folder, image_root, turns, data_root, annotations or {}, rules, limit)
    papers = read_published(published)[0].benchmarks
    requested = [benchmarks] if isinstance(benchmarks, str) else benchmarks or ([TEST] if run else papers)
    tasks = reader.read(requested, papers)
    for model_folder in models.values():
        load_processor(model_folder)  # a wrong folder is an error before any model runs
    _make_folders(folder, Path(answer_store))
    trainer = inference_trainer(accelerator, devices)
    for task in tasks if trainer.is_global_zero else ():
        _prepare(task, folder, turns)
    for name, model_folder in models.items():
        model = load_model(model_folder, "cpu", dtype, f"--models.{name}")
        for task, blank in product(tasks, (False, True) if no_image else (False,)):
            length = max_new_tokens or task.benchmark.max_new_tokens
            log = task.answer_log(answers_folder(answer_store, model, dtype, length, blank))
            shown = f"{label(name, models)}, {task.benchmark.title}{f', {label(NO_IMAGE)}' if blank else ''}"
            ask(trainer, Asker(model, log, batch_size, length, blank, workers), shown)
            check_asked(log)
            if trainer.is_global_zero:
                task.rate(log, folder / name, blank)
                if not no_image:
                    task.remove_no_image(folder / name)
    if trainer.is_global_zero:
        baselines = [TEXT_ONLY_BASELINE] if any(task.benchmark.training for task in tasks) else []
        systems = {name: str(folder / name) for name in (*baselines, *models)}
        report(systems, str(folder), [task.benchmark.name for task in tasks], run, baseline, published)


def models_of(run: str | None, further: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the models to evaluate: the run's teacher and student before, further models, the run's student.

    Args:
        run: Run folder, if any.
        further: Folders of further models by name. The name of one of the run's models replaces that model.

    Raises:
        UserError: The folder is not a run.
    """
    if run is None:
        return dict(further or {})
    model = read_config(run)["model"]
    earlier = {
        "teacher": (model.get("teacher") or {}).get("checkpoint"),
        "student_init": model["student"].get("checkpoint"),
    }
    models = {**earlier, **(further or {})}
    models.setdefault("student", str(Path(run, "student")))
    return {name: folder for name, folder in models.items() if folder}


def _checked(models: dict[str, str], baseline: str | None) -> dict[str, str]:
    """Return the models.

    Raises:
        UserError: There are none, one has a reserved name, or the baseline is not one of them.
    """
    if not models:
        raise UserError("Nothing to evaluate. Give a model (--models.student=DIR) or a run folder (--run).")
    if reserved := {TEXT_ONLY_BASELINE, NO_IMAGE} & models.keys():
        raise UserError(f"--models: the name '{min(reserved)}' is reserved for the report. Choose another name.")
    check_baseline(baseline, models)
    return models


def _make_folders(output: Path, answer_store: Path) -> None:
    """Create the folders.

    Raises:
        UserError: One cannot be written.
    """
    try:
        for folder in (output, answer_store):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to {folder} ({error}). Set --output and --answer_store.") from None


def _prepare(task: Task, output: Path, turns: Turns) -> None:
    """Write the definition of a benchmark of samples, and the scores of the text-only baseline if it has any."""
    if task.num_turns > 1 and turns == "last":
        print(f"{task.benchmark.name}: last of up to {task.num_turns} turns asked. To ask all, set --turns=all.")
    if task.benchmark.from_samples:
        task.benchmark.write()
    if task.benchmark.training:
        task.rate_text_only_baseline(output / TEXT_ONLY_BASELINE)
