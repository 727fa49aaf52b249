"""The Hugging Face processor of a VLM: loaded or built from parts, and checked before use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AddedToken, LlavaImageProcessorPil, LlavaProcessor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.prompts import PromptStyle, chat_template
from lightning_switchkd.data.samples import IMAGE_TOKEN

STRATEGIES = ("default", "full")


def may_be_hub_id(name: str) -> bool:
    """Check if a name can be a Hugging Face id: ``owner/name`` where ``owner`` is not a local folder."""
    owner, *rest = name.split("/")
    return len(rest) == 1 and not owner.startswith((".", "~")) and bool(owner) and not Path(owner).is_dir()


def load_processor(path: str | Path, square_pad: bool = False) -> LlavaProcessor:
    """Load a processor from a folder or a Hugging Face id, and check it.

    Remote code is never run. PIL processes the images even if torchvision is installed, so that pixels are equal
    everywhere.

    Args:
        path: The folder or id.
        square_pad: Pad images to squares first, as LLaVA does.

    Raises:
        UserError: The processor is missing or does not suit a LLaVA model. The message names the field to fix.
    """
    if not Path(path).is_dir() and not may_be_hub_id(str(path)):
        raise UserError(f"Cannot load a processor: the folder {str(path)!r} does not exist. Check the path.")
    try:
        processor = LlavaProcessor.from_pretrained(str(path), backend="pil", trust_remote_code=False)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"Cannot load a LLaVA processor from {str(path)!r}: {error}. Use a folder or Hugging Face id with "
            "processor_config.json, preprocessor_config.json and a tokenizer."
        ) from error
    if square_pad:
        processor.image_processor = with_square_padding(processor.image_processor)
    return check_processor(processor, path)


def make_processor(
    tokenizer: Any,
    image_processor: Any,
    patch_size: int,
    vision_feature_select_strategy: str,
    num_additional_image_tokens: int,
    prompt_style: PromptStyle,
) -> LlavaProcessor:
    """Build a processor from its parts, with `<image>` in the tokenizer and the chat template of `prompt_style`.

    Args:
        tokenizer: The tokenizer. `<image>` is added as a special token if missing.
        image_processor: The vision encoder's image processor.
        patch_size: Edge of a patch of the vision encoder, in pixels.
        vision_feature_select_strategy: "default" drops the first feature (CLIP's class token), "full" keeps all.
        num_additional_image_tokens: Features of the encoder that are not patches: 1 for CLIP, 0 for SigLIP.
        prompt_style: Defines the chat template.

    Raises:
        UserError: The parts do not suit a LLaVA model.
    """
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
    template = chat_template(prompt_style)
    tokenizer.chat_template = template
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy=vision_feature_select_strategy,
        num_additional_image_tokens=num_additional_image_tokens,
        chat_template=template,
    )
    return check_processor(processor, "the given parts")


def check_processor(processor: LlavaProcessor, origin: str | Path) -> LlavaProcessor:
    """Check that a processor suits a LLaVA model, and return it.

    Raises:
        UserError: It does not. The message names `origin` and the field to fix.
    """
    special = {token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    problems = {
        f"The tokenizer lacks the special token {IMAGE_TOKEN}. Add it with make_processor.": (
            processor.image_token == IMAGE_TOKEN and IMAGE_TOKEN in special
        ),
        "The tokenizer lacks a pad_token. Set one, for example the end-of-sequence token.": (
            processor.tokenizer.pad_token_id is not None
        ),
        f"patch_size must be a positive integer, got {processor.patch_size!r}. Set it in processor_config.json.": (
            isinstance(processor.patch_size, int) and processor.patch_size > 0
        ),
        f"vision_feature_select_strategy must be one of {STRATEGIES}, got "
        f"{processor.vision_feature_select_strategy!r}. Set it in processor_config.json.": (
            processor.vision_feature_select_strategy in STRATEGIES
        ),
    }
    for problem, is_valid in problems.items():
        if not is_valid:
            raise UserError(f"Cannot use the processor of {origin}. {problem}")
    image_size(processor.image_processor)
    return processor


def with_square_padding(image_processor: Any) -> LlavaImageProcessorPil:
    """Return the image processor with padding to a square in its mean color first, as LLaVA does.

    The result is a Hugging Face class, so an exported student pads as in training.
    """
    settings = {
        name: value for name, value in image_processor.to_dict().items() if not name.endswith(("_type", "_class"))
    }
    crops = bool(settings.pop("do_center_crop", False))
    return LlavaImageProcessorPil(**{**settings, "do_center_crop": crops, "do_pad": True})


def image_size(image_processor: Any) -> tuple[int, int]:
    """Return the height and width that an image processor gives to every image.

    Raises:
        UserError: The output shape depends on the image, or has several tiles.
    """
    wide, tall = (
        image_processor(Image.new("RGB", size), return_tensors="np").pixel_values for size in ((8, 4), (4, 8))
    )
    shape = np.shape(wide)
    if len(shape) != 4 or shape[:2] != (1, 3) or shape != np.shape(tall):
        raise UserError(
            f"LLaVA needs the same [3, H, W] for every image, but {type(image_processor).__name__} returns {shape} for "
            f"a wide image and {np.shape(tall)} for a tall one. Set 'size' to a height and a width, or set 'crop_size'."
        )
    return shape[2], shape[3]


def image_tokens(processor: LlavaProcessor) -> int:
    """Return the `<image>` ids of one image: (H // p)(W // p), plus additional tokens, minus a dropped one."""
    height, width = image_size(processor.image_processor)
    patches = (height // processor.patch_size) * (width // processor.patch_size)
    dropped = processor.vision_feature_select_strategy == "default"
    return int(patches + processor.num_additional_image_tokens - dropped)
