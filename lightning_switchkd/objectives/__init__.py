"""Training objectives: one file per method. Each is cross-entropy plus named, weighted terms."""

from lightning_switchkd.objectives.align_kd import AlignKD
from lightning_switchkd.objectives.base import Objective, ObjectiveOutput
from lightning_switchkd.objectives.kd import KD
from lightning_switchkd.objectives.llava_kd import LLaVAKD
from lightning_switchkd.objectives.sft import SFT
from lightning_switchkd.objectives.switch_kd import SwitchKDObjective
from lightning_switchkd.objectives.terms import FeatureLoss, LossTerm, Need, ObjectiveInputs, TokenLoss

__all__ = [
    "KD",
    "SFT",
    "AlignKD",
    "FeatureLoss",
    "LLaVAKD",
    "LossTerm",
    "Need",
    "Objective",
    "ObjectiveInputs",
    "ObjectiveOutput",
    "SwitchKDObjective",
    "TokenLoss",
]
