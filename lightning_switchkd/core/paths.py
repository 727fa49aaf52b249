"""The files of ``conf/``: the working directory's, or the copies that ship with the package."""

from __future__ import annotations

from pathlib import Path

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


def names_in(folder: str) -> list[str]:
    """List the names of the YAML files in a folder of ``conf/``, the working directory's and the package's.

    >>> "switch_kd" in names_in("conf/method")
    True
    """
    return sorted({file.stem for root in (Path(), CLONE or PACKAGE) for file in (root / folder).glob("*.yaml")})
