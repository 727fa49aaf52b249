from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.processor import image_tokens, load_processor, make_processor, with_square_padding
from lightning_switchkd.data.prompts import prompt_style

STYLE = prompt_style("qwen_chatml")


def clip(size: dict[str, int], crop: dict[str, int] | None = None) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size=size, do_center_crop=crop is not None, crop_size=crop)


@pytest.mark.parametrize(
    ("side", "patch", "strategy", "additional", "expected"),
    [(336, 14, "default", 1, 576), (384, 14, "full", 0, 729), (384, 14, "default", 0, 728), (28, 14, "full", 1, 5)],
)
def test_image_tokens(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    side: int,
    patch: int,
    strategy: str,
    additional: int,
    expected: int,
) -> None:
    square = {"height": side, "width": side}
    processor = make_processor(make_tokenizer(), clip(square), patch, strategy, additional, STYLE)
    assert image_tokens(processor) == expected


def test_saved_and_loaded(processor: LlavaProcessor, processor_folder: Path) -> None:
    loaded = load_processor(processor_folder)
    assert image_tokens(loaded) == image_tokens(processor) == 4
    assert loaded.tokenizer("<image>").input_ids == [loaded.image_token_id]
    assert loaded.chat_template == processor.chat_template
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()


def test_loading_is_silent(processor_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_processor(processor_folder)
    assert capfd.readouterr() == ("", ""), "without torchvision transformers warns, unless told to use PIL"


def test_a_folder_without_a_processor(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot load a LLaVA processor from"):
        load_processor(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("processor_config.json", {"patch_size": None}, "patch_size"),
        ("processor_config.json", {"vision_feature_select_strategy": None}, "vision_feature_select_strategy"),
        ("processor_config.json", {"image_token": "<picture>"}, "lacks the special token <image>"),
        ("tokenizer_config.json", {"pad_token": None}, "pad_token"),
    ],
)
def test_what_a_processor_lacks_is_named(
    processor_folder: Path, tmp_path: Path, file: str, change: dict[str, Any], says: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(processor_folder, folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(UserError, match="broken") as caught:
        load_processor(folder)
    assert says in str(caught.value)


def test_every_image_must_get_one_shape(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    with pytest.raises(UserError, match="Set 'size' to a height and a width"):
        make_processor(make_tokenizer(), clip({"shortest_edge": 28}), 14, "default", 1, STYLE)


def test_image_must_be_a_special_token(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<image>"])
    with pytest.raises(UserError, match="lacks the special token <image>"):
        make_processor(tokenizer, clip({"height": 28, "width": 28}), 14, "default", 1, STYLE)


@pytest.mark.parametrize("kind", [CLIPImageProcessorPil, SiglipImageProcessorPil])
def test_square_padding_travels_with_the_processor(kind: Any, tmp_path: Path) -> None:
    """Padding is Hugging Face's: squares come out as before, others as if padded by hand; it is saved with the rest."""
    half, size = [0.5, 0.5, 0.5], {"height": 8, "width": 8}
    plain = kind(size=size, crop_size=size, image_mean=half, image_std=half)
    padding = with_square_padding(plain)
    padding.save_pretrained(tmp_path)
    reloaded = LlavaImageProcessorPil.from_pretrained(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)
    wide = Image.fromarray(noise)
    square = Image.new("RGB", (40, 40), (127, 127, 127))
    square.paste(wide, (0, 10))
    expected = plain(square, return_tensors="pt").pixel_values
    for processor in (padding, reloaded):
        assert torch.equal(processor(square, return_tensors="pt").pixel_values, expected)
        assert torch.equal(processor(wide, return_tensors="pt").pixel_values, expected)


def test_a_path_that_is_not_there_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its first folder exists it is a slip of the pen, not an owner: nothing is asked of the network."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("runs/nowhere", "runs/a/student", "/nowhere", "nowhere"):
        with pytest.raises(UserError, match=f"the folder '{path}' does not exist"):
            load_processor(path)
