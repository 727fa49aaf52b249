"""Answers of models on disk. All reports share them, so that no question is asked twice."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_switchkd import __version__
from lightning_switchkd.core.files import append_jsonl, iter_jsonl, write_jsonl
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.models.adapter import fingerprint
from lightning_switchkd.models.generation import LoadedModel

STORE = "runs/answers"
"""Folder with the answers of all models."""

PROCESS = uuid.uuid4().hex[:12]
"""Name of this process's files. No two processes write the same file."""

Line = dict[str, Any]


def answers_folder(store: str, model: LoadedModel, dtype: str, max_new_tokens: int, no_image: bool) -> Path:
    """Return the folder for the answers of a model. Its name depends on everything but the questions.

    Args:
        store: Folder with the answers of all models.
        model: The model.
        dtype: Data type of the weights.
        max_new_tokens: Maximum length of an answer.
        no_image: Whether every image is replaced by a blank one.
    """
    processor = model.prepare.processor
    inputs = [processor.to_json_string(), processor.chat_template, model.prepare.image_tokens, len(processor.tokenizer)]
    settings = [__version__, fingerprint(model.vlm), dtype, max_new_tokens, no_image, model.stop_ids, *inputs]
    return Path(store, _digest(settings))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class AnswerLog:
    """The answers of a model to the questions of a benchmark.

    Attributes:
        folder: Folder from :func:`answers_folder`. Each process appends to its own file.
        items: The questions.
        prompts: One prompt per question.
    """

    folder: Path
    items: Sequence[Item]
    prompts: Sequence[str]

    @cached_property
    def keys(self) -> list[str]:
        """Digests of all that the answers depend on: prompts, earlier turns and images."""
        return [
            _digest([prompt, [turn.text for turn in item.history], [picture.version() for picture in item.pictures]])
            for item, prompt in zip(self.items, self.prompts, strict=True)
        ]

    def lines(self) -> list[Line | None]:
        """Return the stored line of each question, or None. An answer takes precedence over an error."""
        stored: dict[str, Line] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            for _, _, line in iter_jsonl(file):
                if line is not None and ("error" not in line or line["key"] not in stored):  # None: cut by a crash
                    stored[line["key"]] = line
        return [stored.get(key) for key in self.keys]

    def unanswered(self) -> list[int]:
        """Return the indices of the questions without an answer, longest prompt first."""
        indices = [index for index, line in enumerate(self.lines()) if line is None or "error" in line]
        return sorted(indices, key=lambda index: -len(self.prompts[index]))

    def line(self, index: int, text: str, error: str = "") -> Line:
        """Build a line of the store."""
        return {"key": self.keys[index], "text": text, **({"error": error} if error else {})}

    def append(self, lines: Sequence[Line]) -> None:
        """Append lines to the file of this process."""
        append_jsonl(self.folder / f"{PROCESS}.jsonl", lines)

    def write(self, file: Path, model: str) -> None:
        """Write all answers in LLaVA's format, in the order of the questions.

        Args:
            file: File to write.
            model: Name of the model.
        """
        lines = zip(self.items, self.prompts, self.lines(), strict=True)
        write_jsonl(
            file,
            (
                {"question_id": item.id, "prompt": prompt, "answer_id": str(number), "model_id": model, "metadata": {}}
                | {name: value for name, value in line.items() if name != "key"}
                for number, (item, prompt, line) in enumerate(lines)
                if line is not None
            ),
        )
