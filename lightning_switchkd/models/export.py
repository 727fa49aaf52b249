"""A student folder in Hugging Face format: loads with ``LlavaForConditionalGeneration`` and ``AutoProcessor`` alone."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaProcessor

from lightning_switchkd.training.checkpoints.io import newest
from lightning_switchkd.training.checkpoints.metadata import STUDENT_PREFIX, record_of
from lightning_switchkd.data.processor import load_processor
from lightning_switchkd.data.prompts import Prompter, chat_template, prompt_style
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.models.auto import skeleton
from lightning_switchkd.models.lora import merged

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

**Licences to mind.** A distilled student inherits obligations from its vision tower, its language model, its teacher
and its training data: check each of them before you share or sell it. LLaVA's instruction data was made with GPT-4
and is CC BY-NC 4.0; the scans of the `digits` data set are scikit-learn's (UCI ML hand-written digits, CC BY 4.0).
Method: Sun et al., Switch-KD, arXiv 2604.14629.
"""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A Lightning checkpoint, loaded without unpickling code.

    Raises:
        UserError: There is no such file, it is damaged, or this package did not write it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint '{path}'. `fit` writes them to runs/<name>/checkpoints/.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        before = newest(path.parent, but=path)
        other = f"The one before it is {before}: --ckpt_path={before}." if before else "Its folder holds no other."
        raise UserError(
            f"'{path}' cannot be read as a checkpoint ({str(error).strip().splitlines()[0]}). It may be damaged or cut "
            f"short. {other}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"'{path}' is no Lightning checkpoint. Give a .ckpt that `fit` wrote.")
    record_of(checkpoint, f"'{path}'")
    return checkpoint


def student_of(state: Mapping[str, Tensor], lora_scale: float | None) -> dict[str, Tensor]:
    """The student's own Hugging Face weights in the state dict of a checkpoint or run, adapters merged."""
    own = {name.removeprefix(STUDENT_PREFIX): w for name, w in state.items() if name.startswith(STUDENT_PREFIX)}
    return own if lora_scale is None else merged(own, lora_scale)


def write_student(state: Mapping[str, Tensor], processor: LlavaProcessor, folder: Path, facts: dict[str, Any]) -> None:
    """Writes model, processor and model card; the folder appears whole or not at all.

    Args:
        state: of a checkpoint or run; whole, wherever the run's own weights are.
        processor: what makes its ids and images; its chat template is set to the training's prompt style.
        folder: where to; replaced if it is there.
        facts: what the model card says (the checkpoint's record).
    """
    style = prompt_style(facts["prompt_style"], facts["system"])
    processor.chat_template = processor.tokenizer.chat_template = chat_template(style)
    weights = student_of(state, facts["lora_scale"])
    with torch.device("meta"):  # only the frame
        model = skeleton(facts["student_config"]).model
    model.to(next(iter(weights.values())).dtype)
    model.generation_config.eos_token_id = Prompter(processor.tokenizer, style, 1, 1).stop_ids
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    tied = model.all_tied_weights_keys  # gathered from shards, they are twice the same
    model.save_pretrained(unfinished, state_dict={name: w for name, w in weights.items() if name not in tied})
    processor.save_pretrained(unfinished)
    (unfinished / "README.md").write_text(CARD.format(**facts), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def export(ckpt: str, output: str, processor: str | None = None) -> None:
    """Writes the student of a checkpoint as a Hugging Face folder.

    Args:
        ckpt: checkpoint that `fit` wrote.
        output: folder to write; must not exist yet, or be an earlier export.
        processor: folder of the processor it was trained with, if it has moved since.
    """
    folder = Path(output)
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(f"--output: '{folder}' exists and is no model folder. Give a new folder.")
    checkpoint = read_checkpoint(ckpt)
    facts = record_of(checkpoint, ckpt)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_student(
        checkpoint["state_dict"], load_processor(processor or facts["processor"], facts["square_pad"]), folder, facts
    )
    print(f"Student written to {folder}. Ask it: python -m lightning_switchkd generate --model {folder} --image FILE")
