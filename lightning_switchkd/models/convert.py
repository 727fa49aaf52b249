"""Checkpoints of TinyLLaVA_Factory, the original LLaVA and xtuner, as native folders."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer, LlavaConfig

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.processor import make_processor
from lightning_switchkd.data.prompts import prompt_style
from lightning_switchkd.data.samples import IMAGE_TOKEN
from lightning_switchkd.models.auto import empty_model
from lightning_switchkd.models.compose import load_vision
from lightning_switchkd.models.spec import VLMSpec

Layout = Literal["tinyllava", "llava", "xtuner"]

VISION, PROJECTOR, LM = "model.vision_tower.", "model.multi_modal_projector.", "model.language_model."
PREFIXES: dict[Layout, dict[str, str]] = {
    "tinyllava": {
        r"vision_tower\.(?:_vision_tower\.)?(?:vision_model\.)?": VISION,
        r"connector\.(?:_connector\.)?": PROJECTOR,
        r"language_model\.(?=lm_head\.)": "",
        r"language_model\.model\.": LM,
    },
    "llava": {
        r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?": VISION,
        r"model\.mm_projector\.": PROJECTOR,
        r"(?=lm_head\.)": "",
        r"model\.": LM,
    },
    "xtuner": {
        r"visual_encoder\.(?:vision_model\.)?": VISION,
        r"projector\.model\.": PROJECTOR,
        r"llm\.(?=lm_head\.)": "",
        r"llm\.model\.": LM,
    },
}
"""What stands before the names of a part's tensors there, and here; the first that matches holds."""

LAYERS = {PROJECTOR + "0.": PROJECTOR + "linear_1.", PROJECTOR + "2.": PROJECTOR + "linear_2."}
"""The projector's two, numbered there within a ``Sequential``."""

SIGNS: dict[Layout, str] = {"tinyllava": "connector.", "llava": "model.mm_projector.", "xtuner": "projector.model."}
"""Beginnings of the projector's names, by which a layout is told."""

LM_FOLDERS, VISION_FOLDERS, PROJECTOR_FOLDERS = (
    ("language_model", "llm"),
    ("vision_tower", "visual_encoder"),
    ("connector", "projector"),
)
"""Of parts that lie apart, TinyLLaVA's and xtuner's: named like the prefix that their tensors have in one file."""

IGNORED = re.compile(r".*(rotary_emb\.inv_freq|position_ids)")
"""Buffers that older versions wrote and newer ones compute."""

TENSOR_FILES = ("*.safetensors", "*.bin", "*.pth", "*.pt")
NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt")


@dataclass
class Report:
    """What became of the tensors.

    Attributes:
        layout: of the source.
        mapped: names here, by foreign name.
        missing: names here that nothing was found for.
        unexpected: foreign names that have no place here.
    """

    layout: Layout
    mapped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.layout}: {len(self.mapped)} tensors mapped"]
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            lines.append(
                f"{len(names)} {what}" + (f": {', '.join(names[:8])}{' …' * (len(names) > 8)}" if names else "")
            )
        return "; ".join(lines)


