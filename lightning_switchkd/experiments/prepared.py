"""Prepared models: students of finished stages that ship with the package.

``made_from.json`` records what each was made from, and the hash of its weights. ``save_prepared.py`` writes them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import atomic_path
from lightning_switchkd.core.paths import PACKAGE
from lightning_switchkd.core.runs import changed_settings, hyperparameters
from lightning_switchkd.experiments.stage import Stage, as_json, sha256

PREPARED = PACKAGE / "demo" / "models"
"""Folder of the prepared models in the package."""

MADE_FROM = "made_from.json"
WEIGHTS = "model.safetensors"


def read_made_from(folder: Path) -> dict[str, Any]:
    """Read what a prepared model was made from: ``settings``, ``models`` and ``sha256`` of its weights.

    Raises:
        UserError: The model is missing, or its weights are damaged.
    """
    file = folder / MADE_FROM
    if not file.is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"The prepared model {folder} is not complete. Get it again (git checkout), or install again.")
    made_from = dict(orjson.loads(file.read_bytes()))
    if (found := sha256(folder / WEIGHTS)) != made_from["sha256"]:
        raise UserError(
            f"The prepared model {folder} is damaged: its weights have the digest {found[:16]} instead of "
            f"{made_from['sha256'][:16]}. Get it again (git checkout), or install again."
        )
    return made_from


def describe(stage: Stage) -> dict[str, Any]:
    """Return the hyperparameters of a stage, and the hashes of the models that it starts from, but not of its data."""
    models = {name: value for name, value in stage.digest()["inputs"].items() if Path(name).is_dir()}
    return {"settings": as_json(hyperparameters(stage.effective_settings)), "models": models}


def usable(stage: Stage) -> bool:
    """Check whether a stage can use its prepared model instead of a training.

    The settings must be those that the model was made from, and so must the models it starts from, where they exist on
    this machine. A student that was trained here is never replaced. A model that does not fit is mentioned.

    Raises:
        UserError: The prepared model is damaged.
    """
    if stage.prepared is None or not stage.prepared.exists() or (stage.finished() and "prepared" not in stage.state()):
        return False
    made_from = read_made_from(stage.prepared)
    present = describe(stage)
    models = {name: value for name, value in made_from["models"].items() if name in present["models"]}
    changes = [
        *changed_settings(made_from["settings"], present["settings"]),
        *changed_settings(models, present["models"]),
    ]
    if changes:
        what = ", ".join(changes)
        print(f"{stage.name}: the prepared model is not used, because it was made differently: {what}", flush=True)
    return not changes


def copy_prepared(stage: Stage) -> None:
    """Copy a prepared model to the output of its stage."""
    assert stage.prepared is not None
    with atomic_path(stage.output) as partial:
        shutil.copytree(stage.prepared, partial)
    stage.store(prepared=True)  # before the scheduler stores that the stage is finished
    print(f"Copied the prepared model {stage.prepared}. To train it instead: make teacher", flush=True)
