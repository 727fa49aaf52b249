"""The command `ask`: answers of a model to the questions of LLaVA files, without scores."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import write_atomic
from lightning_switchkd.evaluation.benchmarks.items import as_question
from lightning_switchkd.evaluation.benchmarks.readers import llava
from lightning_switchkd.models.generation import load_model


def ask(
    model: str,
    questions: dict[str, str],
    image_root: str,
    output: str,
    batch_size: int = 128,
    max_new_tokens: int = 16,
) -> None:
    """Ask a model the last question of every sample of LLaVA files, with greedy decoding.

    The output is JSON. By name of the file, it has the answers ``with_image`` in the order of the samples. The first
    file is also asked with blank images: ``no_image``. Other files that do not exist are skipped.

    Args:
        model: folder of the model.
        questions: name and path of each file, ``--questions.test=FILE``.
        image_root: folder of their images.
        output: file of the answers.
        batch_size: questions in a batch.
        max_new_tokens: maximum length of an answer.

    Raises:
        UserError: The first file does not exist.
    """
    first = next(iter(questions.values()))
    if not Path(first).is_file():
        raise UserError(f"--questions: {first} does not exist.")
    loaded = load_model(model)
    answers: dict[str, dict[str, list[str]]] = {}
    for name, file in questions.items():
        if not Path(file).is_file():
            print(f"{file} does not exist: skipped.")
            continue
        items = llava(Path(), file, image_root)
        ways = {"with_image": False} if answers else {"with_image": False, "no_image": True}
        answers[name] = {
            way: loaded.ask_all(
                map(as_question, items), len(items), f"{name}, {way}", batch_size, max_new_tokens, no_image
            )
            for way, no_image in ways.items()
        }
    write_atomic(Path(output), json.dumps(answers))
