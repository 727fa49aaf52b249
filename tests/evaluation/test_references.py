"""Tests that scores equal those of the references, on cases that they scored and on relatives of each case.

``golden/scorers_references.json`` has cases that the references scored. For each kind of case, the expected
values of the relatives are derived by hand from the published rule that the comment names (file and line).
Relatives of "gold read as answer" are in ``test_answer_files.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest

from lightning_switchkd.cli.main import main
from lightning_switchkd.evaluation.answers import read_answers
from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.benchmarks.scorers.contractions import CONTRACTIONS
from lightning_switchkd.evaluation.benchmarks.scorers.short_answer import evalai, plain_words
from lightning_switchkd.evaluation.benchmarks.scoring import Judged

FOLDER = Path(__file__).parents[1] / "golden"


def golden(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


CASES = [case for case in golden("scorers_references") if "expected_score" in case and case["benchmark"] != "any"]
ANIMALS = {"A": "a black cat", "B": "a brown dog", "C": "a bus"}


def judge(benchmark: str, protocol: ScoringProtocol, answer: str, gold: Any, options: dict[str, str]) -> Judged:
    """Score an answer. ``gold`` is one correct answer or several."""
    answers = (gold,) if isinstance(gold, str) else tuple(gold)
    definition = Benchmark.read(benchmark)
    if benchmark == "mmmu":
        definition.settings["fallback"] = "wrong"  # the references guess at random
    return definition.judge(Item("1", "", answers, options, image="1"), answer.strip(), protocol)


def test_every_case_is_used(tmp_path: Path) -> None:
    """The other cases are about files: gold read as the answer, and server files. POPE's F1 is a case of its own."""
    cases = golden("scorers_references")
    (of_file,) = [case for case in cases if case["kind"] == "gold read as answer"]
    assert [a.text for a in read_answers(layouts.lines(tmp_path / "a.jsonl", [of_file["answer"]]))[0]] == ["maybe"]
    assert len(cases) == len(CASES) + 7 + 1 + 1
    benchmarks = {(case["benchmark"], case["protocol"]) for case in CASES}
    assert benchmarks <= {(name, protocol) for name, protocol, _, _ in KINDS.values()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}: {case['answer']}"[:60])
def test_cases_of_the_references(case: dict[str, Any]) -> None:
    judged = judge(case["benchmark"], case["protocol"], case["answer"], case["gold"], case.get("options", {}))
    assert judged.score == case["expected_score"], case["source"]


def test_server_answers_of_the_references() -> None:
    cases = [case for case in golden("scorers_references") if "expected_server_answer" in case]
    assert {case["answer"]: evalai(case["answer"]) for case in cases} == {
        case["answer"]: case["expected_server_answer"] for case in cases
    }
    assert len(cases) == 7


Relatives = list[tuple[str, Any, float]]

