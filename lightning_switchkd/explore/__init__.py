"""Functions for notebooks: open a pair of models, inspect samples, and get tables and figures.

    pair = open_run("runs/emoji/switch_kd")
    inspection = pair.inspect(pair.pick(8))
    inspection.top(5)

Tables are pandas DataFrames, figures are matplotlib's. Memory stays bounded at any vocabulary, because logits exist for
a few tokens at a time.
"""

from pathlib import Path

from lightning_switchkd.core.extras import requires
from lightning_switchkd.core.paths import CLONE

with requires("report", __name__):
    import matplotlib  # noqa: F401
    import pandas  # noqa: F401

from lightning_switchkd.explore.inspection import Inspection
from lightning_switchkd.explore.pair import Pair, open_pair, open_run
from lightning_switchkd.explore.runs import answers_of, curves, references, same_start, scores

ROOT = CLONE or Path.cwd()
"""Folder that relative paths in a run's config.yaml start from."""

__all__ = [
    "ROOT",
    "Inspection",
    "Pair",
    "answers_of",
    "curves",
    "open_pair",
    "open_run",
    "references",
    "same_start",
    "scores",
]
