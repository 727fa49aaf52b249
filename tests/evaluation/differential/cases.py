"""Generated questions and answers: what models write, and what breaks parsers. A seed gives the same ones again.

Answers have no white space at their ends. All references or their models strip them before scoring.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any

from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.tallies import COGNITION, PERCEPTION


@dataclass(frozen=True, slots=True)
class Case:
    """A question and a model's answer to it."""

    item: Item
    answer: str


SPLITS = ("adversarial", "popular", "random")
"""Categories of POPE."""

ROTATION = 1_000_000
"""MMBench: the ids of a question's rotations differ by multiples of this number."""

TEXTS: dict[str, list[Any]] = json.loads(Path(__file__).with_name("texts.json").read_text(encoding="utf-8"))
"""Texts by their kind. ``forms`` and ``letter_forms`` are forms of an answer, ``spellings`` are pairs."""

NOUNS, NUMBERS, SENTENCES = TEXTS["nouns"], TEXTS["numbers"], TEXTS["sentences"]

GOLDEN = Path(__file__).parents[2] / "golden" / "contractions.json"
CONTRACTIONS: dict[str, str] = json.loads(GOLDEN.read_text(encoding="utf-8"))["pairs"]

PEOPLE = [*TEXTS["people"], *CONTRACTIONS, *CONTRACTIONS.values()]
"""More answers of people, with all contractions."""

SPELLINGS = [*TEXTS["spellings"], *CONTRACTIONS.items()]
"""Pairs of texts that some rules regard as equal."""

MARKS = ";/[](){}=+\\_-><@`,?!.:'\"*# \n\t$%&|~^é’ß中İ½²"

LETTERS = "ABCDEFG"


def generate(benchmark: str, number: int, seed: int) -> list[Case]:
    """Return the first ``number`` cases of a benchmark."""
    return list(islice(GENERATORS[benchmark](Random(f"{seed}/{benchmark}")), number))


def mme(random: Random) -> Iterator[Case]:
    """Yield two questions about an image, category by category."""
    categories = (*PERCEPTION, *COGNITION)
    for image in count():
        for answer in ("yes", "no"):
            item = Item(str(image), "Is it?", (answer,), image=str(image), category=categories[image % len(categories)])
            yield Case(item, yes_or_no(random, answer))


def pope(random: Random) -> Iterator[Case]:
    """Yield questions of three splits."""
    for number in count():
        answer = random.choice(("yes", "no"))
        item = Item(str(number), "Is it?", (answer,), image=str(number), category=SPLITS[number % 3])
        yield Case(item, yes_or_no(random, answer))


def gqa(random: Random) -> Iterator[Case]:
    """Yield questions with one correct answer, in lowercase."""
    for number in count():
        correct = random.choice(NOUNS).lower()
        yield Case(Item(str(number), "What is it?", (correct,), image=str(number)), short(random, [correct]))


def scienceqa(random: Random) -> Iterator[Case]:
    """Yield multiple-choice questions with two to five options."""
    for number in count():
        options, letter = multiple_choice(random, random.randint(2, 5))
        yield Case(Item(str(number), "Which?", (letter,), options, image=str(number)), chosen(random, options, letter))


def mmbench(random: Random) -> Iterator[Case]:
    """Yield all rotations of each question. A model either mostly knows the answer, or does not."""
    for number in count():
        options, letter = multiple_choice(random, random.randint(2, 4))
        texts, knows = list(options.values()), random.random() < 0.6
        for shift in range(len(texts)):
            rotated = dict(zip(options, texts[shift:] + texts[:shift], strict=True))
            answer = LETTERS[(LETTERS.index(letter) - shift) % len(texts)]
            name, image = str(shift * ROTATION + number), str(number)
            item = Item(name, "Which?", (answer,), rotated, image=image, category="x")
            yield Case(item, answer if knows and random.random() < 0.8 else chosen(random, rotated, answer))


def mmmu(random: Random) -> Iterator[Case]:
    """Yield multiple-choice questions and open questions, which may have several correct answers."""
    for number in count():
        name = f"validation_Art_{number}"
        if number % 2:
            options, letter = multiple_choice(random, random.randint(2, 7))
            yield Case(Item(name, "Which?", (letter,), options, image=name), chosen(random, options, letter))
        else:
            correct = tuple(random.sample(NUMBERS + NOUNS, random.choice((1, 1, 1, 2))))
            yield Case(Item(name, "How many?", correct, image=name), open_answer(random, correct))


