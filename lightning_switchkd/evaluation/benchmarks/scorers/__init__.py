"""How the benchmarks score an answer: pure functions of texts, one file a kind of question.

A *protocol* says whose rules hold where the harnesses disagree: ``llava`` (what TinyLLaVA and LLaVA-KD ran), ``lmms``
(lmms-eval) or ``vlmevalkit``. Sources and traps: docs of each function.
"""

from typing import Literal

ScoringProtocol = Literal["llava", "lmms", "vlmevalkit"]
