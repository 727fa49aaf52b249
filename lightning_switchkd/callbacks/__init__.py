"""Lightning callbacks."""

from lightning_switchkd.callbacks.export_student import ExportStudent
from lightning_switchkd.callbacks.greedy_validation import GreedyValidation
from lightning_switchkd.callbacks.progress import StepProgressBar

__all__ = ["ExportStudent", "GreedyValidation", "StepProgressBar"]
