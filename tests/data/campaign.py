"""Runs that are killed and continued: what each of them trained on, to the byte."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_switchkd.core.types import Batch
from lightning_switchkd.data.datamodule import DataPaths
from lightning_switchkd.objectives import SFT

GLOBAL_BATCH, ACCUMULATE, EPOCHS = 4, 2, 3

Sequence = list[tuple[int, int, list[str]]]
"""Epoch, micro-batch and the digests of its samples, in the order of training."""


@dataclass(frozen=True)
class Kill:
    """When a run is killed: in a micro-batch of the whole run, before it, after it, or in the next checkpoint."""

    batch: int
    rank: int
    moment: str


@dataclass(frozen=True)
class Job:
    """A training run.

    Attributes:
        folder: the pair of models.
        root: of the run.
        train: its data.
        workers: of each rank's loader.
        ranks: processes.
        kill: None lets it come to its end.
        life: how often it was started before.
    """

    folder: Path
    root: Path
    train: list[DataPaths] = field(default_factory=list)
    workers: int = 0
    ranks: int = 1
    kill: Kill | None = None
    life: int = 0

    @property
    def last(self) -> Path:
        """The checkpoint to continue from."""
        return self.root / "checkpoints" / "last.ckpt"

    def log(self, rank: int) -> Path:
        """What one rank trained on in this life."""
        return self.root / f"life{self.life}-rank{rank}.jsonl"


class Mortal(tiny.PlainSGD):
    """Writes down, safe from its death, what it trains on; dies when it shall."""

    job: Job

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        workers = [worker.pid for worker in multiprocessing.active_children()]
        with self.job.log(self.global_rank).open("a", encoding="utf-8") as file:
            file.write(json.dumps([self.current_epoch, batch_idx, digests(batch), workers]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        done = self.current_epoch * self.trainer.num_training_batches + batch_idx
        self._die("before", done)
        loss = super().training_step(batch, batch_idx)
        self._die("after", done)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        self._die("saving", self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def _die(self, moment: str, done: int) -> None:
        kill = self.job.kill
        if kill and (kill.rank, kill.moment) == (self.global_rank, moment) and done >= kill.batch:
            os.kill(os.getpid(), signal.SIGKILL)


def digests(batch: Batch) -> list[str]:
    """One for each record, of everything that training sees of it."""
    found = []
    for row in range(len(batch)):
        real = batch.attention_mask[row] == 1
        seen = (batch.input_ids[row][real], batch.labels[row][real], batch.pixel_values[batch.image_sample == row])
        data = b"".join(tensor.numpy().tobytes() for tensor in seen)
        found.append(f"{int(batch.sample_index[row])}:{hashlib.sha256(data).hexdigest()[:16]}")
    return found


def train(rank: int, job: Job, port: int) -> None:
    """One rank of a run, from its last checkpoint if it has one."""
    if job.ranks > 1:
        os.environ.update(tiny.rank_environment(rank, job.ranks, port))
    model = tiny.switch_kd(job.folder, SFT(), cls=Mortal)
    model.job = job
    data = tiny.data_module(
        job.folder,
        train=job.train,
        val=None,
        batch_size=GLOBAL_BATCH // job.ranks,
        num_workers=job.workers,
        group_window=2,
        on_error="raise",
    )
    trainer = tiny.trainer(
        job.root,
        devices=job.ranks,
        strategy="ddp" if job.ranks > 1 else "auto",
        max_steps=-1,
        max_epochs=EPOCHS,
        accumulate_grad_batches=ACCUMULATE,
        enable_checkpointing=True,
        callbacks=[ModelCheckpoint(job.last.parent, save_last=True, every_n_train_steps=2)],
    )
    trainer.fit(model, datamodule=data, ckpt_path=str(job.last) if job.last.is_file() else None)


def run(job: Job) -> Sequence:
    """Starts the run, waits for its end or its death, and says what it trained on, all ranks together."""
    port = tiny.free_port()
    processes = [tiny.fork_server().Process(target=train, args=(rank, job, port)) for rank in range(job.ranks)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 120
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes) or time.monotonic() > deadline:
            for process in processes:  # when a machine dies, all that runs on it does
                process.kill()
        time.sleep(0.02)
    codes = {process.exitcode for process in processes}
    assert (-signal.SIGKILL in codes) if job.kill else codes == {0}, f"{job}: {codes}"
    return trained_on(job)


def trained_on(job: Job) -> Sequence:
    """What a life trained on; in its last micro-batch, some ranks may not have come so far."""
    ranks = [[json.loads(line) for line in job.log(rank).read_text().splitlines()] for rank in range(job.ranks)]
    whole = [
        (epoch, batch, [digest for _, _, digests, _ in parts for digest in digests])
        for parts in zip(*ranks, strict=False)
        for epoch, batch, *_ in parts[:1]
    ]
    assert all(len({(epoch, batch) for epoch, batch, *_ in parts}) == 1 for parts in zip(*ranks, strict=False))
    return whole


def workers_left(root: Path) -> set[int]:
    """Loader workers of killed runs that still live."""
    lines = (json.loads(line) for log in root.glob("life*.jsonl") for line in log.read_text().splitlines())
    return {pid for *_, workers in lines for pid in workers if _lives(pid)}


def _lives(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
