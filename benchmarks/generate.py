"""Time that batches save when a model answers questions, and the time of scoring.

    python -m benchmarks.generate [--model runs/emoji/switch_kd/student --samples datasets/emoji/test.json]

The model answers the same questions one by one and in batches, and the answers are compared. Then 200,000 answers to
open questions are scored against ten human answers each (VQAv2), including the reading of the files.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.table import header, row
from lightning_switchkd.cli.main import silence_noise
from lightning_switchkd.evaluation.benchmarks.items import as_question
from lightning_switchkd.evaluation.benchmarks.readers import llava
from lightning_switchkd.evaluation.score import score
from lightning_switchkd.models.generation import batches, load_model

BATCHES = (1, 4, 16, 64)
MAX_NEW_TOKENS = 16


def time_answers(folder: str, samples: Path, count: int, rounds: int) -> None:
    """Print questions per second by batch size: the fastest of several rounds over all sizes."""
    model = load_model(folder)
    questions = [as_question(item) for item in llava(samples.parent, samples.name)[:count]]
    seconds: dict[int, list[float]] = {size: [] for size in BATCHES}
    answers: dict[int, list[str]] = {}
    for _ in range(rounds):
        for size in BATCHES:
            start = time.perf_counter()
            answers[size] = [text for b in batches(questions, size) for text in model.ask(b, MAX_NEW_TOKENS)]
            seconds[size].append(time.perf_counter() - start)
    header("batch size", "questions per second", "ratio", "answers equal to batch size 1")
    for size in BATCHES:
        rate = len(questions) / min(seconds[size])
        same = sum(a == b for a, b in zip(answers[size], answers[1], strict=True))
        row(size, f"{rate:.1f}", f"{min(seconds[1]) / min(seconds[size]):.2f}", f"{same} of {len(questions)}")


def time_scoring(count: int) -> None:
    """Print the seconds that scoring an answer file of VQAv2 takes, confidence interval included."""
    generator = random.Random(0)
    words = [f"{a} {b}" for a in ("red", "a blue", "two", "the man's", "old-fashioned") for b in range(400)]
    with TemporaryDirectory() as folder:
        root = Path(folder, "vqav2")
        root.mkdir()
        questions = [{"question_id": n, "image_id": n // 3, "question": f"Question {n}?"} for n in range(count)]
        labels = [
            {
                "question_id": n,
                "question_type": "what",
                "answers": [{"answer": generator.choice(words), "answer_id": k} for k in range(10)],
            }
            for n in range(count)
        ]
        answers = [
            {"question_id": n, "prompt": f"Question {n}?", "text": generator.choice(words)} for n in range(count)
        ]
        names = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
        (root / names[0]).write_text(json.dumps({"questions": questions}), encoding="utf-8")
        (root / names[1]).write_text(json.dumps({"annotations": labels}), encoding="utf-8")
        Path(folder, "answers.jsonl").write_text("\n".join(map(json.dumps, answers)), encoding="utf-8")
        start = time.perf_counter()
        score(str(Path(folder, "answers.jsonl")), "vqav2", data_root=folder)
        row("scored", count, f"{time.perf_counter() - start:.1f} s")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/emoji/switch_kd/student")
    parser.add_argument("--samples", type=Path, default="datasets/emoji/test.json")
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=200_000)
    options = parser.parse_args()
    silence_noise()
    time_answers(options.model, options.samples, options.questions, options.rounds)
    time_scoring(options.answers)


if __name__ == "__main__":
    main()