def convert(
    source: str,
    output: str,
    layout: Layout | None = None,
    vision: str | None = None,
    lm: str | None = None,
    prompt: str = "tinyllava_v1",
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
) -> None:
    """Writes a foreign LLaVA checkpoint as a native folder: model, processor, and what became of its tensors.

    Args:
        source: its folder.
        output: folder to write; must not exist yet.
        layout: tinyllava, llava or xtuner; by default told by the names of its tensors.
        vision: folder or hub id of the vision tower: its weights where the source holds none, and its image processor.
        lm: the same of the language model, and its tokenizer.
        prompt: prompt style that the model was trained with.
        dtype: of the weights written.
    """
    folder, target = Path(source), Path(output)
    if not folder.is_dir():
        raise UserError(f"--source: there is no folder '{source}'.")
    if target.exists():
        raise UserError(f"--output: '{output}' exists. Give a new folder.")
    layout = layout or _layout_of(folder)
    config, tokenizer = _config(folder, vision, lm), _tokenizer(folder, lm)
    image_processor = _image_processor(folder, vision)
    weights, report = mapped(_tensors(folder), layout)
    if vision is not None and not any(name.startswith(VISION) for name in weights):
        weights |= {VISION + n: t for n, t in load_vision(VLMSpec(vision=vision), "--vision").state_dict().items()}
    if lm is not None and not any(name.startswith(LM) for name in weights):
        language_model = AutoModelForCausalLM.from_pretrained(lm, use_safetensors=True)
        weights |= {_native_lm(name): tensor for name, tensor in language_model.state_dict().items()}
    tower: Any = config.vision_config
    extra = int(tower.model_type == "clip_vision_model")
    strategy, style = config.vision_feature_select_strategy, prompt_style(prompt)
    processor = make_processor(tokenizer, image_processor, tower.patch_size, strategy, extra, style)
    config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    model = _loaded(config, weights, report, folder).to(getattr(torch, dtype))
    if len(tokenizer) > model.lm_head.out_features:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.save_pretrained(target)
    processor.save_pretrained(target)
    (target / "conversion.json").write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    print(f"{report}.\nWritten to {target}; all names are in {target / 'conversion.json'}.")


def _loaded(config: LlavaConfig, weights: dict[str, Tensor], report: Report, folder: Path) -> Any:
    """A model with these weights; fills the report.

    Raises:
        UserError: a tensor that a training step reaches is missing, or has another shape.
    """
    vlm = empty_model(json.loads(config.to_json_string(use_diff=False)))
    model, own = vlm.model, vlm.model.state_dict()
    report.missing = sorted(own.keys() - weights.keys() - set(model.all_tied_weights_keys))
    report.unexpected += sorted(weights.keys() - own.keys())
    used = {id(p) for modules in vlm.parts().values() for module in modules for p in module.parameters()}
    needed = {name for name, p in model.named_parameters() if id(p) in used}
    wrong = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    problems = {"missing": sorted(needed & set(report.missing)), "of another shape": wrong}
    if any(problems.values()):
        said = "; ".join(f"{what}: {', '.join(names[:4])}" for what, names in problems.items() if names)
        raise UserError(
            f"convert: {folder} as {report.layout} cannot be used: {said} ({report}). Give --vision or --lm where the "
            "source leaves that part out, and --layout where it was told wrongly."
        )
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name in own}, strict=False)
    return model


def _native_lm(name: str) -> str:
    return name if name.startswith("lm_head.") else LM + name.removeprefix("model.")


def mapped(foreign: Iterable[tuple[str, Tensor]], layout: Layout) -> tuple[dict[str, Tensor], Report]:
    """Foreign tensors under the names they have here."""
    report, weights = Report(layout), dict[str, Tensor]()
    for name, tensor in foreign:
        if IGNORED.fullmatch(name):
            continue
        found = ((match, here) for there, here in PREFIXES[layout].items() if (match := re.match(there, name)))
        match, here = next(found, (None, ""))
        if match is None:
            report.unexpected.append(name)
            continue
        own = here + name[match.end() :]
        for numbered, named in LAYERS.items():
            own = own.replace(numbered, named)
        report.mapped[name], weights[own] = own, tensor
    return weights, report


def _apart(folder: Path) -> tuple[str, ...]:
    """The folders of parts that are there; none where the projector lies with all else."""
    if not any((folder / name).is_dir() for name in PROJECTOR_FOLDERS):
        return ()
    return tuple(n for n in (*LM_FOLDERS, *VISION_FOLDERS, *PROJECTOR_FOLDERS) if (folder / n).is_dir())


