"""Small files in the layouts of the ten benchmarks, answers to them, and the expected scores.

The files contain the pitfalls of each benchmark: missing rotations, repeated ids, labels in another order, identical
correct answers, punctuation, and options called "None". Each score is computed by hand next to the data. The file is
long, so that all ten benchmarks can be compared, each in both layouts.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from lightning_switchkd.evaluation.benchmarks.tallies import COGNITION, PERCEPTION

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
Row = dict[str, Any]


def png(shade: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (shade % 256, 40, 90)).save(out, format="PNG")
    return out.getvalue()


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(shade))


def lines(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def table(path: Path, rows: list[Row]) -> None:
    """Write Parquet with images as on the hub, in small row groups so that the file has several."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)


def image_cell(shade: int) -> Row:
    return {"bytes": png(shade), "path": f"{shade}.png"}


def people(*answers: str, ids: bool = True) -> list[Row]:
    """Return ten people's answers, given as ``blue*4``."""
    texts = [text for part in answers for text in [part.split("*")[0]] * int([*part.split("*"), "1"][1])]
    assert len(texts) == 10
    return [
        {"answer": text, **({"answer_id": n + 1} if ids else {}), "answer_confidence": "yes"}
        for n, text in enumerate(texts)
    ]


def answer(question_id: Any, text: str, prompt: str = "") -> Row:
    """Return a line in LLaVA's format."""
    return {
        "question_id": question_id,
        "prompt": prompt,
        "text": text,
        "answer_id": "x",
        "model_id": "m",
        "metadata": {},
    }


# -- MME: two images per category; both answers are correct for one, one answer for the other: 75 + 50 = 125 of 200

MME_SCORE = 62.5


def mme(root: Path) -> list[Row]:
    answers = []
    for number, category in enumerate((*PERCEPTION, *COGNITION)):
        folder = root / "MME_Benchmark_release_version" / category
        nested = number % 2 == 0  # half of the release has subfolders
        for image in range(2):
            name = f"{image:04d}"
            picture(folder / "images" / f"{name}.jpg" if nested else folder / f"{name}.jpg", image)
            two = "  " if image else " "  # some questions have two spaces before the request
            request = f"{two}Please answer yes or no."
            text = f"Is there a cat?{request}\tYes\nIs there a cat there?{request}\tNo\n"
            texts = folder / "questions_answers_YN" if nested else folder
            texts.mkdir(parents=True, exist_ok=True)
            (texts / f"{name}.txt").write_text(text, encoding="utf-8")
            key = f"{category}/{name}.jpg"
            answers += [
                answer(key, "No, it is not" if image == 0 else "Not sure", f"Is there a cat there?{SHORT}"),
                answer(key, "Yes." if image == 0 else "I know", f"Is there a cat?{SHORT}"),
            ]
    return answers


def mme_hub(root: Path) -> None:
    rows = [
        {
            "question_id": f"{c}/{i:04d}.png",
            "image": image_cell(i),
            "question": f"{q} Please answer yes or no.",
            "answer": a,
            "category": c,
        }
        for c in (*PERCEPTION, *COGNITION)
        for i in range(2)
        for q, a in (("Is there a cat?", "Yes"), ("Is there a cat there?", "No"))
    ]
    table(root / "data" / "test-00000-of-00001.parquet", rows)


# -- MMBench: 0 is correct in all rotations; 1 wrong in one; 2 has only three rows, and an option called None: 2 of 3

MMBENCH_SCORE = 200 / 3
MMBENCH_COLUMNS = (
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "l2-category",
    "image",
    "source",
)


def mmbench_rows() -> list[Row]:
    rows = []
    for base in range(3):
        options = ["cat", "dog", "bird", "None" if base == 2 else "cow"]
        for turn in range(3 if base == 2 else 4):
            turned = options[turn:] + options[:turn]
            rows.append(
                {
                    "index": base + turn * 1_000_000,
                    "question": f"What is it? {base}",
                    "hint": "A farm." if base == 1 else "",
                    **dict(zip("ABCD", turned, strict=True)),
                    "answer": "ABCD"[turned.index("None" if base == 2 else "dog")],
                    "category": ("object", "object", "nothing")[base],
                    "l2-category": ("coarse_perception", "coarse_perception", "logic_reasoning")[base],
                    "source": "x",
                    "image": base64.b64encode(png(base)).decode() if turn == 0 else str(base),
                }
            )
    return rows


def mmbench_answers() -> list[Row]:
    templates = ["{}", "({})", "{}. dog", "The answer is {}."]
    return [
        answer(row["index"], "b" if row["index"] == 1_000_001 else templates[n % 4].format(row["answer"]))
        for n, row in enumerate(mmbench_rows())
    ]


