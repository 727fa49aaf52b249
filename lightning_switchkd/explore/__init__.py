"""What the notebooks call: a pair of models opened, records looked at, tables and figures of what they believe.

    pair = open_run("runs/digits/switch_kd")
    look = pair.look(pair.some(8))
    look.top(5)

Tables are pandas', figures matplotlib's. Memory stays bounded at any vocabulary: logits exist for a few rows at a time.
"""

from pathlib import Path

from lightning_switchkd.explore.inspection import Inspection
from lightning_switchkd.explore.pair import Pair, open_pair, open_run
from lightning_switchkd.explore.runs import answers_of, curves, scores

ROOT = Path(__file__).parents[2]
"""Folder that relative paths in a run's config.yaml start from."""

__all__ = ["ROOT", "Inspection", "Pair", "answers_of", "curves", "open_pair", "open_run", "scores"]
