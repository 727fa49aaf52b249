"""Lightning callbacks."""

from lightning_switchkd.callbacks.answer_panel import AnswerPanel
from lightning_switchkd.callbacks.data_health import DataHealth
from lightning_switchkd.callbacks.dbild_statistics import DBiLDStatistics
from lightning_switchkd.callbacks.export_student import ExportStudent
from lightning_switchkd.callbacks.finite_steps import FiniteSteps
from lightning_switchkd.callbacks.greedy_validation import GreedyValidation
from lightning_switchkd.callbacks.interruption import Interruption
from lightning_switchkd.callbacks.progress import StepProgressBar
from lightning_switchkd.callbacks.throughput import Throughput
from lightning_switchkd.callbacks.vision_gradients import VisionGradients

__all__ = [
    "AnswerPanel",
    "DBiLDStatistics",
    "DataHealth",
    "ExportStudent",
    "FiniteSteps",
    "GreedyValidation",
    "Interruption",
    "StepProgressBar",
    "Throughput",
    "VisionGradients",
]
