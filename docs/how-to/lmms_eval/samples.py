"""LLaVA samples as documents of lmms-eval. This file needs nothing of the package."""

import os
from pathlib import Path

from PIL import Image

IMAGES = Path(os.environ.get("IMAGE_ROOT", "datasets/emoji/images"))


def visual(doc):
    """Return the sample's image."""
    return [Image.open(IMAGES / doc["image"]).convert("RGB")] if doc.get("image") else []


def text(doc):
    """Return the sample's last question."""
    return doc["conversations"][-2]["value"].replace("<image>", "").strip()


def target(doc):
    """Return the correct answer."""
    return doc["conversations"][-1]["value"].strip()


def results(doc, answers):
    """Score the exact match."""
    return {"exact_match": float(answers[0].strip() == target(doc))}
