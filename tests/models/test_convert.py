"""Conversion: a small model in each layout gives the same logits before and after."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.processor import load_processor
from lightning_switchkd.models.convert import convert

State = dict[str, Tensor]


def parts(encoder: str = "clip") -> tuple[Any, State, State, State, State]:
    """Return a model, and the state dicts of its parts and head under their source names."""
    model = tiny.vlm(seed=3, encoder=encoder, tied=False).model
    inner = model.model
    vision = {f"vision_model.{name}": t for name, t in inner.vision_tower.state_dict().items()}
    projector = {
        name.replace("linear_1", "0").replace("linear_2", "2"): t
        for name, t in inner.multi_modal_projector.state_dict().items()
    }
    return model, vision, projector, inner.language_model.state_dict(), model.lm_head.state_dict()


def logits(model: Any, ids: Tensor, pixels: Tensor, drop: bool) -> Tensor:
    """Compute logits as the source's code does: features of the second to last layer, an MLP, inserted embeddings."""
    inner = model.model
    hidden = inner.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, int(drop) :]
    embeds = inner.language_model.get_input_embeddings()(ids)
    first, act, second = (
        inner.multi_modal_projector.linear_1,
        torch.nn.functional.gelu,
        inner.multi_modal_projector.linear_2,
    )
    image = second(act(first(hidden)))
    start = int((ids[0] == 3).nonzero()[0])
    embeds = torch.cat([embeds[:, :start], image, embeds[:, start + image.shape[1] :]], 1)
    return model.lm_head(inner.language_model(inputs_embeds=embeds).last_hidden_state)


def write_processor_files(folder: Path, model: Any) -> None:
    """Write tokenizer and image processor."""
    tiny.tokenizer().save_pretrained(folder)
    size = {"height": tiny.IMAGE_SIZE, "width": tiny.IMAGE_SIZE}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)


def write_tinyllava(folder: Path, encoder: str) -> Any:
    model, vision, projector, lm, head = parts(encoder)
    state = {f"vision_tower._vision_tower.{n}": t for n, t in vision.items()}
    state |= {f"connector._connector.{n}": t for n, t in projector.items()}
    state |= {f"language_model.model.{n}": t for n, t in lm.items()}
    state |= {f"language_model.lm_head.{n}": t for n, t in head.items()}
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors")
    config = {
        "model_type": "tinyllava",
        "text_config": model.config.text_config.to_dict(),
        "vision_config": model.config.vision_config.to_dict(),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "patch",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_processor_files(folder, model)
    return model


def write_tinyllava_parts(folder: Path, encoder: str) -> Any:
    """Write three folders, as TinyLLaVA's trainer does."""
    model, vision, projector, lm, head = parts(encoder)
    for name in ("language_model", "vision_tower", "connector"):
        (folder / name).mkdir()
    torch.save({f"model.{n}": t for n, t in lm.items()} | {f"lm_head.{n}": t for n, t in head.items()},
               folder / "language_model" / "pytorch_model.bin")  # fmt: skip
    torch.save(vision, folder / "vision_tower" / "pytorch_model.bin")
    torch.save({f"_connector.{n}": t for n, t in projector.items()}, folder / "connector" / "pytorch_model.bin")
    model.config.text_config.save_pretrained(folder / "language_model")
    model.config.vision_config.save_pretrained(folder / "vision_tower")
    write_processor_files(folder, model)
    return model


def write_llava(folder: Path, encoder: str) -> Any:
    model, vision, projector, lm, head = parts(encoder)
    state = {f"model.vision_tower.vision_tower.{n}": t for n, t in vision.items()}
    state |= {f"model.mm_projector.{n}": t for n, t in projector.items()}
    state |= {f"model.{n}": t for n, t in lm.items()} | {f"lm_head.{n}": t for n, t in head.items()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # of an older version
    torch.save(state, folder / "pytorch_model.bin")
    text = {k: v for k, v in model.config.text_config.to_dict().items() if k != "model_type"}
    extras = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_projector_type": "mlp2x_gelu"}
    config = {**text, "model_type": "llava_qwen2", "vision_config": model.config.vision_config.to_dict(), **extras}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_processor_files(folder, model)
    return model


def write_xtuner(folder: Path, encoder: str) -> Any:
    """Write a language model with folders for projector and vision encoder inside."""
    model, vision, projector, lm, head = parts(encoder)
    for name in ("projector", "visual_encoder"):
        (folder / name).mkdir()
    save = {f"model.{n}": t.contiguous() for n, t in lm.items()} | {f"lm_head.{n}": t for n, t in head.items()}
    save_file(save, folder / "model.safetensors")
    save_file({f"model.{n}": t for n, t in projector.items()}, folder / "projector" / "model.safetensors")
    save_file({n: t.contiguous() for n, t in vision.items()}, folder / "visual_encoder" / "model.safetensors")
    model.config.text_config.save_pretrained(folder)
    model.config.vision_config.save_pretrained(folder / "visual_encoder")
    write_processor_files(folder, model)
    return model


WRITERS: dict[str, Callable[[Path, str], Any]] = {
    "tinyllava": write_tinyllava,
    "tinyllava-parts": write_tinyllava_parts,
    "llava": write_llava,
    "xtuner": write_xtuner,
}


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
@pytest.mark.parametrize("layout", WRITERS)
def test_logits_are_the_same(tmp_path: Path, layout: str, encoder: str) -> None:
    source, output = tmp_path / "source", tmp_path / "native"
    source.mkdir()
    before = WRITERS[layout](source, encoder).eval()
    convert(str(source), str(output), dtype="float32")
    after = LlavaForConditionalGeneration.from_pretrained(output).eval()
    report = json.loads((output / "conversion.json").read_text(encoding="utf-8"))
    assert report["layout"] == layout.removesuffix("-parts")
    assert not report["missing"]
    assert not report["unexpected"]
    tokens = load_processor(output)
    num_tokens = tiny.TOKENS_PER_IMAGE - (encoder == "siglip")  # "patch" drops a feature of SigLIP as well
    ids = torch.tensor([[5, 9, *[3] * num_tokens, 20, 21, 22]])
    assert after.config.image_token_id == tokens.tokenizer.convert_tokens_to_ids("<image>") == 3
    pixels = torch.randn(1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = logits(before, ids, pixels, drop=True)
        actual = after(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(actual[..., : expected.shape[-1]], expected, atol=1e-5, rtol=1e-5)


def test_a_missing_part_is_named_and_can_be_given(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model = write_llava(source, "clip")
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save({n: t for n, t in state.items() if "vision_tower" not in n}, source / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"missing: model\.vision_tower.*Give --vision"):
        convert(str(source), str(tmp_path / "native"))
    model.model.vision_tower.save_pretrained(tmp_path / "encoder")
    convert(str(source), str(tmp_path / "native"), vision=str(tmp_path / "encoder"), dtype="float32")
    after = LlavaForConditionalGeneration.from_pretrained(tmp_path / "native")
    for name, tensor in model.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor), name


def test_unknown_and_unsafe_sources(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        convert(str(tmp_path / "nowhere"), str(tmp_path / "out"))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"layout of the tensors in .* is unknown"):
        convert(str(tmp_path), str(tmp_path / "out"))
    (tmp_path / "model.safetensors").unlink()
    torch.save({"run": convert}, tmp_path / "pytorch_model.bin")  # a pickle that refers to code
    with pytest.raises(UserError, match="cannot be read as a file of tensors"):
        convert(str(tmp_path), str(tmp_path / "out"))
