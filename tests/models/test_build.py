"""Models from a checkpoint, from parts and from a configuration, and the errors of invalid settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
)

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.distillation import pair
from lightning_switchkd.models.auto import build, tokenizer_of
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.training.module import SwitchKD

VISION: dict[str, Any] = dict(tiny.spec().vision)  # type: ignore[call-overload]
LM: dict[str, Any] = dict(tiny.spec().lm)  # type: ignore[call-overload]
GEMMA2 = {**LM, "model_type": "gemma2", "head_dim": 8}


def same_logits(a: Any, b: Any) -> None:
    batch = tiny.batch()
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "pixel_values": batch.pixel_values}
    with torch.no_grad():
        torch.testing.assert_close(a.model(**inputs).logits, b.model(**inputs).logits)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    original = tiny.vlm(seed=3)
    original.model.save_pretrained(tmp_path / "vlm")
    same_logits(original, build(VLMSpec(checkpoint=str(tmp_path / "vlm")), tiny.tokenizer(), "student"))


def test_parts_from_folders_keep_their_weights(tmp_path: Path) -> None:
    """Sources of vision encoders: a LLaVA folder, a CLIP pair, and an encoder's own folder."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**LM, vocab_size=320)).save_pretrained(tmp_path / "lm")
    config = {k: v for k, v in VISION.items() if k != "model_type"}
    CLIPVisionModel(CLIPVisionConfig(**config)).save_pretrained(tmp_path / "encoder")
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 9,
    }
    CLIPModel(CLIPConfig(vision_config=config, text_config=text)).save_pretrained(tmp_path / "pair")
    tiny.save_vlm(tmp_path / "vlm", seed=4)
    for encoder in ("encoder", "pair", "vlm"):
        spec = VLMSpec(vision=str(tmp_path / encoder), lm=str(tmp_path / "lm"))
        model = build(spec, tiny.tokenizer(), "student").model
        lm = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
        assert torch.equal(model.lm_head.weight, lm.lm_head.weight)
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight, "a tied head stays tied"
        loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "vlm").model.vision_tower
        if encoder == "vlm":
            got = model.model.vision_tower.state_dict()
            assert all(torch.equal(tensor, got[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("lm", ["qwen2", "llama", "phi3", "stablelm", "gemma", "mistral", "qwen3"])
@pytest.mark.parametrize("projector", ["mlp2x_gelu", "linear"])
def test_language_models_export_and_reload(lm: str, projector: Any, tmp_path: Path) -> None:
    text = {**LM, "model_type": lm, "pad_token_id": 0, "head_dim": 8}
    spec = VLMSpec(vision=VISION, lm=text, projector=projector)
    built = build(spec, tiny.tokenizer(), "student")
    built.model.eval().save_pretrained(tmp_path)
    reloaded = build(VLMSpec(checkpoint=str(tmp_path)), tiny.tokenizer(), "student")
    same_logits(built, reloaded)
    batch = tiny.batch()
    with torch.no_grad():
        hidden = built.decode(batch.input_ids, batch.attention_mask, tiny.image_embeds(built, batch))
        expected = built.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=batch.pixel_values
        ).logits
    real = batch.attention_mask.bool()
    torch.testing.assert_close(built.head(hidden)[real], expected[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_of_both_parts(implementation: str, tmp_path: Path) -> None:
    """Sources: a checkpoint, configurations, and the folders of a whole model and of a language model."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**LM, vocab_size=320)).save_pretrained(tmp_path / "lm")
    whole = tiny.save_vlm(tmp_path / "vlm", seed=0)
    for source in (
        {"checkpoint": whole},
        {"vision": VISION, "lm": LM},
        {"vision": whole, "lm": str(tmp_path / "lm")},
    ):
        spec = VLMSpec(**source, attn_implementation=implementation)  # type: ignore[arg-type]
        model = build(spec, tiny.tokenizer(), "student").model
        used = {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")}
        assert used == {implementation}


def test_linear_projector_is_linear() -> None:
    model = tiny.vlm(projector="linear")
    x, y = torch.randn(1, 5, 16), torch.randn(1, 5, 16)

    def project(features: Tensor) -> Tensor:
        return model.project([features], tiny.batch(images=(1,), answer=(1,)).vision)[0]

    with torch.no_grad():
        zero = project(torch.zeros_like(x))
        torch.testing.assert_close(project(x + y) - zero, project(x) + project(y) - 2 * zero)
    frozen = [p for p in model.part_parameters("projector") if not p.requires_grad]
    assert len(frozen) == 2, "the identity after the linear layer is not trained"


def test_embeddings_grow_to_the_tokenizer() -> None:
    model = build(VLMSpec(vision=VISION, lm={**LM, "vocab_size": 200}), tiny.tokenizer(), "student")
    assert model.head_size >= len(tiny.tokenizer())


def test_constructors_load_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "build", lambda *_: pytest.fail("a constructor loaded a model"))
    SwitchKD(VLMSpec(checkpoint="nobody/nothing"), VLMSpec(checkpoint="nobody/nothing"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (VLMSpec(), "needs a checkpoint, or both vision and lm"),
        (VLMSpec(checkpoint="a/b", vision="c/d"), "both a checkpoint and parts"),
        (VLMSpec(checkpoint="./nowhere"), "folder './nowhere' does not exist"),
        (VLMSpec(vision={"hidden_size": 8}, lm=LM), "configuration of a part is invalid"),
        (VLMSpec(vision={**VISION, "model_type": "dinov2"}, lm=LM), "Unsupported vision encoder 'dinov2'"),
        (VLMSpec(vision=VISION, lm={**LM, "model_type": "phi"}), "output head of this phi model has a bias"),
        (VLMSpec(vision=VISION, lm=GEMMA2, attn_implementation="eager"), "final_logit_softcapping"),
        (VLMSpec(vision=VISION, lm=GEMMA2), "model.student.attn_implementation to one that the class supports"),
        (VLMSpec(vision=VISION, lm=LM, attn_implementation="nonsense"), "is 'nonsense', which is unknown"),
        (VLMSpec(vision=VISION, lm=LM, feature_layer=-9), "vision_feature_layer must be one integer .* got -9"),
    ],
)
def test_invalid_settings(spec: VLMSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(spec, tiny.tokenizer(), "student")


def test_missing_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("is_flash_attn_2_available", "is_kernels_available"):
        monkeypatch.setattr(f"lightning_switchkd.models.auto.{check}", lambda: False)
    with pytest.raises(UserError, match=r"model\.teacher\.attn_implementation is .* Available here: eager,.* sdpa"):
        build(tiny.spec(attn_implementation="flash_attention_2"), tiny.tokenizer(), "teacher")


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl"])
def test_unsupported_families(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{family}"}}', encoding="utf-8")
    with pytest.raises(UserError, match=f"is a '{family}' model, which has no adapter"):
        build(VLMSpec(checkpoint=str(tmp_path)), tiny.tokenizer(), "student")


def test_unreadable_weights(tmp_path: Path) -> None:
    tiny.save_vlm(tmp_path, seed=0)
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="could not be loaded as a model"):
        build(VLMSpec(checkpoint=str(tmp_path)), tiny.tokenizer(), "student")


def test_tokenizer_of_a_model(tmp_path: Path) -> None:
    tiny.save_vlm(tmp_path / "with", seed=0)
    tiny.vlm().model.save_pretrained(tmp_path / "without")
    assert tokenizer_of(VLMSpec(checkpoint=str(tmp_path / "with"))) is not None
    assert tokenizer_of(VLMSpec(checkpoint=str(tmp_path / "without"))) is None
    assert tokenizer_of(tiny.spec()) is None
