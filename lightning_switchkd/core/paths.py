"""The files of ``conf/``: the working directory's, or the copies that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_switchkd.core.errors import UserError

PACKAGE = Path(__file__).parents[1]
CLONE = None if (PACKAGE / "conf").is_dir() else PACKAGE.parent
"""Folder of the repository. None if the package is installed, with its own copy of ``conf/``."""


def shipped(path: str | Path) -> Path:
    """Return a path as it is, unless only the package has this file of ``conf/``. Then return the package's copy.

    Args:
        path: A path relative to the working directory, such as ``conf/base.yaml``, or any other path.

    >>> shipped("conf/base.yaml").is_file(), shipped("conf/mine.yaml").as_posix(), shipped("other.yaml").as_posix()
    (True, 'conf/mine.yaml', 'other.yaml')
    """
    path = Path(path)
    copy = (CLONE or PACKAGE) / path
    return copy if path.parts[:1] == ("conf",) and not path.exists() and copy.exists() else path


def existing(file: str | Path, source: str = "") -> Path:
    """Return a configuration file: :func:`shipped`, checked.

    Args:
        file: The file.
        source: The flag or file that names it, for the message.

    Raises:
        UserError: The file does not exist. The message lists the files next to it.

    >>> existing("conf/method/mine.yaml")
    Traceback (most recent call last):
    lightning_switchkd.core.errors.UserError: conf/method/mine.yaml does not exist. Available in conf/method: ...
    """
    path = shipped(file)
    if not path.is_file():
        available = ", ".join(names_in(path.parent)) or "none"
        message = f"{path} does not exist. Available in {path.parent}: {available}."
        raise UserError(f"{source}: {message}" if source else message)
    return path


def read_mapping(file: str | Path, source: str = "") -> dict[str, Any]:
    """Read a YAML file: :func:`existing`, with a mapping as its content.

    Args:
        file: The file.
        source: The flag or file that names it, for the message.

    Raises:
        UserError: The file does not exist, or its content is not a mapping.
    """
    path = existing(file, source)
    place = f"{source}: {path}" if source else path
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{place} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{place} is not a mapping of fields.")
    return content


def names_in(place: str | Path) -> list[str]:
    """List the names in ``conf/``: the entries of a file, or the YAML files in a folder.

    Args:
        place: The file, or the folder. A folder of the working directory adds to the package's.

    >>> "switch_kd" in names_in("conf/method"), "gqa" in names_in("conf/benchmarks.yaml")
    (True, True)
    """
    if (file := shipped(place)).is_file():
        return sorted(read_mapping(file))
    return sorted({file.stem for root in (Path(), CLONE or PACKAGE) for file in (root / place).glob("*.yaml")})
