"""Tests from the files of ten benchmarks and raw answers to the papers' table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import layouts
import pytest

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.paths import names_in
from lightning_switchkd.evaluation.answers import read_answers
from lightning_switchkd.evaluation.benchmarks.definition import BENCHMARKS, Benchmark
from lightning_switchkd.evaluation.benchmarks.items import as_question
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.matching import Matched, match
from lightning_switchkd.evaluation.report.published import PUBLISHED, read_published
from lightning_switchkd.evaluation.results import Result
from lightning_switchkd.evaluation.score import rate

TEN = read_published(PUBLISHED)[0].benchmarks


def test_every_benchmark_of_the_repository_is_valid() -> None:
    assert set(TEN) < set(names_in(BENCHMARKS))
    for name in names_in(BENCHMARKS):
        assert Benchmark.read(name).name == name


@pytest.mark.parametrize("name", TEN)
def test_llava_layout(name: str, tmp_path: Path) -> None:
    write, expected = layouts.LLAVA[name]
    answers = layouts.write_answers(tmp_path, "answers", write(tmp_path / name))
    benchmark = Benchmark.read(name)
    items = benchmark.items(tmp_path / name)
    matched = match(items, *read_answers(answers))
    assert matched.defects() == {}
    result = rate(benchmark, tmp_path, items, matched, "llava", "")
    assert result.score == pytest.approx(expected)
    assert result.low <= expected <= result.high
    assert result.category_intervals.keys() == result.categories.keys()
    assert all(low <= result.categories[name] <= high for name, (low, high) in result.category_intervals.items())
    for item in items:
        question = as_question(item, benchmark.prompt_of(item))
        assert question.turns[-1].text.startswith("<image>\n") == bool(item.pictures)
        assert len(question.images) == len(item.pictures)


@pytest.mark.parametrize("name", TEN)
def test_hub_layout_equals_llava_layout(name: str, tmp_path: Path) -> None:
    write, expected = layouts.LLAVA[name]
    answers = layouts.write_answers(tmp_path, "answers", write(tmp_path / "llava"))
    layouts.HUB[name](tmp_path / "hub")
    benchmark = Benchmark.read(name)
    ours = benchmark.items(tmp_path / "llava")
    hub = benchmark.items(tmp_path / "hub")
    ours = [item for item in ours if item.pictures] if name == "scienceqa" else ours
    matched = match(ours, *read_answers(answers))
    questions = [(i.category, i.question, i.answers, i.options.get("A")) for i in ours]
    of_hub = [(i.category, i.question, i.answers, i.options.get("A")) for i in hub]
    assert sorted(map(str, of_hub)) == sorted(map(str, questions))
    if name != "mme":  # both images of an MME category have the same questions
        texts = dict(zip(questions, matched.texts, strict=True))
        result = rate(benchmark, tmp_path, hub, Matched([texts[question] for question in of_hub]), "llava", "")
        assert result.score == pytest.approx(expected)
    assert all(picture().size == (8, 6) for item in hub for picture in item.pictures)


def test_row_of_ten_benchmarks_and_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten `score` commands and one `report` lead from raw answers to the papers' table."""
    for name, (write, _) in layouts.LLAVA.items():
        answers = layouts.write_answers(tmp_path / "answers", name, write(tmp_path / "eval" / name))
        main([
            "score", f"--benchmark={name}", f"--data_root={tmp_path / 'eval'}", f"--answers={answers}", "--strict=true",
            f"--output={tmp_path / 'ours' / f'{name}.json'}",
        ])  # fmt: skip
    capsys.readouterr()
    main(["report", f"--systems.ours={tmp_path / 'ours'}", f"--output={tmp_path / 'report'}"])
    scores = [layouts.LLAVA[name][1] for name in TEN]
    assert re.search(r"\n\| VQAv2 \(val\), \d+ of 214,354 questions ", capsys.readouterr().out)
    table = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    row = next(line for line in table.splitlines() if line.startswith("| ours") and line.count("*") == 11)
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells == [f"{score:.1f}*" for score in (*scores, sum(scores) / 10)], "only a part of each was asked"
    results = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert results["systems"]["ours"]["mme"]["figures"] == {"perception": 1250.0, "cognition": 500.0}
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "http" not in page
    assert page.count("data:image/png;base64,") > 20
    assert all(f"<h2>{name}: examples</h2>" in page for name in TEN)


@pytest.mark.parametrize(
    ("table", "averages"),
    [
        (0, {"TinyLLaVA": "56.5", "LLaVA-KD": "58.9", "Switch-KD": "60.1"}),
        (1, {"MobileVLM V2": "63.7", "Align-KD": "65.1", "Switch-KD": "69.5"}),
    ],
)
def test_published_averages(table: int, averages: dict[str, str]) -> None:
    """Averages are recomputed from the columns, with MME as a fraction of 2,000."""
    heading, *rows = read_published(PUBLISHED)[table].rows({})
    assert {row[0]: row[heading.index("average")] for row in rows} == averages


