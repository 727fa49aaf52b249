"""A study: several methods from one start, over several seeds, asked the same held-out questions; kept as it grows."""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import chain
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import write_atomic
from lightning_switchkd.evaluation.benchmarks.items import as_question
from lightning_switchkd.evaluation.benchmarks.readers import llava
from lightning_switchkd.experiments.sweep_report import write_study
from lightning_switchkd.models.generation import load_model

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Study:
    """What is compared (``conf/sweep/``).

    ``{data}`` in any text is the name of the data set, ``{seed}`` in a method or a model the seed of the run.

    A file that begins with ``like: OTHER.yaml`` takes from that file beside it what it does not say itself.

    Attributes:
        about: what the study asks, for its report.
        folder: where the runs go, ``METHOD/SEED`` each.
        base: configuration files and flags of every run, in order.
        methods: those that come after them, by name of the method.
        seeds: one run of each method for each; it decides the order of the data, and what ``{seed}`` stands in.
        baseline: the method that gains are counted from.
        models: model folders that are asked as well; with ``{seed}`` one for each seed.
        questions: LLaVA files by name, the main one first; those that do not exist are left out.
        image_root: where their images lie.
        majority: training annotations, for what the question's text alone gives away.
        expected: pairs of methods, the better one last, whose order the summary looks at.
        against: methods whose gains are counted from another than the baseline.
    """

    about: str
    folder: str
    base: list[str]
    methods: dict[str, list[str]]
    seeds: list[int]
    baseline: str
    models: dict[str, str]
    questions: dict[str, str]
    image_root: str
    majority: str
    expected: list[list[str]] = field(default_factory=list)
    against: dict[str, str] = field(default_factory=dict)

    def baseline_of(self, name: str) -> str:
        """The method that another's gain is counted from."""
        return self.against.get(name, self.baseline)

    @classmethod
    def read(cls, file: Path, data: str) -> Study:
        """Reads a study.

        Raises:
            UserError: it cannot be read, or lacks or misnames a field.
        """
        raw = _load(file)
        known = {f.name for f in fields(cls)}
        if not isinstance(raw, dict) or not known - {"expected", "against"} <= raw.keys() <= known:
            raise UserError(f"--study: {file} must have exactly these fields: {', '.join(sorted(known))}.")
        study = cls(**_filled(raw, data))
        named = {study.baseline, *study.against, *study.against.values(), *(n for pair in study.expected for n in pair)}
        if unknown := named - study.methods.keys():
            raise UserError(f"--study: {file}: {', '.join(sorted(unknown))} stands there, but is none of its methods.")
        return study


def _load(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"--study: there is no file {file}. Those of this package lie in conf/sweep/.")
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    if isinstance(raw, dict) and "like" in raw:
        raw = {**_load(file.parent / raw.pop("like")), **raw}
    return raw


def _filled(value: Any, data: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(entry, data) for key, entry in value.items()}
    if isinstance(value, list):
        return [_filled(entry, data) for entry in value]
    return value.replace("{data}", data) if isinstance(value, str) else value


@dataclass(frozen=True)
class Job:
    """One model to be made and asked.

    Attributes:
        name: ``METHOD/SEED``, or the model's own.
        place: its run folder, answers and log are beside it.
        fit: arguments of the training; empty for a model that is there.
        model: folder that is asked.
        questions: LLaVA files by name.
        image_root: where their images lie.
    """

    name: str
    place: Path
    fit: tuple[str, ...]
    model: str
    questions: dict[str, str]
    image_root: str

    @property
    def answers(self) -> Path:
        """What it said; there when it is finished."""
        return self.place.with_name(f"{self.place.name}.json")

    @property
    def log(self) -> Path:
        """What its process printed."""
        return self.place.with_name(f"{self.place.name}.log")

    def record(self) -> dict[str, Any]:
        """All that the answers depend on, but the code."""
        values = [argument.partition("=")[2] for argument in self.fit]
        files = [Path(value) for value in values if value.endswith(".yaml")]
        named = {
            *values,
            *(text for file in files for text in _texts(yaml.safe_load(file.read_text(encoding="utf-8")))),
        }
        models = [name for name in sorted(named) if Path(name, WEIGHTS).is_file()] if self.fit else [self.model]
        return {
            "fit": list(self.fit),
            "files": {str(file): _digest(file) for file in [*files, *map(Path, self.questions.values())]},
            "models": {name: _digest(Path(name, WEIGHTS)) for name in models},
        }

    def finished(self) -> bool:
        """Whether its answers are there, made of the very same settings, models and questions."""
        if not self.answers.is_file():
            return False
        found = json.loads(self.answers.read_text(encoding="utf-8"))
        return bool(found["record"] == self.record())


