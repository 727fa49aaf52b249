"""The command line as the Makefile calls it, on tiny models, for tests of whole runs."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch

ROOT = Path(__file__).parent.parent


def configs(data: str, model: str, trainer: str, method: str | None, *more: str) -> list[str]:
    """Return the --config arguments that the Makefile passes."""
    files = ["base", f"data/{data}", f"model/{model}", f"trainer/{trainer}"]
    files += [f"method/{method}"] if method else []
    return [argument for file in (*files, *more) for argument in ("--config", str(ROOT / "conf" / f"{file}.yaml"))]


def fit_arguments(
    folder: Path, run: Path, *more: str, method: str = "switch_kd", extra: tuple[str, ...] = ()
) -> list[str]:
    """Return arguments of a run of four steps with frequent logs. ``extra`` files follow the method."""
    annotations, images = folder / "records.json", folder / "images"
    return [
        "fit",
        *configs("digits", "digits", "cpu", method, *extra),
        f"--data.processor={folder / 'processor'}",
        *(f"--data.{split}.annotations={annotations}" for split in ("train", "val", "test")),
        *(f"--data.{split}.image_root={images}" for split in ("train", "val", "test")),
        f"--model.student.checkpoint={folder / 'student'}",
        f"--model.teacher.checkpoint={folder / 'teacher'}",
        f"--trainer.default_root_dir={run}",
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=2",
        "--trainer.log_every_n_steps=1",
        "--data.batch_size=8",
        *more,
    ]


class Signal(L.Callback):
    """Send this process a signal at a given moment of the training.

    Args:
        hook: A hook of training or validation, such as ``on_train_batch_start``.
        step: The optimizer step.
        signum: The signal.
    """

    def __init__(self, hook: str, step: int, signum: int = signal.SIGINT) -> None:
        self.sent = False

        def send(trainer: Any, *_: Any, **__: Any) -> None:
            if trainer.global_step == step and not self.sent:
                self.sent = True
                # like a terminal or a scheduler: from outside, and to the data loader's workers as well
                pids = [os.getpid(), *(worker.pid for worker in multiprocessing.active_children())]
                subprocess.run(["kill", f"-{signum}", *map(str, pids)], check=True)

        setattr(self, hook, send)


class Die(L.Callback):
    """Raise an unexpected error in the sixth step."""

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        """Raise the error."""
        if trainer.global_step == 6:
            raise RuntimeError("killed")


def signalled(hook: str, step: int, signum: int = signal.SIGINT) -> list[str]:
    """Return flags that add a :class:`Signal`."""
    path = "--trainer.callbacks.init_args"
    return [
        "--trainer.callbacks+=command.Signal",
        f"{path}.hook={hook}",
        f"{path}.step={step}",
        f"{path}.signum={int(signum)}",
    ]


class LateCollective(L.Callback):
    """Force a rare condition: gloo still holds tensors of a collective while Python exits."""

    def setup(self, *_: Any, **__: Any) -> None:
        """Register a collective at exit."""
        atexit.register(self._last_collective)

    def _last_collective(self) -> None:
        tensors = [torch.ones(1) for _ in range(20_000)]
        work = torch.distributed.group.WORLD.allreduce_coalesced(tensors)  # type: ignore[union-attr]
        del tensors
        work.wait()


class Killer(L.Callback):
    """Log the samples of each step, and kill this process at the n-th moment after its start.

    Moments are hooks of training and validation, and the middle of a checkpoint write.

    Args:
        moments: Number of moments before the kill. 0 never kills.
        rank: The rank that is killed.
        seen: File to which the samples of each step are appended.
    """

    def __init__(self, moments: int, rank: int, seen: str) -> None:
        self.moments_left, self.rank, self.seen = moments, rank, seen

        def moment(*_: Any, **__: Any) -> None:
            self._moment()

        for hook in (
            *("on_train_batch_start", "on_after_backward", "on_before_optimizer_step", "on_validation_batch_start"),
            *("on_validation_batch_end", "on_validation_end", "on_save_checkpoint"),
        ):
            setattr(self, hook, moment)

    def _moment(self) -> None:
        self.moments_left -= 1
        first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if self.moments_left == 0 and first_start and int(os.environ.get("LOCAL_RANK", "0")) == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)

    def setup(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Replace the writer of checkpoints: two halves with a moment between them."""
        from lightning_switchkd.training.checkpoints import io

        def save_in_halves(checkpoint: Any, file: Any) -> None:
            buffer = BytesIO()
            torch.save(checkpoint, buffer)
            content = buffer.getvalue()
            file.write(content[: len(content) // 2])
            file.flush()
            self._moment()
            file.write(content[len(content) // 2 :])

        io.torch = SimpleNamespace(save=save_in_halves)  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the samples of a step."""
        with Path(f"{self.seen}.{trainer.global_rank}").open("a", encoding="utf-8") as file:
            file.write(f"{trainer.global_step}{'+' if batch.window_end else ''} {' '.join(batch.sample_ids)}\n")
        self._moment()
