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

from lightning_switchkd.core.files import read_bytes
from lightning_switchkd.data.processor import image_size
from lightning_switchkd.data.samples import ImageRef, SampleError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".webp")
"""Tried in this order where a file is missing: OCR-VQA's annotations say .jpg of files that came as .gif."""


class ImageFolder:
    """Reads images below one folder, and nothing outside it.

    Args:
        root: what the paths of the records are relative to; None where all images come with their records.
        exif_transpose: turn images as their EXIF data say (LLaVA's own code does not).
    """

    def __init__(self, root: str | Path | None, exif_transpose: bool = True) -> None:
        self.root = None if root is None else Path(root).resolve()
        self.exif_transpose = exif_transpose

    def read(self, ref: ImageRef) -> Image.Image:
        """The image, first frame, 8 bits: mode RGB, or RGBA where it has transparency.

        Raises:
            RecordError: ``image_missing``, ``image_decode`` or ``image_size``.
            ReadError: the disk or the network fails; the image is not at fault.
        """
        data = self.bytes_of(ref)
        if not data:
            raise SampleError("image_decode", f"image {ref.path!r} is empty: fetch it again")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(BytesIO(data)) as image:
                    if self.exif_transpose:
                        ImageOps.exif_transpose(image, in_place=True)
                    return _eight_bit(image)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise SampleError("image_size", f"image {ref.path!r} is too large: shrink it. {error}") from None
        except UnidentifiedImageError:
            begins = f"it begins with {data[:16]!r}"
            raise SampleError("image_decode", f"image {ref.path!r} is no image: fetch it again; {begins}") from None
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise SampleError(
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
            raise SampleError("image_missing", f"image {ref.path!r} cannot be opened: {error}") from None

    def _resolve(self, name: str) -> Path:
        if self.root is None:
            raise SampleError("image_missing", f"image {name!r} is a path, but no image_root is set: set it")
        named = self.root / name
        for path in (named, *(named.with_suffix(extension) for extension in EXTENSIONS)):
            resolved = path.resolve()
            if not resolved.is_relative_to(self.root) or Path(name).is_absolute():
                raise SampleError(
                    "image_missing", f"image {name!r} leads outside the image root {self.root}: move it in"
                )
            if os.path.isfile(resolved):  # False for names too long as well, where Path.is_file raises
                return resolved
        raise SampleError(
            "image_missing", f"image {name!r} is not below the image root {self.root}, with any extension"
        )


def _eight_bit(image: Image.Image) -> Image.Image:
    """RGB or RGBA of the first frame. Pillow clips 16-bit grey; here it is scaled."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64)
        image = Image.fromarray((np.clip(grey, 0, 65535) / 257).round().astype(np.uint8))
    if image.mode == "RGB" and not image.has_transparency_data:
        image.load()
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


class Pixels:
    """Makes images ready for one vision encoder.

    The Hugging Face processor says what is to come out. What it does to most images (pad to a square, resize, crop, and
    then the same to every value of a channel) takes it longer than decoding them; so this is done here, with its
    results to the bit, where a few images show that it does no more than that.

    Args:
        image_processor: the encoder's Hugging Face image processor.
    """

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor
        self.size = image_size(image_processor)
        self.mean = tuple(int(255 * mean) for mean in image_processor.image_mean)
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(3, 0)).convert("RGB")
        unchanged = {"do_resize": False, "do_center_crop": False, "do_pad": False}
        self._values = self._by_processor(ramp, **unchanged)[:, 0].numpy()  # [3, 256], of each value of a channel
        self._plain = all(torch.equal(self._by_table(image), self._by_processor(image)) for image in _noise(self.size))

    def __call__(self, image: Image.Image) -> Tensor:
        """``[3, H, W]`` float32. Transparency shows the mean colour."""
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*self.mean, 255)), image).convert("RGB")
        return self._by_table(image) if self._plain else self._by_processor(image)

    def blank(self) -> Tensor:
        """``[3, H, W]`` zeros: the mean colour, seen by the encoder."""
        return torch.zeros(3, *self.size)

    def _by_processor(self, image: Image.Image, **changes: Any) -> Tensor:
        pixels: Tensor = self.image_processor(image, return_tensors="pt", **changes).pixel_values
        return pixels[0].float()

    def _by_table(self, image: Image.Image) -> Tensor:
        does = self.image_processor
        if getattr(does, "do_pad", False) and (side := max(image.size)) > min(image.size):
            square = Image.new("RGB", (side, side), self.mean)
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square
        if does.do_resize:
            short, scale = does.size.get("shortest_edge"), min(image.size)
            width, height = (int(short * edge / scale) for edge in image.size) if short else self.size[::-1]
            image = image.resize((width, height), does.resample)
        height, width = self.size
        left, top = (image.width - width) // 2, (image.height - height) // 2
        pixels = np.empty((3, height, width), dtype=np.float32)
        for channel, band in enumerate(image.crop((left, top, left + width, top + height)).split()):
            np.take(self._values[channel], np.asarray(band), out=pixels[channel], mode="clip")
        return torch.from_numpy(pixels)


def _noise(size: tuple[int, int]) -> list[Image.Image]:
    """Images of several shapes on which no two ways of processing look alike."""
    random = np.random.default_rng(0)
    shapes = [(23, 41), (41, 23), (32, 32), (1, 3), size, (size[0] + 1, size[1] + 8)]
    return [Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]
