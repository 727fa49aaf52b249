"""Test that our scores of lmms-eval's samples equal its own: POPE, MME and TextVQA, answered by the trained student.

The demo questions are written in the hub's layouts of the three benchmarks. The tasks are those of lmms-eval, with
these data. ``make harness`` and ``make train`` create what the test needs, and ``make test-all`` runs both.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from command import ROOT
from pyarrow import parquet

from lightning_switchkd.cli.main import main
from lightning_switchkd.evaluation.benchmarks.tallies import COGNITION, PERCEPTION

HARNESS = ROOT / ".venv-lmms"
STUDENT = ROOT / "runs" / "emoji" / "switch_kd" / "student"
DATA = ROOT / "datasets" / "emoji"
SPLITS = ("adversarial", "popular", "random")
NUM_QUESTIONS = 48
"""Questions of POPE and of TextVQA."""

TASKS = {"pope": "pope/pope.yaml", "mme": "mme/mme.yaml", "textvqa": "textvqa/textvqa_val.yaml"}
"""Definitions of lmms-eval."""

FILES = {
    "pope": "data/test-00000-of-00001.parquet",
    "mme": "data/test-00000-of-00001.parquet",
    "textvqa": "data/validation-00000-of-00001.parquet",
}
Row = dict[str, Any]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (HARNESS / "ready").is_file(), reason="lmms-eval is missing: run make harness"),
    pytest.mark.skipif(not (STUDENT.is_dir() and DATA.is_dir()), reason="the student is missing: run make train"),
]


def image(sample: Row) -> Row:
    return {"bytes": (DATA / "images" / sample["image"]).read_bytes(), "path": Path(sample["image"]).name}


def turns(sample: Row) -> tuple[str, str]:
    """Return question and answer."""
    question, answer = (turn["value"] for turn in sample["conversations"])
    return question.replace("<image>", "").strip(), answer


def pope_rows(samples: list[Row]) -> list[Row]:
    """Return questions whether a thing is in the image, in three splits."""
    asked = [sample for sample in samples if sample["source"] == "hallucination"][:NUM_QUESTIONS]
    rows = []
    for number, sample in enumerate(asked):
        question, answer = turns(sample)
        name, source = {"id": str(number), "question_id": str(number)}, Path(sample["image"]).stem
        split = {"category": SPLITS[number % 3], "image_source": source}
        rows.append({**name, "question": question, "answer": answer, **split, "image": image(sample)})
    return rows


def mme_rows(samples: list[Row]) -> list[Row]:
    """Return a question with yes and one with no about each image, two images in each category."""
    by_image: dict[str, dict[str, Row]] = defaultdict(dict)
    for sample in samples:
        if (answer := turns(sample)[1]) in ("yes", "no"):
            by_image[sample["image"]].setdefault(answer, sample)
    pairs = [pair for pair in by_image.values() if len(pair) == 2]
    categories = 2 * [*PERCEPTION, *COGNITION]
    assert len(pairs) > len(categories)
    return [
        {
            "question_id": f"{category}/{Path(sample['image']).name}",
            "image": image(sample),
            "question": turns(sample)[0],
            "answer": answer.capitalize(),
            "category": category,
        }
        for category, pair in zip(categories, pairs, strict=False)
        for answer, sample in sorted(pair.items(), reverse=True)
    ]


def textvqa_rows(samples: list[Row]) -> list[Row]:
    """Return questions about written words. Of ten people, two write them otherwise, and one disagrees."""
    asked = [sample for sample in samples if sample["source"] == "ocr"][:NUM_QUESTIONS]
    rows = []
    for number, sample in enumerate(asked):
        question, answer = turns(sample)
        people = [answer] * 7 + [f"{answer}.", f"the {answer.lower()}", "unanswerable"]
        about = {"image_id": Path(sample["image"]).stem, "question_id": number, "ocr_tokens": answer.split()}
        rows.append({**about, "question": question, "answers": people, "image": image(sample)})
    return rows


def write_table(file: Path, rows: list[Row]) -> None:
    """Write Parquet as on the hub, with the metadata by which ``datasets`` decodes images."""

    def feature(name: str, value: Any) -> Row:
        if name == "image":
            return {"_type": "Image"}
        if isinstance(value, list):
            return {"_type": "List", "feature": feature("", value[0])}
        return {"_type": "Value", "dtype": "int64" if isinstance(value, int) else "string"}

    info = {"info": {"features": {name: feature(name, value) for name, value in rows[0].items()}}}
    file.parent.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(info)}), file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the data of the three benchmarks, and evaluate the student on them with lmms-eval, into ``out``."""
    folder = tmp_path_factory.mktemp("harness")
    samples = json.loads((DATA / "test.json").read_text(encoding="utf-8"))
    (definitions,) = HARNESS.glob("lib/python3*/site-packages/lmms_eval/tasks")
    (folder / "tasks").mkdir()
    for (name, file), rows in zip(FILES.items(), (pope_rows, mme_rows, textvqa_rows), strict=True):
        write_table(folder / name / file, rows(samples))
        split = Path(file).name.partition("-")[0]
        task = {
            "include": str(definitions / TASKS[name]),
            "task": f"{name}_emoji",
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {split: str(folder / name / file)}},
            "test_split": split,
            "lmms_eval_specific_kwargs": {"default": {"pre_prompt": "", "post_prompt": ""}},  # as in its training
        }
        (folder / "tasks" / f"{name}_emoji.yaml").write_text(json.dumps(task), encoding="utf-8")
    command: list[str | Path] = [
        HARNESS / "bin" / "python", "-m", "lmms_eval", "--model", "llava_hf", "--include_path", folder / "tasks",
        "--tasks", ",".join(f"{name}_emoji" for name in FILES), "--batch_size", "1", "--log_samples",
        "--model_args", f"pretrained={STUDENT},device=cpu,device_map=cpu,dtype=float32",
        "--output_path", folder / "out",
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    environment = {**os.environ, **offline}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Row]:
    """Score the samples with our code, into ``ours``."""
    for name in FILES:
        (samples,) = folder.glob(f"out/*/*samples_{name}_emoji.jsonl")
        main([
            "score", f"--benchmark={name}", f"--annotations={folder / name}", f"--answers={samples}",
            "--protocol=lmms", "--strict", f"--output={folder / 'ours' / name}.json",
        ])  # fmt: skip
    return {name: json.loads((folder / "ours" / f"{name}.json").read_text(encoding="utf-8")) for name in FILES}


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, dict[str, float]]:
    """Return the figures of lmms-eval by benchmark."""
    (file,) = folder.glob("out/*/*_results.json")
    of_tasks = json.loads(file.read_text(encoding="utf-8"))["results"]
    return {
        name: {metric.removesuffix(",none"): value for metric, value in of_tasks[f"{name}_emoji"].items()}
        for name in FILES
    }


