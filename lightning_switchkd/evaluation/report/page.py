"""The report as an HTML page in one file: tables, charts, and examples with their images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.samples import SampleError
from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.score import Result

Section = str | list[list[str]]
"""A paragraph, or a table whose first row is the heading."""

IMAGE_SIZE = 160
"""Longest side of an example's image, in pixels."""

TEMPLATE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title><style>
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.35em .8em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}.examples td,.examples th{text-align:left;vertical-align:top}
img.shot{height:96px;image-rendering:pixelated}img.chart{max-width:100%}
.correct{color:#080}.wrong{color:#b00}h2{margin-top:2em}
</style></head><body>
<h1>Evaluation</h1>
<img class="chart" alt="scores" src="data:image/png;base64,{{ chart | base64 }}">
{% for section in sections %}
{% if section is string %}
<p>{{ section | e | replace("\\n", "<br>" | safe) }}</p>
{% else %}
<table>
<tr>{% for cell in section[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in section[1:] %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
{% endfor %}
{% for name, of_benchmark in examples.items() if of_benchmark %}
<h2>{{ name }}: examples</h2>
<table class="examples">
<tr><th>image</th><th>category</th><th>question</th><th>correct answer</th>
{%- for system in of_benchmark[0].answers %}<th>{{ system }}</th>{% endfor %}</tr>
{% for example in of_benchmark %}
<tr><td>{% for image in example.images %}<img class="shot" alt="" src="data:image/png;base64,{{ image | base64 }}">
{%- endfor %}</td><td>{{ example.category }}</td><td>{{ example.question | e | replace("\\n", "<br>" | safe) }}</td>
<td>{{ example.correct | join(" / ") }}</td>
{%- for text, score in example.answers.values() %}
<td class="{{ "correct" if score >= 0.5 else "wrong" }}">{{ text }}</td>
{%- endfor %}</tr>
{% endfor %}
</table>
{% endfor %}
</body></html>
"""


@dataclass(frozen=True)
class Example:
    """A question with the answers of all systems.

    Attributes:
        category: Category of the question.
        question: Text of the question.
        images: PNG files.
        correct: Correct answers.
        answers: Answer and score by system.
    """

    category: str
    question: str
    images: list[bytes]
    correct: Sequence[str]
    answers: dict[str, tuple[str, float]]


def examples_of(results: Mapping[str, Result], count: int) -> list[Example]:
    """Choose questions of a benchmark: in turn one that systems score differently, that all miss, and that all solve.

    Args:
        results: Results on the benchmark by system.
        count: Number of questions.
    """
    if not count:
        return []
    first = next(iter(results.values()))
    comparable = {system: result for system, result in results.items() if result.ids == first.ids}
    kinds: dict[str, list[int]] = {"different": [], "wrong": [], "correct": []}
    for index in range(len(first.ids)):
        scores = [result.scores[index] for result in comparable.values()]
        different = min(scores) != max(scores)
        kinds["different" if different else "correct" if scores[0] >= 0.5 else "wrong"].append(index)
    spread = [indices[:: max(1, len(indices) // count)][:count] for indices in kinds.values()]
    alternating = [index for row in zip(*(k + [-1] * (count - len(k)) for k in spread), strict=True) for index in row]
    chosen = [index for index in alternating if index >= 0][:count]
    items = _items(first)
    return [
        _example(
            items.get(index),
            first.ids[index],
            {system: (result.texts[index] or "", result.scores[index]) for system, result in comparable.items()},
        )
        for index in chosen
    ]


def _items(result: Result) -> dict[int, Item]:
    """Read the labeled questions of a result again, by index. Questions whose files are gone are missing."""
    try:
        items = [item for item in Benchmark.read(result.definition).items(Path(result.annotations)) if item.answers]
    except UserError:
        return {}
    pairs = enumerate(zip(items, result.ids, strict=False))
    return {index: item for index, (item, recorded_id) in pairs if item.id == recorded_id}


def _example(item: Item | None, name: str, answers: dict[str, tuple[str, float]]) -> Example:
    if item is None:
        return Example("", f"question {name}", [], [], answers)
    images = []
    for picture in item.pictures:
        try:
            images.append(_png(picture()))
        except SampleError:
            continue
    options = "".join(f"\n{letter}. {text}" for letter, text in item.options.items())
    return Example(item.category, item.question + options, images, list(dict.fromkeys(item.answers)), answers)


def _png(image: Image.Image) -> bytes:
    thumbnail = image.copy()
    thumbnail.thumbnail((IMAGE_SIZE, IMAGE_SIZE))
    buffer = io.BytesIO()
    thumbnail.save(buffer, format="PNG")
    return buffer.getvalue()


def page(sections: Sequence[Section], chart: bytes, examples: Mapping[str, Sequence[Example]]) -> str:
    """Return a self-contained HTML page.

    Args:
        sections: Paragraphs and tables.
        chart: PNG file.
        examples: Examples by benchmark.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.from_string(TEMPLATE).render(sections=sections, chart=chart, examples=examples)
