"""Commands that are plain functions. Their arguments become flags."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from typing import Any

from jsonargparse import auto_cli

from lightning_switchkd.cli.parser import Parser
from lightning_switchkd.core.text import program

COMMANDS = {
    "distill": "cli.distill",
    "pipeline": "cli.pipelines",
    "sweep": "cli.pipelines",
    "repack": "data.repack",
    "convert": "models.convert",
    "export": "cli.export",
    "generate": "evaluation.chat",
    "evaluate": "evaluation.runner",
    "ask": "evaluation.ask",
    "score": "evaluation.score",
    "report": "evaluation.report.report",
}
"""Module of each command's function. Only the command that runs is imported: most need no Lightning, some no torch."""


def command_function(command: str) -> Callable[..., Any]:
    """Import the function of a command."""
    function: Callable[..., Any] = getattr(import_module(f"lightning_switchkd.{COMMANDS[command]}"), command)
    return function


def run_command(arguments: list[str]) -> None:
    """Run a command.

    Args:
        arguments: The command and its flags.
    """
    function = command_function(arguments[0])
    flags = expand_switches(function, arguments[1:])
    auto_cli(function, args=flags, as_positional=False, prog=f"{program()} {arguments[0]}", parser_class=Parser)


def expand_switches(function: Callable[..., Any], arguments: list[str]) -> list[str]:
    """Expand ``--strict`` to ``--strict=true``, for every flag of a command that is a bool.

    Args:
        function: The command.
        arguments: Its flags.

    >>> def score(strict: bool = False) -> None: ...
    >>> expand_switches(score, ["--strict", "--output", "x"]), expand_switches(score, ["--strict", "false"])
    (['--strict=true', '--output', 'x'], ['--strict', 'false'])
    >>> expand_switches(score, [])
    []
    """
    names = {
        f"--{name}"
        for name, parameter in signature(function).parameters.items()
        if parameter.annotation in (bool, "bool")
    }
    following = [*arguments, "--"][1:]
    return [
        f"{word}=true" if word in names and after.lower() not in ("true", "false") else word
        for word, after in zip(arguments, following, strict=True)
    ]
