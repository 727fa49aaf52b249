"""The Hugging Face processor of a VLM: loaded or built from parts, and checked, before anything relies on it."""

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
    """Whether a name can be a Hugging Face id: ``owner/name``, and no path that begins with a folder that is here."""
    owner, *rest = name.split("/")
    return len(rest) == 1 and not owner.startswith((".", "~")) and bool(owner) and not Path(owner).is_dir()


def load_processor(path: str | Path, square_pad: bool = False) -> LlavaProcessor:
    """The processor saved in a folder, or under a Hugging Face id.

    Remote code is never run, and images are processed by PIL, with or without torchvision: the same pixels everywhere.

    Args:
        path: the folder or id.
        square_pad: let it pad images to squares first, as LLaVA does.

    Raises:
        UserError: there is none, or it cannot serve a LLaVA model; the message names the field to mend.
    """
    if not Path(path).is_dir() and not may_be_hub_id(str(path)):
        raise UserError(f"there is no folder {str(path)!r} to load a processor from")
    try:
        processor = LlavaProcessor.from_pretrained(str(path), backend="pil", trust_remote_code=False)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"no LLaVA processor can be loaded from {str(path)!r}: give a folder (or Hugging Face id) with "
            f"processor_config.json, preprocessor_config.json and a tokenizer. The cause: {error}"
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
    """A processor from its parts, with `<image>` in the tokenizer and the chat template of `prompt_style`.

    Args:
        tokenizer: gets `<image>` as a special token if it has none.
        image_processor: the vision encoder's.
        patch_size: side of a patch of the vision encoder, in pixels.
        vision_feature_select_strategy: "default" drops the first feature (CLIP's class token), "full" keeps all.
        num_additional_image_tokens: features of the encoder that are no patches: 1 for CLIP, 0 for SigLIP.
        prompt_style: what the chat template writes.

    Raises:
        UserError: the parts cannot serve a LLaVA model.
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
    """The processor itself, if it can serve a LLaVA model.

    Raises:
        UserError: it cannot; the message names `origin` and the field to mend.
    """
    special = {token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    problems = {
        f"its tokenizer has no special token {IMAGE_TOKEN}: add it with make_processor": (
            processor.image_token == IMAGE_TOKEN and IMAGE_TOKEN in special
        ),
        "its tokenizer has no pad_token: set one (the end-of-sequence token will do)": (
            processor.tokenizer.pad_token_id is not None
        ),
        "patch_size must be a positive integer: set it in processor_config.json": (
            isinstance(processor.patch_size, int) and processor.patch_size > 0
        ),
        f"vision_feature_select_strategy must be one of {STRATEGIES}: set it in processor_config.json": (
            processor.vision_feature_select_strategy in STRATEGIES
        ),
    }
    for problem, holds in problems.items():
        if not holds:
            raise UserError(f"the processor of {origin} cannot be used: {problem}")
    image_size(processor.image_processor)
    return processor


def with_square_padding(image_processor: Any) -> LlavaImageProcessorPil:
    """The same image processor, but padding to a square with its mean colour first, as LLaVA does.

    It is Hugging Face's own, so an exported student pads as in training.
    """
    settings = {
        name: value for name, value in image_processor.to_dict().items() if not name.endswith(("_type", "_class"))
    }
    crops = bool(settings.pop("do_center_crop", False))
    return LlavaImageProcessorPil(**{**settings, "do_center_crop": crops, "do_pad": True})


def image_size(image_processor: Any) -> tuple[int, int]:
    """Height and width of what an image processor makes of every image.

    Raises:
        UserError: images of different shapes come out in different shapes, or as several tiles.
    """
    wide, tall = (
        image_processor(Image.new("RGB", size), return_tensors="np").pixel_values for size in ((8, 4), (4, 8))
    )
    shape = np.shape(wide)
    if len(shape) != 4 or shape[:2] != (1, 3) or shape != np.shape(tall):
        raise UserError(
            f"the image processor {type(image_processor).__name__} makes {shape} of a wide and {np.shape(tall)} of a "
            "tall image: LLaVA needs one [3, H, W] for all, so set 'size' to a height and a width, or a 'crop_size'"
        )
    return shape[2], shape[3]


def image_tokens(processor: LlavaProcessor) -> int:
    """How many `<image>` ids stand for one image: (H // p)(W // p) and the additional ones, less the dropped one."""
    height, width = image_size(processor.image_processor)
    patches = (height // processor.patch_size) * (width // processor.patch_size)
    dropped = processor.vision_feature_select_strategy == "default"
    return int(patches + processor.num_additional_image_tokens - dropped)
