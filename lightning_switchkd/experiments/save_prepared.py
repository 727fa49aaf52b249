"""Save the trained students of a pipeline as prepared models.

python -m lightning_switchkd.experiments.save_prepared --pipeline conf/pipeline/emoji.yaml
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping

from safetensors.torch import load_file, save_file

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import atomic_path
from lightning_switchkd.experiments.pipeline import load_definition, stages_of
from lightning_switchkd.experiments.prepared import MADE_FROM, WEIGHTS, describe
from lightning_switchkd.experiments.stage import Stage, sha256


def save_prepared(stage: Stage, saved: Mapping[str, str]) -> str:
    """Copy the student of a finished stage into the package, with its weights in bfloat16 (half the size).

    Args:
        stage: The stage.
        saved: Digests of the models that were saved before, by output of their stage. A stage that starts from one of
            them is recorded as made from the saved model.

    Returns:
        The digest of the saved weights.

    Raises:
        UserError: The stage is not finished, or names no prepared model.
    """
    if stage.prepared is None or not stage.finished():
        raise UserError(f"Stage '{stage.name}' is not finished, or names no prepared model.")
    with atomic_path(stage.prepared) as partial:
        shutil.copytree(stage.output, partial)
        weights = {name: tensor.bfloat16() for name, tensor in load_file(partial / WEIGHTS).items()}
        save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
        made_from = {**describe(stage), "sha256": sha256(partial / WEIGHTS)}
        made_from["models"] = {name: saved.get(name, digest) for name, digest in made_from["models"].items()}
        (partial / MADE_FROM).write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
    return str(made_from["sha256"])


def main() -> None:
    """Save all prepared models of a pipeline."""
    parser = argparse.ArgumentParser(description="Copy the trained students of a pipeline into the package.")
    parser.add_argument("--pipeline", required=True, help="file of conf/pipeline/")
    file = parser.parse_args().pipeline
    saved = dict[str, str]()
    for stage in stages_of(load_definition(file, "pipeline"), {}, file):
        if stage.prepared is not None:
            saved[str(stage.output)] = save_prepared(stage, saved)[:16]
            print(f"{stage.name}: {stage.prepared}")


if __name__ == "__main__":
    main()
