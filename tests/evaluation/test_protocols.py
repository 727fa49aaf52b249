"""Tests of benchmark × protocol: what is implemented, the prompts, what is refused, and the breakdowns."""

from __future__ import annotations

from pathlib import Path

import layouts
import numpy as np
import pytest

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.benchmarks.scoring import SCORINGS

ALL = ["llava", "lmms", "vlmevalkit"]
PROTOCOLS = {
    **dict.fromkeys(("mme", "mmbench", "gqa", "scienceqa", "mmmu", "textvqa", "vizwiz", "pope"), ALL),
    "mmbench_cn": ["llava", "vlmevalkit"],  # lmms-eval's task asks GPT
    "vqav2": ["llava", "lmms"],  # VLMEvalKit has no VQAv2
    "vqav2_test": ["llava"],
    "vizwiz_test": ["llava"],
}

S = "\nAnswer the question using a single word or phrase."
L = "\nAnswer with the option's letter from the given choices directly."
KIT = "Please select the correct answer from the options above. \n"
OPTIONS = {"A": "a cat", "B": "a dog"}
QUESTION = Item("1", "what is THIS?", ocr="NIKE, 11")
CHOICE = Item("1", "what is THIS?", options=OPTIONS, hint="A farm.")
NO_HINT = Item("1", "what is THIS?", options=OPTIONS)
LETTERED = "what is THIS?\nA. a cat\nB. a dog"
OF_KIT = f"Question: what is THIS?\nOptions:\nA. a cat\nB. a dog\n{KIT}"
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."

PROMPTS: list[tuple[str, str, Item, str]] = [
    # LLaVA: the prompts of its question files, and model_vqa_mmbench.py:85-99
    ("mme", "llava", QUESTION, f"what is THIS?{S}"),
    ("mmbench", "llava", CHOICE, f"A farm.\n{LETTERED}{L}"),
    ("mmbench", "llava", NO_HINT, f"{LETTERED}{L}"),
    ("mmbench_cn", "llava", NO_HINT, f"{LETTERED}\n请直接回答选项字母。"),
    ("vqav2", "llava", QUESTION, f"what is THIS?{S}"),
    ("gqa", "llava", QUESTION, f"what is THIS?{S}"),
    ("scienceqa", "llava", CHOICE, f"Context: A farm.\n{LETTERED}{L}"),
    ("scienceqa", "llava", NO_HINT, f"{LETTERED}{L}"),
    # MMMU: utils/data_utils.py:140 ends each option with a line break, configs/llava1.5.yaml starts a line after them
    ("mmmu", "llava", NO_HINT, f"what is THIS?\n(A) a cat\n(B) a dog\n{L}"),
    ("mmmu", "llava", QUESTION, f"what is THIS?{S}"),
    ("textvqa", "llava", QUESTION, f"what is THIS?\nReference OCR token: NIKE, 11{S}"),
    ("vizwiz", "llava", QUESTION, f"what is THIS?{UNANSWERABLE}{S}"),
    ("pope", "llava", QUESTION, f"what is THIS?{S}"),
    # lmms-eval: doc_to_text of each task's utils.py with the post_prompt of its YAML file
    ("mme", "lmms", QUESTION, f"what is THIS?{S}"),
    ("mmbench", "lmms", CHOICE, f"A farm. what is THIS? There are several options:\nA. a cat\nB. a dog\n{L}"),
    ("mmbench", "lmms", NO_HINT, f"what is THIS? There are several options:\nA. a cat\nB. a dog\n{L}"),
    ("vqav2", "lmms", QUESTION, f"what is THIS?{S}"),
    ("gqa", "lmms", QUESTION, f"what is THIS?{S}"),
    ("scienceqa", "lmms", CHOICE, f"Context: A farm.\n{LETTERED}{L}"),
    ("scienceqa", "lmms", NO_HINT, f"{LETTERED}{L}"),
    ("mmmu", "lmms", NO_HINT, f"{LETTERED}\n{L}"),
    ("mmmu", "lmms", QUESTION, f"what is THIS?\n{S}"),
    ("textvqa", "lmms", QUESTION, f"What is this?{S}"),
    ("vizwiz", "lmms", QUESTION, f"What is this?{UNANSWERABLE}{S}"),
    ("pope", "lmms", QUESTION, f"what is THIS?{S}"),
    # VLMEvalKit: build_prompt of image_base.py, image_vqa.py:64, image_mcq.py:212. The tables of MME and POPE end so
    ("mme", "vlmevalkit", QUESTION, "what is THIS? Please answer yes or no."),
    ("mmbench", "vlmevalkit", CHOICE, f"Hint: A farm.\n{OF_KIT}"),
    ("mmbench", "vlmevalkit", NO_HINT, OF_KIT),
    ("mmbench_cn", "vlmevalkit", CHOICE, f"Hint: A farm.\n{OF_KIT}"),
    ("gqa", "vlmevalkit", QUESTION, f"what is THIS?{S}"),
    ("scienceqa", "vlmevalkit", CHOICE, f"Hint: A farm.\n{OF_KIT}"),
    ("scienceqa", "vlmevalkit", NO_HINT, OF_KIT),
    ("mmmu", "vlmevalkit", NO_HINT, OF_KIT),
    ("mmmu", "vlmevalkit", QUESTION, "Question: what is THIS?\n"),
    ("textvqa", "vlmevalkit", QUESTION, f"what is THIS?{S}"),
    ("vizwiz", "vlmevalkit", QUESTION, "what is THIS?"),
    ("pope", "vlmevalkit", QUESTION, "what is THIS? Please answer yes or no."),
]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_implemented_or_refused(name: str) -> None:
    benchmark = Benchmark.read(name)
    assert benchmark.protocols == PROTOCOLS[name]
    for protocol in benchmark.protocols:
        assert benchmark.rules(protocol) is SCORINGS[benchmark.scoring][protocol]
        tested = {item.id for n, p, item, _ in PROMPTS if (n, p) == (name, protocol)}
        assert tested or name.endswith("_test")
    for protocol in set(ALL) - set(benchmark.protocols):
        with pytest.raises(UserError, match=f"--protocol: {protocol} is not available for '{name}'"):
            benchmark.rules(protocol)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "protocol", "item", "prompt"), PROMPTS)
