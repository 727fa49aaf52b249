"""Loading of a student and its teacher, with all checks that they fit each other and the data."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from lightning_switchkd.core.types import Part
from lightning_switchkd.distillation.checks import (
    check_data,
    check_packing,
    check_pair,
    check_student_vocabulary,
    check_vocabulary,
)
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.auto import build, tokenizer_of
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives.terms import Need

log = logging.getLogger(__name__)


def load_pair(
    student_spec: VLMSpec,
    teacher_spec: VLMSpec | None,
    needs: Need,
    tokenizer: PreTrainedTokenizerBase,
    image_tokens: int,
    freeze: Sequence[Part] = (),
    packing: bool = False,
) -> tuple[VLMAdapter, VLMAdapter | None]:
    """Load the student, and the teacher if it is needed.

    Args:
        student_spec: The model that learns.
        teacher_spec: The model to learn from.
        needs: The inputs of the objective.
        tokenizer: The processor's tokenizer.
        image_tokens: Image tokens that the processor writes for each image.
        freeze: Parts of the student to freeze.
        packing: Whether the samples of a batch share one row.

    Raises:
        UserError: The models do not fit each other, the data or the settings.
    """
    student = build(student_spec, tokenizer, "student")
    check_data(student, tokenizer, image_tokens)
    if lm_tokenizer := tokenizer_of(student_spec):
        check_student_vocabulary(tokenizer, lm_tokenizer)
    student.freeze(freeze)
    teacher = None
    if teacher_spec is not None and Need.TEACHER in needs:
        teacher = build(teacher_spec, tokenizer, "teacher")
        if teacher_tokenizer := tokenizer_of(teacher_spec):
            check_vocabulary(tokenizer, teacher_tokenizer)
        else:
            log.warning("Cannot check the teacher's vocabulary: its folder has no tokenizer.")
    check_pair(student, teacher, needs, len(tokenizer))
    if packing:
        check_packing(student, teacher)
    return student, teacher
