"""The arithmetic of a step against PyTorch's own count of the operations that ran."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.distillation.flops import step_cost
from lightning_switchkd.objectives import SFT, Objective, SwitchKDObjective


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize(
    ("objective", "freeze"),
    [(SwitchKDObjective(), ()), (SFT(), ()), (SFT(), ("vision",)), (SFT(), ("vision", "lm"))],
    ids=["switch_kd", "sft", "sft-frozen-vision", "sft-projector-only"],
)
def test_equals_what_runs(tower: str, objective: Objective, freeze: tuple[str, ...]) -> None:
    """Eager attention, whose products PyTorch counts; records without padding; to 2 %."""
    student = tiny.vlm(tower=tower, attn_implementation="eager", width=32)
    teacher = tiny.vlm(seed=1, tower=tower, attn_implementation="eager", width=48, lm="llama", tied=False)
    for part in freeze:
        for parameter in student.part_parameters(part):  # type: ignore[arg-type]
            parameter.requires_grad_(False)
    distiller = Distiller(student, teacher if objective.terms.keys() != {"ce"} else None, objective, 280).train()
    batch = tiny.batch(images=(1, 1), answer=(4, 4))
    with FlopCounterMode(display=False) as counter:
        distiller(batch, batch.counts.tensor(), 0).loss.backward()
    length = batch.input_ids.shape[1]
    found = step_cost(distiller).total(2 * length, 2 * length**2, 2, batch.counts.token)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert torch.is_grad_enabled()
