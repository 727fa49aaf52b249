"""Heads with sharded weights: gathered once a step, with the gradients of a single process."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial

from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.objectives import SwitchKDObjective


def distiller(tied: bool) -> Distiller:
    """Return a pair in float64, with one token per chunk of the heads."""
    student = tiny.vlm(tied=tied).double()
    teacher = tiny.vlm(seed=1, width=24, lm="llama", tied=False).double()
    return Distiller(student, teacher, SwitchKDObjective(), len(tiny.tokenizer()), logits_gib=1e-9)


def _rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        batch = tiny.batch(images=(1, 0, 2, 1), answer=(3, 5, 2, 4))
        totals = batch.counts.tensor()
        for tied in (True, False):
            single, sharded = distiller(tied), distiller(tied)
            single(batch, totals, 0).loss.backward()
            fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
            part = batch.only([0, 1] if rank == 0 else [2, 3])
            (2 * sharded(part, totals, 0).loss).backward()  # gradients are averaged over processes
            pairs = zip(sharded.student.named_parameters(), single.student.parameters(), strict=True)
            for (name, actual), expected in pairs:
                assert (actual.grad is None) == (expected.grad is None), name
                if expected.grad is not None:
                    gathered = actual.grad.full_tensor()
                    torch.testing.assert_close(gathered, expected.grad, rtol=1e-9, atol=1e-12, msg=name)
        _full_tensor_in_the_graph(rank)
        (folder / f"{rank}").touch()
    finally:
        dist.destroy_process_group()


def _full_tensor_in_the_graph(rank: int) -> None:
    """Show what heads must not do: by default ``full_tensor()`` gives each process only its own gradient."""
    linear = torch.nn.Linear(3, 2, bias=False).double()
    fully_shard(linear, mesh=init_device_mesh("cpu", (2,)))
    x = torch.full((1, 3), float(rank + 1), dtype=torch.float64)  # the mean of both gradients is 1.5
    for settings, correct in (({}, False), ({"grad_placements": [Partial("avg")]}, True)):
        linear.zero_grad()
        (x @ linear.weight.full_tensor(**settings).t()).sum().backward()
        assert torch.equal(linear.weight.grad.full_tensor(), torch.full((2, 3), 1.5, dtype=torch.float64)) == correct


@pytest.mark.slow
def test_sharded_heads_have_the_gradients_of_full_ones(tmp_path: Path) -> None:
    tiny.on_two_ranks(_rank, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1"]
