"""Training objectives: one file a method. Each is cross-entropy plus named, weighted terms."""

from lightning_switchkd.objectives.base import Need, Objective, RowTerm, Terms
from lightning_switchkd.objectives.kd import ForwardKL
from lightning_switchkd.objectives.sft import SFT
from lightning_switchkd.objectives.switch_kd import SwitchKDObjective

__all__ = ["SFT", "ForwardKL", "Need", "Objective", "RowTerm", "SwitchKDObjective", "Terms"]
