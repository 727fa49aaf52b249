"""The report as a page in one file: tables, charts, and examples with their images."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.samples import SampleError
from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.score import Result

SIDE = 160
"""Longest side of an example's image, in pixels."""

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.35em .8em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}.examples td,.examples th{text-align:left;vertical-align:top}
img.shot{height:96px;image-rendering:pixelated}img.chart{max-width:100%}
.right{color:#080}.wrong{color:#b00}h2{margin-top:2em}
"""


@dataclass(frozen=True)
class Example:
    """A question, and what the systems said to it.

    Attributes:
        category: of the question.
        question: its text.
        images: PNG files.
        answers: right ones.
        said: answer and worth by system.
    """

    category: str
    question: str
    images: list[bytes]
    answers: Sequence[str]
    said: dict[str, tuple[str, float]]


def examples_of(results: Mapping[str, Result], count: int) -> list[Example]:
    """Some questions of a benchmark: where the systems differ, where all are wrong, where all are right, in turn.

    Args:
        results: of a benchmark, by system.
        count: how many.
    """
    if not count:
        return []
    first = next(iter(results.values()))
    same = {s: r for s, r in results.items() if r.ids == first.ids}
    kinds: dict[str, list[int]] = {"differ": [], "wrong": [], "right": []}
    for place in range(len(first.ids)):
        worth = [r.scores[place] for r in same.values()]
        kinds["differ" if min(worth) != max(worth) else "right" if worth[0] >= 0.5 else "wrong"].append(place)
    spread = [places[:: max(1, len(places) // count)][:count] for places in kinds.values()]
    turns = [place for row in zip(*(p + [-1] * (count - len(p)) for p in spread), strict=True) for place in row]
    chosen = [place for place in turns if place >= 0][:count]
    items = _items(first)
    return [
        _example(items.get(p), first.ids[p], {s: (r.texts[p] or "", r.scores[p]) for s, r in same.items()})
        for p in chosen
    ]


def _items(result: Result) -> dict[int, Item]:
    """The labelled questions again, from their files; none where these are gone."""
    try:
        items = [item for item in Benchmark.read(result.definition).items(Path(result.annotations)) if item.answers]
    except UserError:
        return {}
    places = enumerate(zip(items, result.ids, strict=False))
    return {place: item for place, (item, id_then) in places if item.id == id_then}


def _example(item: Item | None, name: str, said: dict[str, tuple[str, float]]) -> Example:
    if item is None:
        return Example("", f"question {name}", [], [], said)
    images = []
    for picture in item.pictures:
        try:
            images.append(_png(picture()))
        except SampleError:
            continue
    options = "".join(f"\n{letter}. {text}" for letter, text in item.options.items())
    return Example(item.category, item.question + options, images, list(dict.fromkeys(item.answers)), said)


def _png(image: Image.Image) -> bytes:
    shown = image.copy()
    shown.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, format="PNG")
    return buffer.getvalue()


def page(text: str, chart: bytes, examples: Mapping[str, Sequence[Example]]) -> str:
    """A self-contained HTML page.

    Args:
        text: paragraphs and Markdown tables.
        chart: PNG file.
        examples: by benchmark.
    """
    parts = [_part(part) for part in text.split("\n\n")]
    shown = "\n".join(_examples(name, of) for name, of in examples.items() if of)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title><style>{STYLE}</style></head><body>
<h1>Evaluation</h1>
<img class="chart" alt="scores" src="data:image/png;base64,{base64.b64encode(chart).decode()}">
{"".join(parts)}
{shown}
</body></html>
"""


def _part(text: str) -> str:
    if not text.startswith("|"):
        return f"<p>{html.escape(text).replace(chr(10), '<br>')}</p>"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    rows = [row for row in rows if not all(re.fullmatch("-+", cell) for cell in row)]
    lines = [
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for row, tag in zip(rows, ["th", *["td"] * (len(rows) - 1)], strict=True)
    ]
    return f"<table>{''.join(lines)}</table>"


def _examples(name: str, examples: Sequence[Example]) -> str:
    systems = list(examples[0].said)
    head = "".join(f"<th>{html.escape(s)}</th>" for s in ("image", "category", "question", "right", *systems))
    rows = []
    for example in examples:
        pictures = "".join(
            f'<img class="shot" alt="" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
            for image in example.images
        )
        said = "".join(
            f'<td class="{"right" if worth >= 0.5 else "wrong"}">{html.escape(text)}</td>'
            for text, worth in example.said.values()
        )
        asked = html.escape(example.question).replace("\n", "<br>")
        cells = (html.escape(example.category), asked, html.escape(" / ".join(example.answers)))
        rows.append(f"<tr><td>{pictures}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}{said}</tr>")
    return f'<h2>{html.escape(name)}: examples</h2><table class="examples"><tr>{head}</tr>{"".join(rows)}</table>'