def test_prompts(name: str, protocol: ScoringProtocol, item: Item, prompt: str) -> None:
    assert Benchmark.read(name).prompt_of(item, protocol) == prompt


def test_score_and_evaluate_refuse_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["score", "--benchmark=vqav2", "--answers=none.jsonl"],
        ["evaluate", "--models.ours=none", "--benchmarks=[gqa,vqav2]", f"--output={tmp_path / 'out'}"],
    ):
        layouts.gqa(tmp_path / "gqa")
        layouts.vqav2(tmp_path / "vqav2")
        with pytest.raises(SystemExit) as stop:
            main([*command, "--protocol=vlmevalkit", f"--data_root={tmp_path}"])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert "--protocol: vlmevalkit is not available for 'vqav2'" in error
        assert "Use one of llava, lmms" in error
    assert not list(tmp_path.glob("out/**/*.jsonl"))


def test_files_with_complete_prompts_refuse_other_prompts(tmp_path: Path) -> None:
    layouts.mmmu(tmp_path)
    benchmark = Benchmark.read("mmmu")
    item = benchmark.items(tmp_path)[0]
    assert benchmark.prompt_of(item) == item.prompt
    with pytest.raises(UserError, match="contain complete prompts of llava"):
        benchmark.prompt_of(item, "lmms")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt: {llava: x, lmm: y}", "'prompt' must be one text, or one per protocol"),
        ("option: 3", "'option' must be one text, or one per protocol"),
        ("option: {}", "no prompt for the protocols of 'gqa'. Add one of llava, lmms, vlmevalkit"),
        ("settings: {normalizer: evalai}", "settings.normalizer was removed"),
    ],
)
def test_invalid_prompts_and_settings(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"title: x\nscoring: gqa\nlayouts: []\n{text}\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        Benchmark.read(str(file))


def test_own_scorings_have_no_other_protocol() -> None:
    own = {name for name, by_protocol in SCORINGS.items() if list(by_protocol) == ["llava"]}
    assert {"exact", "yes_no", "choice", "short_answer"} <= own


def figures(name: str, folder: Path, right: set[int]) -> dict[str, float]:
    """Return the figures if the questions with these numbers are correct."""
    benchmark = Benchmark.read(name)
    items = benchmark.items(folder)
    judged = np.array([(float(n in right), 0.0) for n in range(len(items))])
    return benchmark.rules("llava").tally.scores(items, judged)[2]


def test_abilities_of_mmbench(tmp_path: Path) -> None:
    layouts.mmbench(tmp_path / "llava")
    layouts.mmbench_hub(tmp_path / "hub")
    for folder in ("llava", "hub"):
        found = figures("mmbench", tmp_path / folder, set(range(4)))
        assert found == {"vanilla accuracy": pytest.approx(400 / 11), "coarse_perception": 50.0, "logic_reasoning": 0.0}


def test_answer_types_of_vqav2(tmp_path: Path) -> None:
    layouts.vqav2(tmp_path / "llava")
    layouts.vqav2_hub(tmp_path / "hub")
    for folder in ("llava", "hub"):
        assert figures("vqav2", tmp_path / folder, {0, 2}) == {"other": 50.0, "yes/no": 50.0}
        assert figures("vqav2", tmp_path / folder, {0, 1}) == {"other": 0.0, "yes/no": 100.0}


def test_disciplines_of_mmmu(tmp_path: Path) -> None:
    layouts.mmmu(tmp_path / "llava")
    layouts.mmmu_hub(tmp_path / "hub")
    for folder in ("llava", "hub"):
        assert figures("mmmu", tmp_path / folder, {0, 1, 2}) == {"Business": 100.0, "Health and Medicine": 50.0}
    names = Benchmark.read("mmmu").layouts[0]["columns"]["ability"]["names"]
    assert len(names) == 6
    assert len({subject for subjects in names.values() for subject in subjects}) == 30


def test_splits_of_pope() -> None:
    benchmark = Benchmark.read("pope")
    items = [Item(str(n), "", (a,), image=str(n), category=c) for n, (c, a) in enumerate(
        [("popular", "yes"), ("popular", "no"), ("random", "yes"), ("random", "yes")]
    )]  # fmt: skip
    judged = np.array([(1, 1), (0, 1), (1, 1), (0, -1)], dtype=np.float64)
    for protocol, expected in (("llava", 200 / 3), ("lmms", 200 / 3), ("vlmevalkit", 200 / 3)):
        score, by_split, found = benchmark.rules(protocol).tally.scores(items, judged)  # type: ignore[arg-type]
        assert score == pytest.approx(expected)
        assert by_split == pytest.approx({"popular": 200 / 3, "random": 200 / 3})
        assert found["popular precision"] == 50
        assert found["random recall"] == 50
        assert found["random precision"] == found["popular recall"] == 100
    judged[3] = judged[2]
    assert benchmark.rules("llava").tally.scores(items, judged)[0] == pytest.approx((200 / 3 + 100) / 2)
    assert benchmark.rules("llava").tally.scores(items, judged)[2]["pooled F1"] == pytest.approx(600 / 7)
    assert benchmark.rules("vlmevalkit").tally.scores(items, judged)[0] == pytest.approx(600 / 7)
