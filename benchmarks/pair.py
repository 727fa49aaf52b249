"""A random Switch-KD pair and its batch, of sizes at which a step means something on a CPU: what the benchmarks run."""

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

RECORDS, TOKENS, ANSWER = 4, 256, 32
IMAGE, PATCH = 96, 12


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Ids without words: only their number and ``<image>`` matter."""
    words = {"<pad>": 0, "<end>": 1, "<image>": 2, **{f"w{i}": i for i in range(3, vocabulary)}}
    core = Tokenizer(WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


def spec(width: int, layers: int, **switches: Any) -> VLMSpec:
    """A random model: one tower for all, a language model of the given size."""
    tower = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
    lm = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers, "num_attention_heads": 4}
    return VLMSpec(
        vision={"model_type": "siglip_vision_model", "image_size": IMAGE, "patch_size": PATCH, **tower},
        lm={"model_type": "qwen2", "num_key_value_heads": 2, **lm},
        feature_strategy="full",
        **switches,
    )


def random_pair(
    vocabulary: int, student: dict[str, Any] | None = None, teacher: dict[str, Any] | None = None
) -> tuple[VLMAdapter, VLMAdapter]:
    """Student and teacher with further fields of their specifications."""
    ids = tokenizer(vocabulary)
    return build(spec(256, 6, **student or {}), ids, "student"), build(spec(384, 8, **teacher or {}), ids, "teacher")


def batch(vocabulary: int) -> Batch:
    """One image, a text and an answer a record."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (RECORDS, TOKENS), generator=generator)
    places = (IMAGE // PATCH) ** 2
    ids[:, 1 : 1 + places] = 2
    labels = ids.masked_fill(torch.arange(TOKENS) < TOKENS - ANSWER, IGNORE_INDEX)
    supervised = RECORDS * ANSWER
    counts = Counts(supervised, supervised, RECORDS * places, RECORDS)
    pixels = torch.randn(RECORDS, 3, IMAGE, IMAGE, generator=generator)
    order = torch.arange(RECORDS)
    return Batch(ids, torch.ones_like(ids), labels, pixels, order, order, counts, counts)


class RandomPair(SwitchKD):
    """A random pair in place of loaded models; one process, no data module."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__(student=None, teacher=None, objective=SwitchKDObjective())  # type: ignore[arg-type]
        self.vocabulary = vocabulary

    def configure_model(self) -> None:
        """Builds both models."""
        torch.manual_seed(0)
        student, teacher = random_pair(self.vocabulary)
        self._distiller = Distiller(student, teacher, self.objective, self.vocabulary).train()
        self.train_means = Means(self.objective.terms)
        self.teacher_fingerprint = None


def train(vocabulary: int, steps: int, callbacks: list[L.Callback], **settings: Any) -> None:
    """So many steps of a random pair by Lightning, on the device there is, without a word."""
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
