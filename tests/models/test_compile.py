"""Compiled and recomputed blocks: less memory for the backward pass, and unchanged results."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from lightning_switchkd.core.types import Part
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.auto import build
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives import SwitchKDObjective
from lightning_switchkd.training.callbacks import ValGeneration
from lightning_switchkd.training.module import SwitchKD


def pair(student: list[Part], teacher: list[Part], **changes: Any) -> Distiller:
    """Create a pair that recomputes these parts."""
    models = (
        tiny.vlm(seed=0, activation_checkpointing=student, **changes),
        tiny.vlm(seed=1, activation_checkpointing=teacher, width=24, lm="llama", tied=False, **changes),
    )
    return Distiller(*models, SwitchKDObjective(), vocabulary=280).train()


def bytes_kept(model: Distiller) -> int:
    """Count the bytes that autograd keeps for the backward pass, without parameters."""
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    total = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    batch = tiny.batch(images=(8, 7, 8))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(batch, batch.counts.tensor(), 0).loss
    loss.backward()  # keeps the tensors alive until here, so that no address is reused
    return total


def test_recomputation_keeps_less() -> None:
    """Each part alone, the frozen teacher's language model in the switch pathway included, and all together."""
    plain = bytes_kept(pair([], []))
    alone = [bytes_kept(pair(*parts)) for parts in ((["vision"], []), (["projector"], []), (["lm"], []), ([], ["lm"]))]
    assert max(alone) < plain
    assert bytes_kept(pair(["vision", "lm"], ["lm"])) < 0.6 * plain


@pytest.mark.parametrize("lm", ["qwen2", "llama", "phi3", "stablelm", "gemma", "mistral", "qwen3"])
def test_recomputed_gradients_are_equal(lm: str) -> None:
    """Bit by bit, also with dropout: the recomputation draws the same random numbers."""
    gradients = []
    for parts in ([], ["vision", "projector", "lm"]):
        model, batch = tiny.vlm(activation_checkpointing=parts, lm=lm), tiny.batch()
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5
        torch.manual_seed(0)
        image_embeds = tiny.image_embeds(model.train(), batch)
        model.head(model.decode(batch.input_ids, batch.attention_mask, image_embeds)).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[1][name], gradient) for name, gradient in gradients[0].items())


# -- what does not change ----------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {"compile": ["lm"], "activation_checkpointing": ["vision", "projector", "lm"]}


def greedy(model: VLMAdapter) -> list[list[int]]:
    batch = tiny.batch()
    ids, mask = batch.input_ids.flip(1), batch.attention_mask.flip(1)  # left-padded
    image_embeds = tiny.image_embeds(model, batch)
    answers = model.generate(ids, mask, image_embeds, max_new_tokens=12, stop_ids=[0])
    assert answers.shape[1] == 12
    return [list(row) for row in answers.tolist()]


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_generate_is_unchanged(grad: bool, training: bool) -> None:
    """Decoding with a key-value cache compiles nothing."""
    import torch._dynamo.utils

    torch._dynamo.utils.counters.clear()
    plain, with_options = tiny.vlm().train(training), tiny.vlm(**EVERYTHING).train(training)
    with torch.set_grad_enabled(grad):
        assert greedy(with_options) == greedy(plain)
    assert not torch._dynamo.utils.counters["stats"]


def test_names_export_and_copies_are_unchanged(tmp_path: Path) -> None:
    plain, with_options = tiny.vlm(), tiny.vlm(**EVERYTHING)
    assert [*with_options.state_dict()] == [*plain.state_dict()]
    assert [*dict(with_options.named_modules())] == [*dict(plain.named_modules())]
    plain.model.save_pretrained(tmp_path / "plain")
    with_options.model.save_pretrained(tmp_path / "with_options")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "with_options" / name).read_bytes()
    clone = copy.deepcopy(with_options)
    for block in clone.blocks("vision"):
        for parameter in block.parameters():
            parameter.data.zero_()
    pixels = tiny.batch().vision
    assert torch.equal(with_options.encode(pixels)[0], plain.encode(pixels)[0]), "a copy uses its own weights"
    assert not torch.equal(clone.encode(pixels)[0], plain.encode(pixels)[0])


@pytest.mark.parametrize("lm", ["qwen2", "llama", "phi3", "stablelm", "gemma", "mistral", "qwen3"])
def test_blocks(lm: str) -> None:
    model = tiny.vlm(lm=lm)
    assert [type(block).__name__ for block in model.blocks("vision")] == ["CLIPEncoderLayer"] * 2, "the third is unused"
    assert len(model.blocks("lm")) == 2
    assert len(model.blocks("projector")) == 1


# -- dtypes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("teacher_dtype", ["float32", "bfloat16"])
def test_rotary_frequencies_stay_float32(tmp_path: Path, precision: Any, teacher_dtype: Any) -> None:
    """Through loading, casting, training and greedy validation, in student and teacher."""
    folder = tiny.write_data(tmp_path / "data")
    tiny.save_vlm(folder / "student", seed=0)
    tiny.save_vlm(folder / "teacher", seed=1, width=24, lm="llama", tied=False)
    teacher = VLMSpec(checkpoint=str(folder / "teacher"), dtype=teacher_dtype)
    model = SwitchKD(VLMSpec(checkpoint=str(folder / "student")), teacher, SwitchKDObjective())
    trainer = tiny.trainer(
        tmp_path, precision=precision, max_steps=2, limit_val_batches=1, val_check_interval=2,
        callbacks=[ValGeneration(num_samples=4, max_new_tokens=3)],
    )  # fmt: skip
    trainer.fit(model, datamodule=tiny.data_module(folder))
    assert "val/exact_match" in trainer.callback_metrics
    for vlm, name in ((model.distiller.student, "student"), (model.distiller.frozen_teacher, "teacher")):
        loaded = dict(build(VLMSpec(checkpoint=str(folder / name)), tiny.tokenizer(), name).named_buffers())
        assert any("inv_freq" in buffer for buffer in loaded)
        for buffer, tensor in vlm.named_buffers():
            assert tensor.dtype == loaded[buffer].dtype, buffer
            assert torch.equal(tensor, loaded[buffer]), buffer


def test_a_model_from_parts_keeps_its_buffers() -> None:
    model = tiny.vlm(dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for n, b in model.named_buffers() if "inv_freq" in n} == {torch.float32}
