"""Parsers whose errors are one paragraph: no usage text, and the closest name for a typo."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from lightning_switchkd.core.errors import UserError

UNKNOWN_FLAG = re.compile(r"unrecognized arguments: (?P<flag>[^\s=]+)")
UNKNOWN_KEY = re.compile(r"does not accept option '(?P<key>[\w.]+)'")
UNKNOWN_ARGUMENT = re.compile(r"Option '(?P<name>\w+)' is not accepted")
KEY = re.compile(r'Parser key "(?P<key>[\w.]+)"')
CLASS_PATH = re.compile(r"class_path '(?P<path>[\w.]+)'")
LITERAL = re.compile(r"Expected a typing\.Literal\[(?P<names>[^\]]+)\]\. Got value: (?P<value>.+)")
REQUIRED = re.compile(r"arguments are required: (?P<names>.+)")
HINTS = {
    "data.processor": " It is the student's folder. For a student from parts, take the teacher's.",
    "model.student": " Set model.student.checkpoint, or model.student.vision and model.student.lm.",
}


class Parser(ArgumentParser):
    """Parser whose errors are one paragraph."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a :class:`UserError` instead of printing the usage and exiting."""
        if not self.exit_on_error:  # a part of a larger value, whose parser reports the error
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UserError(
            explain(message, [flag for action in parser._actions for flag in action.option_strings])
        ) from ex


def explain(message: str, flags: Iterable[str]) -> str:
    """Return a parser's message as one paragraph.

    Args:
        message: jsonargparse's message.
        flags: All flags of the command.

    >>> explain("unrecognized arguments: --model.lrr=3", ["--model.lr", "--data.seed"])
    'Unknown flag --model.lrr. Did you mean --model.lr?'
    """
    if found := UNKNOWN_FLAG.search(message):
        return f"Unknown flag {found['flag']}.{_did_you_mean(found['flag'], flags)}"
    if found := UNKNOWN_KEY.search(message):
        settings = (flag.removeprefix("--") for flag in flags)
        return f"Unknown setting {found['key']}.{_did_you_mean(found['key'], settings)}"
    if found := UNKNOWN_ARGUMENT.search(message):
        owner = CLASS_PATH.search(message) or KEY.search(message)
        return f"{owner[1] if owner else 'The class'} has no setting '{found['name']}'. {_settings_of(owner)}"
    if found := REQUIRED.search(message):
        missing = [name.strip().removeprefix("fit.") for name in found["names"].split(",")]
        return f"Missing settings: {', '.join(missing)}.{''.join(HINTS.get(name, '') for name in missing)}"
    message = LITERAL.sub(r"unknown value '\g<value>'. Choose one of \g<names>.", message)
    return " ".join(KEY.sub(r"\1", message).split())


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    closest = get_close_matches(name, known, n=1, cutoff=0.75)
    return f" Did you mean {closest[0]}?" if closest else ""


def _settings_of(owner: re.Match[str] | None) -> str:
    if owner is None or owner.re is not CLASS_PATH:
        return "Its settings: --help, or --KEY.help CLASS for a setting that takes a class."
    module, _, name = owner[1].rpartition(".")
    settings = [name for name in signature(getattr(import_module(module), name)).parameters if name != "self"]
    return f"Its settings: {', '.join(settings)}."
