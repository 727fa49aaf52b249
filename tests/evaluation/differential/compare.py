"""Score generated answers with the references and with our code, and list every difference.

    python tests/evaluation/differential/compare.py --llava LLaVA --lmms_eval lmms-eval --vlmevalkit VLMEvalKit \\
        --vqa VQA --mmmu MMMU --mme eval_tool

Each flag names a checkout of a reference. Those without a flag are skipped. The exit status is 1 if a score differs
without a known reason (``KNOWN``), and 2 if a checkout lacks a file.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[index]) for index in (3, 1)]  # the package, and this folder's

from tqdm import tqdm

from differential.cases import GENERATORS, Case, generate
from differential.loading import version
from differential.references import llava, lmms, mme, mmmu, vlmevalkit, vqa
from differential.rule import Rule, Value
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.text import markdown_table

SOURCES = {"llava": llava, "lmms_eval": lmms, "vlmevalkit": vlmevalkit, "vqa": vqa, "mmmu": mmmu, "mme": mme}
"""References by the flag that names their checkout."""

TABLE = 1_000
"""Answers of one table of figures, such as F1."""

TOLERANCE = 1e-9
"""Scores are sums of thirds and tenths. Figures are in percent or points."""

HEADING = (
    *("reference", "version", "benchmark", "protocol", "answers", "differences", "without known reason"),
    *("figures", "differing figures"),
)

MARKER = "<!-- The rest of this page is generated. -->"


@dataclass(frozen=True)
class Known:
    """A difference with a known reason.

    Attributes:
        references: Names of the references.
        benchmarks: Names of the benchmarks.
        applies: Whether a case can have it.
        reason: What differs, and why.
        right: Who is right.
    """

    references: tuple[str, ...]
    benchmarks: tuple[str, ...]
    applies: Callable[[Case], bool]
    reason: str
    right: str


KNOWN: tuple[Known, ...] = ()
"""Differences with a known reason, in the order in which they are tried."""


@dataclass(frozen=True)
class Difference:
    """An answer with two scores."""

    case: Case
    ours: Value
    theirs: Value
    known: Known | None

    def __str__(self) -> str:
        item = self.case.item
        options = {"options": dict(item.options)} if item.options else {}
        scores = {"ours": self.ours, "theirs": self.theirs}
        row = {"gold": list(item.answers), **options, "answer": self.case.answer, **scores}
        return json.dumps(row, ensure_ascii=False)


@dataclass
class Outcome:
    """Comparison of a rule over all its cases.

    Attributes:
        rule: The rule.
        answers: Number of answers.
        differences: Answers with two scores.
        figures: Number of figures.
        differing_figures: Each figure with two values.
    """

    rule: Rule
    answers: int
    differences: list[Difference]
    figures: int = 0
    differing_figures: list[str] = field(default_factory=list)

    @property
    def unknown(self) -> list[Difference]:
        """Return the differences without a known reason."""
        return [difference for difference in self.differences if difference.known is None]


def compare(rule: Rule, cases: Sequence[Case], known: Sequence[Known] = KNOWN) -> Outcome:
    """Score cases with both, then compute both's figures of the images without a difference."""
    scores = zip(cases, rule.our_scores(cases), rule.score(cases), strict=True)
    differences = [
        Difference(case, ours, theirs, reason_of(rule, case, known))
        for case, ours, theirs in scores
        if not equal(ours, theirs)
    ]
    outcome = Outcome(rule, len(cases), differences)
    if rule.figures is not None:
        differing = {difference.case.item.image for difference in differences}
        for part in tables([case for case in cases if case.item.image not in differing]):
            theirs, ours = rule.figures(part), rule.our_figures(part)
            outcome.figures += len(theirs)
            outcome.differing_figures += [
                f"{name}: ours {ours[name]}, theirs {value}"
                for name, value in theirs.items()
                if not equal(ours[name], value)
            ]
    return outcome


def equal(ours: Value, theirs: Value) -> bool:
    """Return whether two scores or two texts are equal.

    Raises:
        TypeError: One is a text and one a score.
    """
    if isinstance(ours, str) and isinstance(theirs, str):
        return ours == theirs
    return math.isclose(ours, theirs, rel_tol=TOLERANCE, abs_tol=TOLERANCE)  # type: ignore[arg-type]


def reason_of(rule: Rule, case: Case, known: Sequence[Known]) -> Known | None:
    """Return the known reason of a difference."""
    reasons = (k for k in known if rule.reference in k.references and rule.benchmark in k.benchmarks)
    return next((reason for reason in reasons if reason.applies(case)), None)


