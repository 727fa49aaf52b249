"""The methods once more, written naively from their papers: Hugging Face's own forward, whole logits, Python loops."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from lightning_switchkd.core.types import IGNORE_INDEX, Batch
from lightning_switchkd.objectives.align_kd import AlignKD


def written_out(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attention that shows its weights; Hugging Face's own (eager) has them in float32."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    weights = (query @ key.transpose(2, 3) * scaling + mask).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("written_out", written_out)
AttentionMaskInterface.register("written_out", ALL_MASK_ATTENTION_FUNCTIONS["eager"])


class Naive:
    """One batch through both models with attention written out; what terms need is picked out token by token.

    Args:
        student: a LlavaForConditionalGeneration.
        teacher: another.
        batch: right-padded records.
        vocabulary: real token ids.
    """

    def __init__(self, student: Any, teacher: Any, batch: Batch, vocabulary: int) -> None:
        self.batch, self.vocabulary = batch, vocabulary
        self.image_id = student.config.image_token_id
        for model in (student, teacher):
            model.model.language_model.set_attn_implementation("written_out")
        pixels = batch.pixel_values.to(student.lm_head.weight.dtype)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "pixel_values": pixels}
        self.student = student(**inputs, output_attentions=True)
        with torch.no_grad():
            self.teacher = teacher(**inputs, output_attentions=True)
        self.embeds = [torch.stack(list(m.get_image_features(pixels).pooler_output)) for m in (student, teacher)]

    def answers(self) -> list[tuple[int, int]]:
        """Places whose next token is supervised."""
        labels = self.batch.labels
        rows, width = labels.shape
        return [(b, t) for b in range(rows) for t in range(width - 1) if labels[b, t + 1] != IGNORE_INDEX]

    def images(self) -> list[tuple[int, list[int]]]:
        """Record and columns of each image."""
        tokens = self.embeds[0].shape[1]
        found = []
        for b, ids in enumerate(self.batch.input_ids.tolist()):
            columns = [t for t, i in enumerate(ids) if i == self.image_id]
            found += [(b, columns[start : start + tokens]) for start in range(0, len(columns), tokens)]
        return found

    def ce(self) -> Tensor:
        labels = self.batch.labels
        losses = [F.cross_entropy(self.student.logits[b, t], labels[b, t + 1]) for b, t in self.answers()]
        return torch.stack(losses).mean()

    def _pair(self, place: tuple[int, int], temperature: float) -> tuple[Tensor, Tensor]:
        b, t = place
        return tuple(
            (out.logits[b, t, : self.vocabulary] / temperature).softmax(-1) for out in (self.teacher, self.student)
        )

    def fkl(self, places: list[tuple[int, int]], temperature: float) -> Tensor:
        pairs = [self._pair(place, temperature) for place in places]
        return torch.stack([(p * (p / q).log()).sum() for p, q in pairs]).mean()

    def rkl(self, places: list[tuple[int, int]], temperature: float) -> Tensor:
        pairs = [self._pair(place, temperature) for place in places]
        return torch.stack([(q * (q / p).log()).sum() for p, q in pairs]).mean()

    def jsd(self, places: list[tuple[int, int]], temperature: float, beta: float) -> Tensor:
        found = []
        for p, q in (self._pair(place, temperature) for place in places):
            m = beta * p + (1 - beta) * q
            found.append(beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum())
        return torch.stack(found).mean()

    def bild(self, k: int = 8, temperature: float = 3.0) -> Tensor:
        """Both leaders; all pairs written out; forward KL."""
        found = []
        for b, t in self.answers():
            teacher, student = (out.logits[b, t, : self.vocabulary] for out in (self.teacher, self.student))
            for leader in (teacher, student):
                ids = sorted(range(self.vocabulary), key=lambda i: (-leader[i].item(), i))[:k]
                pairs = [(i, j) for n, i in enumerate(ids) for j in ids[n + 1 :]]
                p, q = (
                    torch.stack([(z[i] - z[j]) / temperature for i, j in pairs]).softmax(-1) for z in (teacher, student)
                )
                found.append((p * (p / q).log()).sum())
        return torch.stack(found).sum() / len(self.answers())

    def image_places(self) -> list[tuple[int, int]]:
        return [(b, t) for b, columns in self.images() for t in columns]

    def relation(self) -> Tensor:
        found = []
        for b, columns in self.images():
            z = [out.logits[b, columns, : self.vocabulary] for out in (self.student, self.teacher)]
            s, t = (x @ x.T for x in z)
            found.append(1 - (s * t).sum() / (s.square().sum().sqrt() * t.square().sum().sqrt()))
        return torch.stack(found).mean()

    def attention_maps(self, out: Any) -> list[Tensor]:
        """``[heads, Q, P]`` of each image: queries are real text tokens after it, keys its tokens."""
        maps = []
        for b, columns in self.images():
            ids, real = self.batch.input_ids[b].tolist(), self.batch.attention_mask[b].tolist()
            queries = [t for t, i in enumerate(ids) if real[t] and i != self.image_id and t > columns[-1]]
            maps.append(out.attentions[0][b][:, queries][:, :, columns])
        return maps

    def attention(self, objective: AlignKD) -> Tensor:
        adapter = objective.terms["attention"].adapter
        found = []
        for student, teacher in zip(self.attention_maps(self.student), self.attention_maps(self.teacher), strict=True):
            mixed = torch.einsum("ts,sqp->tqp", adapter.weight, student) + adapter.bias[:, None, None]
            found.append(((mixed - teacher) ** 2).sum() / math.prod(teacher.shape))
        return torch.stack(found).mean()

    def embeds_error(self, objective: AlignKD, tokens: int | None = None) -> Tensor:
        adapter = objective.terms["embeds"].adapter
        found = []
        for image, map_ in enumerate(self.attention_maps(self.teacher)):
            student, teacher = (embeds[image] for embeds in self.embeds)
            chosen = range(len(teacher))
            if tokens is not None:
                focus = map_.mean(0).mean(0)
                chosen = sorted(chosen, key=lambda i, focus=focus: -float(focus[i]))[:tokens]
            found += [((adapter.weight @ student[i] + adapter.bias - teacher[i]) ** 2).mean() for i in chosen]
        return torch.stack(found).mean()