def _layout_of(folder: Path) -> Layout:
    for name, _ in _tensors(folder):
        for layout, sign in SIGNS.items():
            if name.startswith(sign):
                return layout
    raise UserError(
        f"convert: the tensors in {folder} are of no known layout (no {', '.join(SIGNS.values())} among them). "
        f"Known are {', '.join(SIGNS)}; a folder in Hugging Face's LLaVA format needs no conversion."
    )


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors, named as in one file; parts apart first."""
    apart = _apart(folder)
    for part in apart:
        yield from ((f"{part}.{name}", tensor) for name, tensor in _in_folder(folder / part))
    if not set(apart) & set(LM_FOLDERS):  # all lie here; or, with parts apart, xtuner's language model alone
        yield from ((f"llm.{name}" if apart else name, tensor) for name, tensor in _in_folder(folder))


def _in_folder(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the files in a folder; of two formats side by side the safer one. Nothing is unpickled but tensors."""
    if not folder.is_dir():
        raise UserError(f"convert: there is no folder '{folder}'.")
    for kind in TENSOR_FILES:
        files = sorted(file for file in folder.glob(kind) if file.name not in NO_WEIGHTS)
        for file in files:
            try:
                if kind == "*.safetensors":
                    with safe_open(file, framework="pt") as opened:
                        yield from ((name, opened.get_tensor(name)) for name in opened.keys())  # noqa: SIM118
                else:
                    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
                    yield from state.get("state_dict", state).items()
            except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, AttributeError) as error:
                raise UserError(
                    f"convert: {file} cannot be read as tensors alone ({str(error).strip().splitlines()[0]})."
                ) from error
        if files:
            return


def _config(folder: Path, vision: str | None, lm: str | None) -> LlavaConfig:
    file = folder / "config.json"
    raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    strategies = {"patch": "default", "cls_patch": "full", "default": "default", "full": "full"}
    layer = raw.get("mm_vision_select_layer", raw.get("vision_feature_layer", -2))
    strategy = raw.get("mm_vision_select_feature", raw.get("vision_feature_select_strategy", "patch"))
    text = _sub_config(folder, "lm", lm, raw)
    return LlavaConfig(
        vision_config=_sub_config(folder, "vision", vision, raw),
        text_config=text,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategies[strategy],  # type: ignore[arg-type]
        projector_hidden_act="gelu",
        tie_word_embeddings=text.tie_word_embeddings,
    )


def _sub_config(folder: Path, part: str, given: str | None, raw: dict[str, Any]) -> Any:
    """A part's configuration: as given, from its own folder, or from within the whole model's."""
    own = LM_FOLDERS if part == "lm" else VISION_FOLDERS
    sub = next((folder / name for name in own if (folder / name / "config.json").is_file()), None)
    inside = raw.get({"lm": "text_config", "vision": "vision_config"}[part])
    try:
        if given is not None:
            found = AutoConfig.from_pretrained(given)
        elif sub is not None:
            found = AutoConfig.from_pretrained(sub)
        elif inside:
            found = AutoConfig.for_model(**inside)
        elif part == "lm" and raw:  # LlavaLlamaForCausalLM and its like: the whole is a language model with extras
            kind = str(raw["model_type"]).removeprefix("llava_").replace("llava", "llama")
            keys = AutoConfig.for_model(kind).to_dict().keys()
            found = AutoConfig.for_model(kind, **{k: v for k, v in raw.items() if k in keys and k != "model_type"})
        else:
            raise OSError(f"{folder} does not tell it")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"convert: the configuration of the {'language model' if part == 'lm' else 'vision tower'} cannot be told "
            f"({str(error).strip().splitlines()[0]}). Give --{part}, a folder or hub id."
        ) from error
    return getattr(found, "vision_config", found) if part == "vision" else found


def _tokenizer(folder: Path, lm: str | None) -> Any:
    for place in (folder, *(folder / name for name in LM_FOLDERS), lm):
        if place is not None and (place == lm or (Path(place) / "tokenizer_config.json").is_file()):
            tokenizer = AutoTokenizer.from_pretrained(place)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
            return tokenizer
    raise UserError(f"convert: {folder} holds no tokenizer. Give --lm, the language model's folder or hub id.")


def _image_processor(folder: Path, vision: str | None) -> Any:
    for place in (folder, *(folder / name for name in VISION_FOLDERS), vision):
        if place is not None and (place == vision or (Path(place) / "preprocessor_config.json").is_file()):
            return AutoImageProcessor.from_pretrained(place, use_fast=False)
    raise UserError(f"convert: {folder} holds no image processor. Give --vision, the tower's folder or hub id.")
