"""Data: LLaVA samples and their images, from files to batches. Independent of models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_switchkd.data.datamodule import DataPaths, LLaVADataModule

__all__ = ["DataPaths", "LLaVADataModule"]


def __getattr__(name: str) -> Any:
    """Import the public classes on first use. Reading data then needs no Lightning."""
    if name in __all__:
        from lightning_switchkd.data import datamodule

        return getattr(datamodule, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
