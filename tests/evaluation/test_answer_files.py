"""Tests of the answer files that people have, and of results of other harnesses."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import layouts
import pytest

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation import harness
from lightning_switchkd.evaluation.answers import Answer, read_answers
from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.harness import read_harness_result
from lightning_switchkd.evaluation.matching import match
from lightning_switchkd.evaluation.results import Result
from lightning_switchkd.evaluation.score import read_results

GOLDEN = Path(__file__).parents[1] / "golden" / "answers"
SAMPLES = GOLDEN / "20260101_000000_samples_pope.jsonl"
OBJECTS = ("cup", "dog", "car", "sofa", "clock", "bench")
Row = dict[str, Any]


def pope_rows() -> list[Row]:
    """Return the rows of POPE on the hub: six questions in each split, every other a yes."""
    return [
        {
            "id": str(6 * s + n),
            "question_id": str(n),
            "question": f"Is there a {name} in the image?",
            "answer": "no" if n % 2 else "yes",
            "image_source": f"pic_{n // 2}",
            "category": split,
            "image": layouts.image_cell(n),
        }
        for s, split in enumerate(layouts.SPLITS)
        for n, name in enumerate(OBJECTS)
    ]


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    layouts.table(tmp_path / "pope" / "data" / "test-00000-of-00001.parquet", pope_rows())
    return tmp_path / "pope"


def in_rows(prediction: str = "text", **more: str) -> list[Row]:
    """Return 18 answers to POPE, all yes. Columns in ``more`` get the truth, or a fixed text."""
    return [
        {"question_id": f"{row['category']}/{row['question_id']}"}
        | {name: row["answer"] if value == "truth" else value for name, value in more.items()}
        | {prediction: "yes"}
        for row in pope_rows()
    ]


def run_score(benchmark: str, annotations: Path, answers: Path, *flags: str) -> Result:
    out = answers.parent / "result.json"
    main(["score", f"--benchmark={benchmark}", f"--annotations={annotations}", f"--answers={answers}",
          f"--output={out}", *flags])  # fmt: skip
    return Result.read(out)


@pytest.mark.parametrize("truth", ["answer", "label", "gt", "ground_truth", "target"])
@pytest.mark.parametrize("prediction", ["prediction", "response", "pred_answer", "Model Answer", "output", "predict"])
def test_truth_beside_the_prediction(truth: str, prediction: str, pope: Path, tmp_path: Path) -> None:
    rows = in_rows(prediction, question="…", **{truth: "truth"})
    texts = [answer.text for answer in read_answers(layouts.lines(tmp_path / "a.jsonl", rows))[0]]
    assert texts == ["yes"] * 18


def test_score_of_the_prediction(pope: Path, tmp_path: Path) -> None:
    for rows in (in_rows(), in_rows("response", answer="truth"), in_rows("prediction", question="…", answer="truth")):
        result = run_score("pope", pope, layouts.lines(tmp_path / "a.jsonl", rows))
        assert result.score == pytest.approx(200 / 3)
        assert result.odd == {}


def test_two_candidates_are_an_error(pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The question in ``text``, and the answer in ``answer``."""
    file = layouts.lines(tmp_path / "a.jsonl", in_rows("answer", text="Is there a cup?", label="truth"))
    with pytest.raises(SystemExit) as stopped:
        run_score("pope", pope, file)
    assert stopped.value.code == 2
    assert "columns 'text' and 'answer' may hold the model's answers. Set --answer_column" in capsys.readouterr().err
    assert run_score("pope", pope, file, "--answer_column=answer").score == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1, "question": "Q?", "answer": "yes"}, "'answer' may be the correct answer"),
        ({"id": 1, "label": "yes"}, "no column is known to hold the model's answers among id, label"),
        ({"name": 1, "text": "yes"}, "no column is known to hold ids among name, text. Set --id_column"),
        ({"id": 1, "response": "yes", "output": "no"}, "columns 'response' and 'output'"),
        ({"id": 1, "text": None}, "1 of 1 answers cannot be read: line 1 \\(text is null\\)"),
        ({"id": 1, "text": ["yes"]}, "line 1 \\(text is a list\\)"),
        ({"id": 1, "text": {"a": 1}}, "line 1 \\(text is an object\\)"),
        ({"id": 1, "text": True}, "line 1 \\(text is true or false\\)"),
        ({"doc_id": 1, "filtered_resps": ["yes", "no"]}, "line 1 \\(no single response\\)"),
    ],
)
def test_columns_and_values_that_are_no_answers(row: Row, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_answers(layouts.lines(tmp_path / "a.jsonl", [row]))


def test_chosen_columns(tmp_path: Path) -> None:
    file = layouts.lines(tmp_path / "a.jsonl", [{"id": 1, "name": "x", "question": "Q?", "answer": "yes"}])
    assert read_answers(file, "answer", "name")[0] == [Answer("x", "yes")]
    with pytest.raises(UserError, match=r"--id_column: .* has no column 'nme'. It has id, name"):
        read_answers(file, "answer", "nme")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>no doubt, not at all</think>Yes", "Yes"),
        ("<analysis>\nno\n</analysis>\n<think>no</think> Yes ", "Yes"),
        ("no doubt</think>Yes", "Yes"),
        ("<think>a<think>b</think>c</think>Yes", "Yes"),
        ("<think>never closed", "<think>never closed"),
        (7, "7"),
        (2.5, "2.5"),
    ],
)
def test_reasoning_and_numbers(text: Any, answer: str, tmp_path: Path) -> None:
    file = layouts.lines(tmp_path / "a.jsonl", [{"question_id": 3.0, "text": text}])
    assert read_answers(file) == ([Answer("3", answer)], [])


