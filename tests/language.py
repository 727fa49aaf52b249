"""Print how long README and docs are, and how long their sentences are: ``python tests/language.py``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_switchkd"
QUESTION_WORDS = ("what", "how", "who", "whom", "whose", "when", "where", "which", "why", "whether")


def pages() -> list[Path]:
    """Return README, the pages of docs, and the other Markdown files of the top level."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def prose(markdown: str) -> list[str]:
    """Split a page into blocks of prose: paragraphs, list items and headings, without code, tables, images and links.

    >>> prose("# A title\\n\\nOne `x` [link](a.md).\\nStill one.\\n\\n- item\\n- item two\\n\\n| a | b |\\n")
    ['A title', 'One x link. Still one.', 'item', 'item two']
    """
    text = re.sub(r"^(```|~~~).*?^\1.*?$", "\n", markdown, flags=re.M | re.S)  # code blocks
    text = re.sub(r"^\$\$.*?^\$\$.*?$", "\n", text, flags=re.M | re.S)  # equations
    text = re.sub(r"<!--.*?-->|<[^<>]+>", " ", text, flags=re.S)
    text = re.sub(r"^\s*\|.*$", "\n", text, flags=re.M)  # tables
    text = re.sub(r"^ {4,}.*$", "\n", text, flags=re.M)  # indented code
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", " ", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`([^`]*)`", r"\1", text)
    text = re.sub(r"^\s*(#+|[-*+]|\d+\.)\s+", "\n\n", text, flags=re.M)
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return [block for block in blocks if block]


def sentences(block: str) -> list[str]:
    """Split prose into sentences at a period, question mark, exclamation mark or colon that white space follows.

    >>> sentences("Set it to 0.5. Then run (e.g. twice) `make train`: see below.")
    ['Set it to 0.5.', 'Then run (e.g. twice) `make train`:', 'see below.']
    """
    whole = re.sub(r"\b(e\.g|i\.e|et al|vs|Sect|Eq|Fig|cf)\.", r"\1", block)
    parts = [part for part in re.split(r"(?<=[.!?:])[)\"*_]*\s+", whole) if re.search(r"\w", part)]
    return [re.sub(r"\b(e\.g|i\.e)\b(?!\.)", r"\1.", part) for part in parts]


def lengths(files: list[Path]) -> list[int]:
    """Return the numbers of words of all sentences, sorted."""
    return sorted(
        len(re.findall(r"\S*\w\S*", sentence))
        for file in files
        for block in prose(file.read_text(encoding="utf-8"))
        for sentence in sentences(block)
    )


def percentile(values: list[int], percent: int) -> int:
    """Return the smallest value that so many percent of the values do not exceed."""
    return values[-(-len(values) * percent // 100) - 1]


def words(file: Path) -> int:
    """Count the words of a page as ``wc -w`` does."""
    return len(file.read_text(encoding="utf-8").split())


def public_docstrings() -> Iterator[tuple[str, str]]:
    """Yield the name and the summary of every public module, class, function and method of the package."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield name, text.splitlines()[0]
            for child in node.body:
                if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
                    yield from walk(child, f"{name}.{child.name}")

    for file in sorted(PACKAGE.rglob("*.py")):
        yield from walk(ast.parse(file.read_text(encoding="utf-8")), str(file.relative_to(ROOT)))


def main() -> None:
    """Print the figures."""
    readme = ROOT / "README.md"
    print(f"README.md: {words(readme)} words")
    for file in pages():
        of_page = lengths([file])
        print(f"{percentile(of_page, 90):4d}  {len(of_page):5d} sentences  {file.relative_to(ROOT)}")
    of_all = lengths(pages())
    print(
        f"{percentile(of_all, 90):4d}  {len(of_all):5d} sentences  all pages (90th percentile of words in a sentence)"
    )


if __name__ == "__main__":
    main()
