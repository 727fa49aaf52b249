"""The callbacks of every run."""

from lightning_switchkd.training.callbacks.answer_panel import AnswerPanel
from lightning_switchkd.training.callbacks.data_health import DataHealth
from lightning_switchkd.training.callbacks.dbild_statistics import DBiLDStatistics
from lightning_switchkd.training.callbacks.export_student import ExportStudent
from lightning_switchkd.training.callbacks.interruption import Interruption
from lightning_switchkd.training.callbacks.progress import StepProgressBar
from lightning_switchkd.training.callbacks.skip_nonfinite import SkipNonfinite
from lightning_switchkd.training.callbacks.throughput import Throughput
from lightning_switchkd.training.callbacks.val_generation import ValGeneration
from lightning_switchkd.training.callbacks.vision_gradients import VisionGradients

__all__ = [
    "AnswerPanel",
    "DBiLDStatistics",
    "DataHealth",
    "ExportStudent",
    "Interruption",
    "SkipNonfinite",
    "StepProgressBar",
    "Throughput",
    "ValGeneration",
    "VisionGradients",
]