def xlsx(rows: list[Row]) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book, out = openpyxl.Workbook(), io.BytesIO()
    for row in (list(rows[0]), *(list(row.values()) for row in rows)):
        book.active.append(row)
    book.save(out)
    return out.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("__MACOSX/._x", b"")
    return out.getvalue()


def contents() -> dict[str, bytes]:
    """Return the same two answers as files of every format."""
    rows = [{"question_id": "1", "text": "yes"}, {"question_id": "2", "text": "a\tcat"}]
    jsonl = "".join(json.dumps(row) + "\n" for row in rows).encode()
    plain = {
        "a.jsonl": jsonl,
        "bom.jsonl": b"\xef\xbb\xbf" + jsonl,
        "nan.jsonl": jsonl.replace(b'"yes"', b'"yes", "score": NaN'),
        "lines.json": jsonl.strip(),
        "a.json": json.dumps(rows).encode(),
        "texts.json": json.dumps({row["question_id"]: row["text"] for row in rows}).encode(),
        "objects.json": json.dumps({row["question_id"]: {"prediction": row["text"]} for row in rows}).encode(),
        "a.csv": b"question_id,text\n1,yes\n2,a\tcat\n",
        "a.tsv": b'\xef\xbb\xbfindex\tprediction\n1\tyes\n2\t"a\tcat"\n',
        "a.xlsx": xlsx([{**row, "question_id": int(row["question_id"])} for row in rows]),
    }
    compressed = {f"{name}.gz": gzip.compress(content) for name, content in plain.items()}
    return {**plain, **compressed, "a.zip": zipped("folder/a.jsonl", jsonl)}


