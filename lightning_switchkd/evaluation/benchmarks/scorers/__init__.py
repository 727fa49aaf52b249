"""Scorers of the benchmarks: pure functions of texts, one file per kind of question.

A *protocol* selects the rules to apply where evaluation harnesses disagree: ``llava`` (as in TinyLLaVA and LLaVA-KD),
``lmms`` (lmms-eval) or ``vlmevalkit``. The docstring of each function names its source and its pitfalls.
"""

from typing import Literal

ScoringProtocol = Literal["llava", "lmms", "vlmevalkit"]
