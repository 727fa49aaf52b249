"""Rules of the references for single answers: pure functions of texts, one module per protocol.

- ``llava``: LLaVA's scripts, which TinyLLaVA and LLaVA-KD ran.
- ``lmms``: lmms-eval.
- ``vlmevalkit``: VLMEvalKit with exact matching.

Each module has one function per benchmark. ``short_answer`` and ``mmmu`` contain what several of them share.
``scoring.SCORINGS`` lists which function scores which benchmark. Each docstring names its source and its pitfalls.
"""

from typing import Literal

ScoringProtocol = Literal["llava", "lmms", "vlmevalkit"]
Reply = Literal["yes", "no", "other"]

API_ERROR = "Failed to obtain answer via API"
"""Text of lmms-eval and VLMEvalKit for a judge that fails. Their rules for choices read no letter next to it."""
