"""Run the jobs of a sweep side by side, each in its own process. Finished jobs are kept."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import write_atomic
from lightning_switchkd.evaluation.benchmarks.items import as_question
from lightning_switchkd.evaluation.benchmarks.readers import llava
from lightning_switchkd.experiments.definition import WEIGHTS, Job
from lightning_switchkd.models.generation import load_model

Launch = Callable[[list[str]], None]
"""Function that runs one command, given its arguments. Other processes import it by name."""


def run_jobs(todo: Sequence[Job], num_done: int, num_parallel: int, launch: Launch) -> None:
    """Run all jobs, several at a time.

    Processes are forked from one that has imported everything. Each has its own session, so that a Ctrl-C reaches them
    exactly once, through this function.

    Args:
        todo: Jobs that are not finished.
        num_done: Number of finished jobs, for the progress bar.
        num_parallel: Jobs at a time.
        launch: Trains a model.

    Raises:
        UserError: A job failed. The message has the end of its log.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the trainings have written their checkpoints.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([launch.__module__])
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    bar = tqdm(total=num_done + len(todo), initial=num_done, desc="sweep", unit="run", smoothing=0)
    queue, running = list(todo), dict[Any, tuple[Job, Any]]()
    try:
        while queue or running:
            while queue and len(running) < num_parallel:
                job = queue.pop(0)
                process = context.Process(target=_run, args=(job, launch))
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
    return f"{job.name} failed with status {status}. Its log {job.log} ends with:\n{end}"


def _run(job: Job, launch: Launch) -> None:
    """Train, ask and write the answers, in a process of its own."""
    os.setsid()
    job.place.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab", buffering=0) as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    with _locked(job.place.with_name(f"{job.place.name}.lock")):
        if job.finished():  # by a job of an earlier sweep that held the lock
            return
        if job.fit:
            _train(job, launch)
        answers = ask(job.model, job.questions, job.image_root)
        write_atomic(job.answers, json.dumps({"digest": job.digest(), "answers": answers}))


def _train(job: Job, launch: Launch) -> None:
    """Train a model, or resume its training if it was started with the same digest."""
    started = job.place.with_name(f"{job.place.name}.started.json")
    digest = json.dumps(job.digest())
    same = started.is_file() and started.read_text(encoding="utf-8") == digest
    resume = same and (job.place / "checkpoints" / "last.ckpt").is_file()
    started.write_text(digest, encoding="utf-8")
    if resume and Path(job.model, WEIGHTS).is_file():  # trained to the end, but not asked
        return
    root = f"--trainer.default_root_dir={job.place}"
    sys.argv[1:] = ["fit", *job.fit, root, *(["--ckpt_path=last"] if resume else [])]
    print(f"$ python -m lightning_switchkd {shlex.join(sys.argv[1:])}", flush=True)
    launch(sys.argv[1:])


def ask(
    folder: str, files: Mapping[str, str], image_root: str, batch_size: int = 128, max_new_tokens: int = 16
) -> dict[str, dict[str, list[str]]]:
    """Ask a model the last question of every sample of LLaVA files, with greedy decoding.

    Args:
        folder: Folder of the model.
        files: LLaVA files by name. The first is also asked with blank images.
        image_root: Folder of their images.
        batch_size: Questions per batch.
        max_new_tokens: Maximum length of an answer.

    Returns:
        By name of the file, the answers ``with_image`` in the order of the samples. For the first file also
        ``no_image``.
    """
    model = load_model(folder)
    answers: dict[str, dict[str, list[str]]] = {}
    for name, file in files.items():
        items = llava(Path(), file, image_root)
        ways = {"with_image": False} if answers else {"with_image": False, "no_image": True}
        answers[name] = {
            way: model.ask_all(
                map(as_question, items), len(items), f"{name}, {way}", batch_size, max_new_tokens, no_image
            )
            for way, no_image in ways.items()
        }
    return answers


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock: while a job of a killed sweep still runs, other jobs wait for it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