# GT-Vision-Lab/VQA vqaEval.py:98: if all ten agree, texts are compared as they are. The prediction is normalized before
# the upload (LLaVA convert_vqav2_for_submission.py:52), the people's answers are not.
VQAV2: Relatives = [
    ("2.", ["2"] * 10, 1.0),
    ("The White", ["white"] * 10, 1.0),
    ("TWO", ["2"] * 10, 1.0),
    ("two", ["two"] * 10, 0.0),  # uploaded as "2"
    ("a dog", ["dog"] * 10, 1.0),
    ("a dog", ["a dog"] * 10, 0.0),  # uploaded as "dog"
    ("t-shirt", ["t shirt"] * 10, 1.0),
    ("t-shirt", ["t-shirt"] * 10, 0.0),
    ("dont", ["don't"] * 10, 1.0),
    ("it's", ["it's"] * 10, 0.0),  # uploaded as "it 's"
    ("Black?", ["Black"] * 10, 0.0),  # the people's capital stays
    ("Black?", ["Black"] * 9 + ["black"], 1.0),
    ("none", ["0"] * 10, 1.0),
]
# VLMEvalKit yorn.py:254: lowercase, process_punctuation, then exactly one of the words yes and no.
MME_KIT: Relatives = [
    ("It is yes", "Yes", 1.0),
    ("Eyes", "Yes", 0.0),
    ("Not at all", "No", 0.0),
    ("Know", "No", 0.0),
    ("N", "No", 0.0),
    ("No way, yes", "No", 0.0),
    ("The answer: no", "No", 1.0),
    ("yes/no", "Yes", 0.0),
    ("NO!", "No", 1.0),
    ("Yes, it is.", "Yes", 1.0),
    ("I see none", "No", 0.0),
    ("yes yes yes", "Yes", 1.0),
    ("no", "Yes", 0.0),
]
# VLMEvalKit matching_util.py:18 (marks are spaces; one letter in the last four words), :57 (answer is), :107 (text)
CHOICE_KIT: Relatives = [
    ("B", "B", 1.0),
    ("b", "B", 0.0),
    ("[B]", "B", 1.0),
    ("{B}!", "B", 1.0),
    ("#B#", "B", 1.0),
    ("A or B", "B", 0.0),  # two letters, no text
    ("B is what I would say here", "B", 0.0),  # not among the last four words
    ("I would say that it is B", "B", 1.0),
    ("The correct answer is **b**", "B", 1.0),
    ("A, no: the answer is B", "B", 1.0),
    ("answer is brown", "B", 1.0),  # the b of a word counts
    ("a bus", "C", 1.0),
    ("BUS", "C", 0.0),
    ("A bus", "C", 0.0),  # A is a letter
    ("there is a bus and a black cat", "C", 0.0),
    ("a bus " + "very " * 12, "C", 0.0),  # longer than twice all options
    ("Z a bus", "C", 0.0),  # Z names no option
    ("'B'", "B", 0.0),
    ("Failed to obtain answer via API B", "B", 0.0),  # :23: no letter, and no text
    ("Failed to obtain answer via API. The answer is B", "B", 0.0),
    ("Failed to obtain answer via API A: a bus", "C", 1.0),  # the text
]
# lmms-eval mmbench_evals.py:79-105 (words; a bare A in more than three words is skipped), :107 (text), then
# mcq_extract.py:96-158 (kinds of traces by rank, the last of the best kind)
MMBENCH_LMMS: Relatives = [
    ("B", "B", 1.0),
    ("B.", "B", 1.0),
    ("b", "B", 0.0),
    ("(B).", "B", 1.0),
    ("A bus", "A", 1.0),  # three words or fewer: A is a letter
    ("It is a bus", "C", 1.0),
    ("I see A bus", "C", 1.0),  # four words: A is skipped, the text counts
    ("neither a black cat nor a bus", "C", 0.0),  # two texts and no letter
    ("选B", "B", 1.0),  # phrase
    ("答案是B不是C", "C", 1.0),  # phrase: the last letter after it
    ("The answer is Both", "B", 1.0),  # phrase: the letter of a word
    ("A and then C", "A", 1.0),  # two bare letters, no text: the start outranks the end
    ("C-A", "C", 1.0),  # start outranks end
    ("maybe-C", "C", 1.0),  # end
    ("xB", "B", 1.0),  # before the space that is added at the end
    ("xBx", "B", 1.0),  # any occurrence
    ("E", "E", 1.0),  # letters up to E count, whatever the options are
    ("nanny with xA", "A", 0.0),  # the missing fourth option is the text "nan"
    ("C. Failed to obtain answer via API B", "C", 1.0),  # :81: no letter is a word, but the start is a trace
    ("Failed to obtain answer via API, A, a bus", "C", 1.0),  # the text
]
# lmms-eval en_utils.py:90: its data have the text "nan" for a missing option, and mmbench_evals.py:50 keeps it
MISSING_OPTIONS: Relatives = [
    ("A", "A", 1.0),
    ("a cat", "A", 1.0),
    ("banana", "B", 0.0),  # three texts, no letter
    ("a cat and a nanny", "A", 0.0),
    ("the nan", "A", 0.0),  # two texts
    ("(A) nan", "A", 1.0),  # a letter comes first
    ("xA-B", "B", 1.0),
    ("xA-C", "A", 0.0),  # the end of the answer is a trace of C
    ("xA-D", "A", 0.0),
    ("答案是A不是D", "A", 0.0),  # phrase: the last letter after it
    ("xB in Cx", "B", 1.0),  # "B " outranks any occurrence
    ("xBx in Cx", "B", 0.0),  # the last occurrence
]
# lmms-eval mmmu_mcq_utils.py:24-63: several letters are ranked by rfind(" X "); without any, the first one counts
MMMU_LMMS: Relatives = [
    ("FCC or BCC", "C", 1.0),  # "C " ends FCC
    ("A or B", "B", 1.0),
    ("B or A", "A", 1.0),
    ("xA xB", "A", 1.0),  # "A " and "B " occur, " A " does not, " B " does not: the first
    ("A xB", "A", 1.0),
    ("(A) or (B)", "B", 1.0),
    ("(A) then B", "A", 1.0),  # brackets come first
    ("B.A.x", "A", 1.0),  # "A." and "B.": no rank, so the first
    ("B. $7", "B", 1.0),
    ("A. B. C. x", "A", 1.0),
    ("C and xB", "C", 1.0),
    ("USA is it", "A", 1.0),
]
# MMMU eval_utils.py:16: strip(",") then strip(".") then "!?;:'", each once, so that a mark before them stays
STRIP: Relatives = [
    ("C.", "C", 1.0),
    ("C!", "C", 1.0),
    ("C,.", "C", 0.0),  # the comma is stripped first, when the period is still behind it
    ("C.,", "C", 1.0),
    ("C?!", "C", 1.0),
    ("C!?", "C", 0.0),
    ("C;:", "C", 0.0),
    ("C:;", "C", 1.0),
    ("C':", "C", 1.0),
    ("C:'", "C", 0.0),
    ("''C''", "C", 1.0),
    ("..C!!", "C", 1.0),
    ("C. ", "C", 1.0),
]
# MMMU eval_utils.py:128-155: the shortest end of each line after an indicator, or the whole text. :88: numbers are
# rounded to two decimals, one letter must touch a space
OPEN: Relatives = [
    ("10 =", ["10"], 1.0),  # an empty end is no key: the number of the whole text
    ("x = 5 = 10", ["10"], 1.0),
    ("x = 5 = 10", ["5"], 0.0),  # only the last end
    ("x = 10\nso", ["10"], 1.0),  # "=" counts in the last line only, so the whole text is the key
    ("so 3\nx = 10", ["3"], 1.0),
    ("so 3\nnothing", ["nothing"], 0.0),  # a key exists, so the other line is no candidate
    ("one\ntwo", ["two"], 1.0),
    ("v\nx", ["v"], 0.0),  # " v" and "v " do not occur
    ("v x", ["v"], 1.0),
    ("is is 4", ["4"], 1.0),
    ("so 12 is ", ["12"], 1.0),  # stripped: "is" without its space is no indicator
    ("the answer is :", [":"], 1.0),  # one mark is no key, so that the whole text is, which has " :"
    ("the answer is 5:", [":"], 0.0),  # "5:" is the key
    ("result = 2,000.", ["2000"], 1.0),
    ("1.061", ["1.06"], 1.0),
    ("it is 18", ["8"], 0.0),
]
# lmms-eval mmmu/utils.py:205 and :371: the answer of its data is one text, also if it is that of a list
SEVERAL: Relatives = [
    ("18", ["8", "18"], 0.0),
    ("8", ["8", "18"], 0.0),
    ("18", ["18"], 1.0),
    ("['8', '18']", ["8", "18"], 1.0),
    ("It is ['8', '18'].", ["8", "18"], 1.0),
    ("['18', '8']", ["8", "18"], 0.0),
    ("8, 18", ["8", "18"], 0.0),
    ("Tampa", ["Tampa", "Florida"], 0.0),
    ("Tampa, Florida", ["Tampa", "Florida"], 0.0),
    ("The answer is ['tampa', 'florida']", ["Tampa", "Florida"], 1.0),
    ("['Tampa','Florida']", ["Tampa", "Florida"], 0.0),
    ("3.429", ["24/7", "3.429"], 0.0),
]
# VLMEvalKit multiple_choice.py:62-73 and :483: A is the correct answer, B "Other Answers"
OPEN_KIT: Relatives = [
    ("24", ["24"], 1.0),
    ("A", ["24"], 1.0),
    ("B", ["24"], 0.0),
    ("It is 24", ["24"], 1.0),
    ("124", ["24"], 1.0),  # inside of another number
    ("24, not other answers", ["24"], 0.0),
    ("25", ["24"], 0.0),
    ("24", ["24", "25"], 0.0),  # the text is "['24', '25']"
    ("['24', '25']", ["24", "25"], 1.0),
    ("B", ["B"], 1.0),  # the expected letter is B itself
    ("A", ["B"], 0.0),
]
# VLMEvalKit smp/misc.py:18: a mark becomes a space, or nothing if one of its kind touches a space; * ' : stay
POPE_KIT: Relatives = [
    ("yes_", "yes", 1.0),
    ("(yes)", "yes", 1.0),
    ("*yes*", "yes", 0.0),
    ("yes:", "yes", 0.0),
    ("yes;no", "yes", 0.0),
    ("no;", "no", 1.0),
    ("no...", "no", 1.0),
    ("no2.", "no", 0.0),
    ("yes - it is", "yes", 1.0),
    ("yes-it is", "yes", 1.0),
    ("yes-it - is", "yes", 0.0),  # the hyphens vanish: "yesit"
    ("yes's", "yes", 0.0),
]
# LLaVA m4c_evaluator.py:14 and :198: a word with an entry becomes it, any other word stays
CONTRACTED: Relatives = [
    ("dont", ["don't"] * 10, 1.0),
    ("whove", ["who've"] * 10, 1.0),
    ("howll", ["how'll"] * 10, 1.0),
    ("whyd", ["why'd"] * 10, 0.0),
    ("im", ["i'm"] * 10, 0.0),
    ("id've", ["i'd've"] * 10, 0.0),  # its key has a capital letter
    ("hes", ["hes"] * 10, 1.0),
    ("this is", ["this i's"] * 10, 0.0),
    ("somebody'd", ["somebodyd"] * 10, 1.0),
    ("ow's'at", ["'ow's'at"] * 10, 0.0),  # "'s" becomes a word first
    ("mightn'tve", ["mightn't've"] * 10, 1.0),
    ("yall'd've", ["y'all'd've"] * 10, 1.0),
]

