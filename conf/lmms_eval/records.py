"""LLaVA records as lmms-eval wants its documents; it needs nothing of this package."""

import os
from pathlib import Path

from PIL import Image

IMAGES = Path(os.environ.get("IMAGE_ROOT", "datasets/digits/images"))


def visual(doc):
    """The record's image."""
    return [Image.open(IMAGES / doc["image"]).convert("RGB")] if doc.get("image") else []


def text(doc):
    """Its last question."""
    return doc["conversations"][-2]["value"].replace("<image>", "").strip()


def target(doc):
    """The right answer."""
    return doc["conversations"][-1]["value"].strip()


def results(doc, answers):
    """Exact match."""
    return {"exact_match": float(answers[0].strip() == target(doc))}
