"""What batches save where a model is asked, and how fast answers are scored.

    python -m benchmarks.generate [--model runs/digits/switch_kd/student --benchmark digits --questions 256]

Asks the same questions one by one and in batches, in turn, and compares the answers; then scores 200,000 answers to
open questions with ten people's answers each (VQAv2), reading of the files included.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measuring import row
from lightning_switchkd.cli.main import silence_noise
from lightning_switchkd.evaluation.benchmarks.definition import DATA_ROOT, Benchmark
from lightning_switchkd.evaluation.benchmarks.items import as_question
from lightning_switchkd.evaluation.score import score
from lightning_switchkd.models.generation import batches, load_model

BATCHES = (1, 4, 16, 64)


def asking(folder: str, name: str, count: int, rounds: int) -> None:
    """Questions a second by batch size: the fastest of some rounds, each of all sizes in turn."""
    model, benchmark = load_model(folder), Benchmark.read(name)
    items = benchmark.items(benchmark.folder(DATA_ROOT))[:count]
    questions = [as_question(item, benchmark.prompt_of(item)) for item in items]
    seconds: dict[int, list[float]] = {size: [] for size in BATCHES}
    said: dict[int, list[str]] = {}
    for _ in range(rounds):
        for size in BATCHES:
            start = time.perf_counter()
            said[size] = [text for b in batches(questions, size) for text in model.ask(b, benchmark.max_new_tokens)]
            seconds[size].append(time.perf_counter() - start)
    row("questions at once", "questions a second", "ratio", "answers equal to those one by one")
    row(*["---"] * 4)
    for size in BATCHES:
        rate = len(questions) / min(seconds[size])
        same = sum(a == b for a, b in zip(said[size], said[1], strict=True))
        row(size, f"{rate:.1f}", f"{min(seconds[1]) / min(seconds[size]):.2f}", f"{same} of {len(questions)}")


def scoring(count: int) -> None:
    """Seconds for an answer file of VQAv2, from files to the figure with its interval."""
    chance = random.Random(0)
    words = [f"{a} {b}" for a in ("red", "a blue", "two", "the man's", "old-fashioned") for b in range(400)]
    with TemporaryDirectory() as folder:
        root = Path(folder, "vqav2")
        root.mkdir()
        questions = [{"question_id": n, "image_id": n // 3, "question": f"Question {n}?"} for n in range(count)]
        labels = [
            {
                "question_id": n,
                "question_type": "what",
                "answers": [{"answer": chance.choice(words), "answer_id": k} for k in range(10)],
            }
            for n in range(count)
        ]
        answers = [{"question_id": n, "prompt": "x", "text": chance.choice(words)} for n in range(count)]
        names = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
        (root / names[0]).write_text(json.dumps({"questions": questions}), encoding="utf-8")
        (root / names[1]).write_text(json.dumps({"annotations": labels}), encoding="utf-8")
        Path(folder, "said.jsonl").write_text("\n".join(map(json.dumps, answers)), encoding="utf-8")
        start = time.perf_counter()
        score("vqav2", str(Path(folder, "said.jsonl")), data_root=folder)
        row("scored", count, f"{time.perf_counter() - start:.1f} s")


def main() -> None:
    """Prints both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/digits/switch_kd/student")
    parser.add_argument("--benchmark", default="digits")
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=200_000)
    options = parser.parse_args()
    silence_noise()
    asking(options.model, options.benchmark, options.questions, options.rounds)
    scoring(options.answers)


if __name__ == "__main__":
    main()
