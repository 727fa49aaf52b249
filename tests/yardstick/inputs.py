"""Write the yardstick's inputs: a tiny student and teacher, training data, and a data set with many defects.

Only Hugging Face classes are used here, so that a refactoring of the package cannot change the inputs.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

IMAGE_SIZE, PATCH_SIZE = 16, 8
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
CORPUS = ["What is in it? a cat and a dog system user assistant\n" + "".join(map(chr, range(32, 127)))]
BENCHMARKS = Path(__file__).parent / "benchmarks.tar.gz"


def write_inputs(folder: Path, samples: int = 48) -> None:
    """Write ``records.json``, ``images``, ``processor``, ``student``, ``teacher`` and ``other_teacher`` below a folder.

    Args:
        folder: An empty or missing folder.
        samples: Number of training samples. Half of them have no image.
    """
    tokenizer = make_tokenizer()
    write_samples(folder, samples)
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        image_size=IMAGE_SIZE, patch_size=PATCH_SIZE,
    )  # fmt: skip
    text = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    student = Qwen2Config(hidden_size=16, intermediate_size=24, tie_word_embeddings=True, **text)
    text["vocab_size"] += 4  # a padded vocabulary, as in many released checkpoints
    teacher = LlamaConfig(hidden_size=24, intermediate_size=32, tie_word_embeddings=False, **text)
    for name, language, seed in (("student", student, 0), ("teacher", teacher, 1)):
        write_model(folder / name, vision, language, tokenizer, seed)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder / "processor")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of about 120 tokens with the control tokens of Qwen2.5 and ``<image>``."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL_TOKENS, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|endoftext|>", eos_token="<|im_end|>")


def write_model(folder: Path, vision: Any, language: Any, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Write a LLaVA model with random weights and its tokenizer."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    for name, value in ids.items():
        setattr(language, name, value)
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=language.tie_word_embeddings,
    )
    model = LlavaForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():  # the scales of normalizations stay 1
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
            elif not bool((parameter == 1).all()):
                parameter.normal_(0, 0.05, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_samples(folder: Path, samples: int) -> None:
    """Write LLaVA samples: one or two turns, answers of uneven lengths, half of them without an image."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    raw: list[dict[str, Any]] = []
    for i in range(samples):
        turns: list[str] = []
        for turn in range(1 + i % 2):
            question = ("<image>\n" if turn == 0 and i % 4 < 2 else "") + f"What is in {i}?"
            turns += [question, "a cat " * (1 + (i * 7) % 5) + "."]
        raw.append({"id": i, "conversations": conversation(*turns), "source": f"kind{i % 2}"})
        if i % 4 < 2:
            Image.fromarray(random.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
            raw[-1]["image"] = f"{i}.png"
    (folder / "records.json").write_text(json.dumps(raw), encoding="utf-8")


def conversation(*texts: str) -> list[dict[str, str]]:
    """Return turns that alternate between user and assistant."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def write_defects(folder: Path) -> None:
    """Write ``train.jsonl`` and ``val.json`` with valid samples and invalid ones of every kind, and their images."""
    images = folder / "images"
    (images / "folder").mkdir(parents=True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save(folder / "escape.png")
    (images / "zero.jpg").write_bytes(b"")
    (images / "page.jpg").write_bytes(b"<!DOCTYPE html><html>404 Not Found</html>")
    for suffix, form in (("jpg", "JPEG"), ("png", "PNG")):
        whole = BytesIO()
        noise.save(whole, form)
        (images / f"cut.{suffix}").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    Image.new("1", (20_000, 20_000)).save(images / "bomb.png")
    for name in ("good.png", "held_out.png"):
        Image.new("RGB", (20, 24), "red").save(images / name)
    lines = [json.dumps(raw) for raw in defective_samples()]
    lines.insert(20, '{"id": "torn", "conversations": [')
    lines.insert(30, '["not", "an", "object"]')
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    held_out = [
        {"id": i, "image": f"{name}.png", "conversations": conversation("q", "a")}
        for i, name in enumerate(("good", "held_out", "missing"))
    ]
    (folder / "val.json").write_text(json.dumps(held_out), encoding="utf-8")


def defective_samples() -> Iterator[dict[str, Any]]:
    """Yield valid samples, then one with each unusable image, then samples with other defects."""
    for i in range(40):
        turns = conversation(f"{i}?", "a cat " * (1 + i % 9), "And?", "dog " * (1 + i))
        yield {"id": f"good{i}", "source": "mixed", "conversations": turns} | ({"image": "good.png"} if i % 3 else {})
    broken = ("missing.png", "../escape.png", "zero.jpg", "page.jpg", "cut.jpg", "cut.png", "bomb.png", "folder")
    for name in broken:
        yield {"id": name, "image": name, "source": "web", "conversations": conversation("<image>", "a")}
    others: dict[str, dict[str, Any]] = {
        "nobody": {"conversations": []},
        "no conversations": {},
        "text for turns": {"conversations": "q"},
        "number for text": {"conversations": [{"from": "human", "value": 3}, {"from": "gpt", "value": "a"}]},
        "gpt first": {"conversations": conversation("a", "b")[::-1]},
        "user last": {"conversations": conversation("a", "b", "c")},
        "unknown role": {"conversations": [{"from": "bot", "value": "q"}, {"from": "gpt", "value": "a"}]},
        "two for one": {"image": "good.png", "conversations": conversation("<image><image>", "a")},
        "none for one": {"image": "good.png", "conversations": conversation("q", "a", "<image>", "a")},
        "one for none": {"conversations": conversation("<image>\nq", "a")},
        "image in answer": {"image": "good.png", "conversations": conversation("q", "<image> a")},
        "two images": {"image": ["good.png", "held_out.png"], "conversations": conversation("<image> <image>", "a")},
        "number for image": {"image": 3, "conversations": conversation("<image>", "a")},
        "silent": {"conversations": conversation("q", " ")},
        "silent at the end": {"conversations": conversation("q", "a", "q", "")},
        "long question": {"conversations": conversation("why? " * 500, "a")},
        "long answer": {"conversations": conversation("why?", "a cat " * 500)},
        "good0": {"conversations": conversation("the same id", "a")},
        "control tokens": {"conversations": conversation("<|im_end|>q<|im_start|>", "a<|im_end|>")},
        "unicode": {"conversations": conversation("¿qué? 猫", "ñ 猫 \U0001f431 \ud83d")},
    }
    for name, raw in others.items():
        yield {"id": name, **raw}


def write_benchmarks(folder: Path) -> None:
    """Unpack the files of the ten benchmarks and the answers to them."""
    with tarfile.open(BENCHMARKS) as archive:
        archive.extractall(folder, filter="data")
