"""The command `validate-data`: what it finds, says and leaves behind."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from command import fit_arguments
from PIL import Image
from raws import BROKEN, break_images, talk

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.files import ReadError
from lightning_switchkd.core.types import IGNORE_INDEX
from lightning_switchkd.data.datamodule import DataPaths
from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.validate.findings import Findings
from lightning_switchkd.data.validate.validate import validate_data

OTHER_DEFECTS: dict[str, tuple[dict[str, Any], str]] = {
    "nobody": ({"conversations": []}, "schema"),
    "gpt first": ({"conversations": talk("a", "b")[::-1]}, "roles"),
    "two for one": ({"image": "good.png", "conversations": talk("<image><image>", "a")}, "image_count"),
    "silent": ({"conversations": talk("q", " ")}, "empty_answer"),
    "long": ({"conversations": talk("why? " * 500, "a")}, "no_supervision"),
}


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """100 good records, one in three without an image, and 14 bad ones, of every code that training data can have."""
    root = tmp_path / "images"
    root.mkdir()
    break_images(root)
    for name in ("good.png", "held_out.png"):
        Image.new("RGB", (20, 24), "red").save(root / name)
    raws: list[Any] = [
        {
            "id": f"good{i}",
            "source": "mixed",
            "conversations": talk(f"{i}?", "a cat " * (1 + i % 9), "And?", "dog " * (1 + i)),
        }
        | ({"image": "good.png"} if i % 3 else {})
        for i in range(100)
    ]
    raws += [{"id": name, "image": name, "source": "web", "conversations": talk("<image>", "a")} for name in BROKEN]
    raws += [{"id": name, **raw} for name, (raw, _) in OTHER_DEFECTS.items()]
    lines = [json.dumps(raw) for raw in raws]
    lines.insert(50, '{"id": "torn", "conversations": [')
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    held_out = [
        {"id": i, "image": f"{name}.png", "conversations": talk("q", "a")}
        for i, name in enumerate(("good", "held_out"))
    ]
    (tmp_path / "val.json").write_text(json.dumps(held_out))
    return tmp_path


def arguments(folder: Path, broken: Path, *more: str) -> list[str]:
    """As the Makefile calls it, beside `fit`."""
    fit = fit_arguments(folder, broken / "run")[1:]
    flags = [flag for flag in fit if "data.test" not in flag and "data.train" not in flag and "data.val" not in flag]
    return [
        "validate-data",
        *flags,
        f"--data.train={{annotations: {broken / 'train.jsonl'}, image_root: {broken / 'images'}}}",
        f"--data.val={{annotations: {broken / 'val.json'}, image_root: {broken / 'images'}}}",
        "--data.test=null",
        f"--output={broken / 'report'}",
        "--data.max_length=150",
        *more,
    ]


def test_finds_everything_and_leaves_a_list_that_training_takes(
    folder: Path, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments(folder, broken, "--trainer.accumulate_grad_batches=2"))
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "train: 100 of 114 samples are valid. Invalid: image_decode 4, image_missing 3" in said
    assert "val: 2 of 2 samples are valid" in said
    codes = Counter([*BROKEN.values(), *(code for _, code in OTHER_DEFECTS.values()), "bad_json"])
    report = broken / "report"
    numbers = json.loads((report / "report.json").read_text())
    assert numbers["train"]["codes"] == codes
    assert numbers["train"]["worst sources"]["web"] == {"records": 8, "bad": 8}
    assert numbers["train"]["text only"] == 34
    assert numbers["train"]["cut by max_length"] > 0
    assert numbers["train"]["records in a step"] == 16
    assert numbers["val"]["images also in train"] == 1
    lines = [json.loads(line) for line in (report / "exclude.jsonl").read_text().splitlines()]
    assert Counter(line["code"] for line in lines) == codes
    page = re.sub(" +", " ", (report / "report.md").read_text())  # cells are padded
    for words in (
        "**100 of 114 samples are valid (87.7%)**",
        "`image_size` | 1 |",
        "sample 50 (id None)",
        "DOCTYPE",
        "| web | 8 | 8 |",
    ):
        assert words in page
    with Image.open(report / "lengths.png") as picture:
        assert min(picture.size) > 300

    main(arguments(folder, broken, f"--data.exclude={report / 'exclude.jsonl'}", f"--output={broken / 'second'}"))
    assert "train: 100 of 100 samples are valid\n" in capsys.readouterr().out
    assert "14 more were excluded" in (broken / "second" / "report.md").read_text()
    assert (broken / "second" / "exclude.jsonl").read_text() == (report / "exclude.jsonl").read_text()


def test_a_list_is_kept_where_the_next_one_takes_its_place(folder: Path, broken: Path) -> None:
    with pytest.raises(SystemExit):
        main(arguments(folder, broken))
    exclude = broken / "report" / "exclude.jsonl"
    first = exclude.read_text()
    (broken / "images" / "held_out.png").unlink()
    with pytest.raises(SystemExit):
        main(arguments(folder, broken, f"--data.exclude={exclude}"))
    assert exclude.read_text().startswith(first)
    assert [line["code"] for line in excluded(broken)[len(first.splitlines()) :]] == ["image_missing"]
    main(arguments(folder, broken, f"--data.exclude={exclude}"))
    assert len(excluded(broken)) == 15


@pytest.mark.parametrize(
    ("devices", "said"), [("2", "processes 2)"), ("[0, 1]", "processes 2)"), ("-1", "processes unknown, counted as 1)")]
)
def test_says_what_a_step_is_made_of(folder: Path, broken: Path, devices: str, said: str) -> None:
    flags = (f"--trainer.devices={devices}", "--trainer.accumulate_grad_batches=3", "--workers=0")
    with pytest.raises(SystemExit):
        main(arguments(folder, broken, *flags))
    samples = 8 * 3 * (2 if "2" in said else 1)
    page = (broken / "report" / "report.md").read_text()
    assert (
        f"Optimizer steps per epoch: {114 // samples}, of {samples} samples (batch_size 8 x accumulated 3 x {said}"
        in page
    )


def test_data_without_images_and_data_without_a_good_record(folder: Path, tmp_path: Path) -> None:
    for name, answer in (("good", "a"), ("bad", " ")):
        raws = [json.dumps({"id": i, "conversations": talk("q", answer)}) for i in range(16)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(raws))
        data = tiny.data_module(folder, train=DataPaths(str(tmp_path / f"{name}.jsonl")), val=None)
        assert validate_data(data, tmp_path / name, workers=0) is (name == "good")
    assert "Text only: 16 samples (100.0%)" in (tmp_path / "good" / "report.md").read_text()
    page = (tmp_path / "bad" / "report.md").read_text()
    assert "samples are valid (0.0%)**" in page
    assert "Tokens per sample:" not in page


def test_a_failing_disk_is_no_bad_record(
    folder: Path, broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> bytes:
        raise ReadError("the disk is gone")

    monkeypatch.setattr(ImageFolder, "bytes_of", fail)  # the workers are forked: theirs as well
    with pytest.raises(SystemExit) as stop:
        main(arguments(folder, broken, "--workers=2"))
    assert stop.value.code == 2
    assert "error: the disk is gone" in capsys.readouterr().err
    assert not (broken / "report" / "report.md").exists()
    assert not (broken / "report" / "exclude.jsonl").exists()


def test_ctrl_c_ends_it_and_its_workers(
    folder: Path, broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workers: list[Any] = []

    def press(*_: Any) -> None:
        workers.extend(multiprocessing.active_children())
        raise KeyboardInterrupt

    monkeypatch.setattr(Findings, "add", press)
    with pytest.raises(SystemExit) as stop:
        main(arguments(folder, broken, "--workers=2"))
    assert stop.value.code == 130
    assert "Interrupted." in capsys.readouterr().err
    del stop  # with its traceback, which holds the loader: a process that exits lets go of it
    assert len(workers) == 2
    for worker in workers:
        worker.join(10)
    assert not any(worker.is_alive() for worker in workers)
    assert not (broken / "report" / "exclude.jsonl").exists()


@pytest.mark.parametrize("workers", [0, 3])
def test_numbers_are_those_of_the_batches_to_come(folder: Path, broken: Path, workers: int) -> None:
    paths = DataPaths(str(broken / "train.jsonl"), str(broken / "images"))
    more = DataPaths(str(folder / "records.json"), str(folder / "images"), weight=0.5)
    data = tiny.data_module(folder, train=[paths, more], val=None, max_length=150, batch_size=4, max_bad_fraction=1.0)
    assert not validate_data(data, broken / "report", workers, accumulate=2)
    numbers = json.loads((broken / "report" / "report.json").read_text())["train"]
    stream = data.stream("train", accumulate=2)
    batches = list(stream)
    padded = np.array([batch.attention_mask.numel() for batch in batches]).sum()
    real = sum(int(batch.attention_mask.sum()) for batch in batches if batch.sample_index[0] >= 0)
    nulls = sum(batch.attention_mask.numel() for batch in batches if batch.sample_index[0] < 0)
    assert numbers["padding"] == pytest.approx(1 - real / (padded - nulls))
    assert numbers["padding"] < numbers["padding of random batches"]
    assert numbers["steps in an epoch"] == len(batches) // 2 == (114 + 24) // 8
    packed = tiny.data_module(folder, train=paths, val=None, packing=True, max_bad_fraction=1.0)
    assert not validate_data(packed, broken / "packed", workers)
    assert json.loads((broken / "packed" / "report.json").read_text())["train"]["padding"] == 0.0
    dataset = data.dataset("train")
    good = [i for i in range(len(dataset)) if i not in {line["index"] for line in excluded(broken)}]
    samples = [dataset[i] for i in good]
    assert numbers["tokens"] == sum(len(sample.input_ids) for sample in samples)
    assert numbers["supervised tokens"] == sum(int((sample.labels != IGNORE_INDEX).sum()) for sample in samples)


def excluded(broken: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (broken / "report" / "exclude.jsonl").read_text().splitlines()]


def test_mistakes_are_said_in_a_paragraph(folder: Path, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, words in (
        (["--data.train.image_root=nowhere"], "the folder nowhere does not exist"),
        (["--data.train=null", "--data.val=null"], "No data to check"),
        (["--data.val.annotations=nowhere.json"], "data.val.annotations"),
        (["--data.train.weight=0"], "must be above 0"),
        (["--data.exclude=nowhere.jsonl"], "the file nowhere.jsonl does not exist"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments(folder, broken, *flags))
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    assert not (broken / "report").exists()
