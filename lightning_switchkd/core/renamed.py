"""Names of version 0.1.0 and their replacements: the one table behind upgrades and "has been renamed" errors."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

SECTIONS: dict[str, str] = {
    "finite": "skip_nonfinite",
    "statistics": "dbild_statistics",
    "gradients": "vision_gradients",
    "greedy": "val_generation",
    "panel": "answer_panel",
}
"""Top-level sections of a configuration, which are also the first part of a flag."""

SETTINGS: dict[str, str] = {
    "greedy.records": "val_generation.num_samples",
    "panel.records": "answer_panel.num_samples",
    "data.max_bad_share": "data.max_bad_fraction",
    "data.upright": "data.exif_transpose",
    "model.lr_end": "model.min_lr_ratio",
    "model.objective.init_args.leader_gradient": "model.objective.init_args.backprop_through_leader",
    "model.objective.init_args.image_rows": "model.objective.init_args.image_tokens",
}
"""Dotted keys whose last part changed. All other keys of a renamed section only follow ``SECTIONS``."""

CALLBACKS: dict[str, str] = {
    "FiniteSteps": "SkipNonfinite",
    "GreedyValidation": "ValGeneration",
    "RunRecord": "RunFiles",
}
"""Callback classes; Lightning stores a callback's state under its class name."""

MODULES: dict[str, str] = {
    "batch": "core.types",
    "cache": "distillation.teacher_cache",
    "callbacks": "training.callbacks",
    "callbacks.asking": "training.callbacks.validation_questions",
    "callbacks.finite_steps": "training.callbacks.skip_nonfinite",
    "callbacks.greedy_validation": "training.callbacks.val_generation",
    "callbacks.run_record": "training.callbacks.run_files",
    "checkpoints.convert": "models.convert",
    "checkpoints.export": "models.export",
    "checkpoints.io": "training.checkpoints.io",
    "checkpoints.record": "training.checkpoints.metadata",
    "checkpoints.rewind": "training.checkpoints.resume",
    "cli": "cli.main",
    "data.demo": "demo",
    "data.io": "core.files",
    "data.records": "data.samples",
    "data.validate": "data.validate.validate",
    "data.validation_report": "data.validate.report",
    "distiller": "distillation.distiller",
    "dry_run": "estimation.dry_run",
    "errors": "core.errors",
    "evaluation.asking": "evaluation.inference",
    "evaluation.benchmarks": "evaluation.benchmarks.definition",
    "evaluation.charts": "evaluation.report.charts",
    "evaluation.evaluate": "evaluation.runner",
    "evaluation.formats": "core.text",
    "evaluation.generate": "models.generation",
    "evaluation.items": "evaluation.benchmarks.items",
    "evaluation.judgements": "evaluation.benchmarks.judgements",
    "evaluation.majority": "evaluation.text_only_baseline",
    "evaluation.paired": "evaluation.significance",
    "evaluation.published": "evaluation.report.published",
    "evaluation.readers": "evaluation.benchmarks.readers",
    "evaluation.report": "evaluation.report.report",
    "evaluation.report_page": "evaluation.report.page",
    "evaluation.scorers": "evaluation.benchmarks.scorers",
    "evaluation.scoring": "evaluation.benchmarks.scoring",
    "evaluation.study": "experiments.sweep",
    "evaluation.study_report": "experiments.sweep_report",
    "evaluation.tables": "evaluation.benchmarks.tables",
    "explore.look": "explore.inspection",
    "loggers": "training.loggers",
    "losses.ahead": "losses.precomputed_grads",
    "losses.chunk": "losses.logits",
    "losses.difference": "losses.dbild",
    "losses.head": "losses.chunked",
    "losses.rows": "core.labels",
    "measuring": "core.profiling",
    "metrics": "training.metrics",
    "module": "training.module",
    "optim": "training.optim",
    "pathways": "distillation.pathways",
    "strategies": "training.strategies",
    "vlm.architectures": "estimation.architectures",
    "vlm.attention": "models.attention",
    "vlm.build": "models.auto",
    "vlm.compat": "distillation.checks",
    "vlm.flops": "distillation.flops",
    "vlm.lora": "models.lora",
    "vlm.memory": "estimation.memory",
    "vlm.seams": "models.adapter",
    "vlm.speed": "models.compile",
}
"""Modules, relative to the package. A module that is missing here has kept its name."""

CLASS_PATHS: dict[str, str] = {
    "lightning_switchkd.checkpoints.io.AtomicCheckpointIO": (
        "lightning_switchkd.training.checkpoints.io.AtomicCheckpointIO"
    ),
    "lightning_switchkd.loggers.CSVLogger": "lightning_switchkd.training.loggers.CSVLogger",
    "lightning_switchkd.strategies.FSDP2": "lightning_switchkd.training.strategies.FSDP2",
    **{
        f"lightning_switchkd.callbacks.{name}": f"lightning_switchkd.training.callbacks.{CALLBACKS.get(name, name)}"
        for name in (
            *("AnswerPanel", "DBiLDStatistics", "DataHealth", "ExportStudent", "FiniteSteps", "GreedyValidation"),
            *("Interruption", "StepProgressBar", "Throughput", "VisionGradients"),
        )
    },
}
"""Classes that a configuration names."""