def _texts(value: Any) -> Iterator[str]:
    """All texts in a configuration; some are folders of models."""
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)
    elif isinstance(value, str):
        yield value


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else "missing"


def run_jobs(todo: Sequence[Job], done: int, at_once: int) -> None:
    """Does all, several at a time, each in a process of its own; what is finished stays.

    Processes are forked from one that has imported everything, and have a session of their own: of a Ctrl-C they get
    one signal, ours.

    Args:
        todo: what is not finished.
        done: how many are, for the progress bar.
        at_once: how many at a time.

    Raises:
        UserError: a job failed; the message holds the end of its log.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, when the trainings have written their checkpoints.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning_switchkd.cli.main"])
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    bar = tqdm(total=done + len(todo), initial=done, desc="ablation", unit="run", smoothing=0)
    queue, running = list(todo), dict[Any, tuple[Job, Any]]()
    try:
        while queue or running:
            while queue and len(running) < at_once:
                job = queue.pop(0)
                process = context.Process(target=_do, args=(job,))
                process.start()
                running[process.sentinel] = job, process
            for sentinel in wait(list(running), timeout=1):
                job, process = running.pop(sentinel)
                process.join()
                if process.exitcode != 0:
                    raise UserError(_failure(job, process.exitcode))
                bar.update()
                bar.set_postfix_str(job.name)
    finally:
        for _, process in running.values():
            os.kill(process.pid, signal.SIGINT)
        for _, process in running.values():
            process.join()
        bar.close()
        signal.signal(signal.SIGTERM, previous)


def _failure(job: Job, status: int) -> str:
    end = "\n".join(job.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
    return f"{job.name} failed (status {status}); its log, {job.log}, ends with\n{end}"


def _do(job: Job) -> None:
    """In a process of its own: trains, asks, writes the answers down."""
    from lightning_switchkd.cli.main import main

    os.setsid()
    job.place.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab", buffering=0) as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    with _alone(job.place.with_name(f"{job.place.name}.lock")):
        if job.finished():  # by a job of an earlier start, that was waited for
            return
        if job.fit:
            begun = job.place.with_name(f"{job.place.name}.begun.json")
            record = json.dumps(job.record())
            goes_on = begun.is_file() and begun.read_text(encoding="utf-8") == record
            goes_on = goes_on and (job.place / "checkpoints" / "last.ckpt").is_file()
            begun.write_text(record, encoding="utf-8")
            if not (goes_on and Path(job.model, WEIGHTS).is_file()):
                root = f"--trainer.default_root_dir={job.place}"
                sys.argv[1:] = ["fit", *job.fit, root, *(["--ckpt_path=last"] if goes_on else [])]
                print(f"$ python -m lightning_switchkd {shlex.join(sys.argv[1:])}", flush=True)
                main(sys.argv[1:])
        answers = ask(job.model, job.questions, job.image_root)
        write_atomic(job.answers, json.dumps({"record": job.record(), "answers": answers}))


def ask(
    folder: str, files: Mapping[str, str], image_root: str, batch_size: int = 128, max_new_tokens: int = 16
) -> dict[str, dict[str, list[str]]]:
    """Greedy answers of a model to the last question of every record of LLaVA files.

    Args:
        folder: of the model.
        files: LLaVA files by name; the first is also asked with every image blanked.
        image_root: folder their images lie in.
        batch_size: questions asked at once.
        max_new_tokens: longest answer.

    Returns:
        by name of the file, ``seeing`` and, of the first, ``blind`` answers in the order of the records.
    """
    model = load_model(folder)
    said: dict[str, dict[str, list[str]]] = {}
    for name, file in files.items():
        items = llava(Path(), file, image_root)
        said[name] = {
            way: model.ask_all(map(as_question, items), len(items), f"{name}, {way}", batch_size, max_new_tokens, blind)
            for way, blind in {"seeing": False, **({} if said else {"blind": True})}.items()
        }
    return said


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Holds a lock: while a job of a killed study still runs, others wait for it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def ablation(
    study: str = "conf/sweep/methods.yaml",
    data: str = "emoji",
    output: str | None = None,
    jobs: int | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    flags: str = "",
) -> None:
    """Trains all methods of a study from one start, asks all the same questions, and writes the comparison.

    What is finished is kept: started again, a study goes on. A changed setting, model or question makes its runs anew.

    Args:
        study: what is compared, a file of conf/sweep/.
        data: name of the data set, which stands for {data} in it.
        output: folder of the report; by default reports/ and the name of the study and the data.
        jobs: runs at a time; by default one for each processor core.
        methods: only these.
        seeds: these instead of the study's.
        flags: more flags for every run, as one text.
    """
    file = Path(study)
    chosen = Study.read(file, data)
    if unknown := set(methods or ()) - chosen.methods.keys():
        raise UserError(
            f"--methods: {', '.join(sorted(unknown))}: not in {file}. There are: {', '.join(chosen.methods)}."
        )
    questions = {name: path for name, path in chosen.questions.items() if Path(path).is_file()}
    main = next(iter(chosen.questions))
    if main not in questions:
        raise UserError(f"--study: there is no {chosen.questions[main]}: make data DATA={data} writes it.")
    seeds = chosen.seeds if seeds is None else seeds
    asked = {name: asking(chosen, questions, name, seeds) for name in chosen.models}
    trained = {
        name: [training(chosen, questions, name, seed, flags) for seed in seeds]
        for name in chosen.methods
        if methods is None or name in methods
    }
    every = [
        *chain.from_iterable(asked.values()),
        *(run for runs in zip(*trained.values(), strict=True) for run in runs),
    ]
    todo = [one for one in every if not one.finished()]
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // (jobs or cores))))
    try:
        run_jobs(todo, len(every) - len(todo), jobs or cores)
    except KeyboardInterrupt:
        print(f"\nInterrupted: the same command goes on. Finished runs are in {chosen.folder}.", file=sys.stderr)
        sys.exit(130)
    folder = Path(output or f"reports/{file.stem}-{data}")
    print(write_study(folder, chosen, questions, asked, trained))


def _job(study: Study, questions: dict[str, str], name: str, model: str, fit: Sequence[str] = ()) -> Job:
    return Job(name, Path(study.folder, name), tuple(fit), model, questions, study.image_root)


def asking(study: Study, questions: dict[str, str], name: str, seeds: Sequence[int]) -> list[Job]:
    """What is asked of a model that is there, or of one for each seed."""
    model = study.models[name]
    if "{seed}" not in model:
        return [_job(study, questions, name, model)]
    return [_job(study, questions, f"{name}/{seed}", model.replace("{seed}", str(seed))) for seed in seeds]


def training(study: Study, questions: dict[str, str], method: str, seed: int, flags: str) -> Job:
    """One run of a method: its files as ``--config``, its flags, the seed, and the user's flags over all."""
    texts = [part.replace("{seed}", str(seed)) for part in (*study.base, *study.methods[method])]
    parts = [text if text.startswith("--") else f"--config={text}" for text in texts]
    name = f"{method}/{seed}"
    fit = [*parts, f"--seed_everything={seed}", *shlex.split(flags)]
    return _job(study, questions, name, f"{study.folder}/{name}/student", fit)
