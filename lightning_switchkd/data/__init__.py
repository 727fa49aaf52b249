"""Data: LLaVA samples and their images, from files to batches. Independent of models."""

from lightning_switchkd.data.datamodule import DataPaths, LLaVADataModule

__all__ = ["DataPaths", "LLaVADataModule"]
