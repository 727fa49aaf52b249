"""Data: LLaVA records and their images, from files to batches. Knows no model."""

from lightning_switchkd.data.datamodule import DataPaths, LLaVADataModule

__all__ = ["DataPaths", "LLaVADataModule"]
