"""LoRA in the student's language model: training, checkpoints and export."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from command import fit_arguments

from lightning_switchkd.cli.export import export
from lightning_switchkd.cli.main import main
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.models.auto import build
from lightning_switchkd.models.lora import LoRA, merged
from lightning_switchkd.models.spec import VLMSpec


def adapted(folder: Path, **changes: object) -> VLMSpec:
    return VLMSpec(checkpoint=str(folder / "student"), lora=LoRA(**{"rank": 4, "alpha": 8.0, **changes}))  # type: ignore[arg-type]


def test_starts_as_the_model_and_trains_only_adapters(folder: Path) -> None:
    plain, lora = (
        build(s, tiny.tokenizer(), "student").eval() for s in (VLMSpec(str(folder / "student")), adapted(folder))
    )
    batch = tiny.batch()
    outputs = [
        vlm.decode(batch.input_ids, batch.attention_mask, tiny.image_embeds(vlm, batch)) for vlm in (plain, lora)
    ]
    torch.testing.assert_close(*outputs)
    trained = [name for name, p in lora.model.named_parameters() if p.requires_grad and "language_model" in name]
    assert trained
    assert all(".lora_" in name for name in trained)
    assert not lora.model.lm_head.weight.requires_grad


def test_merged_weights_give_the_adapted_outputs(folder: Path) -> None:
    lora = build(adapted(folder), tiny.tokenizer(), "student").eval().double()
    for name, parameter in lora.model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    plain = build(VLMSpec(str(folder / "student")), tiny.tokenizer(), "student").eval().double()
    plain.model.load_state_dict(merged(lora.model.state_dict(), 2.0))
    batch = tiny.batch()
    outputs = [
        vlm.decode(batch.input_ids, batch.attention_mask, tiny.image_embeds(vlm, batch)) for vlm in (plain, lora)
    ]
    torch.testing.assert_close(*outputs)


def test_a_run_exports_a_plain_folder_and_resumes(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = fit_arguments(folder, run, "--model.student.lora.rank=4", "--model.lr=0.05")
    main(arguments)
    before, after = tiny.load_weights(folder / "student"), tiny.load_weights(run / "student")
    assert before.keys() == after.keys()
    changed = [name for name in before if "language_model" in name and not torch.equal(before[name], after[name])]
    assert changed
    assert all("proj.weight" in name for name in changed), "embeddings and norms do not change"
    export(str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "exported"))
    for name, tensor in tiny.load_weights(tmp_path / "exported").items():
        assert torch.equal(after[name], tensor), name
    main([*arguments, "--trainer.max_steps=6", "--ckpt_path=last"])


def test_a_teacher_has_no_adapters(folder: Path) -> None:
    with pytest.raises(UserError, match="a teacher does not train"):
        build(adapted(folder), tiny.tokenizer(), "teacher")


def test_unknown_layer_names(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.student\.lora: .*nowhere"):
        build(adapted(folder, targets=["nowhere"]), tiny.tokenizer(), "student")
