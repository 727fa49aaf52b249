"""Optional packages, the extras of ``pyproject.toml``: imported where they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_switchkd.core.errors import UserError


@contextmanager
def requires(extra: str, purpose: str) -> Iterator[None]:
    """Import the packages of an extra in this block. A missing one is the user's mistake.

    Args:
        extra: Name of the extra.
        purpose: The feature that needs the package, for the message.

    Raises:
        UserError: A package is not installed.

    >>> with requires("report", "The report"):
    ...     import not_installed
    Traceback (most recent call last):
    lightning_switchkd.core.errors.UserError: The report needs not_installed: pip install 'lightning-switchkd[report]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise UserError(f"{purpose} needs {package}: pip install 'lightning-switchkd[{extra}]'") from None


def pyplot(purpose: str) -> Any:
    """Return matplotlib's pyplot, set to draw to files.

    Args:
        purpose: The feature that draws.

    Raises:
        UserError: matplotlib is not installed.
    """
    with requires("report", purpose):
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt

    return plt
