from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lightning_switchkd.data.images import ImageFolder, Pixels
from lightning_switchkd.data.processor import with_square_padding
from lightning_switchkd.data.samples import ImageRef, SampleError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def half_and_half(size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Left red, right blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Image.Image]:
    def make(image: Image.Image, name: str = "a.png", **options: Any) -> Image.Image:
        image.save(tmp_path / name, **options)
        return ImageFolder(tmp_path).read(ImageRef(name))

    return make


def close(image: Image.Image, xy: tuple[int, int], colour: tuple[int, ...], tolerance: int = 12) -> bool:
    return bool(np.abs(np.subtract(image.getpixel(xy), colour)).max() <= tolerance)


def test_common_files(read: Callable[..., Image.Image], tmp_path: Path) -> None:
    image = half_and_half()
    for name in ("a.png", "b.jpg", "c.webp", "d.bmp"):
        result = read(image, name)
        assert (result.mode, result.size) == ("RGB", (40, 20))
        assert close(result, (5, 10), RED)
        assert close(result, (35, 10), BLUE)
    cmyk = read(image.convert("CMYK"), "e.jpg")
    assert cmyk.mode == "RGB"
    assert close(cmyk, (5, 10), RED, 30)


def test_sixteen_bits_are_scaled_not_clipped(read: Callable[..., Image.Image]) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    result = np.asarray(read(Image.fromarray(ramp)))
    assert result.shape == (4, 256, 3)
    assert abs(result.mean() - 127.5) < 1
    assert result[0, [0, -1], 0].tolist() == [0, 255]


def test_exif_rotation_is_applied(read: Callable[..., Image.Image]) -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    result = read(half_and_half(), "a.jpg", exif=exif)
    assert result.size == (20, 40)
    assert close(result, (10, 5), RED)
    assert close(result, (10, 35), BLUE)


def test_the_first_frame_of_a_gif_even_when_named_jpg(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.gif").read_bytes())
    assert close(ImageFolder(tmp_path).read(ImageRef("b.jpg")), (4, 4), RED)


def test_another_extension_is_found(tmp_path: Path) -> None:
    (tmp_path / "ocr").mkdir()
    Image.new("RGB", (8, 8), RED).save(tmp_path / "ocr" / "1.gif")
    assert close(ImageFolder(tmp_path).read(ImageRef("ocr/1.jpg")), (4, 4), RED)


def test_what_cannot_be_used_has_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def code(name: str, content: bytes | None = None) -> str:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SampleError, match=name.replace(".", r"\.")) as caught:
            ImageFolder(tmp_path).read(ImageRef(name))
        return str(caught.value.code)

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for extension in ("jpg", "png", "webp", "gif"):
        noise.save(tmp_path / f"whole.{extension}")
        content = (tmp_path / f"whole.{extension}").read_bytes()
        assert code(f"cut.{extension}", content[: len(content) // 2]) == "image_decode", extension
        (tmp_path / f"cut.{extension}").unlink()
    assert code("zero.jpg", b"") == "image_decode"
    assert code("page.jpg", b"<html>404</html>") == "image_decode"
    assert code("none.jpg") == "image_missing"
    assert code("x" * 300) == "image_missing"
    (tmp_path / "folder").mkdir()
    assert code("folder") == "image_missing"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 40)
    assert code("whole.png") == "image_size"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 20)
    assert code("whole.png") == "image_size"


def test_nothing_outside_the_root_is_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    half_and_half().save(tmp_path / "secret.png")
    half_and_half().save(root / "in" / "a.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "inner.png").symlink_to(root / "in" / "a.png")
    (tmp_path / "alias").symlink_to(root)
    for ref in (
        "../secret.png",
        "in/../../secret.png",
        str(tmp_path / "secret.png"),
        str(root / "in" / "a.png"),
        "link.png",
    ):
        with pytest.raises(SampleError, match="outside the image root") as caught:
            ImageFolder(root).read(ImageRef(ref))
        assert caught.value.code == "image_missing"
    assert ImageFolder(root).read(ImageRef("in/../in/a.png")).size == (40, 20)
    assert ImageFolder(root).read(ImageRef("inner.png")).size == (40, 20)
    assert ImageFolder(tmp_path / "alias").read(ImageRef("in/a.png")).size == (40, 20)


PLAIN = CLIPImageProcessorPil(
    size={"height": 8, "width": 8}, do_center_crop=False, image_mean=[0.2, 0.4, 0.6], image_std=[1.0] * 3
)


def test_transparency_shows_the_mean_colour(read: Callable[..., Image.Image]) -> None:
    rgba = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert Pixels(PLAIN)(read(rgba)).abs().max() < 0.005
    palette = Image.new("P", (8, 8))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert Pixels(PLAIN)(read(palette, transparency=0)).abs().max() < 0.005
    opaque = Pixels(PLAIN)(read(palette))
    assert torch.allclose(opaque[:, 0, 0], torch.tensor([0.8, -0.4, -0.6]), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (3, 9), (9, 3), (1, 1), (3, 3), (3, 1)])
