"""Run stages side by side, each in its own process. Finished stages are kept."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.runs import command_line
from lightning_switchkd.core.text import duration
from lightning_switchkd.experiments.prepared import copy_prepared
from lightning_switchkd.experiments.stage import Stage

PRELOADED = ["lightning_switchkd.cli.lightning", "lightning_switchkd.evaluation.runner"]
"""Modules that stages need. They are imported once, before the first stage."""

Launch = Callable[[list[str]], None]
"""Function that runs one command, given its arguments. Other processes import it by name."""


@dataclass
class Running:
    """A stage that runs in another process.

    Attributes:
        stage: The stage.
        process: Its process.
        shown: Bytes of its log that were printed.
        started: Time of its start, in seconds.
    """

    stage: Stage
    process: Any
    shown: int
    started: float

    def show(self) -> None:
        """Print the new lines of the log. An error is left to :meth:`failure`."""
        if not self.stage.log.is_file():
            return
        with self.stage.log.open("rb") as file:
            file.seek(self.shown)
            new = file.read()
        end = len(new) if not self.process.is_alive() else new.rfind(b"\n") + 1
        self.shown += end
        text = new[:end].decode(errors="replace")
        _show(self.stage, "\n".join(line for line in text.split("\n") if not line.startswith("error: ")))

    def failure(self) -> str:
        """Return the message of a stage that failed: its error, or the end of its log."""
        lines = self.stage.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if self.process.exitcode == 2 and errors:
            return f"Stage '{self.stage.name}': {errors[-1]}"
        end = "\n".join(lines[-12:])
        status = self.process.exitcode
        return f"Stage '{self.stage.name}' failed with status {status}. Its log {self.stage.log} ends with:\n{end}"


def run_stages(
    stages: Sequence[Stage], needs: Mapping[str, Sequence[str]], jobs: int, launch: Launch, copied: Set[str]
) -> None:
    """Run all stages that are not finished, several at a time, each after the stages it needs.

    A finished command that no other stage needs shows its result again.

    Processes are forked from one that has imported everything. Each has its own session, so that a Ctrl-C reaches them
    exactly once, through this function.

    Args:
        stages: The stages, in order.
        needs: Names of the stages that each stage needs.
        jobs: Stages at a time.
        launch: Runs a command.
        copied: Names of the stages that use their prepared model.

    Raises:
        UserError: A stage failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the trainings have written their checkpoints.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    waiting, running, done, checked = list(stages), dict[Any, Running](), set[str](), set[str]()
    names = {stage.name for stage in stages}
    inner = {name for stage in stages for name in needs[stage.name]}
    try:
        while waiting or running:
            ready = [stage for stage in waiting if names & set(needs[stage.name]) <= done]
            for stage in ready:
                if stage.name not in checked and kept(stage, stage.name in copied):
                    waiting.remove(stage)
                    done.add(stage.name)
                    if not stage.trains and stage.name not in inner:
                        _show(stage, stage.result())
                    _say(done, stages, stage, "kept")
                    continue
                checked.add(stage.name)  # hashing its inputs once is enough
                if len(running) < jobs:
                    waiting.remove(stage)
                    started = _start(stage, context, launch, stage.name in copied)
                    running[started.process.sentinel] = started
            if not running:
                continue
            ended = wait(list(running), timeout=1)
            for one in running.values():
                one.show()
            for sentinel in ended:
                one = running.pop(sentinel)
                one.process.join()
                one.show()
                if one.process.exitcode != 0:
                    raise UserError(one.failure())
                done.add(one.stage.name)
                _say(done, stages, one.stage, f"finished in {duration(time.time() - one.started)}")
    finally:
        for one in running.values():
            os.kill(one.process.pid, signal.SIGINT)
        for one in running.values():
            one.process.join()
            one.show()
        signal.signal(signal.SIGTERM, previous)


def kept(stage: Stage, copy: bool) -> bool:
    """Check whether a stage has nothing to do. ``copy``: its prepared model is used."""
    return stage.finished() and copy == ("prepared" in stage.state())


def _show(stage: Stage, text: str) -> None:
    """Print lines of a log, each with the name of the stage. Of a bar, only its last state is shown."""
    for line in text.split("\n"):
        if shown := line.rstrip().rpartition("\r")[2]:
            print(f"{stage.name} | {shown}", flush=True)


def _say(done: set[str], stages: Sequence[Stage], stage: Stage, what: str) -> None:
    print(f"[{len(done)}/{len(stages)}] {stage.name}: {what} ({stage.output})", flush=True)


def _start(stage: Stage, context: Any, launch: Launch, copy: bool) -> Running:
    if changes := stage.changes():
        print(f"{stage.name}: runs again, because it changed: {', '.join(changes)}", flush=True)
    shown = stage.log.stat().st_size if stage.log.is_file() else 0
    process = context.Process(target=_run, args=(stage, launch, copy))
    process.start()
    return Running(stage, process, shown, time.time())


def _run(stage: Stage, launch: Launch, copy: bool) -> None:
    """Run a stage in a process of its own."""
    os.setsid()
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    with stage.log.open("ab", buffering=0) as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    with _locked(stage.beside(".lock")):
        if kept(stage, copy):  # by a process of an earlier pipeline that held the lock
            return
        resume = stage.start()
        if copy:
            copy_prepared(stage)
        else:
            sys.argv[1:] = [*stage.arguments(), *(["--ckpt_path=last"] if resume else [])]
            print(f"$ {command_line()}", flush=True)
            launch(sys.argv[1:])
        if not stage.output.exists():
            raise UserError(f"The command ended without {stage.output}.")
        stage.store(finished=time.time())


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock: while a process of a killed pipeline still runs a stage, others wait for it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
