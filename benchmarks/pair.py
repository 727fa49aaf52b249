"""A random Switch-KD pair and batch, large enough for meaningful timings on a CPU."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning as L
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from lightning_switchkd.core.types import IGNORE_INDEX, Batch, Counts
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.auto import build
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives import SwitchKDObjective
from lightning_switchkd.training.metrics import Means
from lightning_switchkd.training.module import SwitchKD

SAMPLES, TOKENS, ANSWER = 4, 256, 32
IMAGE, PATCH = 96, 12


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Create a tokenizer of a given size. Only its size and ``<image>`` matter."""
    words = {"<pad>": 0, "<end>": 1, "<image>": 2, **{f"w{i}": i for i in range(3, vocabulary)}}
    core = Tokenizer(WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


def spec(width: int, layers: int, **options: Any) -> VLMSpec:
    """Describe a random model with the common vision encoder and a language model of the given size."""
    vision = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
    lm = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers, "num_attention_heads": 4}
    return VLMSpec(
        vision={"model_type": "siglip_vision_model", "image_size": IMAGE, "patch_size": PATCH, **vision},
        lm={"model_type": "qwen2", "num_key_value_heads": 2, **lm},
        feature_strategy="full",
        **options,
    )


def random_pair(
    vocabulary: int, student: dict[str, Any] | None = None, teacher: dict[str, Any] | None = None
) -> tuple[VLMAdapter, VLMAdapter]:
    """Create student and teacher, each with further settings."""
    ids = tokenizer(vocabulary)
    return build(spec(256, 6, **student or {}), ids, "student"), build(spec(384, 8, **teacher or {}), ids, "teacher")


def batch(vocabulary: int) -> Batch:
    """Create random samples of one image, a text and an answer each."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (SAMPLES, TOKENS), generator=generator)
    image_tokens = (IMAGE // PATCH) ** 2
    ids[:, 1 : 1 + image_tokens] = 2
    labels = ids.masked_fill(torch.arange(TOKENS) < TOKENS - ANSWER, IGNORE_INDEX)
    supervised = SAMPLES * ANSWER
    counts = Counts(supervised, supervised, SAMPLES * image_tokens, SAMPLES)
    pixels = torch.randn(SAMPLES, 3, IMAGE, IMAGE, generator=generator)
    order = torch.arange(SAMPLES)
    return Batch(ids, torch.ones_like(ids), labels, pixels, order, order, counts, counts)


class RandomPair(SwitchKD):
    """The module with a random pair in place of loaded models, for one process and no data module."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__(student=spec(256, 6), teacher=spec(384, 8), objective=SwitchKDObjective())
        self.vocabulary = vocabulary

    def configure_model(self) -> None:
        """Build both models."""
        torch.manual_seed(0)
        student, teacher = random_pair(self.vocabulary)
        self._distiller = Distiller(student, teacher, self.objective, self.vocabulary).train()
        self.train_means = Means(self.objective.terms)
        self.teacher_fingerprint = None

    def on_fit_start(self) -> None:
        """Do not describe the data: there is no data module."""


def train(vocabulary: int, steps: int, callbacks: list[L.Callback], **settings: Any) -> None:
    """Train a random pair by Lightning on the available device, without output."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **settings,
    )
    loader = DataLoader([batch(vocabulary)] * steps, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(RandomPair(vocabulary), train_dataloaders=loader)