def test_slim_images_are_not_taken_for_channels(size: tuple[int, int]) -> None:
    pixels = Pixels(PLAIN)(Image.new("RGB", size, RED))
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == torch.float32
    assert torch.allclose(pixels.mean((1, 2)), torch.tensor([0.8, -0.4, -0.6]), atol=1e-5)


def test_square_padding_is_llavas() -> None:
    wide = Pixels(with_square_padding(PLAIN))(Image.new("RGB", (40, 20), RED))
    assert wide[:, 0].abs().max() < 0.05, "the mean colour above"
    assert wide[:, -1].abs().max() < 0.05, "and below"
    assert wide[0, 4, 4] == pytest.approx(0.8, abs=0.05)
    assert torch.equal(Pixels(PLAIN)(Image.new("RGB", (40, 20), RED))[0], torch.full((8, 8), 0.8))


def test_the_blank_image_has_the_size_of_all() -> None:
    assert torch.equal(Pixels(PLAIN).blank(), torch.zeros(3, 8, 8))


def test_a_repeated_image_is_preprocessed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, red, blue = Pixels(PLAIN), Image.new("RGB", (40, 20), RED), Image.new("RGB", (9, 9), "blue")
    expected = torch.stack([pixels(image) for image in (red, red, blue, red)])
    calls = list[Image.Image]()
    plain = Pixels.__call__
    monkeypatch.setattr(Pixels, "__call__", lambda self, image: calls.append(image) or plain(self, image))
    assert torch.equal(pixels.stack([red, red, blue, red]), expected)
    assert calls == [red, blue]
    assert torch.equal(pixels.stack([]), torch.zeros(1, 3, 8, 8))


class Counting(CLIPImageProcessorPil):
    """CLIP's processor; says how often it was asked."""

    asked = 0

    def _preprocess(self, images: Any, **settings: Any) -> Any:
        self.asked += 1
        return super()._preprocess(images, **settings)


class Vignette(Counting):
    """Does something of its own."""

    def _preprocess(self, images: Any, **settings: Any) -> Any:
        made = super()._preprocess(images, **settings)
        width = made["pixel_values"][0].shape[-1]
        made["pixel_values"] = torch.stack([torch.as_tensor(one) for one in made["pixel_values"]]) * torch.linspace(
            0, 1, width
        )
        return made


CLIP = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(**CLIP),
        Counting(**CLIP, resample=2, image_mean=[0.1, 0.5, 0.9], image_std=[0.3, 1.0, 2.0]),
        Counting(size={"shortest_edge": 60}, crop_size={"height": 56, "width": 52}),
        SiglipImageProcessorPil(size={"height": 48, "width": 40}),
        SiglipImageProcessorPil(size={"height": 48, "width": 48}, do_normalize=False),
        with_square_padding(CLIPImageProcessorPil(**CLIP)),
        Vignette(**CLIP),
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 56, "width": 56}),
    ],
    ids=["clip", "bilinear", "larger", "siglip", "bare", "square", "own", "small"],
)
def test_pixels_are_the_processors_to_the_bit(processor: Any) -> None:
    pixels = Pixels(processor)
    before = getattr(processor, "asked", None)
    random = np.random.default_rng(1)
    for shape in ((480, 640), (333, 500), (500, 333), (56, 56), (57, 99), (7, 300), (1, 9), (1000, 57)):
        image = Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8))
        ours = pixels(image)
        if before is not None and not isinstance(processor, Vignette):
            assert processor.asked == before, "not asked again"
        assert torch.equal(ours, processor(image, return_tensors="pt").pixel_values[0])
        before = getattr(processor, "asked", None)
