"""The three pathways: equal to Hugging Face's own models, and gradients that reach what method.md, section 1 says."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny
import torch

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import PARTS, Batch
from lightning_switchkd.distillation.checks import check_packing
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.distillation.pathways import run_pathways
from lightning_switchkd.losses import dbild
from lightning_switchkd.losses.chunked import sum_losses
from lightning_switchkd.objectives import KD, SFT, AlignKD, LLaVAKD, Objective, SwitchKDObjective

PAIR = [("clip", "qwen2", True), ("clip", "llama", False), ("siglip", "qwen2", False), ("siglip", "llama", True)]


def distiller(objective: Objective, encoder: str = "clip", seed: int = 0) -> Distiller:
    """A pair of one feature space, unequal everywhere else, in float64."""
    student = tiny.vlm(seed=seed, encoder=encoder)
    teacher = tiny.vlm(seed=seed + 1, encoder=encoder, width=24, lm="llama", tied=False).double()
    return Distiller(student.double(), teacher, objective, vocabulary=len(tiny.tokenizer()))


def touched(model: Distiller) -> dict[str, bool]:
    """Which parts have a gradient that is not zero; every single parameter of a touched part must have one."""
    reached = {}
    for part in PARTS:
        gradients = {
            name: p.grad
            for name, p in model.student.model.named_parameters()
            if any(p is own for own in model.student.part_parameters(part))
        }
        assert gradients
        nonzero = {n for n, g in gradients.items() if g is not None and bool(g.abs().max() > 0)}
        # a key bias shifts all attention scores of a query alike: its true gradient is zero
        rest = {n for n in gradients.keys() - nonzero if not n.endswith("k_proj.bias")}
        assert not nonzero or not rest, f"{part}: no gradient in {rest}"
        reached[part] = bool(nonzero)
    return reached


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
@pytest.mark.parametrize(
    ("objective", "term", "reached"),
    [
        (SFT(), "ce", {"vision": True, "projector": True, "lm": True}),
        (KD(), "fkl", {"vision": True, "projector": True, "lm": True}),
        (SwitchKDObjective(), "align", {"vision": True, "projector": True, "lm": True}),
        (SwitchKDObjective(), "vsd", {"vision": True, "projector": False, "lm": False}),
    ],
    ids=["ce", "fkl", "align", "vsd"],
)
def test_gradient_routing(objective: Objective, term: str, reached: dict[str, bool], encoder: str) -> None:
    model = distiller(copy.deepcopy(objective), encoder)
    rows = tiny.inputs_of(model, tiny.batch()).answer_tokens
    sum_losses(rows, model.heads(), {term: model.objective.terms[term]}, {term: 1.0}).loss.backward()
    assert touched(model) == reached
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    behind = set(model.student.parameters()) - {p for part in PARTS for p in model.student.part_parameters(part)}
    assert behind, "with feature layer -2 the encoder's last layer lies behind the features"
    assert all(p.grad is None and not p.requires_grad for p in behind)


@pytest.mark.parametrize(("encoder", "lm", "tied"), PAIR)
def test_pathways_equal_hugging_face(encoder: str, lm: str, tied: bool) -> None:
    student = tiny.vlm(encoder=encoder, lm=lm, tied=tied)
    teacher = tiny.vlm(seed=1, encoder=encoder, lm=lm, tied=tied, width=24)
    model = Distiller(student, teacher, SwitchKDObjective(), vocabulary=280).eval()
    batch = tiny.batch()
    outputs, _ = run_pathways(student, teacher, batch, ("teacher", "switch"))
    for pathway, vlm in (("student", student), ("teacher", teacher)):
        with torch.no_grad():
            expected = vlm.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=batch.pixel_values
            ).logits
        real = batch.attention_mask.bool()
        torch.testing.assert_close(
            model.heads()[pathway](outputs[pathway].hidden)[real], expected[real], atol=1e-5, rtol=0
        )


def test_switch_reads_the_students_features() -> None:
    """z^W is what the teacher says when its vision encoder is exchanged for the student's."""
    model = distiller(SwitchKDObjective())
    batch = tiny.batch()
    switched = copy.deepcopy(model.teacher.vlm.model)
    switched.model.vision_tower = copy.deepcopy(model.student.model.model.vision_tower)
    with torch.no_grad():
        expected = switched(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=batch.pixel_values.double()
        ).logits
        got = model.heads()["switch"](
            run_pathways(model.student, model.frozen_teacher, batch, ("switch",))[0]["switch"].hidden
        )
    real = batch.attention_mask.bool()
    torch.testing.assert_close(got[real], expected[real], atol=1e-10, rtol=0)


def test_text_only_records_take_no_part_in_vsd() -> None:
    model = distiller(SwitchKDObjective())
    batch = tiny.batch(images=(1, 0, 2))
    terms = model(batch, batch.counts.tensor(), 0)
    rows = tiny.inputs_of(model, batch).answer_tokens
    teacher, switch = (
        model.heads()[pathway](rows.hidden[pathway])[:, : rows.vocabulary] for pathway in ("teacher", "switch")
    )
    values = dbild(teacher=teacher, student=switch)
    torch.testing.assert_close(terms.sums["vsd"], values[rows.visual].sum().detach())
    torch.testing.assert_close(switch[~rows.visual], teacher[~rows.visual])
    assert terms.units["vsd"] == "visual_token"
    assert batch.counts.visual_token < batch.counts.token


