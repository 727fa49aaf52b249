"""Raw LLaVA records for the tests of this folder."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def talk(*texts: str) -> list[dict[str, str]]:
    """Turns by turns."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def samples(n: int) -> list[dict[str, Any]]:
    """One third text-only, one third one image, one third two turns."""
    made: list[dict[str, Any]] = []
    for i in range(n):
        if i % 3 == 0:
            made.append({"id": i, "conversations": talk(f"Hello {i}", f"a cat {i}")})
        else:
            turns = talk("<image>\nWhat is it?", f"red {i}", *(["And?", "the image"] if i % 3 == 2 else []))
            made.append({"id": f"r{i}", "image": f"{i % 2}.png", "conversations": turns})
    return made


BROKEN: dict[str, str] = {
    "missing.png": "image_missing",
    "../escape.png": "image_missing",
    "zero.jpg": "image_decode",
    "page.jpg": "image_decode",
    "cut.jpg": "image_decode",
    "cut.png": "image_decode",
    "bomb.png": "image_size",
    "folder": "image_missing",
}
"""Eight ways in which an image file is none, and the code of each."""


def break_images(folder: Path) -> None:
    """Writes the files of `BROKEN` below a folder."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save(folder.parent / "escape.png")
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html><html>404 Not Found</html>")
    for kind in ("jpg", "png"):
        whole = BytesIO()
        noise.save(whole, {"jpg": "JPEG", "png": "PNG"}[kind])
        (folder / f"cut.{kind}").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    (folder / "folder").mkdir()
