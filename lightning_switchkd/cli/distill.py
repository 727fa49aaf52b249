"""The command `distill`: any teacher, student and data, without a configuration file."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lightning_switchkd.cli.lightning import OWN_COMMANDS, run_lightning
from lightning_switchkd.cli.renamed import LIGHTNING_COMMANDS
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.experiments.pipeline import as_flags


def distill(
    teacher: str,
    student: str,
    data: str,
    images: str | None = None,
    output: str | None = None,
    method: str = "switch_kd",
    trainer: str | None = None,
    overlays: str = "",
    flags: str = "",
    command: str = "fit",
) -> None:
    """Distill a teacher into a student on your own data, at a learning rate of 2e-5. An interrupted run resumes.

    On GPUs, the teacher is in bfloat16, activations are recomputed, and batches are accumulated to 128 samples a step.
    The complete settings are written to OUTPUT/config.yaml, for `fit --config`.

    Args:
        teacher: folder or hub id of the teacher.
        student: folder or hub id of the student.
        data: LLaVA JSON, JSONL, Parquet or tar: a file, a pattern, a URL, or a folder of such files.
        images: folder of the images, if the data does not contain them.
        output: run folder. The student is in OUTPUT/student. Default: runs/distill/METHOD.
        method: name of a file in conf/method.
        trainer: name of a file in conf/trainer. Default: gpu if there is one, else cpu.
        overlays: names of files in conf/overlay, as one text.
        flags: more flags of `fit`, as one text. They win. --flags="--model.lr=1e-4 --trainer.max_steps=100".
        command: run this command with the same settings, instead of training: validate-data, dry-run, fill-cache, ...

    Raises:
        UserError: The command is unknown, or a value is wrong.
    """
    if command not in LIGHTNING_COMMANDS:
        raise UserError(f"--command: unknown command '{command}'. Available: {', '.join(LIGHTNING_COMMANDS)}.")
    trainer = trainer or ("gpu" if torch.cuda.is_available() else "cpu")
    names = "base", "data/llava", f"trainer/{trainer}", f"method/{method}", *(f"overlay/{x}" for x in overlays.split())
    data_sets = [{"annotations": file, "image_root": images} for file in json_files(data)]
    run_lightning(
        [
            command,
            *(f"--config=conf/{name}.yaml" for name in names),
            f"--model.teacher.checkpoint={teacher}",
            f"--model.student.checkpoint={student}",
            *([] if trainer == "cpu" else gpu_flags(1 if trainer == "gpu" else torch.cuda.device_count())),
            "--model.lr=2e-5",
            "--model.warmup=0.03",
            f"--data.train={json.dumps(data_sets)}",
            f"--trainer.default_root_dir={output or f'runs/distill/{method}'}",
            *([] if command in OWN_COMMANDS else ["--ckpt_path=last"]),
            *as_flags(flags),
        ]
    )


def gpu_flags(devices: int) -> list[str]:
    """Return the settings of `conf/model/llava-interleave.yaml` that let a large teacher fit on a GPU.

    >>> gpu_flags(8)[-1]
    '--trainer.accumulate_grad_batches=4'
    """
    return [
        "--model.teacher.dtype=bfloat16",
        "--model.teacher.activation_checkpointing=[lm]",
        "--model.student.activation_checkpointing=[vision,lm]",
        f"--trainer.accumulate_grad_batches={max(1, 32 // max(1, devices))}",
    ]


def json_files(data: str) -> list[str]:
    """Return the JSON files of a folder, each a data set of its own. All else is one data set."""
    files = sorted(str(file) for file in Path(data).glob("*") if file.suffix in (".json", ".jsonl"))
    return files or [data]