def tables(cases: Sequence[Case]) -> Iterator[list[Case]]:
    """Split cases into tables of about ``TABLE`` answers, with all answers about an image in one table."""
    part: list[Case] = []
    for case in cases:
        if len(part) >= TABLE and case.item.image != part[-1].item.image:
            yield part
            part = []
        part.append(case)
    if len(part) >= TABLE // 2:  # a small rest may lack categories
        yield part


def markdown(outcomes: Sequence[Outcome], versions: Mapping[str, str], examples: int) -> str:
    """Return the tables of all comparisons, of the known reasons, and of examples without a known reason."""
    rows = [
        [
            *(outcome.rule.reference, versions[outcome.rule.reference], outcome.rule.benchmark, outcome.rule.protocol),
            *(f"{outcome.answers:,}", f"{len(outcome.differences):,}", f"{len(outcome.unknown):,}"),
            *(f"{outcome.figures:,}", f"{len(outcome.differing_figures):,}"),
        ]
        for outcome in outcomes
    ]
    total = [f"{sum(numbers):,}" for numbers in zip(*(map(_number, row[4:]) for row in rows), strict=True)]
    parts = [markdown_table([[*HEADING], *rows, ["all", "", "", "", *total]])]
    reasons = [
        [known.reason, outcome.rule.reference, outcome.rule.benchmark, f"{number:,}", known.right]
        for outcome in outcomes
        for known, number in Counter(d.known for d in outcome.differences if d.known is not None).items()
    ]
    if reasons:
        parts.append(markdown_table([["known reason", "reference", "benchmark", "answers", "who is right"], *reasons]))
    for outcome in outcomes:
        shortest = sorted({str(d): len(d.case.answer) for d in outcome.unknown}.items(), key=lambda pair: pair[1])
        lines = [text for text, _ in shortest[:examples]] + outcome.differing_figures[:examples]
        if lines:
            parts.append(f"{outcome.rule.reference}, {outcome.rule.benchmark}:\n\n```\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(parts) + "\n"


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def beginning(page: Path) -> str:
    """Return what a person wrote at the beginning of a page, with the marker.

    Raises:
        UserError: The page has no marker.
    """
    before, marker, _ = page.read_text(encoding="utf-8").partition(MARKER) if page.is_file() else ("", "", "")
    if not marker:
        raise UserError(f"--page: {page} has no line '{MARKER}'. Add it where the tables belong.")
    return before + marker


def load(checkouts: Mapping[str, Path]) -> tuple[list[Rule], dict[str, str]]:
    """Return all rules, and the version of each reference by its name."""
    rules: list[Rule] = []
    versions: dict[str, str] = {}
    for flag, checkout in checkouts.items():
        if flag == "vqa" and "llava" in checkouts:
            found = vqa.rules(checkout, checkouts["llava"])
        else:
            found = SOURCES[flag].rules(checkout)
        rules += found
        versions |= {rule.reference: version(checkout) for rule in found}
    return rules, versions


def run(arguments: argparse.Namespace) -> int:
    """Compare, print the tables and write the page. Return 1 if there is a difference without a known reason."""
    text_before = beginning(arguments.page) if arguments.page else ""
    rules, versions = load({flag: path for flag in SOURCES if (path := getattr(arguments, flag)) is not None})
    outcomes = []
    for rule in tqdm([rule for rule in rules if rule.benchmark in arguments.benchmarks], unit="rule"):
        outcomes.append(compare(rule, generate(rule.benchmark, arguments.answers, arguments.seed)))
    text = markdown(outcomes, versions, arguments.examples)
    print(text)
    if arguments.page:
        command = f"Last run: `--answers {arguments.answers} --seed {arguments.seed}`."
        arguments.page.write_text(f"{text_before}\n\n{command}\n\n{text}", encoding="utf-8")
    return int(any(outcome.unknown or outcome.differing_figures for outcome in outcomes))


def main(words: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, source in SOURCES.items():
        parser.add_argument(f"--{flag}", type=Path, metavar="CHECKOUT", help=source.SOURCE)
    parser.add_argument("--answers", type=int, default=20_000, help="answers per benchmark (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the answers (default: 0)")
    parser.add_argument("--benchmarks", nargs="+", choices=list(GENERATORS), default=list(GENERATORS))
    parser.add_argument("--examples", type=int, default=5, help="examples per rule (default: 5)")
    parser.add_argument("--page", type=Path, help="page to write the tables to, after its marker")
    arguments = parser.parse_args(words)
    if not any(getattr(arguments, flag) for flag in SOURCES):
        parser.error(f"give at least one checkout: {', '.join(f'--{flag}' for flag in SOURCES)}")
    try:
        return run(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
