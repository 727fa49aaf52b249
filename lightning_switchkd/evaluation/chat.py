"""A conversation about an image in the terminal: one model, or two side by side, with what each might have said."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.samples import IMAGE_TOKEN, ImageRef, SampleError, Turn
from lightning_switchkd.models.generation import LoadedModel, Question, load_model

HELP = """\
Ask about the image. /top: what else each token of the last answer might have been; /image FILE: another image;
/new: forget what was said; /quit or Ctrl-D: leave."""


def read_image(path: str) -> Image.Image:
    """An image file.

    Raises:
        RecordError: there is none, or it cannot be read.
    """
    file = Path(path).resolve()
    return ImageFolder(file.parent).read(ImageRef(file.name))


def alternatives(model: LoadedModel, question: Question, answer: str, count: int) -> str:
    """A line for each token of an answer: the likeliest tokens there, with their probabilities in per cent."""
    lines = []
    for candidates in model.alternatives(question, answer, count):
        lines.append("    " + "   ".join(f"{token!r} {100 * p:.1f}" for token, p in candidates))
    return "\n".join(lines)


@dataclass
class Chat:
    """What was said so far, by model: each has its own answers in its history.

    Attributes:
        models: by name.
        max_new_tokens: longest answer.
        image: what it is about.
        count: alternatives shown of a token.
        histories: turns by model.
    """

    models: Mapping[str, LoadedModel]
    max_new_tokens: int
    image: Image.Image | None = None
    count: int = 5
    histories: dict[str, tuple[Turn, ...]] = field(default_factory=dict)

    def ask(self, text: str) -> dict[str, str]:
        """The models' answers to a question in their conversations."""
        found = {}
        for name, model in self.models.items():
            history = self.histories.get(name, ())
            placed = IMAGE_TOKEN in text or self.image is None or bool(history)
            asked = text if placed else f"{IMAGE_TOKEN}\n{text}"
            turns = (*history, Turn("user", asked))
            found[name] = model.ask([Question(turns, self._images())], self.max_new_tokens)[0]
            self.histories[name] = (*turns, Turn("assistant", found[name]))
        return found

    def top(self) -> str:
        """The alternatives of the last answers."""
        if not self.histories:
            return "Nothing was said yet."
        parts = []
        for name, turns in self.histories.items():
            question = Question(turns[:-1], self._images())
            parts.append(f"{name}:\n{alternatives(self.models[name], question, turns[-1].text, self.count)}")
        return "\n".join(parts)

    def _images(self) -> tuple[Image.Image, ...]:
        return () if self.image is None else (self.image,)

    def line(self, text: str) -> str | None:
        """What to print for a line that was typed; None where it ends the chat."""
        command, _, rest = text.strip().partition(" ")
        if command in ("/quit", "/exit"):
            return None
        if command == "/top":
            return self.top()
        if command == "/new":
            self.histories.clear()
            return "Forgotten."
        if command == "/image":
            try:
                self.image = read_image(rest.strip())
            except SampleError as error:
                return f"{error.problem}."
            self.histories.clear()
            return f"The image is {rest.strip()}; what was said is forgotten."
        if command.startswith("/") or not command:
            return HELP
        answers = self.ask(text.strip())
        width = max(map(len, answers))
        return "\n".join(f"{name:>{width}}: {answer}" for name, answer in answers.items())


def talk(chat: Chat) -> None:
    """Reads lines from the terminal (or a pipe) until there are no more."""
    print(HELP)
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        said = chat.line(text)
        if said is None:
            return
        print(said, flush=True)


def generate(
    model: str,
    question: str | None = None,
    image: str | None = None,
    chat: bool = False,
    beside: str | None = None,
    top: int = 0,
    max_new_tokens: int = 128,
    device: str = "auto",
) -> None:
    """Asks a model folder about an image: one question, or a chat in the terminal.

    Args:
        model: folder of an exported student, or any LLaVA folder or hub id.
        question: what to ask; not needed for a chat.
        image: image file the question is about.
        chat: go on asking; /top shows what else each token of the last answer might have been.
        beside: another model (the teacher) that is asked the same.
        top: also show so many alternatives of each token of the answer.
        max_new_tokens: longest answer.
        device: ``cpu``, ``cuda`` or ``auto``.
    """
    if question is None and not chat:
        raise UserError("--question is missing: give one, or --chat to type them.")
    if image is not None and not Path(image).is_file():
        raise UserError(f"--image: there is no file '{image}'.")
    names = {"model": model} if beside is None else {Path(model).name: model, Path(beside).name: beside}
    if beside is not None and len(names) < 2:  # both folders have one name
        names = {model: model, beside: beside}
    models = {name: load_model(folder, device) for name, folder in names.items()}
    talking = Chat(models, max_new_tokens, None if image is None else read_image(image), count=top or 5)
    if question is not None:
        answers = talking.ask(question)
        print("\n".join(answers.values() if beside is None else (f"{n}: {a}" for n, a in answers.items())))
        if top:
            print(talking.top())
    if chat:
        talk(talking)
