"""The report as an HTML page in one file: tables, charts, and examples with their images."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from jinja2 import Environment, StrictUndefined

from lightning_switchkd.evaluation.report.examples import Example
from lightning_switchkd.evaluation.report.tables import Section

TEMPLATE = """\
{% macro chart(name) %}
<img class="chart" alt="{{ name }}" src="data:image/png;base64,{{ images[name] | base64 }}">
{% endmacro %}
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
{{ chart("scores") }}
<div class="terms">
{% for term, meaning in terms.items() %}
<p><b>{{ term }}</b>: {{ meaning }}</p>
{% endfor %}
</div>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% for part in section.parts %}
{% if part is string %}
<p>{{ part }}</p>
{% else %}
<table>
<tr>{% for cell in part[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in part[1:] %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
{% endfor %}
{% endfor %}
{% if "losses" in images %}
<h2>Loss terms during training</h2>
{{ chart("losses") }}
{% endif %}
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


def page(
    about: Mapping[str, str],
    result: str,
    terms: Mapping[str, str],
    sections: Sequence[Section],
    images: Mapping[str, bytes],
    examples: Mapping[str, Sequence[Example]],
    labels: Mapping[str, str],
    groups: Sequence[str],
) -> str:
    """Return a self-contained HTML page.

    Args:
        about: Run, method, times, versions and command.
        result: The result in one sentence.
        terms: Explanations by term.
        sections: Paragraphs and tables.
        images: PNG files: ``scores``, and ``losses`` if known.
        examples: Examples by benchmark.
        labels: Labels of the systems.
        groups: Headings of the groups of examples. Empty if no two systems are compared.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    title = f"Evaluation of {about['run']}" if "run" in about else "Evaluation"
    values: dict[str, object] = {
        "about": about,
        "result": result,
        "terms": terms,
        "sections": sections,
        "images": images,
    }
    values |= {"title": title, "examples": examples, "labels": labels, "groups": groups}
    return environment.from_string(TEMPLATE).render(values).lstrip()
