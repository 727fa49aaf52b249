"""The description of a run: its configuration, its command and its git commit."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.renamed import upgrade_config
from lightning_switchkd.core.text import program

UNNAMED = "custom"
"""Name of a method that no file of ``conf/method`` sets."""


def read_config(run: str | Path) -> dict[str, Any]:
    """Read the ``config.yaml`` of a run folder, as plain values. Names of version 0.1.0 become the present ones.

    Raises:
        UserError: The folder has no config.yaml.
    """
    file = Path(run, "config.yaml")
    if not file.is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml. `make train` writes runs/emoji/switch_kd.")
    config = OmegaConf.create(upgrade_config(yaml.safe_load(file.read_text(encoding="utf-8"))))
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def relative_to_root(value: Any, root: str) -> Any:
    """Write every path below the run folder as an interpolation, so that another run folder moves all of them.

    Args:
        value: A configuration or a part of one.
        root: The run folder.

    >>> config = {"trainer": {"default_root_dir": "runs/a"}, "checkpoint": {"dirpath": "runs/a/ckpt"}}
    >>> relative_to_root(config, "runs/a")
    {'trainer': {'default_root_dir': 'runs/a'}, 'checkpoint': {'dirpath': '${trainer.default_root_dir}/ckpt'}}
    """
    if isinstance(value, dict):
        return {k: v if k == "default_root_dir" else relative_to_root(v, root) for k, v in value.items()}
    if isinstance(value, list):
        return [relative_to_root(entry, root) for entry in value]
    if isinstance(value, str) and (value == root or value.startswith(f"{root}/")):
        return f"${{trainer.default_root_dir}}{value.removeprefix(root)}"
    return value


def changed_settings(stored: Any, current: Any, key: str = "") -> list[str]:
    """Return what differs between two configurations, as ``KEY OLD -> NEW``.

    The checkpoint and the run folder are ignored. A replaced class is one difference, without its settings.

    >>> changed_settings({"model": {"lr": 0.1, "freeze": None}}, {"model": {"lr": 0.2}, "ckpt_path": "last.ckpt"})
    ['model.lr 0.1 -> 0.2']
    """
    if key in ("ckpt_path", "trainer.default_root_dir") or stored == current:
        return []
    if isinstance(stored, dict) and isinstance(current, dict):
        if stored.get("class_path") != current.get("class_path"):
            stored, current = stored.get("class_path"), current.get("class_path")
        else:
            names = [*current, *(name for name in stored if name not in current)]
            values = ((stored.get(name), current.get(name), f"{key}.{name}".removeprefix(".")) for name in names)
            return [change for value in values for change in changed_settings(*value)]
    return [f"{key} {stored} -> {current}"]


def hyperparameters(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings that can change the result, flat: method, model, data, seed and some of the trainer's.

    >>> hyperparameters({"model": {"lr": 0.1, "freeze": ["lm"]}, "trainer": {"precision": "32-true", "logger": []}})
    {'model/lr': 0.1, 'model/freeze': "['lm']", 'trainer/precision': '32-true'}
    """
    flat: dict[str, Any] = {}
    trainer = ("precision", "gradient_clip_val", "accumulate_grad_batches", "max_steps", "max_epochs")
    for name, value in config.items():
        path = f"{prefix}{name}"
        if not prefix and name not in ("method", "model", "data", "trainer", "seed_everything"):
            continue
        if prefix == "trainer/" and name not in trainer:
            continue
        if isinstance(value, dict):
            flat |= hyperparameters(value, f"{path}/")
        elif value is not None:
            flat[path] = value if isinstance(value, int | float | str) else str(value)
    return flat


def command_line() -> str:
    """Return the command of this process."""
    return f"{program()} {shlex.join(sys.argv[1:])}"


def git(*arguments: str) -> str | None:
    """Run git in this package's checkout. Return None without git or without a checkout."""
    package = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=package, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.rstrip()
