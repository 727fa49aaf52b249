"""The document of a report: sections of text, tables and charts, as an HTML page in one file and as Markdown."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from lightning_switchkd.core.text import markdown_table
from lightning_switchkd.evaluation.report.examples import Example

Rows = list[list[str]]
"""A table whose first row is the heading."""

Terms = Mapping[str, str]
"""Explanations by term."""


@dataclass(frozen=True)
class Chart:
    """A PNG file in the folder of the report.

    Attributes:
        file: The file. The page contains it, and the Markdown refers to it.
        text: Its content in words, for readers who do not see it.
    """

    file: Path
    text: str


Part = str | Rows | Terms | Chart


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title: Its heading. Empty for the first sections.
        parts: Paragraphs, tables, explanations and charts.
    """

    title: str
    parts: Sequence[Part]


TEMPLATE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.3em .8em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}h2{margin-top:2em}
.about,.terms{font-size:13px;color:#555}.about td{border:0;padding:.1em 1.2em .1em 0;text-align:left}
.about td:last-child{overflow-wrap:anywhere}.result{font-size:18px;font-weight:600}.terms p{margin:.2em 0}
.examples td,.examples th{text-align:left;vertical-align:top}
img.shot{height:96px;image-rendering:pixelated}img.chart{max-width:100%}.correct{color:#080}.wrong{color:#b00}
</style></head><body>
<h1>{{ title }}</h1>
<table class="about">
{% for name, value in about.items() %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table>
{% if result %}
<p class="result">{{ result }}</p>
{% endif %}
{% for section in sections %}
{% if section.title %}
<h2>{{ section.title }}</h2>
{% endif %}
{% for part in section.parts %}
{% if part is string %}
<p>{{ part }}</p>
{% elif part is mapping %}
<div class="terms">
{% for term, meaning in part.items() %}
<p><b>{{ term }}</b>: {{ meaning }}</p>
{% endfor %}
</div>
{% elif part is sequence %}
<table>
<tr>{% for cell in part[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in part[1:] %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% else %}
<img class="chart" alt="{{ part.text }}" src="data:image/png;base64,{{ part.file.read_bytes() | base64 }}">
{% endif %}
{% endfor %}
{% endfor %}
{% for name, of_benchmark in examples.items() if of_benchmark %}
<h2>{{ name }}: examples</h2>
<table class="examples">
<tr><th>image</th><th>kind</th><th>question</th><th>correct answer</th>
{%- for system in of_benchmark[0].answers %}<th>{{ labels[system] }}</th>{% endfor %}</tr>
{% for example in of_benchmark %}
{% if groups and loop.changed(example.group) %}
<tr><th colspan="{{ 4 + example.answers | length }}">{{ groups[example.group] }}</th></tr>
{% endif %}
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


def as_html(
    about: Mapping[str, str],
    result: str,
    sections: Sequence[Section],
    examples: Mapping[str, Sequence[Example]],
    labels: Mapping[str, str],
    groups: Sequence[str],
) -> str:
    """Return a self-contained HTML page.

    Args:
        about: Run, method, times, versions and command.
        result: The result in one sentence.
        sections: The sections.
        examples: Examples by benchmark.
        labels: Labels of the systems.
        groups: Headings of the groups of examples. Empty if no two systems are compared.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    values = {"title": _title(about), "about": about, "result": result, "sections": sections}
    return environment.from_string(TEMPLATE).render(values, examples=examples, labels=labels, groups=groups)


def as_markdown(about: Mapping[str, str], result: str, sections: Sequence[Section]) -> str:
    """Return the same without examples, as Markdown that refers to the charts next to it."""
    blocks = [f"# {_title(about)}", "\n".join(f"- {name}: {value}" for name, value in about.items()), result]
    for section in sections:
        blocks += [f"## {section.title}"] if section.title else []
        for part in section.parts:
            if isinstance(part, str):
                blocks.append(part)
            elif isinstance(part, Mapping):
                blocks.append("\n".join(f"- **{term}**: {meaning}" for term, meaning in part.items()))
            elif isinstance(part, Chart):
                blocks.append(f"![{part.text}]({part.file.name})")
            else:
                blocks.append(markdown_table(part))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _title(about: Mapping[str, str]) -> str:
    return f"Evaluation of {about['run']}" if "run" in about else "Evaluation"