def test_loss_is_sums_over_counts_of_the_step() -> None:
    model = distiller(SwitchKDObjective(lambda_align=0.5, lambda_vsd=2.0))
    batch = tiny.batch()
    totals = batch.counts.tensor() * 3
    terms = model(batch, totals, 0)
    expected = (terms.sums["ce"] + 0.5 * terms.sums["align"]) / totals[0] + 2.0 * terms.sums["vsd"] / totals[1]
    torch.testing.assert_close(terms.loss, expected)


@pytest.mark.parametrize("batch", [tiny.batch(images=(0, 0, 0)), tiny.batch(answer=(0, 0, 0))], ids=["text", "masked"])
def test_no_image_or_no_answer_is_finite(batch: Batch) -> None:
    model = distiller(SwitchKDObjective())
    terms = model(batch, batch.counts.tensor(), 0)
    terms.loss.backward()
    assert torch.isfinite(terms.loss)
    for part in PARTS:
        for parameter in model.student.part_parameters(part):
            assert parameter.grad is not None, "every trainable parameter takes part in every step (DDP needs it)"
            assert torch.isfinite(parameter.grad).all()
    if batch.counts.visual_token == 0:
        assert terms.sums["vsd"] == 0


def packed_and_padded(folder: Path) -> list[tuple[Batch, Batch]]:
    """The same records in both layouts: several lengths, with images and without."""
    streams = [tiny.data_module(folder, packing=packing, seed=1).stream("train") for packing in (True, False)]
    pairs = list(zip(*streams, strict=True))
    assert all(packed.sample_index.tolist() == padded.sample_index.tolist() for packed, padded in pairs)
    assert any(len(set(packed.lengths.tolist())) > 1 for packed, _ in pairs)
    return pairs


def losses_and_gradients(model: Distiller, batch: Batch) -> dict[str, torch.Tensor]:
    """Every term's sum, and every gradient."""
    model.zero_grad()
    terms = model(batch, batch.counts.tensor(), 0)
    terms.loss.backward()
    gradients = {name: p.grad for name, p in model.student.named_parameters() if p.grad is not None}
    return {**terms.sums, **gradients}


@pytest.mark.parametrize("objective", [SwitchKDObjective, LLaVAKD, AlignKD])
def test_packed_records_train_like_padded_ones(objective: type[Objective], folder: Path) -> None:
    """On a kernel that masks tokens of other records, which a run is refused: it does the same, only slower."""
    model = distiller(objective()).double()
    for packed, padded in packed_and_padded(folder):
        assert packed.counts == padded.counts
        found, expected = losses_and_gradients(model, packed), losses_and_gradients(model, padded)
        assert found.keys() == expected.keys()
        scale = max(float(value.abs().max()) for value in expected.values())
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12 * scale, msg=name)


def test_packing_is_refused_where_it_would_only_cost(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the student uses 'sdpa'.* model\.student\.attn_implementation"):
        tiny.trainer(tmp_path).fit(tiny.switch_kd(folder), datamodule=tiny.data_module(folder, packing=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: flex attention trains on no CPU")
def test_packed_records_train_on_a_kernel_of_variable_length(folder: Path) -> None:
    flex = {"attn_implementation": "flex_attention", "heads": 1}
    pair = tiny.vlm(**flex), tiny.vlm(seed=1, width=32, lm="llama", tied=False, **flex)
    check_packing(*pair)
    model = Distiller(*pair, SwitchKDObjective(), vocabulary=len(tiny.tokenizer())).cuda()
    for packed, padded in packed_and_padded(folder):
        found, expected = (losses_and_gradients(model, batch.to("cuda")) for batch in (packed, padded))
        scale = max(float(value.abs().max()) for value in expected.values())
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_lambda_warmup() -> None:
    objective = SwitchKDObjective(lambda_align=2.0, warmup_steps=4)
    assert [objective.weight("align", step) for step in (0, 1, 3, 9)] == [0.5, 1.0, 2.0, 2.0]
    assert objective.weight("ce", 0) == 1.0


def test_state_dict_has_no_teacher_and_loads_without_one() -> None:
    model, other = distiller(SwitchKDObjective()), distiller(SwitchKDObjective(), seed=5)
    state = model.state_dict()
    assert not [key for key in state if "teacher" in key]
    teacher_before = copy.deepcopy(other.teacher.vlm.model.state_dict())
    other.load_state_dict(state)  # strict
    for key, value in other.teacher.vlm.model.state_dict().items():
        assert torch.equal(value, teacher_before[key])
    state.pop(next(iter(state)))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(state)


def test_teacher_stays_eval_frozen_and_in_its_dtype() -> None:
    student, teacher = tiny.vlm(), tiny.vlm(seed=1, dtype="bfloat16")
    model = Distiller(student, teacher, SwitchKDObjective(), vocabulary=280)
    model.train().double().float()
    assert not any(module.training for module in model.teacher.modules())
    assert {p.dtype for p in model.teacher.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.student.parameters()} == {torch.float32}
    model(tiny.batch(), tiny.batch().counts.tensor(), 0).loss.backward()
    assert all(p.grad is not None for p in student.part_parameters("vision"))
