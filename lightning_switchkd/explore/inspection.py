"""Supervised rows of some records as three pathways see them, and tables of what each believes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_switchkd.core.types import Pathway
from lightning_switchkd.losses.chunked import chunk_size
from lightning_switchkd.losses.dbild import dbild
from lightning_switchkd.losses.logits import Heads, LogitsChunk, SupervisedTokens
from lightning_switchkd.losses.select import Kneedle, Selection
from lightning_switchkd.objectives.switch_kd import DBiLDLoss

if TYPE_CHECKING:
    from pandas import DataFrame

PATHWAYS: tuple[Pathway, ...] = ("student", "teacher", "switch")
GIB = 0.25
"""Logits that exist at a time."""


@dataclass(frozen=True)
class Inspection:
    """Rows: one for each token that a record's answers supervise.

    Attributes:
        rows: final hidden states ``[N, H]`` by side, targets ``[N]``.
        heads: output heads by side.
        about: a row each: ``sample`` (its number), ``id``, ``source``, ``place`` (token of the answer, from 0),
            ``token`` (the right one, as text).
        decode: a token id as text.
    """

    rows: SupervisedTokens
    heads: Heads
    about: DataFrame
    decode: Any

    def __len__(self) -> int:
        return len(self.rows.targets)

    @torch.no_grad()
    def chunks(self) -> Iterator[tuple[slice, LogitsChunk]]:
        """A few rows at a time, seen through their heads."""
        size = chunk_size(self.rows, self.heads, GIB)
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield part, LogitsChunk(self.rows.part(part), self.heads)

    @torch.no_grad()
    def logits(self, row: int, pathway: Pathway) -> Tensor:
        """``[vocabulary]`` of one row."""
        hidden = self.rows.hidden[pathway][row : row + 1]
        return self.heads[pathway].exactly(hidden)[0, : self.rows.vocabulary]

    def top(self, count: int = 5) -> DataFrame:
        """The likeliest tokens: ``row``, ``pathway``, ``rank`` (from 1), ``token``, ``probability``, ``right``."""
        from pandas import DataFrame

        found: list[tuple[Any, ...]] = []
        for part, chunk in self.chunks():
            for pathway in self.rows.hidden:
                logprobs = (
                    chunk.raw_logits(pathway)[:, : self.rows.vocabulary] - chunk.log_z_and_entropy(pathway)[0][:, None]
                )
                best = logprobs.topk(min(count, self.rows.vocabulary), dim=-1)
                for n, (values, ids) in enumerate(zip(best.values.exp().tolist(), best.indices.tolist(), strict=True)):
                    target = int(chunk.targets[n])
                    found += [
                        (part.start + n, pathway, rank, self.decode(i), p, i == target)
                        for rank, (p, i) in enumerate(zip(values, ids, strict=True), start=1)
                    ]
        return DataFrame(found, columns=["row", "side", "rank", "token", "probability", "right"])

    def beliefs(self, select: Selection = Kneedle(), temperature: float = 3.0) -> DataFrame:  # noqa: B008 (frozen)
        """A row each, ``about`` beside: entropy (nats), probability of the right token, sets, overlap, mass, losses.

        Columns that compare with the teacher come once for the student and, with the prefix ``switch_``, for the
        switch: ``k_teacher``, ``k_student``, ``overlap``, ``…_mass_in_…_set``, ``top1_agreement``, ``dbild`` (nats).

        Args:
            select: finds a side's leading set.
            temperature: of DBiLD.
        """
        from pandas import DataFrame, concat

        pathways: dict[str, Pathway] = {"": "student", "switch_": "switch"}
        terms = {
            p: DBiLDLoss(temperature, select, pathway=pathway)
            for p, pathway in pathways.items()
            if pathway in self.rows.hidden
        }
        parts: list[dict[str, list[float]]] = []
        for _, chunk in self.chunks():
            found: dict[str, Tensor] = {}
            for pathway in self.rows.hidden:
                logits, normaliser = (
                    chunk.raw_logits(pathway)[:, : self.rows.vocabulary],
                    chunk.log_z_and_entropy(pathway)[0],
                )
                best = logits.max(-1)
                found[f"p_right_{pathway}"] = (logits.gather(1, chunk.targets[:, None])[:, 0] - normaliser).exp()
                found[f"p_top_{pathway}"] = (best.values - normaliser).exp()
                found[f"right_{pathway}"] = best.indices == chunk.targets
                found[f"entropy_{pathway}"] = chunk.log_z_and_entropy(pathway)[1]
            for prefix, term in terms.items():
                seen = {**term.statistics(chunk), "dbild": term(chunk)}
                found |= {f"{prefix}{name}": value for name, value in seen.items() if not name.startswith("entropy")}
            parts.append({name: value.double().tolist() for name, value in found.items()})
        table = concat([DataFrame(part) for part in parts], ignore_index=True)
        return concat([self.about, table], axis=1)

    def sizes(self, selections: Mapping[str, Selection], pathway: Pathway = "teacher") -> DataFrame:
        """How many entries each selection takes: a column a selection, a row each."""
        from pandas import DataFrame

        found: dict[str, list[int]] = {name: [] for name in selections}
        for _, chunk in self.chunks():
            for name, select in selections.items():
                found[name] += chunk.select(pathway, select)[1].sum(-1).tolist()
        return DataFrame(found)

    def curve(self, row: int, pathway: Pathway = "teacher", window: int | None = 256) -> DataFrame:
        """A row's logits in falling order: ``token``, ``logit``, ``chord`` (from first to last), ``drop`` below it."""
        from pandas import DataFrame

        logits = self.logits(row, pathway)
        best = logits.topk(min(window or len(logits), len(logits)))
        values = best.values.double()
        chord = torch.linspace(float(values[0]), float(values[-1]), len(values), dtype=torch.float64)
        tokens = [self.decode(i) for i in best.indices.tolist()]
        columns = {
            "token": tokens,
            "logit": values.tolist(),
            "chord": chord.tolist(),
            "drop": (chord - values).tolist(),
        }
        return DataFrame(columns)

    def pairs(
        self,
        row: int,
        leader: Pathway = "teacher",
        pathway: Pathway = "student",
        select: Selection = Kneedle(),  # noqa: B008 (frozen)
        temperature: float = 3.0,
    ) -> DataFrame:
        """The pairs that DBiLD compares at a row: ``first``, ``second`` and the weight that each side gives the pair.

        ``kl`` is a pair's share of KL(side ‖ teacher), in nats; they add up to the term.
        """
        from pandas import DataFrame

        ids, mask = select(self.logits(row, leader)[None])
        ids = ids[0][mask[0]]
        i, j = torch.triu_indices(len(ids), len(ids), 1)
        weights = {}
        for name in ("teacher", pathway):
            z = self.logits(row, name)[ids].double() / temperature
            weights[name] = (z[i] - z[j]).log_softmax(0)
        tokens = [self.decode(t) for t in ids.tolist()]
        q, p = weights[pathway], weights["teacher"]
        return DataFrame(
            {
                "first": [tokens[n] for n in i.tolist()],
                "second": [tokens[n] for n in j.tolist()],
                "teacher": p.exp().tolist(),
                pathway: q.exp().tolist(),
                "kl": (q.exp() * (q - p)).tolist(),
            }
        )

    def divergences(
        self, row: int, temperatures: tuple[float, ...] = (1.0, 3.0, 6.0), pathway: Pathway = "student"
    ) -> DataFrame:
        """DBiLD of a row, reverse and forward, by temperature (nats)."""
        from pandas import DataFrame

        teacher, student = self.logits(row, "teacher")[None], self.logits(row, pathway)[None]
        found = [
            (tau, *(float(dbild(teacher=teacher, student=student, temperature=tau, reverse=r)) for r in (True, False)))
            for tau in temperatures
        ]
        return DataFrame(found, columns=["temperature", "reverse", "forward"])
