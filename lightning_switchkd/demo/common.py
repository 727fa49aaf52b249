"""Shared parts of the demo data sets: LLaVA turns, the processor, the output folder, the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_type_hints

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lightning_switchkd.core.errors import UserError, check_limits
from lightning_switchkd.core.files import atomic_path
from lightning_switchkd.core.text import program
from lightning_switchkd.data.samples import IMAGE_TOKEN

Sample = dict[str, Any]
"""A raw LLaVA sample."""

ROLE_TEXT = ("system\n", "user\n", "assistant\n", "USER: ", " ASSISTANT: ")  # prompt text around the turns


def conversation(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Build LLaVA turns from questions and answers. The image comes before the first question."""
    conversation_turns: list[dict[str, str]] = []
    for question, reply in turns:
        text = question if conversation_turns else f"{IMAGE_TOKEN}\n{question}".rstrip()
        conversation_turns += [{"from": "human", "value": text}, {"from": "gpt", "value": reply}]
    return conversation_turns


def dump(value: object, path: Path) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")


def train_tokenizer(text: Sequence[str], vocab_size: int = 384) -> Any:
    """Train a byte-level BPE tokenizer. It encodes any text, and each decimal digit is a separate token.

    Args:
        text: Training text.
        vocab_size: Number of tokens, at most.
    """
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
    vision: Literal["clip", "siglip"] = "clip",
) -> None:
    """Write a LlavaProcessor.

    Args:
        text: Training text of the tokenizer.
        folder: Output folder.
        image_size: Height and width that images are resized to.
        patch_size: Height and width of a patch.
        vocab_size: Number of tokens, at most.
        vision: Family of the vision encoder.
    """
    from transformers import CLIPImageProcessorPil

    from lightning_switchkd.data.processor import make_processor
    from lightning_switchkd.data.prompts import prompt_style

    half, size = [0.5, 0.5, 0.5], {"height": image_size, "width": image_size}
    pixels = CLIPImageProcessorPil(size=size, crop_size=size, image_mean=half, image_std=half)
    features = ("default", 1) if vision == "clip" else ("full", 0)  # CLIP has a class token to drop
    parts = train_tokenizer(text, vocab_size), pixels, patch_size, *features
    make_processor(*parts, prompt_style("qwen_chatml")).save_pretrained(folder)


def check_settings(data: str, settings: object, limits: Mapping[str, tuple[float, float]]) -> None:
    """Refuse settings out of bounds, before anything is written.

    Args:
        data: Name of the data set.
        settings: The settings.
        limits: Lowest and highest value of each field but the seed, both allowed.

    Raises:
        UserError: A field is outside its limits. The message names the flag.
    """
    limits = {**limits, "seed": (0, 2**32 - 1)}
    flags = {name: f"{data}: --{name.replace('_', '-')}" for name in limits}
    check_limits(
        {flag: getattr(settings, name) for name, flag in flags.items()},
        {flag: limits[name] for name, flag in flags.items()},
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise the error. The command line prints it."""
        raise UserError(f"demo-data: {message}. For all flags: --help.")


@dataclass(frozen=True)
class DemoDataset:
    """A demo data set.

    Attributes:
        name: Its name, and that of its folder in ``datasets``.
        version: Version of the files. Increased whenever equal settings give other files.
        doc: Description. The command line shows the first line.
        settings: The dataclass of its settings. Each field is a flag, its annotation the help text.
        sources: Meaning of each ``source`` of the questions.
        fill: Writes everything else into an empty folder.
    """

    name: str
    version: int
    doc: str
    settings: type
    sources: Mapping[str, str]
    fill: Callable[[Any, Path], None]

    def write(self, settings: Any, output: Path) -> bool:
        """Write the data set. The folder appears complete or not at all.

        Args:
            settings: The settings.
            output: The folder. A folder of this data set with other settings is replaced.

        Returns:
            False if the folder exists already and was written with equal settings.

        Raises:
            UserError: ``output`` has files that do not belong to this data set, or a package is not installed.
        """
        manifest = {"data": self.name, "version": self.version, "settings": asdict(settings)}
        file = output / "manifest.json"
        previous = file.read_text(encoding="utf-8") if file.is_file() else ""
        if previous == json.dumps(manifest):
            return False
        if output.exists() and any(output.iterdir()) and not previous.startswith(f'{{"data": "{self.name}"'):
            raise UserError(f"{self.name}: {output} has other files. Use another --output, or move this folder.")
        with atomic_path(output, unique=True) as partial:
            partial.mkdir()
            self.fill(settings, partial)
            dump(self.sources, partial / "sources.json")
            dump(manifest, partial / "manifest.json")
        return True

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Write the data set from the command line. None reads ``sys.argv``."""
        parser = _Parser(
            prog=f"{program()} demo-data {self.name}",
            description=self.doc.split("\n", 1)[0],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument("--output", type=Path, default=Path("datasets", self.name), help="output folder")
        for name, hint in get_type_hints(self.settings, include_extras=True).items():
            flag, default = "--" + name.replace("_", "-"), getattr(self.settings, name)
            parser.add_argument(flag, type=type(default), default=default, help=hint.__metadata__[0])
        output = (given := vars(parser.parse_args(arguments))).pop("output")
        written = self.write(self.settings(**given), output)
        print(f"{self.name}: {'written to' if written else 'already written with these settings to'} {output}")
