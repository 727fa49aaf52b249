"""What the embedded data sets share: LLaVA turns, a processor of their own, a folder written whole, a command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_type_hints

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import atomic_path
from lightning_switchkd.data.samples import IMAGE_TOKEN

ROLE_TEXT = ("system\n", "user\n", "assistant\n", "USER: ", " ASSISTANT: ")  # a prompt's text beside the turns


def conversation(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """LLaVA turns, the image before the first question."""
    said: list[dict[str, str]] = []
    for question, reply in turns:
        text = question if said else f"{IMAGE_TOKEN}\n{question}".rstrip()
        said += [{"from": "human", "value": text}, {"from": "gpt", "value": reply}]
    return said


def dump(value: object, path: Path) -> None:
    """Writes JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")


def train_tokenizer(text: Sequence[str], vocab_size: int = 384) -> Any:
    """A byte-level BPE tokenizer of at most this size: encodes any text, each decimal digit a token of its own."""
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN]
    backend = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator([*ROLE_TEXT, *text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def write_processor(
    text: Sequence[str],
    folder: Path,
    image_size: int,
    patch_size: int,
    vocab_size: int = 384,
    tower: Literal["clip", "siglip"] = "clip",
) -> None:
    """Writes a LlavaProcessor: tokenizer of this training text, images resized to ``image_size``² for such a tower."""
    from transformers import CLIPImageProcessorPil

    from lightning_switchkd.data.processor import make_processor
    from lightning_switchkd.data.prompts import prompt_style

    half, size = [0.5, 0.5, 0.5], {"height": image_size, "width": image_size}
    pixels = CLIPImageProcessorPil(size=size, crop_size=size, image_mean=half, image_std=half)
    features = ("default", 1) if tower == "clip" else ("full", 0)  # a class token that is dropped, or none
    parts = train_tokenizer(text, vocab_size), pixels, patch_size, *features
    make_processor(*parts, prompt_style("qwen_chatml")).save_pretrained(folder)


def check_limits(data: str, settings: object, limits: Mapping[str, tuple[float, float]]) -> None:
    """Refuses settings out of bounds, before anything is written.

    Raises:
        UserError: a field of ``settings`` lies outside its limits (both ends allowed); the message names the flag.
    """
    for name, (low, high) in limits.items():
        if not low <= getattr(settings, name) <= high:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{data}: {flag} must lie between {low} and {high}, not {getattr(settings, name)}.")


def write_whole(data: str, version: int, settings: Any, fill: Callable[[Path], None], output: Path) -> bool:
    """Writes a data set to ``output``; False if it was there already, made with equal settings.

    The folder appears whole or not at all: all is written beside it first, then moved into place.

    Args:
        data: name of the data set.
        version: raised whenever equal settings would give other files.
        settings: the dataclass that the files depend on.
        fill: writes everything but the manifest into an empty folder.
        output: where the folder shall be.

    Raises:
        UserError: ``output`` holds something that this function did not write for this data set.
    """
    manifest = {"data": data, "version": version, "settings": asdict(settings)}
    there = output / "manifest.json"
    found = there.read_text(encoding="utf-8") if there.is_file() else ""
    if found == json.dumps(manifest):
        return False
    if output.exists() and any(output.iterdir()) and not found.startswith(f'{{"data": "{data}"'):
        raise UserError(f"{data}: {output} holds something else: choose another --output, or move that folder away.")
    with atomic_path(output, unique=True) as partial:
        partial.mkdir()
        fill(partial)
        dump(manifest, partial / "manifest.json")
    return True


def command_line(
    data: str, doc: str, settings: type, write: Callable[[Any, Path], bool], arguments: Sequence[str] | None
) -> None:
    """Writes a data set as the command line asks: a flag a field of ``settings``, its note the help."""
    parser = argparse.ArgumentParser(
        description=doc.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("datasets", data), help="folder to write")
    for name, hint in get_type_hints(settings, include_extras=True).items():
        flag, default = "--" + name.replace("_", "-"), getattr(settings, name)
        parser.add_argument(flag, type=type(default), default=default, help=hint.__metadata__[0])
    output = (given := vars(parser.parse_args(arguments))).pop("output")
    try:
        written = write(settings(**given), output)
    except UserError as error:
        parser.error(str(error))
    print(f"{data}: {'written to' if written else 'already there, with the same settings:'} {output}")