def mmbench(root: Path, name: str = "mmbench_dev_20230712.tsv") -> list[Row]:
    root.mkdir(parents=True, exist_ok=True)
    cells = [MMBENCH_COLUMNS, *(tuple(row[c] for c in MMBENCH_COLUMNS) for row in mmbench_rows())]
    (root / name).write_text("".join("\t".join(map(str, row)) + "\n" for row in cells), encoding="utf-8")
    return mmbench_answers()


def mmbench_cn(root: Path) -> list[Row]:
    return mmbench(root, "mmbench_dev_cn_20231003.tsv")


def mmbench_hub(root: Path, language: str = "en") -> None:
    rows = [{**row, "image": image_cell(row["index"] % 10)} for row in mmbench_rows()]
    rows = [{**row, "L2-category": row.pop("l2-category")} for row in rows]  # the Hub's spelling
    table(root / language / "dev-00000-of-00001.parquet", rows)


# -- VQAv2: "Yes." is uploaded as "yes", which ten or nine of ten people say; 2 of ten: .6; none: (1 + 1 + .6 + 0) / 4

VQAV2_SCORE = 65.0
VQAV2 = [
    (1, "Is it raining?", people("yes*10"), "Yes.", 1.0),
    (2, "Is it dry?", people("yes*9", "no"), "Yes.", 1.0),
    (3, "How many?", people("2*2", "3*8"), "two", 0.6),
    (4, "What color?", people("red*10"), "yes, it is", 0.0),
]


def vqav2(root: Path) -> list[Row]:
    questions = [{"question_id": 10 + n, "image_id": n, "question": q} for n, q, _, _, _ in VQAV2]
    labels = [
        {
            "question_id": 10 + n,
            "image_id": n,
            "answers": a,
            "question_type": q.split()[0].lower(),
            "answer_type": "yes/no" if q.startswith("Is") else "other",
        }
        for n, q, a, _, _ in reversed(VQAV2)
    ]
    as_json(root / "v2_OpenEnded_mscoco_val2014_questions.json", {"info": {}, "questions": questions})
    as_json(root / "v2_mscoco_val2014_annotations.json", {"info": {}, "annotations": labels})
    for n, *_ in VQAV2:
        picture(root / "val2014" / f"COCO_val2014_{n:012d}.jpg", n)
    return [answer(10 + n, text) for n, _, _, text, _ in VQAV2]


def vqav2_hub(root: Path) -> None:
    rows = [
        {
            "question_id": 10 + n,
            "image_id": n,
            "question": q,
            "answers": a,
            "question_type": q.split()[0].lower(),
            "answer_type": "yes/no" if q.startswith("Is") else "other",
            "image": image_cell(n),
        }
        for n, q, a, _, _ in VQAV2
    ]
    table(root / "data" / "validation-00000-of-00001.parquet", rows)


# -- GQA: two of four correct; an unbalanced question does not count

GQA_SCORE = 50.0
GQA = [("101", "yes", "Yes."), ("102", "yes", "yes, it is"), ("103", "t-shirt", "T-shirt"), ("104", "car", "the car")]


def gqa(root: Path) -> list[Row]:
    labels = {
        key: {
            "question": f"What? {key}",
            "answer": a,
            "imageId": f"n{key}",
            "isBalanced": True,
            "types": {"structural": kind},
        }
        for (key, a, _), kind in zip(GQA, ("verify", "verify", "query", "query"), strict=True)
    }
    labels["999"] = {**labels["101"], "isBalanced": False}
    as_json(root / "data" / "testdev_balanced_questions.json", labels)
    for key, _, _ in GQA:
        picture(root / "data" / "images" / f"n{key}.jpg")
    return [answer(key, text) for key, _, text in reversed(GQA)]


