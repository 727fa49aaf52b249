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
EXPECTED = re.compile(r"^[ -]*Expected an? (?!path but|<class 'NoneType'>)(?P<what>.+?)(\. Got value: .*|: \S+)?$")
CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
BASE = re.compile(r"Subtypes: \[<class '([\w.]+)'>")
VALUE = re.compile(r"(Got value|Given value|dot import path string): (?P<value>.+)")
NESTED = re.compile(r"NestedArg\(key='(?P<key>[\w.]+)'")
LITERAL = re.compile(r"typing\.Literal\[(?P<names>[^\]]+)\]")
REQUIRED = re.compile(r"arguments are required: (?P<names>.+)")
ONE_ARGUMENT = re.compile(r"argument (?P<flag>--\w+): expected one argument")
HINTS = {
    "data.processor": " It is the student's folder. For a student from parts, take the teacher's.",
    "systems": ' Name results: --systems.NAME=FOLDER (make compare RUNS="runs/a runs/b").',
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
    flags = list(flags)
    if found := UNKNOWN_FLAG.search(message):
        return _unknown_flag(found["flag"], flags)
    if found := ONE_ARGUMENT.search(message):
        return f"{found['flag']} needs a value. If the value starts with --, write {found['flag']}='--key=value …'."
    if found := UNKNOWN_KEY.search(message):
        settings = (flag.removeprefix("--") for flag in flags)
        return f"Unknown setting {found['key']}.{_did_you_mean(found['key'], settings)}"
    if found := UNKNOWN_ARGUMENT.search(message):
        owner = CLASS_PATH.search(message) or KEY.search(message)
        return f"{owner[1] if owner else 'The class'} has no setting '{found['name']}'. {_settings_of(owner)}"
    if found := REQUIRED.search(message):
        missing = [name.strip().removeprefix("fit.") for name in found["names"].split(",")]
        return f"Missing settings: {', '.join(missing)}.{''.join(HINTS.get(name, '') for name in missing)}"
    return _wrong_value(message, flags) or " ".join(KEY.sub(r"\1", message).split())


def _unknown_flag(flag: str, flags: Iterable[str]) -> str:
    """Name the closest flag. A setting of a training belongs into ``--flags`` if the command has this flag."""
    hint = f" Settings of a training go into --flags='{flag}=…'." if "." in flag and "--flags" in flags else ""
    return f"Unknown flag {flag}.{hint or _did_you_mean(flag, flags)}"


def _wrong_value(message: str, flags: Iterable[str]) -> str | None:
    """Return the setting, its value and the expected values. None if the message is about something else.

    jsonargparse reports every alternative of a union, indented by depth. The first chain of keys leads to the value.
    """
    keys: list[str] = []
    expected: list[str] = []
    bases: list[str] = []
    depth, value = -1, None
    for line in message.splitlines():
        indent = len(line) - len(line.lstrip(" -"))
        if line.strip() and indent <= depth:
            break
        if found := KEY.search(line):
            keys.append(found["key"])
            depth = indent
            expected.clear()
        if found := EXPECTED.match(line):
            expected.append(found["what"])
        bases += BASE.findall(line)
        if found := VALUE.search(line):
            value = value or found["value"]
    if not keys or not expected or value is None:
        return None
    key = ".".join(keys)
    if nested := NESTED.match(value):
        return _unknown_flag(f"--{key}.{nested['key']}", flags)
    if names := LITERAL.search(expected[0]):
        return f"{key}: unknown value '{value}'. Choose one of {names['names']}."
    if "dot import path string" in expected:
        known = [subclass.__name__ for base in bases[-1:] for subclass in _load(base).__subclasses__()]
        return f"{key}: unknown class '{value}'. Choose one of {', '.join(known)}, or give module.Class."
    types = " or ".join(CLASS.sub(r"\1", what) for what in expected)
    return f"{key}: expected {types}, got '{value}'."


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    closest = get_close_matches(name, known, n=1, cutoff=0.75)
    return f" Did you mean {closest[0]}?" if closest else ""


def _settings_of(owner: re.Match[str] | None) -> str:
    if owner is None or owner.re is not CLASS_PATH:
        return "Its settings: --help, or --KEY.help CLASS for a setting that takes a class."
    settings = [name for name in signature(_load(owner[1])).parameters if name != "self"]
    return f"Its settings: {', '.join(settings)}."


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
