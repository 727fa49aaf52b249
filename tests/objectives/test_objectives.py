"""Each objective against the naive reference: loss and every gradient; what it trains; the defects of public code."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from naive import Naive
from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import PARTS, Part
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.losses import FixedTopK, dbild, jensen_shannon
from lightning_switchkd.models.head import Head
from lightning_switchkd.objectives import KD, AlignKD, LLaVAKD, Objective, SwitchKDObjective
from lightning_switchkd.objectives.llava_kd import self_correlation
from lightning_switchkd.training.optim import parameter_groups

CONF = Path(__file__).parents[2] / "conf" / "method"
GOLDEN = Path(__file__).parents[1] / "golden" / "dbild.json"
VOCABULARY = len(tiny.tokenizer())
BATCH = tiny.batch(images=(1, 0, 2), answer=(3, 5, 2))
FOCUS = 2


def distiller(objective: Objective, encoder: str = "clip", equal: bool = False, **changes: object) -> Distiller:
    """A pair of unequal heads, widths and layers in float64; or a teacher equal to the student."""
    torch.manual_seed(0)
    student = tiny.vlm(seed=0, encoder=encoder, **changes)
    other = {"lm": "llama", "tied": False, "width": 24, "heads": 4}
    teacher = copy.deepcopy(student) if equal else tiny.vlm(seed=1, encoder=encoder, **{**changes, **other})
    return Distiller(student, teacher.double(), objective, VOCABULARY).double()


def naive_kd(divergence: str) -> Callable[[Naive, Objective], Tensor]:
    settings = {"temperature": 2.0} | ({"beta": 0.3} if divergence == "jsd" else {})
    return lambda naive, _: naive.ce() + 0.5 * getattr(naive, divergence)(naive.answers(), **settings)


def naive_llava_kd(naive: Naive, _: Objective) -> Tensor:
    text, visual = naive.fkl(naive.answers(), 1.0), naive.fkl(naive.image_places(), 1.0)
    return naive.ce() + 0.5 * text + 2.0 * visual + 3.0 * naive.relation()


def naive_align_kd(naive: Naive, objective: Objective) -> Tensor:
    assert isinstance(objective, AlignKD)
    projected = 3.0 * naive.embeds_error(objective) + 4.0 * naive.embeds_error(objective, FOCUS)
    return naive.ce() + 0.5 * naive.fkl(naive.answers(), 1.0) + 2.0 * naive.attention(objective) + projected


METHODS: dict[str, tuple[Callable[[], Objective], Callable[[Naive, Objective], Tensor]]] = {
    "kd_fkl": (lambda: KD("fkl", 0.5, 2.0), naive_kd("fkl")),
    "kd_rkl": (lambda: KD("rkl", 0.5, 2.0), naive_kd("rkl")),
    "kd_jsd": (lambda: KD("jsd", 0.5, 2.0, beta=0.3), naive_kd("jsd")),
    "bild": (
        lambda: SwitchKDObjective(lambda_vsd=0, select=FixedTopK(8), direction="forward"),
        lambda naive, _: naive.ce() + naive.bild(),
    ),
    "llava_kd": (lambda: LLaVAKD(0.5, 2.0, 3.0), naive_llava_kd),
    "align_kd": (lambda: AlignKD(0.5, 2.0, 3.0, 4.0, focus_tokens=FOCUS), naive_align_kd),
}


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_naive_reference(method: str, encoder: str) -> None:
    """Loss and the gradients of all of the student and of adapters: another image size, so no count is a constant."""
    make, reference = METHODS[method]
    model = distiller(make(), encoder)
    plain, objective = copy.deepcopy(model.student.model), copy.deepcopy(model.objective)
    terms = model(BATCH, BATCH.counts.tensor(), 0)
    terms.loss.backward()

    naive = Naive(plain, copy.deepcopy(model.frozen_teacher.model), BATCH, VOCABULARY)
    wanted = reference(naive, objective)
    wanted.backward()
    torch.testing.assert_close(terms.loss, wanted, rtol=1e-10, atol=1e-12)
    ours = [*model.student.model.named_parameters(), *model.objective.named_parameters()]
    theirs = dict([*plain.named_parameters(), *objective.named_parameters()])
    for name, parameter in ours:
        zero = torch.zeros_like(parameter)
        found, expected = (zero if p.grad is None else p.grad for p in (parameter, theirs[name]))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    assert all(p.grad is None for p in model.teacher.parameters())


def test_golden_values() -> None:
    for case in json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]:
        real = case["real_vocabulary"]
        teacher, student = (torch.tensor(case[s], dtype=torch.float64)[..., :real] for s in ("teacher", "student"))
        pair = {"teacher": teacher.view(-1, real), "student": student.view(-1, real)}
        found = dbild(**pair, select=FixedTopK(8), reverse=False, temperature=3.0)
        torch.testing.assert_close(
            found, torch.tensor(case["bild"], dtype=torch.float64).view(-1), rtol=1e-9, atol=1e-9
        )
        for beta in (0.5, 0.9):
            found = jensen_shannon(**pair, temperature=case["temperature"], beta=beta)
            wanted = torch.tensor(case[f"jsd_{beta}"], dtype=torch.float64).view(-1)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["kd_fkl", "kd_rkl", "kd_jsd", "bild", "llava_kd"])
def test_nothing_is_left_to_learn_from_an_equal_teacher(method: str) -> None:
    """KL(x, x) is 0, and so are its gradients: some public losses are not, at their minimum."""
    model = distiller(METHODS[method][0](), equal=True)
    terms = model(BATCH, BATCH.counts.tensor(), 0)
    for name in terms.sums.keys() - {"ce", "correct"}:
        assert abs(float(terms.sums[name])) < 1e-9, name
    (terms.loss - distiller_ce(model)).backward()
    assert max(float(p.grad.abs().max()) for p in model.student.parameters() if p.grad is not None) < 1e-7


def distiller_ce(model: Distiller) -> Tensor:
    objective, model.objective = model.objective, Objective()
    loss = model(BATCH, BATCH.counts.tensor(), 0).loss
    model.objective = objective
    assert isinstance(loss, Tensor)
    return loss


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("kd_fkl", {"vision", "projector", "lm"}),
        ("kd_rkl", {"vision", "projector", "lm"}),
        ("kd_jsd", {"vision", "projector", "lm"}),
        ("bild", {"vision", "projector", "lm"}),
        ("llava_kd", {"projector", "lm"}),
        ("llava_kd-pretrain", {"projector"}),
        ("llava_kd-sft", {"projector", "lm"}),
        ("align_kd", {"projector", "lm"}),
    ],
)
def test_trains_what_its_paper_trains(method: str, trained: set[Part]) -> None:
    settings = yaml.safe_load((CONF / f"{method}.yaml").read_text(encoding="utf-8"))["model"]
    module, _, name = settings["objective"]["class_path"].rpartition(".")
    arguments = dict(settings["objective"].get("init_args", {}))
    arguments.pop("select", None)
    objective = getattr(__import__(module, fromlist=[name]), name)(**arguments)
    model = distiller(objective)
    for part in settings.get("freeze", []):
        for parameter in model.student.part_parameters(part):
            parameter.requires_grad_(False)
    model(BATCH, BATCH.counts.tensor(), 0).loss.backward()
    for part in PARTS:
        reached = [p.grad is not None and bool(p.grad.abs().max() > 0) for p in model.student.part_parameters(part)]
        assert any(reached) == (part in trained), part
    grouped = {
        id(p)
        for group in parameter_groups(model, dict.fromkeys((*PARTS, "objective"), 1.0), 0.0)
        for p in group["params"]
    }
    own = list(model.objective.parameters())
    assert all(id(p) in grouped and bool(p.grad.abs().max() > 0) for p in own), "an adapter is trained as well"
    assert bool(own) == (method == "align_kd")


def test_attention_is_that_of_text_to_image() -> None:
    """Of image queries and text keys, the quadrant that the released code compares, causal attention shows nothing."""
    model = distiller(AlignKD())
    inputs = tiny.inputs_of(model, BATCH)
    naive = Naive(copy.deepcopy(model.student.model), copy.deepcopy(model.frozen_teacher.model), BATCH, VOCABULARY)
    for pathway, out in (("student", naive.student), ("teacher", naive.teacher)):
        for ours, wanted in zip(inputs.attention[pathway], naive.attention_maps(out), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)
            assert bool((ours.sum(-1) > 0).all())
    assert bool(inputs.attention["student"][0].requires_grad)
    for b, columns in naive.images():
        assert not bool(naive.student.attentions[0][b][:, columns][:, :, columns[-1] + 1 :].any())


@pytest.mark.parametrize(("encoder", "tokens"), [("clip", 4), ("siglip", 4)])
def test_the_number_of_image_tokens_is_the_models(encoder: str, tokens: int) -> None:
    model = distiller(LLaVAKD(), encoder)
    inputs = tiny.inputs_of(model, BATCH)
    assert inputs.tokens_per_image == tokens
    assert len(inputs.tokens("image").targets) == BATCH.counts.image_token == 3 * tokens
    assert set(inputs.tokens("image").targets.tolist()) == {model.student.image_token_id}


@pytest.mark.parametrize("objective", [LLaVAKD, AlignKD])
@pytest.mark.parametrize("images", [(0, 0, 0), (0, 1, 0)])
def test_batches_without_images_are_finite_and_reach_every_parameter(
    objective: type[Objective], images: tuple[int, ...]
) -> None:
    batch = tiny.batch(images=images)
    model = distiller(objective())
    terms = model(batch, batch.counts.tensor(), 0)
    terms.loss.backward()
    assert bool(torch.isfinite(terms.loss))
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.objective.parameters())
    assert all(p.grad is not None for part in PARTS for p in model.student.part_parameters(part))


@pytest.mark.parametrize("method", ["llava_kd", "align_kd"])
def test_micro_batches_add_up_to_the_whole(method: str) -> None:
    """Each term is divided by its units in the whole step: so many at a time makes no difference."""
    model = distiller(METHODS[method][0]())
    totals = BATCH.counts.tensor()
    model(BATCH, totals, 0).loss.backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    parts = [model(BATCH.only(records), totals, 0) for records in ([0], [1, 2])]
    for part in parts:
        part.loss.backward()
    for name, parameter in model.named_parameters():
        if name in whole:
            torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-8, atol=1e-11, msg=name)


def test_adapters_are_saved_with_the_student_and_not_exported() -> None:
    model, other = distiller(AlignKD()), distiller(AlignKD())
    with torch.no_grad():
        model.objective.terms["embeds"].adapter.weight.add_(1.0)
    state = model.state_dict()
    assert {name for name in state if name.startswith("objective.")} == {
        f"objective.terms.{term}.adapter.{part}" for term in ("attention", "embeds") for part in ("weight", "bias")
    }
    other.load_state_dict(state)  # strict
    assert torch.equal(other.objective.terms["embeds"].adapter.weight, model.objective.terms["embeds"].adapter.weight)
    assert not any("adapter" in name for name in model.student.model.state_dict())


def test_recomputed_blocks_and_recorded_attention() -> None:
    """Layer 0 runs twice, its queries and keys are noted once, and the gradients are the same."""
    found = []
    for changes in ({}, {"activation_checkpointing": ["vision", "lm"]}):
        model = distiller(AlignKD(), **changes)
        model(BATCH, BATCH.counts.tensor(), 0).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_self_correlation_is_that_of_the_logits() -> None:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, dtype=torch.float64) for s in ((2, 5, 4), (11, 4), (11,)))
    logits = hidden @ weight[:9].T + bias[:9]
    found = self_correlation(hidden, Head(weight, bias), vocabulary=9)
    torch.testing.assert_close(found, logits @ logits.transpose(1, 2))
    with pytest.raises(UserError, match="softcapping=30"):
        self_correlation(hidden, Head(weight, softcap=30.0), vocabulary=9)


def test_eager_attention_is_refused() -> None:
    student = tiny.vlm()
    student.language_model.set_attn_implementation("eager")
    with pytest.raises(UserError, match=r"model\.student\.attn_implementation to sdpa"):
        Distiller(student, tiny.vlm(seed=1), AlignKD(), VOCABULARY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: KD("kl"), "unknown divergence 'kl'"),
        (lambda: SwitchKDObjective(direction="both"), "unknown direction 'both'"),
        (lambda: LLaVAKD(visual=-1.0), "weight of 'visual' must be a positive number, got -1"),
    ],
)
def test_what_cannot_be(change: Callable[[], Objective], message: str) -> None:
    with pytest.raises(UserError, match=message):
        change()


@pytest.mark.parametrize("method", ["kd_fkl", "bild", "llava_kd", "align_kd"])
def test_only_who_asks_pays(method: str) -> None:
    """Image rows, projected images and first attention are there for those that read them, and for nobody else."""
    model = distiller(METHODS[method][0]())
    inputs = tiny.inputs_of(model, BATCH)
    assert (inputs.image_tokens is not None) == (method == "llava_kd")
    assert bool(inputs.attention) == bool(inputs.image_embeds) == (method == "align_kd")
    assert model.student.attention == ("sdpa_watched" if method == "align_kd" else "sdpa")
    assert len(model.kept_positions(BATCH).positions) == BATCH.counts.token + BATCH.counts.image_token * (
        method == "llava_kd"
    )
