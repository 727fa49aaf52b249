"""The text-only baseline: what the training answers say to the same question, whatever the image shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from lightning_switchkd.data.samples import Turn
from lightning_switchkd.data.sources import open_source, read_sample


def majority_answers(conversations: Iterable[Sequence[Turn]], questions: Sequence[str]) -> list[str]:
    """For each question the most frequent training answer to its text; for an unseen text, to all texts together.

    Of equally frequent answers the one met first is taken.

    Args:
        conversations: turns of the training records, answers included; every answer counts.
        questions: what is asked, without places of images.

    >>> first = [Turn("user", "<image>\\n1?"), Turn("assistant", "no"), Turn("user", "Which?"), Turn("assistant", "3")]
    >>> second = [Turn("user", "Which?\\n<image>"), Turn("assistant", "3")]
    >>> majority_answers([first, second], ["1?", "Which?", "2?"])
    ['no', '3', '3']
    """
    by_text: dict[str, Counter[str]] = {}
    for turns in conversations:
        for asked, said in pairwise(turns):
            if said.role == "assistant":
                by_text.setdefault(asked.text_only, Counter())[said.text.strip()] += 1
    overall = sum(by_text.values(), Counter[str]())
    return [by_text.get(text, overall).most_common(1)[0][0] for text in questions]


def read_conversations(annotations: str) -> list[tuple[Turn, ...]]:
    """The turns of every record of a LLaVA file."""
    source = open_source(annotations)
    return [read_sample(source, i).turns for i in range(len(source))]