KINDS: dict[str, tuple[str, ScoringProtocol, dict[str, str], Relatives]] = {
    "vqav2": ("vqav2", "llava", {}, VQAV2),
    "contractions": ("textvqa", "llava", {}, CONTRACTED),
    "mme vlmevalkit": ("mme", "vlmevalkit", {}, MME_KIT),
    "scienceqa vlmevalkit": ("scienceqa", "vlmevalkit", ANIMALS, CHOICE_KIT),
    "mmmu vlmevalkit": ("mmmu", "vlmevalkit", ANIMALS, CHOICE_KIT),
    "mmbench vlmevalkit": ("mmbench", "vlmevalkit", ANIMALS, CHOICE_KIT),
    "mmbench llava": ("mmbench", "llava", ANIMALS, CHOICE_KIT),
    "mmbench lmms": ("mmbench", "lmms", ANIMALS, MMBENCH_LMMS),
    "mmbench lmms, missing options": ("mmbench", "lmms", {"A": "a cat", "B": "banana"}, MISSING_OPTIONS),
    "mmmu lmms": ("mmmu", "lmms", {"A": "$6", "B": "$7", "C": "$8"}, MMMU_LMMS),
    "mmmu llava, marks": ("mmmu", "llava", ANIMALS, STRIP),
    "mmmu llava, open": ("mmmu", "llava", {}, OPEN),
    "mmmu lmms, marks": ("mmmu", "lmms", ANIMALS, STRIP),
    "mmmu lmms, open": ("mmmu", "lmms", {}, OPEN),
    "mmmu lmms, several answers": ("mmmu", "lmms", {}, SEVERAL),
    "mmmu vlmevalkit, open": ("mmmu", "vlmevalkit", {}, OPEN_KIT),
    "pope vlmevalkit": ("pope", "vlmevalkit", {}, POPE_KIT),
}