def test_pope(results: dict[str, Row], figures: dict[str, dict[str, float]]) -> None:
    ours, theirs = results["pope"], figures["pope"]
    assert ours["questions"] == NUM_QUESTIONS
    assert ours["score"] == pytest.approx(100 * theirs["pope_f1_score"])
    assert 0 < ours["score"] < 100
    for name in ("accuracy", "precision", "recall"):
        assert ours["figures"][name] == pytest.approx(100 * theirs[f"pope_{name}"])
    assert ours["figures"]["yes ratio"] == pytest.approx(100 * theirs["pope_yes_ratio"])


def test_mme(results: dict[str, Row], figures: dict[str, dict[str, float]]) -> None:
    ours, theirs = results["mme"], figures["mme"]
    assert ours["questions"] == 4 * len(PERCEPTION + COGNITION)
    assert ours["figures"]["perception"] == pytest.approx(theirs["mme_perception_score"])
    assert ours["figures"]["cognition"] == pytest.approx(theirs["mme_cognition_score"])
    assert ours["score"] == pytest.approx(theirs["mme_perception_score"] / (2 * len(PERCEPTION)))
    assert 0 < ours["score"] < 100


def test_textvqa(results: dict[str, Row], figures: dict[str, dict[str, float]]) -> None:
    ours, theirs = results["textvqa"], figures["textvqa"]
    assert ours["questions"] == NUM_QUESTIONS
    assert ours["score"] == pytest.approx(100 * theirs["exact_match"])
    assert 0 < ours["score"] < 100


@pytest.mark.parametrize(("name", "metric"), [("pope", "pope_accuracy"), ("textvqa", "exact_match")])
def test_scores_in_the_samples(name: str, metric: str, folder: Path, figures: dict[str, dict[str, float]]) -> None:
    """Without a benchmark, the scores of lmms-eval itself count."""
    (samples,) = folder.glob(f"out/*/*samples_{name}_emoji.jsonl")
    output = folder / "theirs" / f"{name}.json"
    main(["score", f"--answers={samples}", f"--metric={metric}", f"--output={output}"])
    theirs = json.loads(output.read_text(encoding="utf-8"))
    assert theirs["score"] == pytest.approx(100 * figures[name][metric])
    assert theirs["low"] < theirs["score"] < theirs["high"]


def test_the_report_has_intervals(results: dict[str, Row], folder: Path) -> None:
    main(["report", f"--systems.student={folder / 'ours'}", f"--output={folder / 'report'}"])
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w() ]+), .+? \| (\S+ \[\S+ \S+\]) +\|$", text, re.MULTILINE))
    titles = {"pope": "POPE", "mme": "MME", "textvqa": "TextVQA (val)"}
    assert rows == {
        titles[name]: "{score:.1f} [{low:.1f}, {high:.1f}]".format(**ours) for name, ours in results.items()
    }
    assert all(ours["low"] < ours["score"] < ours["high"] for ours in results.values())