def people(random: Random) -> Iterator[Case]:
    """Yield questions with the answers of ten people, who agree or not."""
    for number in count():
        given = [mixed(random) for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5)))]
        if random.random() < 0.2:
            given = random.sample(random.choice(SPELLINGS), 2)
        most = random.choice((10, 9, 7, 5, 3, 1))
        answers = (given[0],) * most + tuple(random.choice(given) for _ in range(10 - most))
        yield Case(Item(str(number), "What is it?", answers, image=str(number)), short(random, given))


def yes_or_no(random: Random, correct: str) -> str:
    """Write an answer to a question that asks for yes or no."""
    kind = random.random()
    if kind < 0.35:
        return random.choice((correct, correct.capitalize(), f"{correct.capitalize()}.", f"{correct}, it is."))
    text = random.choice(TEXTS["yes_no"])
    if kind < 0.6:
        text = separator(random).join((text, random.choice((*TEXTS["yes_no"], *SENTENCES))))
    return perturbed(random, wrapped(random, text))


def multiple_choice(random: Random, number: int) -> tuple[dict[str, str], str]:
    """Return options by letter, and the correct letter."""
    texts = random.sample(NOUNS + NUMBERS, number)
    return dict(zip(LETTERS, texts, strict=False)), LETTERS[random.randrange(number)]


def chosen(random: Random, options: Mapping[str, str], correct: str) -> str:
    """Write an answer to a multiple-choice question."""
    letter = correct if random.random() < 0.6 else random.choice(list(options))
    other = random.choice([name for name in options if name != letter])
    kind = random.random()
    if kind < 0.05:
        return random.choice(SENTENCES)
    form = "{letter}" if random.random() < 0.1 else random.choice(TEXTS["letter_forms"])
    letters = {"letter": letter, "lower": letter.lower(), "other": other}
    text = form.format(**letters, text=options[letter], wrong=options[other])
    if kind < 0.3:
        text = separator(random).join((text, random.choice((*SENTENCES, *TEXTS["words"], *options.values()))))
    elif kind < 0.4:
        text = separator(random).join((random.choice((*SENTENCES, *TEXTS["words"])), text))
    return perturbed(random, text)


def open_answer(random: Random, correct: Sequence[str]) -> str:
    """Write an answer to an open question: sentences with words that announce the result, and equations."""
    parts = [random.choice((*correct, *correct, mixed(random)))]
    for _ in range(random.choice((0, 0, 1, 1, 2, 4))):
        parts.insert(random.randint(0, len(parts)), random.choice((*TEXTS["words"], mixed(random))))
    return perturbed(random, wrapped(random, joined(random, parts)))


def short(random: Random, correct: Sequence[str]) -> str:
    """Write a short answer: a correct one, another one, or several words."""
    parts = [random.choice((*correct, *correct, mixed(random)))]
    for _ in range(random.choice((0, 0, 0, 0, 1, 2))):
        parts.insert(random.randint(0, len(parts)), random.choice((*TEXTS["words"], mixed(random))))
    return perturbed(random, wrapped(random, joined(random, parts)))


def mixed(random: Random) -> str:
    """Write what a person answers."""
    text = random.choice(random.choice((NOUNS, NOUNS, NUMBERS, PEOPLE)))
    return perturbed(random, text) if random.random() < 0.2 else text


def separator(random: Random) -> str:
    """Return what stands between two texts, mostly a space."""
    return " " if random.random() < 0.2 else random.choice(TEXTS["separators"])


def joined(random: Random, parts: Sequence[str]) -> str:
    """Join texts, each pair by its own separator."""
    text = parts[0]
    for part in parts[1:]:
        text += separator(random) + part
    return text


def wrapped(random: Random, text: str) -> str:
    """Write a text in one of the forms of an answer, mostly plainly."""
    return text if random.random() < 0.4 else random.choice(TEXTS["forms"]).replace("{}", text)


def perturbed(random: Random, text: str) -> str:
    """Change case, or insert, repeat or remove a character, in a third of the texts."""
    kind, place = random.random(), random.randint(0, len(text))
    if kind < 0.1:
        text = random.choice((str.upper, str.lower, str.title, str.swapcase))(text)
    elif kind < 0.22:
        text = text[:place] + random.choice(MARKS) + text[place:]
    elif kind < 0.28:
        text = text[:place] + text[place:][:1] + text[place:]
    elif kind < 0.34:
        text = text[:place] + text[place + 1 :]
    return text.strip()


GENERATORS: dict[str, Callable[[Random], Iterator[Case]]] = {
    "mme": mme,
    "pope": pope,
    "gqa": gqa,
    "scienceqa": scienceqa,
    "mmbench": mmbench,
    "mmmu": mmmu,
    "vqav2": people,
    "vqav2_test": people,
    "textvqa": people,
    "vizwiz": people,
    "vizwiz_test": people,
}
"""Generators by the name in ``conf/benchmarks.yaml``."""