def test_average_over_available_benchmarks() -> None:
    heading, *rows = read_published(PUBLISHED)[0].rows({"ours": {"gqa": 60.0, "pope": 90.0}})
    assert heading[-1] == "of 2"
    assert rows[-1][-2:] == ["", "75.0"]
    assert rows[0][-1] == f"{(58.3 + 86.1) / 2:.1f}"


@pytest.mark.parametrize("protocol", ["lmms", "vlmevalkit"])
def test_protocols_change_prompts_and_scores(protocol: ScoringProtocol, tmp_path: Path) -> None:
    layouts.gqa(tmp_path)
    benchmark = Benchmark.read("gqa")
    item = benchmark.items(tmp_path)[0]
    assert benchmark.judge(item, "yes.", protocol).score == float(protocol == "lmms")
    layouts.textvqa(tmp_path)
    textvqa = Benchmark.read("textvqa")
    first = textvqa.items(tmp_path)[0]
    assert "OCR" in textvqa.prompt_of(first)
    question = {"lmms": "What is written?", "vlmevalkit": "what is written?"}[protocol]
    assert textvqa.prompt_of(first, protocol) == question + layouts.SHORT


def test_prompts(tmp_path: Path) -> None:
    layouts.mmbench(tmp_path)
    benchmark = Benchmark.read("mmbench")
    items = benchmark.items(tmp_path)
    plain = "What is it? 0\nA. cat\nB. dog\nC. bird\nD. cow" + layouts.LETTER
    assert benchmark.prompt_of(items[0]) == plain
    assert benchmark.prompt_of(items[4]).startswith("A farm.\nWhat is it? 1\nA. cat")
    assert benchmark.prompt_of(items[4], "lmms").startswith("A farm. What is it? 1 There are several options:\nA. cat")
    assert items[8].options["D"] == "None"
    layouts.mmmu_hub(tmp_path)
    mmmu = Benchmark.read("mmmu")
    prompts = {item.id: mmmu.prompt_of(item) for item in mmmu.items(tmp_path)}
    assert prompts[layouts.MMMU[0][0]].endswith(f"\n(C) eight dollars\n{layouts.LETTER}")
    assert prompts[layouts.MMMU[2][0]].endswith(layouts.SHORT)
    layouts.scienceqa(tmp_path)
    scienceqa = Benchmark.read("scienceqa")
    first, second = scienceqa.items(tmp_path)[:2]
    assert scienceqa.prompt_of(first).startswith("Context: Look.\nWhich? 1\nA. cat")
    assert scienceqa.prompt_of(second).startswith("Which? 2\nA. cat")


def write_definition(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("scoring", "rows", "answers"),
    [
        ("yes_no", [("1", "yes"), ("2", "no"), ("3", "no")], ["Yes, it is.", "I see none: no", "yes and no"]),
        ("choice", [("1", "B"), ("2", "dog"), ("3", "A")], ["(B)", "It is a dog", "B"]),
        ("short_answer", [("1", "t shirt"), ("2", "2"), ("3", "car")], ["A T-shirt", "two.", "bus"]),
        ("anls", [("1", "Stop"), ("2", "Go"), ("3", "car")], ["stop", "GO", "bus"]),
        ("relaxed", [("1", "100"), ("2", "20%"), ("3", "car")], ["104", "0.2", "bus"]),
    ],
)
def test_custom_benchmark(scoring: str, rows: list[tuple[str, str]], answers: list[str], tmp_path: Path) -> None:
    options = "" if scoring != "choice" else ", options: [a, b]"
    columns = f"{{id: n, question: q, answers: gold{options}}}"
    layout = f"{{rows: mine.csv, columns: {columns}}}"
    file = write_definition(tmp_path, f"title: mine\nscoring: {scoring}\nlayouts: [{layout}]\n")
    cells = "".join(f"{n},What?,{gold},cat,dog\n" for n, gold in rows)
    (tmp_path / "mine.csv").write_text(f"n,q,gold,a,b\n{cells}", encoding="utf-8")
    answer_file = layouts.lines(
        tmp_path / "answers.jsonl", [layouts.answer(n, a) for (n, _), a in zip(rows, answers, strict=True)]
    )
    out = tmp_path / "out.json"
    main(
        [
            "score",
            f"--benchmark={file}",
            f"--annotations={tmp_path / 'mine.csv'}",
            f"--answers={answer_file}",
            f"--output={out}",
        ]
    )
    assert Result.read(out).score == pytest.approx(200 / 3)


