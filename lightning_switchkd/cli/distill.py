"""The command `distill`: any teacher, student and data, without a configuration file."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_switchkd.cli.lightning import run_lightning
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.paths import existing
from lightning_switchkd.experiments.pipeline import flags

DATA_ENDINGS = (".json", ".jsonl", ".parquet", ".tar")


def distill_arguments(
    teacher: str,
    student: str,
    data: str,
    images: str | None = None,
    output: str = "runs/distill",
    method: str = "switch_kd",
    trainer: str | None = None,
    more: str = "",
) -> list[str]:
    """Return the arguments of ``fit`` for a teacher, a student and data.

    Args:
        teacher: Folder or hub id of the teacher.
        student: Folder or hub id of the student.
        data: LLaVA file, folder of such files, or URL.
        images: Folder of the images. None if the data contains them.
        output: Run folder.
        method: Name of a file in ``conf/method``.
        trainer: Name of a file in ``conf/trainer``. None is ``gpu`` if there is one, else ``cpu``.
        more: More flags, as one text. They win.

    Raises:
        UserError: A path or a name does not exist.
    """
    trainer = trainer or ("gpu" if torch.cuda.is_available() else "cpu")
    configs = [f"conf/{name}.yaml" for name in ("base", "data/llava", f"trainer/{trainer}", f"method/{method}")]
    for config in configs:
        existing(config)
    root = [f"image_root: {images}"] if images else []
    sources = ", ".join(f"{{{', '.join([f'annotations: {file}', *root])}}}" for file in annotation_files(data))
    if images and not Path(images).is_dir():
        raise UserError(f"--images: {images} is not a folder.")
    return [
        "fit",
        *(f"--config={config}" for config in configs),
        f"--model.teacher.checkpoint={teacher}",
        f"--model.student.checkpoint={student}",
        "--model.lr=2e-5",
        "--model.warmup=0.03",
        f"--data.train=[{sources}]",
        f"--trainer.default_root_dir={output}",
        "--ckpt_path=last",
        *flags(more),
    ]


def annotation_files(data: str) -> list[str]:
    """Return the annotation files that a file, a folder or a URL stands for.

    Raises:
        UserError: It does not exist, or a folder has no annotation file.
    """
    path = Path(data)
    if "://" in data or any(mark in data for mark in "{*?") or path.is_file():
        return [data]
    if not path.is_dir():
        raise UserError(f"--data: {data} does not exist.")
    files = sorted(str(file) for file in path.iterdir() if file.suffix in DATA_ENDINGS)
    if not files:
        raise UserError(f"--data: {data} has no file that ends with {', '.join(DATA_ENDINGS)}.")
    return files


def distill(
    teacher: str,
    student: str,
    data: str,
    images: str | None = None,
    output: str = "runs/distill",
    method: str = "switch_kd",
    trainer: str | None = None,
    flags: str = "",
) -> None:
    """Distill a teacher into a student on your own data. An interrupted run resumes.

    The settings are those of conf/: the complete ones are in OUTPUT/config.yaml, for `fit --config`.

    Args:
        teacher: folder or hub id of the teacher.
        student: folder or hub id of the student.
        data: LLaVA JSON, JSONL, Parquet or tar: a file, a folder of files, or a URL.
        images: folder of the images, if the data does not contain them.
        output: run folder. The student is in OUTPUT/student.
        method: name of a file in conf/method.
        trainer: name of a file in conf/trainer. Default: gpu if there is one, else cpu.
        flags: more flags of `fit`, as one text: --flags="--model.lr=1e-4 --trainer.max_steps=100".
    """
    run_lightning(distill_arguments(teacher, student, data, images, output, method, trainer, flags))
