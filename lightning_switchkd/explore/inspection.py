"""Supervised tokens of some samples in three pathways, and tables of their distributions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pandas import DataFrame, concat
from torch import Tensor

from lightning_switchkd.core.types import Pathway
from lightning_switchkd.losses.chunked import chunk_size
from lightning_switchkd.losses.dbild import dbild
from lightning_switchkd.losses.logits import Heads, LogitsChunk, SupervisedTokens
from lightning_switchkd.losses.select import Kneedle, Selection
from lightning_switchkd.objectives.switch_kd import DBiLDLoss

LOGITS_GIB = 0.25
"""Memory limit for the logits of one chunk, in GiB."""


@dataclass(frozen=True)
class Inspection:
    """The supervised tokens of some samples. A row is one token.

    Attributes:
        tokens: Final hidden states ``[N, H]`` of each pathway, targets ``[N]``.
        heads: Output heads by pathway.
        about: One row per token: ``sample`` (index in the data set), ``id``, ``source``, ``position`` (in the answer,
            from 0), ``token`` (the target as text).
        decode: Turns a token id into text.
    """

    tokens: SupervisedTokens
    heads: Heads
    about: DataFrame
    decode: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.tokens.targets)

    @torch.no_grad()
    def chunks(self) -> Iterator[tuple[slice, LogitsChunk]]:
        """Yield the logits of a few rows at a time, with the slice of these rows."""
        size = chunk_size(self.tokens, self.heads, LOGITS_GIB)
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield part, LogitsChunk(self.tokens.part(part), self.heads)

    @torch.no_grad()
    def logits(self, row: int, pathway: Pathway) -> Tensor:
        """Return the logits ``[vocabulary]`` of one row."""
        hidden = self.tokens.hidden[pathway][row : row + 1]
        return self.heads[pathway].exactly(hidden)[0, : self.tokens.vocabulary]

    def top(self, count: int = 5) -> DataFrame:
        """List the likeliest tokens.

        Args:
            count: Tokens per row and pathway.

        Returns:
            Columns ``row``, ``pathway``, ``rank`` (from 1), ``token``, ``probability``, ``right``.
        """
        table: list[tuple[Any, ...]] = []
        for part, chunk in self.chunks():
            for pathway in self.tokens.hidden:
                log_z = chunk.log_z_and_entropy(pathway)[0][:, None]
                logprobs = chunk.raw_logits(pathway)[:, : self.tokens.vocabulary] - log_z  # [n, vocabulary]
                best = logprobs.topk(min(count, self.tokens.vocabulary), dim=-1)
                for n, (values, ids) in enumerate(zip(best.values.exp().tolist(), best.indices.tolist(), strict=True)):
                    target = int(chunk.targets[n])
                    table += [
                        (part.start + n, pathway, rank, self.decode(i), p, i == target)
                        for rank, (p, i) in enumerate(zip(values, ids, strict=True), start=1)
                    ]
        return DataFrame(table, columns=["row", "pathway", "rank", "token", "probability", "right"])

    def statistics(self, select: Selection = Kneedle(), temperature: float = 3.0) -> DataFrame:  # noqa: B008 (frozen)
        """Compute statistics of every row, next to the columns of ``about``.

        Columns of each pathway: ``entropy_…`` (nats), ``p_right_…`` (probability of the target), ``p_top_…`` (of the
        likeliest token), ``right_…``. Columns that compare the student with the teacher: ``k_teacher``, ``k_student``,
        ``overlap``, ``…_mass_in_…_set``, ``top1_agreement``, ``dbild`` (nats). The prefix ``switch_`` marks the same
        columns of the switch pathway.

        Args:
            select: Finds the leading set of a pathway.
            temperature: Temperature of DBiLD.
        """
        compared: dict[str, Pathway] = {"": "student", "switch_": "switch"}
        terms = {
            prefix: DBiLDLoss(temperature, select, pathway=pathway)
            for prefix, pathway in compared.items()
            if pathway in self.tokens.hidden
        }
        parts: list[dict[str, list[float]]] = []
        for _, chunk in self.chunks():
            columns: dict[str, Tensor] = {}
            for pathway in self.tokens.hidden:
                logits = chunk.raw_logits(pathway)[:, : self.tokens.vocabulary]  # [n, vocabulary]
                log_z, entropy = chunk.log_z_and_entropy(pathway)  # [n], [n]
                best = logits.max(-1)
                columns[f"p_right_{pathway}"] = (logits.gather(1, chunk.targets[:, None])[:, 0] - log_z).exp()
                columns[f"p_top_{pathway}"] = (best.values - log_z).exp()
                columns[f"right_{pathway}"] = best.indices == chunk.targets
                columns[f"entropy_{pathway}"] = entropy
            for prefix, term in terms.items():
                values = {**term.statistics(chunk), "dbild": term(chunk)}
                columns |= {f"{prefix}{name}": v for name, v in values.items() if not name.startswith("entropy")}
            parts.append({name: value.double().tolist() for name, value in columns.items()})
        table = concat([DataFrame(part) for part in parts], ignore_index=True)
        return concat([self.about, table], axis=1)

    def sizes(self, selections: Mapping[str, Selection], pathway: Pathway = "teacher") -> DataFrame:
        """Count the entries that each selection takes: one column per selection, one row per token."""
        columns: dict[str, list[int]] = {name: [] for name in selections}
        for _, chunk in self.chunks():
            for name, select in selections.items():
                columns[name] += chunk.select(pathway, select)[1].sum(-1).tolist()
        return DataFrame(columns)

    def curve(self, row: int, pathway: Pathway = "teacher", window: int | None = 256) -> DataFrame:
        """Sort the logits of a row in descending order.

        Args:
            row: The token.
            pathway: Whose logits.
            window: Number of largest logits. None takes all.

        Returns:
            Columns ``token``, ``logit``, ``chord`` (from the first to the last point), ``drop`` (below the chord).
        """
        logits = self.logits(row, pathway)
        best = logits.topk(min(window or len(logits), len(logits)))
        values = best.values.double()
        chord = torch.linspace(float(values[0]), float(values[-1]), len(values), dtype=torch.float64)
        return DataFrame(
            {
                "token": [self.decode(i) for i in best.indices.tolist()],
                "logit": values.tolist(),
                "chord": chord.tolist(),
                "drop": (chord - values).tolist(),
            }
        )

    def pairs(
        self,
        row: int,
        leader: Pathway = "teacher",
        pathway: Pathway = "student",
        select: Selection = Kneedle(),  # noqa: B008 (frozen)
        temperature: float = 3.0,
    ) -> DataFrame:
        """List the pairs of tokens that DBiLD compares at a row.

        Args:
            row: The token.
            leader: The pathway whose leading set is compared.
            pathway: The pathway that is compared with the teacher.
            select: Finds the leading set.
            temperature: Temperature of DBiLD.

        Returns:
            Columns ``first``, ``second``, the weight of the pair by ``teacher`` and by the pathway, and ``kl``: the
            pair's share of KL(pathway ‖ teacher) in nats. The shares add up to the term.
        """
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
        """Compute the DBiLD of a row in nats: ``reverse`` and ``forward`` by ``temperature``."""
        teacher, student = self.logits(row, "teacher")[None], self.logits(row, pathway)[None]
        table = [
            (tau, *(float(dbild(teacher=teacher, student=student, temperature=tau, reverse=r)) for r in (True, False)))
            for tau in temperatures
        ]
        return DataFrame(table, columns=["temperature", "reverse", "forward"])