def test_server_files(tmp_path: Path) -> None:
    root = tmp_path / "vqav2"
    questions = [
        {"question_id": n, "image": f"{n}.jpg", "text": f"Q{n}?{layouts.SHORT}", "category": "default"} for n in (7, 8)
    ]
    layouts.lines(root / "llava_vqav2_mscoco_test-dev2015.jsonl", questions)
    layouts.lines(root / "llava_vqav2_mscoco_test2015.jsonl", [*questions, {**questions[0], "question_id": 9}])
    answer_file = layouts.lines(tmp_path / "answers.jsonl", [layouts.answer(7, "A Dog."), layouts.answer(8, "Two")])
    common = [f"--answers={answer_file}", f"--data_root={tmp_path}", f"--server_file={tmp_path / 'out.json'}"]
    main(["score", "--benchmark=vqav2_test", *common])
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert rows == [
        {"question_id": 7, "answer": "dog"},
        {"question_id": 8, "answer": "2"},
        {"question_id": 9, "answer": ""},
    ]
    layouts.lines(
        tmp_path / "vizwiz" / "llava_test.jsonl",
        [{**row, "image": f"VizWiz_{row['question_id']}.jpg"} for row in questions],
    )
    main(["score", "--benchmark=vizwiz_test", *common])
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))[0] == {
        "image": "VizWiz_7.jpg",
        "answer": "dog",
    }


def test_server_file_of_mmbench(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    file = layouts.write_answers(tmp_path, "answers", layouts.mmbench(tmp_path / "mmbench"))
    out = tmp_path / "out.xlsx"
    main(["score", "--benchmark=mmbench", f"--data_root={tmp_path}", f"--answers={file}", f"--server_file={out}"])
    rows = list(openpyxl.load_workbook(out).active.iter_rows(values_only=True))
    assert rows[0] == ("index", "question", "hint", "A", "B", "C", "D", "prediction", "category")
    assert len(rows) == 12
    assert (rows[1][0], rows[1][7]) == (0, "B")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\n", "Required fields: layouts, scoring, title"),
        ("title: x\nscoring: guess\nlayouts: []\n", "unknown scoring 'guess'. Use one of"),
        ("title: x\nscoring: exact\nlayouts: [{reader: magic}]\n", "unknown reader 'magic'. Use one of"),
        ("title: x\nscoring: exact\nlayouts: []\nprompts: y\n", r"unknown fields \['prompts'\]"),
        ("title: [x\n", "is not valid YAML"),
    ],
)
def test_invalid_definitions(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        Benchmark.read(str(write_definition(tmp_path, text)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shop: {title: x}\n", r"conf/benchmarks.yaml: shop is not a valid benchmark. Required fields"),
        (
            "other: {title: x}\n",
            "Unknown benchmark 'shop'. Available benchmarks: other. Or give a YAML file or a LLaVA file.",
        ),
        ("- shop\n", r"conf/benchmarks.yaml is not a mapping of fields"),
    ],
)
def test_invalid_entries(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "benchmarks.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        Benchmark.read("shop")


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown benchmark 'gaq'. Available benchmarks: .*gqa"):
        Benchmark.read("gaq")
    with pytest.raises(UserError, match=r"no layout matches.*\n.*data/testdev_balanced_questions.json"):
        Benchmark.read("gqa").items(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "testdev_balanced_questions.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"testdev_balanced_questions.json"):
        Benchmark.read("gqa").items(tmp_path)
    layouts.mme(tmp_path)
    next((tmp_path / "MME_Benchmark_release_version" / "OCR").rglob("*.txt")).write_text(
        "one line\tYes\n", encoding="utf-8"
    )
    with pytest.raises(UserError, match="two lines"):
        Benchmark.read("mme").items(tmp_path)


def test_columns_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.csv").write_text("n,q,gold,a,b\n1,What?,7,cat,dog\n1,Who?,B,cat,dog\n", encoding="utf-8")
    answer_file = layouts.lines(tmp_path / "answers.jsonl", [layouts.answer("1#0", "A"), layouts.answer("1#1", "A")])
    for columns, scoring, message in (
        ("{id: m, question: q, answers: gold}", "exact", "A row has no column 'm' for its id"),
        ("{id: n, question: q, answers: gold, options: [a, b]}", "mmbench", "needs unique numbers as ids, got '1#0'"),
    ):
        layout = f"layouts: [{{rows: mine.csv, columns: {columns}}}]"
        file = write_definition(tmp_path, f"title: mine\nscoring: {scoring}\n{layout}\n")
        with pytest.raises(SystemExit):
            main(["score", f"--benchmark={file}", f"--annotations={tmp_path}", f"--answers={answer_file}"])
        assert message in capsys.readouterr().err


def test_images_stay_below_their_folder(tmp_path: Path) -> None:
    """A benchmark's file cannot refer to images outside its folder."""
    layouts.gqa(tmp_path / "gqa")
    file = tmp_path / "gqa" / "data" / "testdev_balanced_questions.json"
    labels: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    labels["101"]["imageId"] = "../../../secret"
    layouts.picture(tmp_path / "secret.jpg")
    layouts.as_json(file, labels)
    item = next(item for item in Benchmark.read("gqa").items(tmp_path / "gqa") if item.id == "101")
    with pytest.raises(UserError, match="outside the image root"):
        as_question(item, "What?")
