"""Image files to pixels: reading, checks, and preprocessing for a vision encoder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
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
"""Tried in this order if a file is missing: OCR-VQA's annotations name .jpg for files that are .gif."""


class ImageFolder:
    """Reads images below one folder. Paths outside the folder are refused.

    Args:
        root: The folder that image paths are relative to. None if all samples contain their images.
        exif_transpose: Rotate images by their EXIF orientation (LLaVA's own code does not).
    """

    def __init__(self, root: str | Path | None, exif_transpose: bool = True) -> None:
        self.root = None if root is None else Path(root).resolve()
        self.exif_transpose = exif_transpose

    def read(self, ref: ImageRef) -> Image.Image:
        """Decode the first frame with 8 bits per channel: mode RGB, or RGBA if it has transparency.

        Raises:
            SampleError: ``image_missing``, ``image_decode`` or ``image_size``.
            ReadError: The disk or the network failed. The image itself is not invalid.
        """
        data = self.bytes_of(ref)
        if not data:
            raise SampleError("image_decode", f"The image file {ref.path!r} is empty. Download it again.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(BytesIO(data)) as image:
                    if self.exif_transpose:
                        ImageOps.exif_transpose(image, in_place=True)
                    return _eight_bit(image)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise SampleError("image_size", f"The image {ref.path!r} is too large: {error} Resize it.") from None
        except UnidentifiedImageError:
            problem = f"{ref.path!r} is not an image. It starts with {data[:16]!r}. Download it again."
            raise SampleError("image_decode", problem) from None
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            problem = f"The image {ref.path!r} cannot be decoded: {error}. Download it again."
            raise SampleError("image_decode", problem) from None

    def bytes_of(self, ref: ImageRef) -> bytes:
        """Read an image file.

        Raises:
            SampleError: ``image_missing``.
            ReadError: The disk or the network failed.
        """
        if ref.data is not None:
            return ref.data
        try:
            return read_bytes(self._resolve(ref.path))
        except OSError as error:
            raise SampleError("image_missing", f"The image {ref.path!r} cannot be opened: {error}.") from None

    def _resolve(self, name: str) -> Path:
        if self.root is None:
            raise SampleError(
                "image_missing", f"The image {name!r} is a path, but image_root is not set. Set it (IMAGES=, --images)."
            )
        named = self.root / name
        for path in (named, *(named.with_suffix(extension) for extension in EXTENSIONS)):
            resolved = path.resolve()
            if not resolved.is_relative_to(self.root) or Path(name).is_absolute():
                problem = f"The image {name!r} is outside the image root {self.root}. Move it inside."
                raise SampleError("image_missing", problem)
            if os.path.isfile(resolved):  # False for a name that is too long, where Path.is_file raises
                return resolved
        problem = f"The image {name!r} is missing below the image root {self.root} (any extension). Check image_root."
        raise SampleError("image_missing", problem)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Convert the first frame to RGB or RGBA. Scale 16-bit gray values, which Pillow would clip."""
    if image.mode.startswith("I"):
        gray = np.asarray(image, dtype=np.int64)
        image = Image.fromarray((np.clip(gray, 0, 65535) / 257).round().astype(np.uint8))
    if image.mode == "RGB" and not image.has_transparency_data:
        image.load()
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


class Pixels:
    """Preprocesses images for one vision encoder.

    The Hugging Face image processor defines the result. Most processors pad to a square, resize, crop, and map each
    value of a channel on its own, but take longer than decoding the image. If a few test images show that the
    processor does only this, a lookup table computes the same pixels, bit for bit, in less time.

    Args:
        image_processor: The encoder's Hugging Face image processor.
    """

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor
        self.size = image_size(image_processor)
        self.mean = tuple(int(255 * mean) for mean in image_processor.image_mean)
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(3, 0)).convert("RGB")
        unchanged = {"do_resize": False, "do_center_crop": False, "do_pad": False}
        self._values = self._by_processor(ramp, **unchanged)[:, 0].numpy()  # [3, 256], for each value of a channel
        self._use_table = all(
            torch.equal(self._by_table(image), self._by_processor(image)) for image in _noise(self.size)
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Preprocess one image to ``[3, H, W]`` float32. Transparent pixels show the mean color."""
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*self.mean, 255)), image).convert("RGB")
        return self._by_table(image) if self._use_table else self._by_processor(image)

    def stack(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess images to ``[M, 3, H, W]``: a repeated one only once. Without any image: one blank image."""
        different = {id(image): image for image in images}
        pixels = {key: self(image) for key, image in different.items()}
        return torch.stack([pixels[id(image)] for image in images] or [self.blank()])

    def blank(self) -> Tensor:
        """Return ``[3, H, W]`` zeros, the mean color after normalization."""
        return torch.zeros(3, *self.size)

    def _by_processor(self, image: Image.Image, **changes: Any) -> Tensor:
        pixels: Tensor = self.image_processor(image, return_tensors="pt", **changes).pixel_values
        return pixels[0].float()

    def _by_table(self, image: Image.Image) -> Tensor:
        processor = self.image_processor
        if getattr(processor, "do_pad", False) and (edge := max(image.size)) > min(image.size):
            square = Image.new("RGB", (edge, edge), self.mean)
            square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
            image = square
        if processor.do_resize:
            short, scale = processor.size.get("shortest_edge"), min(image.size)
            width, height = (int(short * edge / scale) for edge in image.size) if short else self.size[::-1]
            image = image.resize((width, height), processor.resample)
        height, width = self.size
        left, top = (image.width - width) // 2, (image.height - height) // 2
        pixels = np.empty((3, height, width), dtype=np.float32)
        for channel, band in enumerate(image.crop((left, top, left + width, top + height)).split()):
            np.take(self._values[channel], np.asarray(band), out=pixels[channel], mode="clip")
        return torch.from_numpy(pixels)


def _noise(size: tuple[int, int]) -> list[Image.Image]:
    """Return noise images of several shapes, for which different processing gives different pixels."""
    random = np.random.default_rng(0)
    shapes = [(23, 41), (41, 23), (32, 32), (1, 3), size, (size[0] + 1, size[1] + 8)]
    return [Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]