COMMANDS: dict[str, str] = {"ablation": "sweep"}

FLAGS: dict[str, dict[str, str]] = {
    "sweep": {"--study": "--sweep"},
    "evaluate": {"--blind": "--no_image"},
    "generate": {"--beside": "--compare"},
    "dry-run": {"--records": "--num_samples"},
    "repack": {"--records_per_shard": "--samples_per_shard"},
}
"""Flags of a command, by its present name. The commands that take a configuration also follow the tables above."""

MAKE_VARIABLES: dict[str, str] = {"EXP": "METHOD", "WITH": "OVERLAYS", "STUDY": "SWEEP", "RECIPE": "RUN"}

MAKE_TARGETS: dict[str, str] = {"ablation": "sweep", "recipe": "pipeline"}

CONFIG_FOLDERS: dict[str, str] = {
    "ablation": "sweep/open_points.yaml",
    "experiment": "method",
    "prepare": "pipeline",
    "study": "sweep",
    "with": "overlay",
}
"""Folders of ``conf/``. The settings of some files are now parts of another file."""

BENCHMARK_FOLDER = "conf/benchmark"
"""Folder of a file per benchmark. These are now entries of ``conf/benchmarks.yaml``."""

SWEEP_FIELDS: dict[str, str] = {
    "about": "description",
    "against": "baselines",
    "expected": "expected_order",
    "like": "extends",
    "majority": "text_only_baseline",
}
"""Fields of the files in ``conf/sweep/``."""

RESULTS: dict[str, str] = {"blind": "no_image", "majority": "text_only_baseline"}
"""Endings of result files (``BENCHMARK.blind.json``), and names of systems."""

METRICS: dict[str, str] = {"train/steps_left_out": "train/skipped_steps", "data/left_out": "data/skipped_samples"}
"""Metrics; a name also stands for all names below it (``data/left_out/CODE``)."""


def upgrade_metric(name: str) -> str:
    """Return the present name of a logged metric.

    >>> upgrade_metric("data/left_out/image_missing"), upgrade_metric("val/exact_match")
    ('data/skipped_samples/image_missing', 'val/exact_match')
    """
    for old, new in METRICS.items():
        if name == old or name.startswith(f"{old}/"):
            return new + name.removeprefix(old)
    return name


def upgrade_setting(key: str) -> str:
    """Return the present name of a dotted key.

    >>> upgrade_setting("greedy.records"), upgrade_setting("panel.max_new_tokens"), upgrade_setting("model.lr")
    ('val_generation.num_samples', 'answer_panel.max_new_tokens', 'model.lr')
    """
    if key in SETTINGS:
        return SETTINGS[key]
    section, dot, rest = key.partition(".")
    return SECTIONS.get(section, section) + dot + rest


def upgrade_benchmark(name: str) -> str:
    """Return the present name of a benchmark. Your own files in ``conf/benchmark/`` keep their names and paths.

    >>> upgrade_benchmark(f"{BENCHMARK_FOLDER}/gqa.yaml"), upgrade_benchmark("gqa"), upgrade_benchmark("own/shop.yaml")
    ('gqa', 'gqa', 'own/shop.yaml')
    """
    file = Path(name if name.endswith((".yaml", ".yml")) else f"{BENCHMARK_FOLDER}/{name}.yaml")
    if file.parts[-3:-1] != Path(BENCHMARK_FOLDER).parts:
        return name
    return str(file) if file.is_file() else file.stem


def upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration with the present names of its sections, settings and classes.

    A configuration without old names comes back equal, in its own order.

    Args:
        config: a configuration as plain dicts, such as the ``config.yaml`` of a run folder.

    >>> upgrade_config({"model": {"lr_end": 0.1}, "greedy": {"records": 8, "batch_size": 4}})
    {'model': {'min_lr_ratio': 0.1}, 'val_generation': {'num_samples': 8, 'batch_size': 4}}
    """
    upgraded = _upgrade(config, "")
    assert isinstance(upgraded, dict)
    return upgraded


def _upgrade(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        children = {name: f"{key}.{name}".removeprefix(".") for name in value}
        return {_last_part(name, children[name]): _upgrade(child, children[name]) for name, child in value.items()}
    if isinstance(value, list):
        return [_upgrade(child, f"{key}[]") for child in value]
    return CLASS_PATHS.get(value, value) if isinstance(value, str) else deepcopy(value)


def _last_part(name: Any, key: str) -> Any:
    upgraded = upgrade_setting(key)
    return name if upgraded == key else upgraded.rpartition(".")[2]
