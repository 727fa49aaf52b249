"""Questions to one model or two in the terminal: a single question, or a chat with alternatives for each token."""

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
Ask about the image. Commands:
/top          show the most likely alternatives for each token of the last answers
/image FILE   load another image, and start a new conversation
/new          start a new conversation
/quit         leave (or Ctrl-D)"""


def read_image(path: str) -> Image.Image:
    """Read an image file.

    Raises:
        SampleError: The file is missing or damaged.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise SampleError("image_missing", f"file '{path}' does not exist. Give an image file.")
    return ImageFolder(file.parent).read(ImageRef(file.name))


def alternatives(model: LoadedModel, question: Question, answer: str, count: int) -> str:
    """Return one line per token of an answer: the most likely tokens with their probabilities in percent."""
    return "\n".join(
        "    " + "   ".join(f"{token!r} {100 * p:.1f}" for token, p in candidates)
        for candidates in model.alternatives(question, answer, count)
    )


@dataclass
class Chat:
    """A conversation with several models. Each model sees its own answers in its history.

    Attributes:
        models: Models by name.
        max_new_tokens: Maximum length of an answer.
        image: Image of the conversation.
        count: Number of alternatives to show per token.
        histories: Turns by model.
    """

    models: Mapping[str, LoadedModel]
    max_new_tokens: int
    image: Image.Image | None = None
    count: int = 5
    histories: dict[str, tuple[Turn, ...]] = field(default_factory=dict)

    def ask(self, text: str) -> dict[str, str]:
        """Ask all models, and return their answers by name."""
        answers = {}
        for name, model in self.models.items():
            history = self.histories.get(name, ())
            has_placeholder = IMAGE_TOKEN in text or self.image is None or bool(history)
            turns = (*history, Turn("user", text if has_placeholder else f"{IMAGE_TOKEN}\n{text}"))
            answers[name] = model.ask([Question(turns, self._images())], self.max_new_tokens)[0]
            self.histories[name] = (*turns, Turn("assistant", answers[name]))
        return answers

    def top(self) -> str:
        """Return the alternatives of the last answers."""
        if not self.histories:
            return "There is no answer yet. Ask a question first."
        parts = []
        for name, turns in self.histories.items():
            question = Question(turns[:-1], self._images())
            parts.append(f"{name}:\n{alternatives(self.models[name], question, turns[-1].text, self.count)}")
        return "\n".join(parts)

    def _images(self) -> tuple[Image.Image, ...]:
        return () if self.image is None else (self.image,)

    def reply(self, line: str) -> str | None:
        """Process a typed line. Return the text to print, or None at the end of the chat."""
        command, _, rest = line.strip().partition(" ")
        if command in ("/quit", "/exit"):
            return None
        if command == "/top":
            return self.top()
        if command == "/new":
            self.histories.clear()
            return "Started a new conversation."
        if command == "/image":
            try:
                self.image = read_image(rest.strip())
            except SampleError as error:
                return error.problem
            self.histories.clear()
            return f"Loaded {rest.strip()}. Started a new conversation."
        if command.startswith("/") or not command:
            return HELP
        answers = self.ask(line.strip())
        width = max(map(len, answers))
        return "\n".join(f"{name:>{width}}: {answer}" for name, answer in answers.items())


def run_chat(chat: Chat) -> None:
    """Read lines from the terminal or a pipe, and print the replies, until the input ends."""
    print(HELP)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        reply = chat.reply(line)
        if reply is None:
            return
        print(reply, flush=True)


def generate(
    model: str,
    question: str | None = None,
    image: str | None = None,
    chat: bool = False,
    compare: str | None = None,
    top: int = 0,
    max_new_tokens: int = 128,
    device: str = "auto",
) -> None:
    """Ask a model about an image: one question, or a chat in the terminal.

    Args:
        model: folder of an exported student, or any LLaVA folder or hub id.
        question: the question; optional with --chat.
        image: image file that the question is about.
        chat: start a chat; /top shows alternatives for each token of the last answer.
        compare: another model, such as the teacher, that gets the same questions.
        top: number of alternatives to show for each token of the answer.
        max_new_tokens: maximum length of an answer.
        device: cpu, cuda or auto.
    """
    if question is None and not chat:
        raise UserError("--question is missing. Give a question, or --chat to type questions.")
    picture = None if image is None else read_image(image)
    names = {"model": model} if compare is None else {Path(model).name: model, Path(compare).name: compare}
    if compare is not None and len(names) < 2:  # both folders have the same name
        names = {model: model, compare: compare}
    models = {
        name: load_model(folder, device, where=flag)
        for (name, folder), flag in zip(names.items(), ("--model", "--compare"), strict=False)
    }
    conversation = Chat(models, max_new_tokens, picture, count=top or 5)
    if question is not None:
        answers = conversation.ask(question)
        print("\n".join(answers.values() if compare is None else (f"{n}: {a}" for n, a in answers.items())))
        if top:
            print(conversation.top())
    if chat:
        run_chat(conversation)
