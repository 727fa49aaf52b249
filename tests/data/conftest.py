"""A tiny real tokenizer, processors and LLaVA files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from raws import samples
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lightning_switchkd.data import DataPaths, LLaVADataModule
from lightning_switchkd.data.processor import make_processor
from lightning_switchkd.data.prompts import Prompter, prompt_style

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = "user assistant system What is in the image? A red cat.\n\nUSER: Hello ASSISTANT: the red cat sits, is it?"


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Byte-level BPE that splits words as Qwen2.5 does, with its control tokens."""

    def make(**changes: Any) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE())
        words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            show_progress=False,
        )
        backend.train_from_iterator([CORPUS], trainer)
        tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | changes
        return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)

    return make


@pytest.fixture(scope="session")
def processor(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> LlavaProcessor:
    """CLIP-like: 28 x 28 pixels, patches of 14, so 4 tokens an image."""
    clip = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return make_processor(make_tokenizer(), clip, 14, "default", 1, prompt_style("qwen_chatml"))


@pytest.fixture(scope="session")
def processor_folder(processor: LlavaProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processor")
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def siglip_folder(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """SigLIP-like: 16 x 16 pixels, patches of 8, 4 tokens an image as well."""
    siglip = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    folder = tmp_path_factory.mktemp("siglip")
    make_processor(make_tokenizer(), siglip, 8, "full", 0, prompt_style("qwen_chatml")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_prompter(processor: LlavaProcessor) -> Callable[..., Prompter]:
    def make(style: str = "qwen_chatml", system: str | None = None, max_length: int = 4096) -> Prompter:
        return Prompter(processor.tokenizer, prompt_style(style, system), 4, max_length)

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Sequence[dict[str, Any]]], DataPaths]:
    """Writes records beside two images."""

    def make(raws: Sequence[dict[str, Any]], name: str = "train.json") -> DataPaths:
        for i, colour in enumerate(("red", "blue")):
            Image.new("RGB", (20 + 20 * i, 30), colour).save(tmp_path / f"{i}.png")
        (tmp_path / name).write_text(json.dumps(raws))
        return DataPaths(str(tmp_path / name), str(tmp_path))

    return make


@pytest.fixture
def make_data(processor_folder: Path, write: Callable[..., DataPaths]) -> Callable[..., LLaVADataModule]:
    """A data module on n small records."""

    def make(n: int = 21, **settings: Any) -> LLaVADataModule:
        if "train" not in settings:
            settings["train"] = write(samples(n))
        return LLaVADataModule(str(processor_folder), **settings)

    return make
