"""What a run folder needs so that the run can be understood and done again."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from lightning_switchkd import __version__
from lightning_switchkd.training.loggers import log_text, resume_logs

PREVIOUS = "previous"
HEADER = """\
# The whole configuration of this run, every file, flag and default resolved. To do it again, from the folder it ran in:
#   python -m lightning_switchkd fit --config {folder}/config.yaml --trainer.default_root_dir=ANOTHER_FOLDER
# Packages, git commit and the command it was started by: environment.json{patch}
"""


class RunFiles(SaveConfigCallback):
    """Writes ``config.yaml``, ``environment.json`` and, with uncommitted changes, ``uncommitted.patch``.

    TensorBoard shows the configuration as text, and as hyperparameters beside the final metrics; other loggers get it
    as hyperparameters at the start. A resumed run continues its logs (``loggers.resume_logs``).
    """

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes the files; Lightning calls it on rank 0 alone, before anything else."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        self._config = below_root(config, str(trainer.default_root_dir))
        self._text = yaml.safe_dump(self._config, sort_keys=False, width=100, allow_unicode=True)
        if stage != TrainerFn.FITTING:
            return
        diff = _git("diff", "HEAD")
        header = HEADER.format(folder=folder, patch="; uncommitted changes: uncommitted.patch" if diff else "")
        (folder / "config.yaml").write_text(header + self._text, encoding="utf-8")
        environment = json.dumps(describe_environment(trainer), indent=2)
        (folder / "environment.json").write_text(f"{environment}\n", encoding="utf-8")
        if diff:
            (folder / "uncommitted.patch").write_text(f"{diff}\n", encoding="utf-8")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tells the loggers."""
        resume_logs(trainer)
        if not trainer.is_global_zero:
            return
        log_text(trainer, "config", f"```yaml\n{self._text}\n```")
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger | TensorBoardLogger):
                logger.log_hyperparams(hyperparameters(self._config))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the final metrics beside the hyperparameters."""
        final = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(hyperparameters(self._config), final)


def below_root(value: Any, root: str) -> Any:
    """The configuration with every path below the run's folder written as an interpolation: another folder moves all.

    >>> below_root({"trainer": {"default_root_dir": "runs/a"}, "checkpoint": {"dirpath": "runs/a/ckpt"}}, "runs/a")
    {'trainer': {'default_root_dir': 'runs/a'}, 'checkpoint': {'dirpath': '${trainer.default_root_dir}/ckpt'}}
    """
    if isinstance(value, dict):
        return {k: v if k == "default_root_dir" else below_root(v, root) for k, v in value.items()}
    if isinstance(value, list):
        return [below_root(entry, root) for entry in value]
    if isinstance(value, str) and (value == root or value.startswith(f"{root}/")):
        return f"${{trainer.default_root_dir}}{value.removeprefix(root)}"
    return value


def hyperparameters(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings that can make a difference, flat: those of model and data, precision, clipping, accumulation, seed.

    >>> hyperparameters({"model": {"lr": 0.1, "freeze": ["lm"]}, "trainer": {"precision": "32-true", "logger": []}})
    {'model/lr': 0.1, 'model/freeze': "['lm']", 'trainer/precision': '32-true'}
    """
    kept: dict[str, Any] = {}
    trainer = ("precision", "gradient_clip_val", "accumulate_grad_batches", "max_steps", "max_epochs")
    for name, value in config.items():
        path = f"{prefix}{name}"
        if not prefix and name not in ("model", "data", "trainer", "seed_everything"):
            continue
        if prefix == "trainer/" and name not in trainer:
            continue
        if isinstance(value, dict):
            kept |= hyperparameters(value, f"{path}/")
        elif value is not None:
            kept[path] = value if isinstance(value, int | float | str) else str(value)
    return kept


def describe_environment(trainer: L.Trainer) -> dict[str, Any]:
    """Command, time, versions, hardware and git state, as plain values."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": shlex.join(["python", "-m", "lightning_switchkd", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "lightning_switchkd": __version__,
        "git": {"commit": _git("rev-parse", "HEAD"), "changed": (_git("status", "--porcelain") or "").splitlines()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": cuda or [platform.processor() or platform.machine()],
        "processes": trainer.world_size,
        "packages": {d.metadata["Name"]: d.version for d in sorted(distributions(), key=lambda d: d.metadata["Name"])},
    }


def _git(*arguments: str) -> str | None:
    """What git says of the checkout this package lies in; None without git or checkout."""
    where = Path(__file__).parent
    try:
        said = subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.rstrip()


@rank_zero_only
def archive_previous_run(folder: Path) -> None:
    """Moves what an earlier run left in a folder to ``previous/1``, ``previous/2``, ..., so that two runs never mix.

    A start that failed before anything was logged or saved is no run: its few files stay and are written over.
    """
    if not any((folder / name).exists() for name in ("metrics.csv", "checkpoints", "student")):
        return
    number = 1
    while (folder / PREVIOUS / str(number)).exists():
        number += 1
    aside = folder / PREVIOUS / str(number)
    aside.mkdir(parents=True)
    for path in folder.iterdir():
        if path.name != PREVIOUS:
            path.rename(aside / path.name)
    print(f"{folder} held an earlier run: it is now in {aside} (to continue it instead: --ckpt_path=last).")
