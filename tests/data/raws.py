"""Raw LLaVA records for the tests of this folder."""

from __future__ import annotations

from typing import Any


def talk(*texts: str) -> list[dict[str, str]]:
    """Turns by turns."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def records(n: int) -> list[dict[str, Any]]:
    """One third text-only, one third one image, one third two turns."""
    made: list[dict[str, Any]] = []
    for i in range(n):
        if i % 3 == 0:
            made.append({"id": i, "conversations": talk(f"Hello {i}", f"a cat {i}")})
        else:
            turns = talk("<image>\nWhat is it?", f"red {i}", *(["And?", "the image"] if i % 3 == 2 else []))
            made.append({"id": f"r{i}", "image": f"{i % 2}.png", "conversations": turns})
    return made
