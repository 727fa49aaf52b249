"""Several model folders on the same held-out records: exact match by kind of question, with a blind score beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.sources import open_source, read_record
from lightning_switchkd.errors import UserError
from lightning_switchkd.evaluation.generate import LoadedModel, Question, batches, load_model
from lightning_switchkd.evaluation.majority import majority_answers, read_conversations
from lightning_switchkd.evaluation.report import MAJORITY, write_report


@dataclass
class Scores:
    """One column's answers and their exact match by kind of question, seeing and blind.

    Attributes:
        answers: one per question, seeing.
        seeing: share of right answers by source.
        blind: the same with every image blanked; empty for what never sees an image.
    """

    answers: list[str] = field(default_factory=list)
    seeing: dict[str, float] = field(default_factory=dict)
    blind: dict[str, float] = field(default_factory=dict)


def exact_match(answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
    """Share of answers equal to the right one, by source; ``average`` is the plain mean over the sources.

    Where the sources have different sizes, ``all questions`` is the share of all answers.

    >>> asked = [Question((), (), answer="7", source="position"), Question((), (), answer="yes", source="exists")]
    >>> exact_match(["7", "no"], asked)
    {'exists': 0.0, 'position': 1.0, 'average': 0.5}
    """
    right: dict[str, list[bool]] = {source: [] for source in sorted({q.source for q in questions})}
    for answer, question in zip(answers, questions, strict=True):
        right[question.source].append(answer == question.answer.strip())
    shares = {source: sum(found) / len(found) for source, found in right.items()}
    overall = {"all questions": sum(map(sum, right.values())) / len(questions)}
    return {
        **shares,
        "average": sum(shares.values()) / len(shares),
        **(overall if len(set(map(len, right.values()))) > 1 else {}),
    }


def read_questions(annotations: str, image_root: str, limit: int | None) -> list[Question]:
    """The last question of every record."""
    if not Path(image_root).is_dir():
        raise UserError(f"--image_root: there is no folder '{image_root}'.")
    source = open_source(annotations, ImageFolder(image_root))
    n = len(source) if limit is None else min(limit, len(source))
    return [Question.of_record(read_record(source, i)) for i in range(n)]


def answer_all(
    model: LoadedModel, questions: Sequence[Question], name: str, batch_size: int, max_new_tokens: int, blind: bool
) -> list[str]:
    """Asks one model everything, with a progress bar of this name."""
    answers: list[str] = []
    with tqdm(total=len(questions), desc=name, unit="q") as bar:
        for batch in batches(questions, batch_size):
            answers += model.ask(batch, max_new_tokens, blind)
            bar.update(len(batch))
    return answers


def score_model(name: str, folder: str, questions: Sequence[Question], batch_size: int, max_new_tokens: int) -> Scores:
    """Asks one model everything, seeing and blind."""
    model = load_model(folder)
    answers = answer_all(model, questions, name, batch_size, max_new_tokens, blind=False)
    blank = answer_all(model, questions, f"{name} (blind)", batch_size, max_new_tokens, blind=True)
    return Scores(answers, exact_match(answers, questions), exact_match(blank, questions))


def ask(
    folder: str, files: Mapping[str, str], image_root: str, batch_size: int = 128, max_new_tokens: int = 16
) -> dict[str, dict[str, list[str]]]:
    """Greedy answers of a model to the last question of every record of LLaVA files.

    Args:
        folder: of the model.
        files: LLaVA files by name; the first is also asked with every image blanked.
        image_root: folder their images lie in.
        batch_size: questions asked at once.
        max_new_tokens: longest answer.

    Returns:
        by name of the file, ``seeing`` and, of the first, ``blind`` answers in the order of the records.
    """
    model = load_model(folder)
    said: dict[str, dict[str, list[str]]] = {}
    for name, file in files.items():
        questions = read_questions(file, image_root, None)
        ways = {"seeing": False} if said else {"seeing": False, "blind": True}
        said[name] = {
            way: answer_all(model, questions, f"{name}, {way}", batch_size, max_new_tokens, blind)
            for way, blind in ways.items()
        }
    return said


def evaluate(
    models: dict[str, str],
    annotations: str,
    image_root: str,
    output: str,
    run: str | None = None,
    majority: str | None = None,
    batch_size: int = 128,
    max_new_tokens: int = 16,
    limit: int | None = None,
) -> None:
    """Greedy exact match of several model folders on held-out LLaVA records: table, plot and page of examples.

    Records are grouped by their ``source``. Every score has a blind one beside it: the same questions with every
    image blanked, which is what can be guessed from the text.

    Args:
        models: name and folder of each model, ``--models.teacher=DIR --models.student=DIR``.
        annotations: LLaVA JSON or JSONL file; the last answer of each record is the right one.
        image_root: folder its images lie in.
        output: folder for results.json, table.md, report.png and examples.html.
        run: run folder whose metrics.csv gives the plot its training curves.
        majority: training annotations; adds what their most frequent answer to each question text would score.
        batch_size: questions asked at once.
        max_new_tokens: longest answer.
        limit: only the first so many records.
    """
    questions = read_questions(annotations, image_root, limit)
    scores: dict[str, Scores] = {}
    if majority is not None:
        said = majority_answers(read_conversations(majority), questions)
        scores[MAJORITY] = Scores(said, exact_match(said, questions))
    for name, model in models.items():
        scores[name] = score_model(name, model, questions, batch_size, max_new_tokens)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, object] = {
        "annotations": annotations,
        "questions": len(questions),
        "models": {
            n: {"folder": folder, "exact_match": scores[n].seeing, "blind": scores[n].blind}
            for n, folder in models.items()
        },
    }
    if majority is not None:
        results["majority"] = {"annotations": majority, "exact_match": scores[MAJORITY].seeing}
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(write_report(folder, questions, scores, Path(run) if run else None))
    print(f"\nTable, plot and examples: {folder}/table.md, report.png, examples.html")
