"""Errors for the names of version 0.1.0: one line each, with the present name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.renamed import CLASS_PATHS, COMMANDS, CONFIG_FOLDERS, FLAGS, upgrade_setting

LIGHTNING_COMMANDS = ("fit", "validate", "test", "validate-data", "fill-cache", "dry-run")
"""Commands whose flags and files are settings of a run."""


def check_names(arguments: list[str]) -> None:
    """Refuse arguments and configuration files that use names of version 0.1.0.

    Args:
        arguments: The command and its flags.

    Raises:
        UserError: A name was renamed. The message gives the new one.
    """
    if not arguments:
        return
    command, flags = arguments[0], _split(arguments[1:])
    if command in COMMANDS:
        raise UserError(f"Command '{command}' was renamed in 0.2: use {COMMANDS[command]}.")
    renamed = {f"--{key}": new for key, _ in flags if (new := FLAGS.get(command, {}).get(f"--{key}"))}
    if command in LIGHTNING_COMMANDS:
        for key, value in flags:
            if key in ("config", "c"):
                _check_file(Path(value))
                continue
            for old, new in renamed_names(yaml_value(value), key).items():
                renamed |= {old: new} if old in CLASS_PATHS else {f"--{old}": f"--{new}"}
    if renamed:
        raise UserError(" ".join(f"'{old}' was renamed in 0.2: use {new}." for old, new in renamed.items()))


def renamed_names(value: Any, key: str = "") -> dict[str, str]:
    """Find the old names in a configuration: dotted keys and class paths, each with its present name.

    Args:
        value: A configuration, or a part of one.
        key: The dotted key of that part.

    >>> renamed_names({"greedy": {"records": 8}, "model": {"lr": 0.1}})
    {'greedy.records': 'val_generation.num_samples'}
    """
    if isinstance(value, dict) and value:
        children = [renamed_names(child, f"{key}.{name}".removeprefix(".")) for name, child in value.items()]
        return {old: new for child in children for old, new in child.items()}
    present = _present_key(key)
    renamed = {} if present == key else {key: present}
    if isinstance(value, list):
        for item in value:
            renamed |= renamed_names(item, f"{key}[]")
    elif isinstance(value, str) and value in CLASS_PATHS:
        renamed[value] = CLASS_PATHS[value]
    return renamed


def yaml_value(text: str) -> Any:
    """Parse a flag's value if it is a dict or a list. Other values stay text.

    >>> yaml_value("{lr_end: 0.1}"), yaml_value("3")
    ({'lr_end': 0.1}, '3')
    """
    try:
        return yaml.safe_load(text) if text.startswith(("{", "[")) else text
    except yaml.YAMLError:
        return text


def _present_key(key: str) -> str:
    """Return the present name of a dotted key; flags may drop ``init_args`` from it."""
    plain = key.replace(".objective.init_args.", ".objective.")
    full = plain.replace(".objective.", ".objective.init_args.")
    present = upgrade_setting(full)
    return key if present == full else present.replace(".init_args.", "." if key == plain else ".init_args.")


def _split(words: list[str]) -> list[tuple[str, str]]:
    """Split arguments into flags and their values: ``--key=value``, ``--key value`` or ``-c value``."""
    following = [*words[1:], ""] if words else []
    return [
        (name.lstrip("-").rstrip("+"), value if equals else after)
        for word, after in zip(words, following, strict=True)
        if word.startswith("-")
        for name, equals, value in (word.partition("="),)
    ]


def _check_file(file: Path) -> None:
    folder = file.parent.name
    if not file.is_file():
        if file.parent.parent.name == "conf" and folder in CONFIG_FOLDERS:
            present = file.parent.parent / CONFIG_FOLDERS[folder]
            same_name = present / file.name
            raise UserError(f"'conf/{folder}' was renamed in 0.2: use {same_name if same_name.is_file() else present}.")
        return
    try:
        renamed = renamed_names(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError):
        return  # the parser reports these with the line
    if renamed:
        names = ", ".join(f"{old} -> {new}" for old, new in renamed.items())
        raise UserError(f"{file} uses names that were renamed in 0.2. Change them: {names}.")
