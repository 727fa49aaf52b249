"""lightning_switchkd: distil a large vision-language model into a small one (Switch-KD, arXiv 2604.14629)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_switchkd.data.datamodule import LLaVADataModule
    from lightning_switchkd.training.module import SwitchKD

__version__ = "0.1.0"
__all__ = ["LLaVADataModule", "SwitchKD"]


def __getattr__(name: str) -> Any:
    """The public names, imported when asked for: who wants the losses alone need not wait for Lightning."""
    if name == "SwitchKD":
        from lightning_switchkd.training.module import SwitchKD

        return SwitchKD
    if name == "LLaVADataModule":
        from lightning_switchkd.data.datamodule import LLaVADataModule

        return LLaVADataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