@pytest.mark.parametrize("kind", KINDS)
def test_relatives(kind: str) -> None:
    name, protocol, options, relatives = KINDS[kind]
    assert len(relatives) >= 10
    scores = [(answer, gold, judge(name, protocol, answer, gold, options).score) for answer, gold, _ in relatives]
    assert scores == relatives


@pytest.mark.parametrize(
    ("replies", "labels", "lmms_f1", "kit_f1"),
    [
        # lmms-eval pope/utils.py:39-71: a miss is label yes and reply no. VLMEvalKit yorn.py:148: any reply but yes
        ("Yes|Yes.|No|no dog", "yes|yes|no|no", 100.0, 100.0),
        ("Yes|maybe|No|No", "yes|yes|no|no", 100.0, 200 / 3),
        ("Yes|No|No|No", "yes|yes|no|no", 200 / 3, 200 / 3),
        ("Yes.|Yes.", "yes|no", 0.0, 200 / 3),
        ("yes|yes", "yes|no", 200 / 3, 200 / 3),
        ("no|no", "yes|yes", 0.0, 0.0),
        ("Yes|Yes|perhaps", "yes|no|yes", 200 / 3, 50.0),
        ("Yes!|Yes", "yes|yes", 100.0, 100.0),
        ("yes no|yes", "yes|yes", 100.0, 200 / 3),
        ("", "yes", 0.0, 0.0),
        ("YES|NO|N", "yes|yes|yes", 200 / 3, 50.0),
    ],
)
def test_pooled_f1_of_pope(replies: str, labels: str, lmms_f1: float, kit_f1: float) -> None:
    benchmark = Benchmark.read("pope")
    splits = ("adversarial", "popular", "random")
    items = [Item(str(n), "", (a,), image=str(n), category=splits[n % 3]) for n, a in enumerate(labels.split("|"))]
    protocols: tuple[ScoringProtocol, ...] = ("lmms", "vlmevalkit")
    for protocol, expected in zip(protocols, (lmms_f1, kit_f1), strict=True):
        judged = [benchmark.judge(i, text, protocol) for i, text in zip(items, replies.split("|"), strict=True)]
        values = np.array([(answer.score, answer.reply) for answer in judged], dtype=np.float64)
        assert benchmark.rules(protocol).tally.scores(items, values)[0] == pytest.approx(expected)


