"""Reserved names of results, and the labels that reports show for the names of systems."""

from __future__ import annotations

from collections.abc import Container

from lightning_switchkd.core.renamed import RESULTS

TEXT_ONLY_BASELINE = "text_only_baseline"
"""The system that ignores the image and gives the most common training answer to each question."""

NO_IMAGE = "no_image"
"""Ending of the results of a model that was evaluated with blank images: ``BENCHMARK.no_image``."""

LABELS = {TEXT_ONLY_BASELINE: "Text-only baseline", NO_IMAGE: "No image", "student_init": "student (before)"}


def label(name: str, systems: Container[str] = ()) -> str:
    """Return the label of a system in tables and charts.

    Args:
        name: The system.
        systems: All systems of the report. ``student`` becomes *student (after)* only next to ``student_init``.

    >>> label("text_only_baseline"), label("student", ["student"]), label("student", ["student_init", "student"])
    ('Text-only baseline', 'student', 'student (after)')
    """
    if name == "student" and "student_init" in systems:
        return "student (after)"
    return LABELS.get(name, name)


def upgrade_result(name: str) -> str:
    """Return the present name of a result or a system of version 0.1.0.

    >>> upgrade_result("gqa.blind"), upgrade_result("majority"), upgrade_result("gqa")
    ('gqa.no_image', 'text_only_baseline', 'gqa')
    """
    stem, dot, last = name.rpartition(".")
    return stem + dot + RESULTS.get(last, last)
