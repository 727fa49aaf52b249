"""Image files -> pixels: what is read, what is refused, and how an image is made ready for an image processor."""

from __future__ import annotations

import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lightning_switchkd.data.io import read_bytes
from lightning_switchkd.data.processor import image_size
from lightning_switchkd.data.records import ImageRef, RecordError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".webp")
"""Tried in this order where a file is missing: OCR-VQA's annotations say .jpg of files that came as .gif."""


class ImageFolder:
    """Reads images below one folder, and nothing outside it.

    Args:
        root: what the paths of the records are relative to; None where all images come with their records.
        upright: turn images as their EXIF data say (LLaVA's own code does not).
    """

    def __init__(self, root: str | Path | None, upright: bool = True) -> None:
        self.root = None if root is None else Path(root).resolve()
        self.upright = upright

    def read(self, ref: ImageRef) -> Image.Image:
        """The image, first frame, 8 bits: mode RGB, or RGBA where it has transparency.

        Raises:
            RecordError: ``image_missing``, ``image_decode`` or ``image_size``.
            ReadError: the disk or the network fails; the image is not at fault.
        """
        data = self.bytes_of(ref)
        if not data:
            raise RecordError("image_decode", f"image {ref.path!r} is empty: fetch it again")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(BytesIO(data)) as image:
                    return _eight_bit(ImageOps.exif_transpose(image) if self.upright else image)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise RecordError("image_size", f"image {ref.path!r} is too large: shrink it. {error}") from None
        except UnidentifiedImageError:
            begins = f"it begins with {data[:16]!r}"
            raise RecordError("image_decode", f"image {ref.path!r} is no image: fetch it again; {begins}") from None
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise RecordError(
                "image_decode", f"image {ref.path!r} cannot be decoded: fetch it again. {error}"
            ) from None

    def bytes_of(self, ref: ImageRef) -> bytes:
        """The image file.

        Raises:
            RecordError: ``image_missing``.
            ReadError: the disk or the network fails.
        """
        if ref.data is not None:
            return ref.data
        try:
            return read_bytes(self._resolve(ref.path))
        except OSError as error:
            raise RecordError("image_missing", f"image {ref.path!r} cannot be opened: {error}") from None

    def _resolve(self, name: str) -> Path:
        if self.root is None:
            raise RecordError("image_missing", f"image {name!r} is a path, but no image_root is set: set it")
        named = self.root / name
        for path in (named, *(named.with_suffix(extension) for extension in EXTENSIONS)):
            resolved = path.resolve()
            if not resolved.is_relative_to(self.root) or Path(name).is_absolute():
                raise RecordError(
                    "image_missing", f"image {name!r} leads outside the image root {self.root}: move it in"
                )
            if os.path.isfile(resolved):  # False for names too long as well, where Path.is_file raises
                return resolved
        raise RecordError(
            "image_missing", f"image {name!r} is not below the image root {self.root}, with any extension"
        )


def _eight_bit(image: Image.Image) -> Image.Image:
    """RGB or RGBA of the first frame. Pillow clips 16-bit grey; here it is scaled."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64)
        image = Image.fromarray((np.clip(grey, 0, 65535) / 257).round().astype(np.uint8))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


class Pixels:
    """Makes images ready for one vision encoder.

    Args:
        image_processor: the encoder's Hugging Face image processor.
    """

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor
        self.size = image_size(image_processor)
        self.mean = tuple(int(255 * mean) for mean in image_processor.image_mean)

    def __call__(self, image: Image.Image) -> Tensor:
        """``[3, H, W]`` float32. Transparency shows the mean colour."""
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*self.mean, 255)), image).convert("RGB")
        pixels: Tensor = self.image_processor(image, return_tensors="pt").pixel_values
        return pixels[0].float()

    def blank(self) -> Tensor:
        """``[3, H, W]`` zeros: the mean colour, seen by the encoder."""
        return torch.zeros(3, *self.size)