def gqa_hub(root: Path) -> None:
    kinds = ("verify", "verify", "query", "query")
    rows = [
        {
            "id": key,
            "imageId": f"n{key}",
            "question": f"What? {key}",
            "answer": a,
            "isBalanced": True,
            "types": {"structural": kind},
        }
        for (key, a, _), kind in zip(GQA, kinds, strict=True)
    ]
    table(root / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet", rows)
    images = [{"id": f"n{key}", "image": image_cell(1)} for key, _, _ in reversed(GQA)]
    table(root / "testdev_balanced_images" / "testdev-00000-of-00001.parquet", images)


# -- ScienceQA: "B" correct, "B." wrong, "The answer is B." correct, "D" out of range; without an image: not counted

SCIENCEQA_SCORE = 50.0
SCIENCEQA = [("1", "B"), ("2", "B."), ("3", "The answer is B."), ("4", "D"), ("5", "B")]


def scienceqa_problem(key: str) -> Row:
    return {
        "question": f"Which? {key}",
        "choices": ["cat", "dog", "bird"],
        "answer": 1,
        "hint": "Look." if key == "1" else "",
        "image": None if key == "5" else "image.png",
        "split": "test",
        "subject": "natural science" if key < "3" else "social science",
    }


def scienceqa(root: Path) -> list[Row]:
    problems = {key: scienceqa_problem(key) for key, _ in SCIENCEQA}
    problems["6"] = {**problems["1"], "split": "train"}
    as_json(root / "problems.json", problems)
    as_json(root / "pid_splits.json", {"test": [key for key, _ in SCIENCEQA], "train": ["6"]})
    for key, _ in SCIENCEQA[:4]:
        picture(root / "images" / "test" / key / "image.png")
    return [answer(key, text) for key, text in SCIENCEQA]


def scienceqa_hub(root: Path) -> None:
    rows = [{**scienceqa_problem(key), "image": image_cell(1)} for key, _ in SCIENCEQA[:4]]
    table(root / "ScienceQA-IMG" / "test-00000-of-00001.parquet", rows)


# -- MMMU: a letter, the last of two letters, an open answer in a sentence, and a wrong number: 3 of 4

MMMU_SCORE = 75.0
MMMU = [
    ("validation_Accounting_1", ["$6", "$7", "eight dollars"], "B", "B. "),
    ("validation_Accounting_2", ["$6", "$7", "eight dollars"], "B", "A or B"),
    ("validation_Basic_Medical_Science_3", [], "10", "The answer is 10"),
    ("validation_Basic_Medical_Science_4", [], "8", "18"),
]


def mmmu(root: Path) -> dict[str, str]:
    as_json(
        root / "anns_for_eval.json",
        [
            {
                "id": key,
                "prompt": f"How much? {key}",
                "question_type": "multiple-choice" if options else "short-answer",
                "all_choices": list("ABC"[: len(options)]),
                "index2ans": dict(zip("ABC", options, strict=False)),
                **({"image": f"{key}.png"} if key != "validation_Accounting_2" else {}),
            }
            for key, options, _, _ in MMMU
        ],
    )
    labels = {
        key: {
            "question_type": "multiple-choice" if options else "short-answer",
            "ground_truth": gold if options else [gold],
        }
        for key, options, gold, _ in MMMU
    }
    as_json(root / "eval" / "answer_dict_val.json", labels)
    for key, *_ in MMMU:
        picture(root / "all_images" / f"{key}.png")
    return {key: text for key, _, _, text in MMMU}


def mmmu_hub(root: Path) -> None:
    for subject in ("Accounting", "Basic_Medical_Science"):
        rows = [
            {
                "id": key,
                "question": f"How much? {key}",
                "options": repr(options),
                "answer": gold,
                "question_type": "multiple-choice" if options else "open",
                "image_1": image_cell(1),
                "image_2": None,
            }
            for key, options, gold, _ in MMMU
            if subject in key
        ]
        table(root / subject / "validation-00000-of-00001.parquet", rows)


# -- TextVQA: two questions about one image share its id; "thats" is "that's": (1 + 0 + .9) / 3

TEXTVQA_SCORE = 190 / 3
TEXTVQA = [
    ("aa", "what is written?", ["t shirt"] * 9 + ["shirt"], "T-shirt"),
    ("aa", "What is written below?", ["eleven"] * 9 + ["x"], "11"),
    ("bb", "who says so?", ["that's"] * 3 + ["me"] * 7, "that's"),
]


def textvqa(root: Path) -> list[Row]:
    data = [{"question": q, "image_id": i, "question_id": n, "answers": a} for n, (i, q, a, _) in enumerate(TEXTVQA)]
    as_json(root / "TextVQA_0.5.1_val.json", {"data": data})
    words = ("NIKE, 11", "", "SO")
    prompts = [
        f"{q[0].upper()}{q[1:]}\nReference OCR token: {w}{SHORT}"
        for (_, q, _, _), w in zip(TEXTVQA, words, strict=True)
    ]
    lines(
        root / "llava_textvqa_val_v051_ocr.jsonl",
        [{"question_id": i, "image": f"{i}.jpg", "text": p} for (i, *_), p in zip(TEXTVQA, prompts, strict=True)],
    )
    for name in ("aa", "bb"):
        picture(root / "train_images" / f"{name}.jpg")
    return [answer(i, text, p) for (i, _, _, text), p in reversed(list(zip(TEXTVQA, prompts, strict=True)))]


def textvqa_hub(root: Path) -> None:
    rows = [
        {
            "question_id": n,
            "image_id": i,
            "question": q,
            "answers": a,
            "ocr_tokens": ["NIKE"] if n else [],
            "image": image_cell(n),
        }
        for n, (i, q, a, _) in enumerate(TEXTVQA)
    ]
    table(root / "data" / "validation-00000-of-00001.parquet", rows)


# -- VizWiz: six identical answers of ten, without ids, count as six: (1 + .6 + 0) / 3

VIZWIZ_SCORE = 160 / 3
VIZWIZ = [
    ("VizWiz_val_00000000.jpg", people("unanswerable*6", "blue*4", ids=False), "blue", "other"),
    ("VizWiz_val_00000001.jpg", people("unanswerable*2", "blue*8", ids=False), "Unanswerable", "other"),
    ("VizWiz_val_00000002.jpg", people("yes*10", ids=False), "", "yes/no"),
]


def vizwiz(root: Path) -> list[Row]:
    labels = [
        {"image": i, "question": "What is this?", "answers": a, "answer_type": k, "answerable": 1}
        for i, a, _, k in VIZWIZ
    ]
    as_json(root / "val.json", labels)
    for name, *_ in VIZWIZ:
        picture(root / "val" / name)
    return [answer(name, text) for name, _, text, _ in VIZWIZ]


def vizwiz_hub(root: Path) -> None:
    rows = [
        {
            "question_id": i,
            "question": "What is this?",
            "answers": [x["answer"] for x in a],
            "category": k,
            "image": image_cell(1),
        }
        for i, a, _, k in VIZWIZ
    ]
    table(root / "data" / "val-00000-of-00001.parquet", rows)


# -- POPE: yes, yes, no, no / yes, no, no, yes in each split: F1 .5; labels in another order and with a typo

POPE_SCORE = 50.0
POPE = [
    ("dog", "yes", "Yes."),
    ("car", "no", "Nope"),
    ("cat", "no", "No."),
    ("cup", "yes", "There is no cup."),
]
SPLITS = ("random", "popular", "adversarial")


def pope(root: Path) -> list[Row]:
    questions, answers = [], []
    for split in SPLITS:
        labels = [
            {
                "question_id": n + 1,
                "image": "COCO_1.jpg",
                "text": f"Is there a {o} in the im{'an' if n else 'a'}ge?",
                "label": a,
            }
            for n, (o, a, _) in enumerate(POPE)
        ]
        lines(root / "coco" / f"coco_pope_{split}.json", labels[::-1])
        for thing, _, text in POPE:
            key = len(questions)
            questions.append(
                {
                    "question_id": key,
                    "image": "COCO_1.jpg",
                    "text": f"Is there a {thing} in the image?{SHORT}",
                    "category": split,
                }
            )
            answers.append(answer(key, text))
    lines(root / "llava_pope_test.jsonl", questions)
    picture(root / "val2014" / "COCO_1.jpg")
    return answers


def pope_hub(root: Path) -> None:
    rows = [
        {
            "id": str(n),
            "question_id": str(n),
            "question": f"Is there a {o} in the image?",
            "answer": a,
            "image_source": "COCO_1",
            "category": s,
            "image": image_cell(n),
        }
        for s in SPLITS
        for n, (o, a, _) in enumerate(POPE)
    ]
    table(root / "data" / "test-00000-of-00001.parquet", rows)


LLAVA = {
    "mme": (mme, MME_SCORE),
    "mmbench": (mmbench, MMBENCH_SCORE),
    "mmbench_cn": (mmbench_cn, MMBENCH_SCORE),
    "vqav2": (vqav2, VQAV2_SCORE),
    "gqa": (gqa, GQA_SCORE),
    "scienceqa": (scienceqa, SCIENCEQA_SCORE),
    "mmmu": (mmmu, MMMU_SCORE),
    "textvqa": (textvqa, TEXTVQA_SCORE),
    "vizwiz": (vizwiz, VIZWIZ_SCORE),
    "pope": (pope, POPE_SCORE),
}
HUB = {
    "mme": mme_hub,
    "mmbench": mmbench_hub,
    "mmbench_cn": lambda root: mmbench_hub(root, "cn"),
    "vqav2": vqav2_hub,
    "gqa": gqa_hub,
    "scienceqa": scienceqa_hub,
    "mmmu": mmmu_hub,
    "textvqa": textvqa_hub,
    "vizwiz": vizwiz_hub,
    "pope": pope_hub,
}


def write_answers(root: Path, name: str, answers: Any) -> Path:
    """Write JSONL, or MMMU's JSON."""
    if isinstance(answers, dict):
        as_json(root / f"{name}.json", answers)
        return root / f"{name}.json"
    return lines(root / f"{name}.jsonl", answers)
