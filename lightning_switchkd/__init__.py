"""Distill a large vision-language model into a small one (Switch-KD, arXiv 2604.14629)."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_switchkd.data.datamodule import LLaVADataModule
    from lightning_switchkd.training.module import SwitchKD

__version__ = "0.2.0.dev0"
__all__ = ["LLaVADataModule", "SwitchKD"]


def __getattr__(name: str) -> Any:
    """Import the public classes on first use. The losses alone then load without Lightning."""
    if name == "SwitchKD":
        from lightning_switchkd.training.module import SwitchKD

        return SwitchKD
    if name == "LLaVADataModule":
        from lightning_switchkd.data.datamodule import LLaVADataModule

        return LLaVADataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _RenamedModules(MetaPathFinder):
    """Name the new module when a module of version 0.1.0 is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise for an old module. Python asks here only after its own finders found nothing."""
        if name.startswith(f"{__name__}."):
            from lightning_switchkd.core.renamed import MODULES

            old = name.removeprefix(f"{__name__}.")
            for module in (old, old.rpartition(".")[0]):  # the second: a name that was in a module, now a package
                if module in MODULES:
                    new = f"{__name__}.{MODULES[module]}"
                    raise ModuleNotFoundError(f"'{__name__}.{module}' was renamed in 0.2: use {new}.")
            if any(module.startswith(f"{old}.") for module in MODULES):
                return ModuleSpec(name, None, is_package=True)  # an empty package: its modules are asked for next
        return None


sys.meta_path.append(_RenamedModules())