def test_case_of_pope() -> None:
    (case,) = [case for case in golden("scorers_references") if "expected_f1" in case]
    benchmark = Benchmark.read("pope")
    items = [Item(str(n), "", (a,), image=str(n), category="random") for n, a in enumerate(case["gold"])]
    judged = [benchmark.judge(item, text, "lmms") for item, text in zip(items, case["answer"], strict=True)]
    values = np.array([(answer.score, answer.reply) for answer in judged], dtype=np.float64)
    score, _, figures = benchmark.rules("lmms").tally.scores(items, values)
    assert score == case["expected_f1"]
    assert figures["recall"] == case["expected_recall"]
    assert figures["yes ratio"] == 50.0, "lmms-eval reports the ratio of the labels (pope/utils.py:74)"


def test_contractions() -> None:
    expected = golden("contractions")
    assert len(CONTRACTIONS) == 120
    assert expected["pairs"] == CONTRACTIONS
    words = expected["normalized"] | expected["unchanged"]
    assert {word: plain_words(word) for word in words} == words
    assert sum(word != normalized for word, normalized in words.items()) == 118


@pytest.mark.parametrize("name", ["vqav2_test", "vizwiz_test"])
def test_server_file_equals_the_reference(name: str, tmp_path: Path) -> None:
    """200 answers, with every contraction and with articles, are written as the reference writes them."""
    expected = golden("server_answers")["answers"]
    assert len(expected) == 200
    rows = [{"question_id": n, "image": f"{n}.jpg", "text": f"Q{n}?{layouts.SHORT}"} for n in range(len(expected))]
    root = tmp_path / name.removesuffix("_test")
    for file in ("llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_mscoco_test2015.jsonl", "llava_test.jsonl"):
        layouts.lines(root / file, rows)
    answers = layouts.lines(
        tmp_path / "answers.jsonl", [layouts.answer(n, text) for n, (text, _) in enumerate(expected)]
    )
    out = tmp_path / "out.json"
    main(["score", f"--benchmark={name}", f"--data_root={tmp_path}", f"--answers={answers}", f"--server_file={out}"])
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [row["answer"] for row in written] == [answer for _, answer in expected]
