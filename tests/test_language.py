"""The language of README, docs and docstrings, as far as a program can check it."""

from __future__ import annotations

import doctest
import re

import language
import pytest
from language import PACKAGE, QUESTION_WORDS, ROOT, lengths, pages, percentile, public_docstrings, words

METHOD = ROOT / "docs" / "explanation" / "method.md"
SOURCES = sorted(
    file
    for folder in (PACKAGE, ROOT / "tests", ROOT / "benchmarks", ROOT / "conf", ROOT / "notebooks", ROOT / "docs")
    for file in folder.rglob("*")
    if file.suffix in (".py", ".yaml", ".md", ".ipynb") and ".ipynb_checkpoints" not in file.parts
)


def test_the_examples_of_the_checker() -> None:
    assert doctest.testmod(language).failed == 0


def test_the_readme_is_short() -> None:
    assert words(ROOT / "README.md") <= 900


def test_sentences_are_short() -> None:
    assert percentile(lengths(pages()), 90) <= 25


def test_no_summary_starts_with_a_question_word() -> None:
    questions = [name for name, summary in public_docstrings() if summary.lower().startswith(QUESTION_WORDS)]
    assert questions == []


def test_every_cited_section_exists() -> None:
    """Code cites the method page by section numbers."""
    sections = set(re.findall(r"^## (\d+)\.", METHOD.read_text(encoding="utf-8"), flags=re.M))
    cited = {
        (str(file.relative_to(ROOT)), number)
        for file in SOURCES
        for number in re.findall(r"method\.md,\s+section\s+(\d+)", file.read_text(encoding="utf-8"))
    }
    assert cited, "the code cites the method page"
    assert [(file, number) for file, number in sorted(cited) if number not in sections] == []


@pytest.mark.parametrize(
    "internal", [r"\bMETHOD (section )?\d", r"\bSTACK [A-H]\b", r"\b(ARCHITECTURE|FAMILIES|BRIDGES|NEW_USER)\.md"]
)
def test_no_citation_of_documents_outside_the_repository(internal: str) -> None:
    citing = [str(f.relative_to(ROOT)) for f in SOURCES if re.search(internal, f.read_text(encoding="utf-8"))]
    assert [name for name in citing if name != "tests/test_language.py"] == []


def test_every_documented_path_exists() -> None:
    """Comments, docstrings and configurations name pages and files of the repository that are there."""
    missing = [
        f"{file.relative_to(ROOT)}: {path}"
        for file in SOURCES
        if file.suffix in (".py", ".yaml")
        for path in re.findall(
            r"\b(?:docs|conf|notebooks)/[\w./-]+\.(?:md|yaml|ipynb)\b", file.read_text(encoding="utf-8")
        )
        if not (ROOT / path).is_file() and "mine" not in path and "my_" not in path and file.name != "test_renamed.py"
    ]
    assert missing == []
