"""Export of a student as a Hugging Face folder for ``LlavaForConditionalGeneration`` and ``AutoProcessor``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaProcessor

from lightning_switchkd.core.files import atomic_path
from lightning_switchkd.data.prompts import Prompter, chat_template, prompt_style
from lightning_switchkd.models.auto import empty_model

CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [llava, knowledge-distillation, switch-kd]
---

# A student distilled with lightning_switchkd

| | |
|---|---|
| objective | {objective} |
| teacher | {teacher} (weights {teacher_fingerprint}) |
| training data | {annotations} |
| prompt style | {prompt_style} |
| trained for | {step} optimizer steps |
| lightning_switchkd | {version} |

```python
from transformers import AutoProcessor, LlavaForConditionalGeneration
model = LlavaForConditionalGeneration.from_pretrained("path/to/this/folder")
processor = AutoProcessor.from_pretrained("path/to/this/folder")
```

**Licenses.** A distilled student inherits obligations from its vision encoder, its language model, its teacher and its
training data. Check each of them before you share or sell the student. LLaVA's instruction data was created with GPT-4
and is CC BY-NC 4.0. The scans of the `digits` data set come from scikit-learn (UCI ML hand-written digits, CC BY 4.0).
Method: Sun et al., Switch-KD, arXiv 2604.14629.
"""


def write_student(
    weights: Mapping[str, Tensor], processor: LlavaProcessor, folder: Path, facts: dict[str, Any]
) -> None:
    """Write model, processor and model card. The folder appears complete or not at all.

    Args:
        weights: The student's weights by their Hugging Face names, with LoRA adapters merged.
        processor: The student's tokenizer and image processor. Its chat template becomes the training's prompt style.
        folder: The folder to write. An existing folder is replaced.
        facts: The checkpoint's metadata, for the model card.
    """
    style = prompt_style(facts["prompt_style"], facts["system"])
    processor.chat_template = processor.tokenizer.chat_template = chat_template(style)
    with torch.device("meta"):  # no weights: `weights` are saved in their place
        model = empty_model(facts["student_config"]).model
    model.to(next(iter(weights.values())).dtype)
    model.generation_config.eos_token_id = Prompter(processor.tokenizer, style, 1, 1).stop_ids
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    tied = model.all_tied_weights_keys  # shards gather a tied weight twice
    with atomic_path(folder) as partial:
        model.save_pretrained(partial, state_dict={name: w for name, w in weights.items() if name not in tied})
        processor.save_pretrained(partial)
        (partial / "README.md").write_text(CARD.format(**facts), encoding="utf-8")
