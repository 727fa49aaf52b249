"""Run the code of a reference from its checkout, without installing the reference."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import runpy
import subprocess
import sys
from collections.abc import Iterable, Sequence
from hashlib import sha256
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, patch

from lightning_switchkd.core.errors import UserError


def require(checkout: Path, files: Iterable[str], source: str) -> None:
    """Check that a checkout has all files that are read.

    Raises:
        UserError: A file is missing.
    """
    if missing := [file for file in files if not (checkout / file).is_file()]:
        raise UserError(f"{checkout} has no {', '.join(missing)}. Give a checkout of {source}.")


def version(checkout: Path) -> str:
    """Return commit and date of a checkout, the version of an installed lmms-eval, or a hash of the code."""
    if (checkout / ".git").exists():
        command = ["git", "-C", str(checkout), "log", "-1", "--format=%h (%cs)"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if installed := [folder.stem.partition("-")[2] for folder in checkout.glob("lmms_eval-*.dist-info")]:
        return installed[0]
    code = b"".join(file.read_bytes() for file in sorted(checkout.glob("*.py")))
    return f"SHA-256 {sha256(code).hexdigest()[:8]}"


class CheckoutFinder(MetaPathFinder):
    """Find the modules of a package in a checkout, and skip the code of its ``__init__.py``.

    That code imports all of a reference, such as its models.

    Args:
        checkout: Folder of the package's folder.
        package: The package.
        initialized: Subpackages whose ``__init__.py`` runs nevertheless.
    """

    def __init__(self, checkout: Path, package: str, initialized: Sequence[str] = ()) -> None:
        self.checkout, self.package, self.initialized = checkout, package, initialized

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the module's file, or a package without code."""
        if fullname.partition(".")[0] != self.package:
            return None
        folder = self.checkout.joinpath(*fullname.split("."))
        if (file := folder.with_name(f"{folder.name}.py")).is_file():
            return importlib.util.spec_from_file_location(fullname, file)
        if not folder.is_dir():
            return None
        if fullname in self.initialized:
            init, places = folder / "__init__.py", [str(folder)]
            return importlib.util.spec_from_file_location(fullname, init, submodule_search_locations=places)
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        return spec


def importable(checkout: Path, package: str, initialized: Sequence[str] = (), unused: Sequence[str] = ()) -> None:
    """Make a package of a checkout importable for the rest of this process.

    Args:
        checkout: Folder of the package's folder.
        package: The package.
        initialized: Subpackages whose ``__init__.py`` runs.
        unused: Modules that the code imports but that scoring does not use. Mocks replace them.
    """
    sys.meta_path.insert(0, CheckoutFinder(checkout, package, initialized))
    sys.modules.update({name: MagicMock() for name in unused})


def load_file(file: Path) -> Any:
    """Import a single file as a module that no other code can import."""
    spec = importlib.util.spec_from_file_location(f"reference_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is not a Python file. Give a complete checkout.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(file: Path, **flags: object) -> str:
    """Run a script with flags, and return what it prints."""
    arguments = [str(word) for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    with patch.object(sys, "argv", [str(file), *arguments]), printed() as text:
        runpy.run_path(str(file), run_name="__main__")
    return text.getvalue()


def printed() -> contextlib.redirect_stdout[io.StringIO]:
    """Collect what code prints."""
    return contextlib.redirect_stdout(io.StringIO())
