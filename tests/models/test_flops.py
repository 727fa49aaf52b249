"""FLOPs of a step against PyTorch's count of a step that runs."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.distillation.flops import forward_cost, step_cost
from lightning_switchkd.models.auto import build
from lightning_switchkd.models.lora import LoRA
from lightning_switchkd.objectives import SFT, Objective, SwitchKDObjective


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
@pytest.mark.parametrize(
    ("objective", "freeze"),
    [(SwitchKDObjective(), ()), (SFT(), ()), (SFT(), ("vision",)), (SFT(), ("vision", "lm"))],
    ids=["switch_kd", "sft", "sft-frozen-vision", "sft-projector-only"],
)
def test_equals_a_step_that_runs(encoder: str, objective: Objective, freeze: tuple[str, ...]) -> None:
    """To 2 %, with eager attention (PyTorch counts its products) and samples without padding."""
    student = tiny.vlm(encoder=encoder, attn_implementation="eager", width=32)
    teacher = tiny.vlm(seed=1, encoder=encoder, attn_implementation="eager", width=48, lm="llama", tied=False)
    student.freeze(freeze)  # type: ignore[arg-type]
    distiller = Distiller(student, teacher if objective.terms.keys() != {"ce"} else None, objective, 280).train()
    batch = tiny.batch(images=(1, 1), answer=(4, 4))
    with FlopCounterMode(display=False) as counter:
        distiller(batch, batch.counts.tensor(), 0).loss.backward()
    length = batch.input_ids.shape[1]
    cost = step_cost(distiller).total(2 * length, 2 * length**2, 2, batch.counts.token)
    assert cost == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("lm", ["qwen2", "phi3", "stablelm", "gemma", "mistral", "qwen3"])
def test_equals_arithmetic(lm: str) -> None:
    """Two operations for each weight and token; attention two products of T² · heads · width. Options play no role."""
    vlm = tiny.vlm(lm=lm, lora=LoRA(4), compile=["lm"], activation_checkpointing=["vision", "lm"])
    random = torch.random.get_rng_state()
    cost = forward_cost(vlm)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.is_grad_enabled()
    linear = [m for m in vlm.language_model.modules() if isinstance(m, torch.nn.Linear)]
    assert any("lora_A" in name for name, _ in vlm.language_model.named_modules())
    assert cost.token == pytest.approx(2 * sum(m.weight.numel() for m in linear))
    text = vlm.model.config.text_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert cost.pair == 4 * text.num_hidden_layers * text.num_attention_heads * head_dim
    assert cost.head == 2 * vlm.head.weight.numel()


def test_unknown_cost_is_nan(caplog: pytest.LogCaptureFixture) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}  # reads positions, which have no values on meta
    spec = tiny.spec()
    assert isinstance(spec.lm, dict)
    spec.lm["rope_parameters"] = rope
    distiller = Distiller(build(spec, tiny.tokenizer(), "student"), None, SFT(), 280)
    assert math.isnan(step_cost(distiller).total(1, 1, 1, 1))
    assert "FLOPs of this qwen2 model are unknown" in caplog.text
