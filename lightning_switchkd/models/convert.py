"""Conversion of TinyLLaVA_Factory, original LLaVA and xtuner checkpoints to Hugging Face's LLaVA format."""

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
from lightning_switchkd.core.types import PARTS
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
"""Prefix of a tensor's name in the source (a regular expression) and in Hugging Face. The first match counts."""

LAYERS = {PROJECTOR + "0.": PROJECTOR + "linear_1.", PROJECTOR + "2.": PROJECTOR + "linear_2."}
"""The projector's two layers, which the sources number inside a ``Sequential``."""

SIGNATURES: dict[Layout, str] = {
    "tinyllava": "connector.",
    "llava": "model.mm_projector.",
    "xtuner": "projector.model.",
}
"""Prefixes of the projector's names, which identify the layout."""

LM_FOLDERS, VISION_FOLDERS, PROJECTOR_FOLDERS = (
    ("language_model", "llm"),
    ("vision_tower", "visual_encoder"),
    ("connector", "projector"),
)
"""Folders of parts saved separately by TinyLLaVA and xtuner. Each is named like its tensors' prefix in one file."""

IGNORED = re.compile(r".*(rotary_emb\.inv_freq|position_ids)")
"""Buffers that older versions saved and newer versions compute."""

TENSOR_FILES = ("*.safetensors", "*.bin", "*.pth", "*.pt")
NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt")


@dataclass
class Report:
    """The result of a conversion, tensor by tensor.

    Attributes:
        layout: Layout of the source.
        mapped: Hugging Face name by source name.
        missing: Hugging Face names without a source tensor.
        unexpected: Source names without a Hugging Face name.
    """

    layout: Layout
    mapped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.layout}: {len(self.mapped)} tensors mapped"]
        for kind, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            listed = f": {', '.join(names[:8])}{' …' * (len(names) > 8)}" if names else ""
            lines.append(f"{len(names)} {kind}{listed}")
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
    """Convert a TinyLLaVA, LLaVA or xtuner checkpoint to a Hugging Face folder with model, processor and report.

    Args:
        source: Folder of the checkpoint.
        output: Folder to write. It must not exist.
        layout: tinyllava, llava or xtuner. By default it is detected from the tensor names.
        vision: Folder or hub id of the vision encoder. Provides weights missing in the source, and the image processor.
        lm: Folder or hub id of the language model. Provides weights missing in the source, and the tokenizer.
        prompt: Prompt style that the model was trained with.
        dtype: Data type of the converted weights.
    """
    folder, target = Path(source), Path(output)
    if not folder.is_dir():
        raise UserError(f"--source: folder '{source}' does not exist. Give the folder of a checkpoint.")
    if target.exists():
        raise UserError(f"--output: '{output}' already exists. Give a new folder.")
    layout = layout or _layout_of(folder)
    config, tokenizer = _config(folder, vision, lm), _tokenizer(folder, lm)
    image_processor = _image_processor(folder, vision)
    weights, report = mapped(_tensors(folder), layout)
    if vision is not None and not any(name.startswith(VISION) for name in weights):
        weights |= {VISION + n: t for n, t in load_vision(VLMSpec(vision=vision), "--vision").state_dict().items()}
    if lm is not None and not any(name.startswith(LM) for name in weights):
        language_model = AutoModelForCausalLM.from_pretrained(lm, use_safetensors=True)
        weights |= {_lm_name(name): tensor for name, tensor in language_model.state_dict().items()}
    vision_config: Any = config.vision_config
    class_tokens = int(vision_config.model_type == "clip_vision_model")
    strategy, style = config.vision_feature_select_strategy, prompt_style(prompt)
    processor = make_processor(tokenizer, image_processor, vision_config.patch_size, strategy, class_tokens, style)
    config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    model = _load(config, weights, report, folder).to(getattr(torch, dtype))
    if len(tokenizer) > model.lm_head.out_features:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.save_pretrained(target)
    processor.save_pretrained(target)
    (target / "conversion.json").write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    print(f"{report}.\nWrote {target}. All tensor names are listed in {target / 'conversion.json'}.")


def _load(config: LlavaConfig, weights: dict[str, Tensor], report: Report, folder: Path) -> Any:
    """Create a model with these weights, and complete the report.

    Raises:
        UserError: A tensor that training needs is missing, or a tensor has the wrong shape.
    """
    vlm = empty_model(json.loads(config.to_json_string(use_diff=False)))
    model, expected = vlm.model, vlm.model.state_dict()
    report.missing = sorted(expected.keys() - weights.keys() - set(model.all_tied_weights_keys))
    report.unexpected += sorted(weights.keys() - expected.keys())
    used = {id(p) for part in PARTS for p in vlm.part_parameters(part)}
    required = {name for name, p in model.named_parameters() if id(p) in used}
    wrong_shape = [name for name in expected if name in weights and weights[name].shape != expected[name].shape]
    problems = {"missing": sorted(required & set(report.missing)), "of the wrong shape": wrong_shape}
    if any(problems.values()):
        details = "; ".join(f"{problem}: {', '.join(names[:4])}" for problem, names in problems.items() if names)
        raise UserError(
            f"convert: {folder} cannot be loaded in the layout {report.layout}: {details} ({report}). Give --vision or "
            "--lm if the source does not contain that part, or --layout if the detected layout is wrong."
        )
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name in expected}, strict=False)
    return model


def _lm_name(name: str) -> str:
    return name if name.startswith("lm_head.") else LM + name.removeprefix("model.")


