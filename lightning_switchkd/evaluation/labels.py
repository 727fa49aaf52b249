"""Reserved names of results, and the labels that reports show for the names of systems."""

from __future__ import annotations

from collections.abc import Container

from lightning_switchkd.core.renamed import RESULTS

TEXT_ONLY_BASELINE = "text_only_baseline"
"""The system that ignores the image and gives the most common training answer to each question."""

NO_IMAGE = "no_image"
"""Ending of the results of a model that was evaluated with blank images: ``BENCHMARK.no_image``."""

STUDENT_INIT, STUDENT, FINE_TUNED = "student_init", "student", "fine_tuned"
"""Students: before training, after it, and after training without a teacher."""

DISTILLED = "student (distilled)"
"""Label of the student after training, next to one that was trained without a teacher."""

LABELS = {
    TEXT_ONLY_BASELINE: "text-only baseline",
    NO_IMAGE: "no image",
    STUDENT_INIT: "student (before)",
    FINE_TUNED: "student (fine-tuned)",
}

INTERVAL = "95 % interval"

TERMS = {
    LABELS[STUDENT_INIT]: "the student before training.",
    LABELS[FINE_TUNED]: "the student after training without a teacher.",
    DISTILLED: "the student after training with the teacher.",
    LABELS[TEXT_ONLY_BASELINE]: "the most common training answer to that question, ignoring the image.",
    LABELS[NO_IMAGE]: "the same model with blank images. It measures how much the question alone gives away.",
    INTERVAL: "the score would mostly stay in it with other questions of the same kind.",
    "p": "the probability of at least such a difference by chance, if both systems were equally good. McNemar's test "
    "counts the questions that only one of them answers correctly.",
}
"""Terms that a report explains if it uses them."""


def label(name: str, systems: Container[str] = ()) -> str:
    """Return the label of a system in tables and charts.

    Args:
        name: The system.
        systems: All systems of the report. They decide how ``student`` is distinguished from other students.

    >>> label("text_only_baseline"), label("student", ["student"]), label("student", ["student_init", "student"])
    ('text-only baseline', 'student', 'student (after)')
    >>> label("student", ["student_init", "fine_tuned", "student"])
    'student (distilled)'
    """
    if name == STUDENT and FINE_TUNED in systems:
        return DISTILLED
    if name == STUDENT and STUDENT_INIT in systems:
        return "student (after)"
    return LABELS.get(name, name)


def upgrade_result(name: str) -> str:
    """Return the present name of a result or a system of version 0.1.0.

    >>> upgrade_result("gqa.blind"), upgrade_result("majority"), upgrade_result("gqa")
    ('gqa.no_image', 'text_only_baseline', 'gqa')
    """
    stem, dot, last = name.rpartition(".")
    return stem + dot + RESULTS.get(last, last)