@pytest.mark.parametrize("name", list(contents()))
def test_formats(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(contents()[name])
    assert read_answers(tmp_path / name) == ([Answer("1", "yes"), Answer("2", "a\tcat")], [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pkl", b"\x80\x04", "is a pickle"),
        ("a.pkl.gz", gzip.compress(b"\x80\x04"), "is a pickle"),
        ("a.tar.gz", gzip.compress(b"x"), "'.tar' is not a format of answers"),
        ("a.txt", b"x", "'.txt' is not a format of answers"),
        ("images.zip", zipped("a.png", b"x"), "'.png' is not a format of answers"),
        ("two.zip", zipped("a.jsonl", b"").replace(b"__MACOSX", b"--MACOSX"), "contains 2 files"),
        ("a.zip", b"x", "is not a valid .zip file"),
        ("a.jsonl.gz", b"x", "is not a valid .gz file"),
        ("a.jsonl", zipped("a", b"{}"), "cannot be read"),
        ("a.jsonl", b"", "0 of 0 answers cannot be read"),
        ("a.xlsx", b"x", "is not valid XLSX"),
        ("a.csv", b"id,text\n1,\xc4\xe3\n", "is not valid CSV"),
        ("a.json", '[{"id": "\xfc"}]'.encode("latin-1"), "is not valid JSON"),
        ("a.jsonl", b'{"id": 1, "text": "x"}\n' * 8 + b"{\n", "1 of 9 answers cannot be read: line 9"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",  # archives hold the time of their making
)
def test_unreadable_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_answers(tmp_path / name)


def test_samples_of_lmms_eval(pope: Path, tmp_path: Path) -> None:
    """Samples with the question (older versions), and with the prompt alone, in any order."""
    (tmp_path / SAMPLES.name).write_bytes(SAMPLES.read_bytes())
    assert run_score("pope", pope, tmp_path / SAMPLES.name).score == pytest.approx(600 / 7)
    rows = [json.loads(line) for line in SAMPLES.read_text("utf-8").splitlines()]
    for row in rows:
        doc = row.pop("doc")
        row |= {"input": f"{doc['question']}\nAnswer the question.", "filtered_resps": row["filtered_resps"][0]}
        del row["resps"]
    file = layouts.lines(tmp_path / "samples_pope.jsonl", rows[::-1])
    assert run_score("pope", pope, file, "--strict").score == pytest.approx(600 / 7)


@pytest.mark.parametrize("name", ["csv", "tsv", "json", "xlsx"])
def test_predictions_of_vlmevalkit(name: str, tmp_path: Path) -> None:
    rows = [
        {"index": 100 + n, "question": f"Which is number {n}?", "A": f"it is {n}", "B": f"it is {n + 1}",
         "answer": "AB"[n % 2], "category": "object", "prediction": "B" if n == 0 else "AB"[n % 2]}
        for n in range(6)
    ]  # fmt: skip
    columns = [column for column in rows[0] if column != "prediction"]
    lines = ["\t".join(columns), *("\t".join(str(row[column]) for column in columns) for row in rows)]
    (tmp_path / "MMBench_DEV_EN.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    file = tmp_path / f"model_MMBench_DEV_EN.{name}"
    if name == "xlsx":
        file.write_bytes((GOLDEN / file.name).read_bytes())
    elif name == "json":
        layouts.as_json(file, rows)
    else:
        cut = "\t" if name == "tsv" else ","
        cells = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
        file.write_text("".join(cut.join(row) + "\n" for row in cells), encoding="utf-8")
    assert run_score("mmbench", tmp_path / "MMBench_DEV_EN.tsv", file).score == pytest.approx(500 / 6)


def write_tsv(file: Path, rows: list[Row]) -> None:
    cells = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join("\t".join(row) + "\n" for row in cells), encoding="utf-8")


def test_pope_of_vlmevalkit(tmp_path: Path) -> None:
    """A question of several splits is one row. Its answer counts in each split."""
    splits = {"dog": "adversarial,popular,random", "cup": "adversarial", "car": "popular,random"}
    rows = [
        {"index": n, "image_path": "a.jpg", "question": f"Is there a {thing} in the image?",
         "answer": "No" if n else "Yes", "category": of_thing}
        for n, (thing, of_thing) in enumerate(splits.items())
    ]  # fmt: skip
    write_tsv(tmp_path / "pope" / "POPE.tsv", rows)
    items = Benchmark.read("pope").items(tmp_path / "pope")
    assert [(item.id, item.category) for item in items] == [
        ("0", "adversarial"), ("0", "popular"), ("0", "random"), ("1", "adversarial"), ("2", "popular"), ("2", "random")
    ]  # fmt: skip
    answers = [{**row, "prediction": "<think>no</think>Yes" if row["index"] < 2 else "No"} for row in rows]
    write_tsv(tmp_path / "model_POPE.tsv", answers)
    result = run_score("pope", tmp_path / "pope", tmp_path / "model_POPE.tsv", "--strict")
    assert result.categories == pytest.approx({"adversarial": 200 / 3, "popular": 100, "random": 100})


def test_mme_of_vlmevalkit_and_of_its_evaluation_tool(tmp_path: Path) -> None:
    rows = [
        {"index": 2 * n + k, "image_path": f"count/{n}.jpg", "question": f"Is it {k}? Please answer yes or no.",
         "answer": ("Yes", "No")[k], "category": "count"}
        for n in range(2) for k in range(2)
    ]  # fmt: skip
    write_tsv(tmp_path / "table" / "MME.tsv", rows)
    replies = ["Yes", "No", "Yes", "Yes"]
    write_tsv(tmp_path / "model_MME.tsv", [{**row, "prediction": t} for row, t in zip(rows, replies, strict=True)])
    lines = [
        f"{row['image_path'][6:]}\t{row['question']}\t{row['answer']}\t{text}\n"
        for row, text in zip(rows, replies, strict=True)
    ]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "count.txt").write_text("".join(lines), encoding="utf-8")
    of_llava = [
        {"question_id": f"count/images/{n}.jpg", "prompt": f"Is it {k}?\nAnswer.", "text": replies[2 * n + k]}
        for n in (1, 0)
        for k in (1, 0)
    ]
    layouts.lines(tmp_path / "llava.jsonl", of_llava)
    for folder, answers in (
        ("table", "model_MME.tsv"),
        ("table", "llava.jsonl"),
        ("lists", "lists"),
        ("lists", "llava.jsonl"),
    ):
        result = run_score("mme", tmp_path / folder, tmp_path / answers, "--strict")
        assert result.score == pytest.approx((75 + 50) / 2), (folder, answers)
    (tmp_path / "lists" / "count.txt").write_text("0.jpg Is it?\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1 must contain image, question and answer"):
        Benchmark.read("mme").items(tmp_path / "lists")
    with pytest.raises(UserError, match=r"has no CATEGORY.txt"):
        read_answers(tmp_path / "table")


def test_mme_without_its_images(tmp_path: Path) -> None:
    """Ids lack the suffix of an image that is not there."""
    answers = layouts.mme(tmp_path / "mme")
    for image in (tmp_path / "mme").rglob("*.jpg"):
        image.unlink()
    result = run_score("mme", tmp_path / "mme", layouts.lines(tmp_path / "a.jsonl", answers), "--strict")
    assert result.score == pytest.approx(layouts.MME_SCORE)


def test_answers_of_another_benchmark(pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = layouts.lines(tmp_path / "other.jsonl", [{"question_id": n, "text": "B"} for n in range(18)])
    part = layouts.lines(tmp_path / "part.jsonl", in_rows()[:8])
    prompts = layouts.lines(tmp_path / "prompts.jsonl", in_rows(prompt="What is written?"))
    for file, message in (
        (other, "answers 0 of the 18 questions of 'pope'"),
        (part, "answers 8 of the 18 questions"),
        (prompts, "18 of 18 prompts do not contain the question"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_score("pope", pope, file)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
        assert run_score("pope", pope, file, "--allow_missing").questions == 18


def test_failed_requests_are_no_answers() -> None:
    matched = match([Item("1", "Q?")], [Answer("1", "", error="Failed to obtain answer via API.")])
    assert matched.texts == [None]
    assert matched.defects() == {"failed": ["1"]}
    with pytest.raises(UserError, match=r"answers 0 of the 1 questions of 'x': 1 failed \(1\)"):
        matched.check("a.jsonl", "x")


def test_samples_without_ids_are_matched_by_row(tmp_path: Path) -> None:
    """lmms-eval's samples of GQA name no question: neither their metric nor the rest has its id."""
    questions = [f"What is in picture {n}?" for n in range(4)]
    rows = [{"id": str(90 - n), "question": q, "answer": "dog", "imageId": "1"} for n, q in enumerate(questions)]
    layouts.table(tmp_path / "gqa" / "testdev_balanced_instructions" / "testdev-0.parquet", rows)
    images = [{"id": "1", "image": layouts.image_cell(0)}]
    layouts.table(tmp_path / "gqa" / "testdev_balanced_images" / "testdev-0.parquet", images)
    samples = [
        {"doc_id": n, "target": "dog", "filtered_resps": "cat" if n == 3 else "Dog.", "exact_match": float(n != 3),
         "input": f"{question}\nAnswer the question using a single word or phrase."}
        for n, question in reversed(list(enumerate(questions)))
    ]  # fmt: skip
    file = layouts.lines(tmp_path / "20260101_000000_samples_gqa.jsonl", samples)
    result = run_score("gqa", tmp_path / "gqa", file, "--strict", "--protocol=lmms")
    assert result.scores == [1, 1, 1, 0]
    assert read_harness_result(file).scores == result.scores


# -- results with the scores of another harness, of any task


def sample(n: int, correct: bool, **more: Any) -> Row:
    return {"doc_id": n, "target": "7", "filtered_resps": "7" if correct else "8", "input": f"Q{n}?", "doc_hash": "x",
            "token_counts": [None], "relaxed_overall": float(correct), **more}  # fmt: skip


def vlmevalkit(file: Path, rows: list[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(xlsx(rows))
    return file


def test_report_of_other_harnesses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The runs of both harnesses get intervals, paired tests and a row of the table."""
    for system, right in (("small", 20), ("large", 38)):
        samples = [sample(n, n < right, **({"relaxed_human_split": 1.0} if n < 5 else {})) for n in range(40)]
        layouts.lines(tmp_path / system / "20260101_000000_samples_chartqa.jsonl", samples[:: -1 if right > 20 else 1])
        rows = [{"index": n, "question": "Q?", "answer": "A", "prediction": "A", "hit": int(n < right),
                 "category": "ab"[n % 2]} for n in range(40)]  # fmt: skip
        vlmevalkit(tmp_path / system / f"{system}_SEEDBench_IMG_exact_matching_result.xlsx", rows)
        vlmevalkit(tmp_path / system / f"{system}_SEEDBench_IMG.xlsx", [{"index": 0, "prediction": "A"}])
    systems = [f"--systems.{name}={tmp_path / name}" for name in ("small", "large")]
    main(["report", *systems, "--baseline=small", f"--output={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    assert "chartqa (lmms-eval: relaxed_overall), 40 questions" in printed
    assert "SEEDBench_IMG_exact_matching_result (VLMEvalKit: hit), 40 questions" in printed
    assert "Large is above small on 2 of 2 benchmarks (2 clearly, p < 0.05, paired)" in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert {name: round(r["score"], 9) for name, r in results["systems"]["small"].items()} == {
        "chartqa_lmms": 50.0,
        "SEEDBench_IMG_exact_matching_result_vlmevalkit": 50.0,
    }
    assert len(results["pairs"]) == 2
    read = read_results(tmp_path / "large")["chartqa_lmms"]
    assert read.ids == [str(n) for n in range(40)]
    assert read.low < 95 < read.high
    layouts.lines(tmp_path / "small" / "20260102_000000_samples_chartqa.jsonl", [sample(0, True)])
    with pytest.raises(UserError, match="are both results of 'chartqa_lmms'"):
        read_results(tmp_path / "small")


def test_metrics_that_depend_on_the_question(tmp_path: Path) -> None:
    """lmms-eval names MME's metric after its part, and other metrics hold objects."""
    parts = ("perception", "cognition")
    rows = [
        {"doc_id": n, "filtered_resps": "Yes", f"mme_{parts[n % 2]}_score": {"category": parts[n % 2], "score": n / 4}}
        for n in range(4)
    ]
    result = read_harness_result(layouts.lines(tmp_path / "samples_mme.jsonl", rows))
    assert result.scores == [0, 0.25, 0.5, 0.75]
    assert result.categories == {"cognition": 50.0, "perception": 25.0}
    assert result.title == "mme (lmms-eval: mme_perception_score + mme_cognition_score)"
    rows[1]["mme_perception_score"] = {"score": 1.0}
    with pytest.raises(UserError, match="has no score for every question"):
        read_harness_result(layouts.lines(tmp_path / "samples_mme.jsonl", rows))
    rows = [{"doc_id": 0, "filtered_resps": "x", "cv_bench_acc": {"is_correct": True}, "other": {"pred": "x"}}]
    assert read_harness_result(layouts.lines(tmp_path / "samples_cv.jsonl", rows)).scores == [1]


def test_subfolders_of_other_harnesses(tmp_path: Path) -> None:
    """lmms-eval writes to OUTPUT/MODEL. Results of the folder itself come first."""
    layouts.lines(tmp_path / "out" / "my__model" / "20260101_000000_samples_chartqa.jsonl", [sample(0, True)])
    results = read_results(tmp_path / "out")
    assert results.keys() == {"chartqa_lmms"}
    results["chartqa_lmms"].write(tmp_path / "out" / "mine.json")
    assert read_results(tmp_path / "out").keys() == {"mine"}


def test_our_own_results_are_not_read_as_those_of_a_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Result("shop", "", "Shop", "llava", "", "", 1, 100.0, ids=["1"], scores=[1.0]).write(tmp_path / "shop.json")
    monkeypatch.setattr(harness, "read_answer_rows", lambda file: pytest.fail(f"{file.name} is ours"))
    assert read_results(tmp_path).keys() == {"shop"}


def test_json_of_vlmevalkit_in_a_folder(tmp_path: Path) -> None:
    """Predictions without scores, and other JSON files, are no results."""
    predictions = [{"index": n, "prediction": "A"} for n in range(3)]
    scored = [row | {"hit": row["index"] % 2} for row in predictions]
    contents = {"m_TASK": predictions, "m_TASK_result": scored, "status": {"TASK": "done"}, "names": ["a"], "n": 1}
    (tmp_path / "m").mkdir()
    for name, content in contents.items():
        (tmp_path / "m" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    results = read_results(tmp_path)
    assert results.keys() == {"TASK_result_vlmevalkit"}
    assert results["TASK_result_vlmevalkit"].scores == [0, 1, 0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--strict=true"], "--strict is for scoring by our rules. Add --benchmark, or remove --strict."),
        (["--protocol=lmms"], "--protocol is for scoring by our rules"),
        (["--data_root=data"], "--data_root is for scoring by our rules"),
        (["--server_file=x.json"], "--server_file is for scoring by our rules"),
        (["--benchmark=pope", "--metric=hit"], "--metric is for scores of a harness. Remove --benchmark, or remove"),
        (["--benchmark=pope", "--max_score=5"], "--max_score is for scores of a harness"),
    ],
)
def test_flags_are_not_ignored(flags: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    file = layouts.lines(tmp_path / "samples_task.jsonl", [sample(0, True)])
    with pytest.raises(SystemExit) as stopped:
        main(["score", f"--answers={file}", *flags])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_scores_without_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [sample(n, n % 2 == 0, judge={"score": 2 * n}) for n in range(4)]
    file = layouts.lines(tmp_path / "samples_task.jsonl", [*rows, rows[0]])
    with pytest.raises(SystemExit):
        main(["score", f"--answers={file}"])
    assert "has several scores: relaxed_overall, judge. Choose one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["score", f"--answers={file}", "--metric=judge"])
    assert "scores of 'judge' are not between 0 and 1. Set --max_score" in capsys.readouterr().err
    main(
        ["score", f"--answers={file}", "--metric=judge", "--max_score=6", f"--output={tmp_path / 'out' / 'task.json'}"]
    )
    result = read_results(tmp_path / "out")["task"]
    assert result.scores == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert result.odd == {"doubled": 1}
    assert "task (lmms-eval: judge), protocol lmms: 4 questions, 50.00 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "matches", "score"),
    [
        ("DocVQA_VAL", [0.25, 0.75], 0.75),  # distances
        ("DocVQA_VAL", [0.5], 0.5),
        ("InfoVQA_VAL", [0.75, 1.0], 0.0),
        ("ChartQA_TEST", [True, False], 1.0),
        ("OCRVQA_TEST", [0, 1], 1.0),
        ("TextVQA_VAL", [1.0] * 3 + [2 / 3] * 3, 5 / 6),
    ],
)
def test_matches_of_vlmevalkit(task: str, matches: list[float], score: float, tmp_path: Path) -> None:
    """``eval_score`` holds the mean distance in DocVQA, so that a perfect answer has 0."""
    row = {"index": 0, "prediction": "x", "eval_match": str(matches), "eval_score": sum(matches) / len(matches)}
    file = vlmevalkit(tmp_path / "model" / f"model_{task}_results.xlsx", [row])
    assert read_harness_result(file).scores == pytest.approx([score])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"index": 0, "prediction": "x"}, "has no score for every question"),
        ({"index": 0, "prediction": "x", "hit": "maybe"}, "has no score for every question"),
        ({"id": 0, "text": "x"}, "neither samples of lmms-eval nor predictions of VLMEvalKit"),
    ],
)
def test_files_without_scores(row: Row, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_harness_result(layouts.lines(tmp_path / "a.jsonl", [row]))
    scored = layouts.lines(tmp_path / "b.jsonl", [{"index": 0, "prediction": "x", "hit": True}])
    with pytest.raises(UserError, match=r"--metric: .* has no score 'acc'"):
        read_harness_result(scored, "acc")