def mapped(tensors: Iterable[tuple[str, Tensor]], layout: Layout) -> tuple[dict[str, Tensor], Report]:
    """Rename a source's tensors to their Hugging Face names."""
    report, weights = Report(layout), dict[str, Tensor]()
    for name, tensor in tensors:
        if IGNORED.fullmatch(name):
            continue
        matches = (
            (match, prefix) for pattern, prefix in PREFIXES[layout].items() if (match := re.match(pattern, name))
        )
        match, prefix = next(matches, (None, ""))
        if match is None:
            report.unexpected.append(name)
            continue
        new_name = prefix + name[match.end() :]
        for numbered, named in LAYERS.items():
            new_name = new_name.replace(numbered, named)
        report.mapped[name], weights[new_name] = new_name, tensor
    return weights, report


def _part_folders(folder: Path) -> tuple[str, ...]:
    """Return the folders of separately saved parts. Empty if the projector is in one file with the other parts."""
    if not any((folder / name).is_dir() for name in PROJECTOR_FOLDERS):
        return ()
    return tuple(n for n in (*LM_FOLDERS, *VISION_FOLDERS, *PROJECTOR_FOLDERS) if (folder / n).is_dir())


def _layout_of(folder: Path) -> Layout:
    for name, _ in _tensors(folder):
        for layout, signature in SIGNATURES.items():
            if name.startswith(signature):
                return layout
    raise UserError(
        f"convert: the layout of the tensors in {folder} is unknown: no name starts with "
        f"{', '.join(SIGNATURES.values())}. Give a checkpoint in one of the layouts {', '.join(SIGNATURES)}. "
        "A folder in Hugging Face's LLaVA format needs no conversion."
    )


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors under their names in one file. Separately saved parts come first."""
    parts = _part_folders(folder)
    for part in parts:
        yield from ((f"{part}.{name}", tensor) for name, tensor in _read_folder(folder / part))
    if not set(parts) & set(LM_FOLDERS):  # one file for all parts, or xtuner's language model beside its parts
        yield from ((f"llm.{name}" if parts else name, tensor) for name, tensor in _read_folder(folder))


def _read_folder(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a folder's files, from the safest format present. Unpickling is limited to tensors."""
    if not folder.is_dir():
        raise UserError(f"convert: folder '{folder}' does not exist. Check --source.")
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
                    f"convert: {file} cannot be read as a file of tensors ({str(error).strip().splitlines()[0]}). "
                    "Save the state dict alone, preferably as safetensors."
                ) from error
        if files:
            return


def _config(folder: Path, vision: str | None, lm: str | None) -> LlavaConfig:
    file = folder / "config.json"
    raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    strategies = {"patch": "default", "cls_patch": "full", "default": "default", "full": "full"}
    layer = raw.get("mm_vision_select_layer", raw.get("vision_feature_layer", -2))
    strategy = raw.get("mm_vision_select_feature", raw.get("vision_feature_select_strategy", "patch"))
    text = _part_config(folder, "lm", lm, raw)
    return LlavaConfig(
        vision_config=_part_config(folder, "vision", vision, raw),
        text_config=text,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategies[strategy],  # type: ignore[arg-type]
        projector_hidden_act="gelu",
        tie_word_embeddings=text.tie_word_embeddings,
    )


def _part_config(folder: Path, part: str, source: str | None, raw: dict[str, Any]) -> Any:
    """Load a part's configuration: from ``source``, from the part's own folder, or from the whole model's (``raw``)."""
    names = LM_FOLDERS if part == "lm" else VISION_FOLDERS
    part_folder = next((folder / name for name in names if (folder / name / "config.json").is_file()), None)
    nested = raw.get({"lm": "text_config", "vision": "vision_config"}[part])
    try:
        if source is not None:
            config = AutoConfig.from_pretrained(source)
        elif part_folder is not None:
            config = AutoConfig.from_pretrained(part_folder)
        elif nested:
            config = AutoConfig.for_model(**nested)
        elif part == "lm" and raw:  # LlavaLlamaForCausalLM and similar: a language model's configuration with extras
            kind = str(raw["model_type"]).removeprefix("llava_").replace("llava", "llama")
            keys = AutoConfig.for_model(kind).to_dict().keys()
            config = AutoConfig.for_model(kind, **{k: v for k, v in raw.items() if k in keys and k != "model_type"})
        else:
            raise OSError(f"{folder} does not contain one")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"convert: cannot load the configuration of the {'language model' if part == 'lm' else 'vision encoder'} "
            f"({str(error).strip().splitlines()[0]}). Give --{part}, a folder or hub id."
        ) from error
    return getattr(config, "vision_config", config) if part == "vision" else config


def _tokenizer(folder: Path, lm: str | None) -> Any:
    for source in (folder, *(folder / name for name in LM_FOLDERS), lm):
        if source is not None and (source == lm or (Path(source) / "tokenizer_config.json").is_file()):
            tokenizer = AutoTokenizer.from_pretrained(source)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
            return tokenizer
    raise UserError(f"convert: {folder} contains no tokenizer. Give --lm, the language model's folder or hub id.")


def _image_processor(folder: Path, vision: str | None) -> Any:
    for source in (folder, *(folder / name for name in VISION_FOLDERS), vision):
        if source is not None and (source == vision or (Path(source) / "preprocessor_config.json").is_file()):
            return AutoImageProcessor.from_pretrained(source, use_fast=False)
    raise UserError(
        f"convert: {folder} contains no image processor. Give --vision, the vision encoder's folder or hub id."
    )
