"""Layouts of a benchmark's files: ``{reader: …, …}`` with the arguments of that reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_switchkd.evaluation.benchmarks.benchmark_readers import (
    mme,
    mme_lists,
    mme_table,
    pope,
    pope_table,
    textvqa,
)
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.readers import llava, samples, table

READERS: dict[str, Callable[..., list[Item]]] = {
    "table": table,
    "textvqa": textvqa,
    "mme": mme,
    "mme_table": mme_table,
    "mme_lists": mme_lists,
    "pope": pope,
    "pope_table": pope_table,
    "llava": llava,
    "samples": samples,
}
"""Readers by their name in ``conf/benchmarks.yaml``."""


def reader_of(layout: Mapping[str, Any]) -> str:
    """Return the name of a layout's reader."""
    return str(layout.get("reader", "table"))


def layout_files(layout: Mapping[str, Any]) -> Sequence[str]:
    """List the file patterns that a layout requires, including joined tables and labels."""
    patterns = [layout[name] for name in ("rows", "questions", "records", "release") if name in layout]
    truth = layout.get("truth", [])
    joined = [layout["join"]["rows"]] if "join" in layout else []
    return [*patterns, *(truth.values() if isinstance(truth, Mapping) else [truth] if truth else []), *joined]


def file_option(layout: Mapping[str, Any]) -> str:
    """Return the option with the layout's main file."""
    return next(name for name in ("rows", "records", "questions") if name in layout)
