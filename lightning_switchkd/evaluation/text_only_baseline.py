"""The text-only baseline: the most common training answer to a question, whatever its image shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from lightning_switchkd.data.quarantine import read_exclusions
from lightning_switchkd.data.samples import SampleError, Turn
from lightning_switchkd.data.sources import open_source, read_sample


def text_only_answers(conversations: Iterable[Sequence[Turn]], questions: Sequence[str]) -> list[str]:
    r"""Return the most common training answer to the text of each question.

    An unseen question gets the most common answer of all. A tie goes to the answer that comes first in the data.

    Args:
        conversations: Turns of the training samples. Every answer counts.
        questions: Texts of the questions, without image placeholders.

    >>> first = [Turn("user", "<image>\n1?"), Turn("assistant", "no"), Turn("user", "Which?"), Turn("assistant", "3")]
    >>> second = [Turn("user", "Which?\n<image>"), Turn("assistant", "3")]
    >>> text_only_answers([first, second], ["1?", "Which?", "2?"])
    ['no', '3', '3']
    """
    counts: dict[str, Counter[str]] = {}
    for turns in conversations:
        for turn, reply in pairwise(turns):
            if reply.role == "assistant":
                counts.setdefault(turn.text_only, Counter())[reply.text.strip()] += 1
    overall = sum(counts.values(), Counter[str]())
    return [counts.get(text, overall).most_common(1)[0][0] for text in questions]


def read_conversations(annotations: str, exclude: str | None = None) -> list[tuple[Turn, ...]]:
    """Read the turns of the valid samples of a LLaVA file, and print how many are invalid.

    Args:
        annotations: The file.
        exclude: List of samples to skip (``data.exclude``).
    """
    source = open_source(annotations)
    excluded = set(read_exclusions(exclude, source) if exclude else ())
    conversations, num_invalid = [], 0
    for index in range(len(source)):
        if index in excluded:
            continue
        try:
            conversations.append(read_sample(source, index).turns)
        except SampleError:
            num_invalid += 1
    if num_invalid:
        print(
            f"Text-only baseline: {num_invalid:,} of {len(source):,} samples of {annotations} are invalid, and skipped."
        )
    return conversations
