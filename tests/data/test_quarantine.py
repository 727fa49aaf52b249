"""Bad records: written once, counted, too many of them fatal; and what is not a record's fault."""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from command import fit_arguments
from raws import samples, talk

from lightning_switchkd.cli.main import main
from lightning_switchkd.core import files
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import ReadError, retry
from lightning_switchkd.core.types import Defect, DefectCode
from lightning_switchkd.data import DataPaths, LLaVADataModule
from lightning_switchkd.data.quarantine import Quarantine, probe, read_exclusions
from lightning_switchkd.data.sources import Mixture, open_source

MakeData = Callable[..., LLaVADataModule]
Write = Callable[..., DataPaths]


def defect(index: int, code: DefectCode = "image_missing") -> Defect:
    return Defect("a.json", index, f"id{index}", "a", code, "it is not there")


def quarantine(folder: Path | None, rank: int = 0, world_size: int = 1, **changes: Any) -> Quarantine:
    return Quarantine(
        folder, **{"max_bad_fraction": 0.01, "max_bad_run": 100} | changes, rank=rank, world_size=world_size
    )


def written(folder: Path) -> list[tuple[str, int]]:
    files = sorted(folder.glob("*.jsonl"))
    return [(file.stem, json.loads(line)["index"]) for file in files for line in file.read_text().splitlines()]


def test_a_record_is_written_and_counted_once(tmp_path: Path) -> None:
    first = quarantine(tmp_path)
    first.read_existing()
    for epoch in range(2):
        first.add(8, [defect(3), defect(5, "schema")], epoch=epoch, batch=0)
    assert written(tmp_path) == [("rank0", 3), ("rank0", 5)]
    line = json.loads((tmp_path / "rank0.jsonl").read_text().splitlines()[0])
    assert line == {"epoch": 0, "batch": 0, "path": "a.json", "index": 3, "id": "id3", "source": "a",
                    "code": "image_missing", "error": "it is not there"}  # fmt: skip
    with (tmp_path / "rank0.jsonl").open("a") as file:
        file.write('{"epoch": 1, "pa')  # killed as it wrote
    again = quarantine(tmp_path)
    again.read_existing()
    again.add(8, [defect(3), defect(7)])
    assert first.counts == {"image_missing": 1, "schema": 1}
    assert again.counts == {"image_missing": 2, "schema": 1}


def test_ranks_know_of_each_others_records(tmp_path: Path) -> None:
    """In the next epoch a record may come to another rank; the sum over the ranks is the number of records."""
    ranks = [quarantine(tmp_path, rank, 2) for rank in range(2)]
    for rank, one in enumerate(ranks):
        one.read_existing()
        one.add(4, [defect(rank)])
    for rank, one in enumerate(ranks):
        one.read_existing()
        one.add(4, [defect(1 - rank)])
    assert written(tmp_path) == [("rank0", 0), ("rank1", 1)]
    assert [one.counts.total() for one in ranks] == [1, 1]
    alone = quarantine(tmp_path)  # goes on where there were two
    alone.read_existing()
    assert alone.counts.total() == 2


def test_too_many_stop_the_run(tmp_path: Path) -> None:
    share = quarantine(tmp_path)
    for i in range(99):
        share.add(10, [defect(i)] if i < 10 else [])
    share.add(10, [])  # 10 of 1,000 is one per cent
    with pytest.raises(UserError, match=r"11 of 1010 samples are invalid, more than 1\.0% .*data\.max_bad_fraction"):
        share.add(10, [defect(99)])
    run = quarantine(None, max_bad_run=16)
    run.add(8, [defect(i) for i in range(8)])
    run.add(8, [])
    run.add(8, [defect(i) for i in range(8)])
    with pytest.raises(UserError, match="the last 16 samples are all invalid"):
        run.add(8, [defect(i) for i in range(8)])


def test_an_exclusion_list_names_records_of_any_source(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    paths = [write(samples(9), name).annotations for name in ("one.json", "two.json")]
    mixture = Mixture([open_source(path) for path in paths], [1.0, 1.0])
    monkeypatch.chdir(tmp_path)
    lines = [{"path": "two.json", "index": 3}, {"path": paths[0], "index": 8}, {"path": "/elsewhere.json", "index": 99}]
    listed = tmp_path / "list.jsonl"
    listed.write_text("\n".join(map(json.dumps, lines)))
    assert read_exclusions(str(listed), mixture) == [8, 12]
    for line, words in (
        ({"path": "two.json", "index": 9}, "names sample 9 of two.json, which has 9"),
        ({"path": "two.json"}, "must have 'path' and 'index'"),
        ("no object", "line 1 is not a JSON object"),
    ):
        listed.write_text(json.dumps(line) + "\n")
        with pytest.raises(UserError, match=words):
            read_exclusions(str(listed), mixture)


def test_excluded_records_never_come(make_data: MakeData, write: Write, tmp_path: Path) -> None:
    paths = write(samples(21))
    (tmp_path / "list.jsonl").write_text(
        "".join(json.dumps({"path": paths.annotations, "index": i}) + "\n" for i in (2, 7))
    )
    data = make_data(train=paths, val=paths, batch_size=1, exclude=str(tmp_path / "list.jsonl"))
    for stream in (data.train_dataloader(), data.val_dataloader()):
        taken = {int(index) for batch in stream for index in batch.sample_index}
        assert taken == set(range(21)) - {2, 7}


def test_the_probe_finds_a_wrong_path(make_data: MakeData, write: Write, tmp_path: Path) -> None:
    raws = [{"image": f"sub/{i}.png", "conversations": talk("<image>", "a")} for i in range(10)]
    raws += [{"conversations": talk("q", "a")} for _ in range(90)]
    dataset = make_data(train=write(raws)).dataset("train")
    with pytest.raises(UserError, match=r"10 of 100 samples checked .*\(image_missing 10\).*'sub/\d\.png'"):
        probe(dataset, 0, 256)
    probe(make_data(train=write(raws[6:], "few.json")).dataset("train"), 0, 256)  # 4 of 94


def test_a_run_counts_them(folder: Path, tmp_path: Path) -> None:
    """`data/skipped_samples` in metrics.csv; the run that continues counts on."""
    raws = json.loads((folder / "records.json").read_text())
    for i in (5, 20):
        raws[i]["conversations"][-1]["value"] = " "
    (tmp_path / "records.json").write_text(json.dumps(raws))
    run = tmp_path / "run"
    settings = [
        f"--data.train.annotations={tmp_path / 'records.json'}",
        "--trainer.val_check_interval=null",
        "--checkpoint.every_n_train_steps=1",
        "--val_generation.num_samples=0",
        "--answer_panel.num_samples=0",
    ]
    arguments = fit_arguments(folder, run, *settings, method="sft")
    main([*arguments, "--trainer.max_steps=6", "--trainer.max_epochs=2"])
    main([*arguments, "--trainer.max_steps=12", "--trainer.max_epochs=2", "--ckpt_path=last"])
    with (run / "metrics.csv").open(newline="") as file:
        counted = [
            (row["data/skipped_samples"], row["data/skipped_samples/empty_answer"]) for row in csv.DictReader(file)
        ]
    counted = [(all_, empty) for all_, empty in counted if all_]
    assert [float(all_) for all_, _ in counted[5:]] == [2.0] * 7, "whatever epoch, the two of them"
    assert float(counted[-1][1]) == 2.0
    assert sorted(index for _, index in written(run / "quarantine")) == [5, 20]


def test_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(files.time, "sleep", waited.append)
    answers: list[Any] = [OSError(errno.EIO, "try again"), OSError(errno.ESTALE, "try again"), b"data"]

    def read() -> Any:
        answer = answers.pop(0) if answers else OSError(errno.EIO, "for ever")
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert retry(read, "x.png") == b"data"
    assert waited == [0.1, 0.5]
    with pytest.raises(ReadError, match=r"Cannot read x\.png after 4 attempts: .*for ever.*data itself is not invalid"):
        retry(read, "x.png")
    answers.append(FileNotFoundError(errno.ENOENT, "none"))
    with pytest.raises(FileNotFoundError):
        retry(read, "x.png")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_disk_is_no_record_s_fault(
    make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    stream = make_data(21, batch_size=4, num_workers=workers).train_dataloader()
    monkeypatch.setattr(files.time, "sleep", lambda _: None)

    def fail(_: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(ReadError, match=r"Cannot read .* after 4 attempts: .*Input/output error"):
        list(stream)


def test_the_first_one_stops_where_asked(make_data: MakeData, write: Write) -> None:
    bad = write([*samples(11), {"id": "x", "conversations": talk("q", "")}])
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"Sample 11 \(id 'x'\) of .*train\.json: .*\[empty_answer\]"):
            list(make_data(train=bad, batch_size=4, on_error="raise", num_workers=workers).train_dataloader())


def test_held_out_data_is_looked_at_too(folder: Path, write: Write, tmp_path: Path) -> None:
    """A bad validation record is left out, the others are all there."""
    raws = json.loads((folder / "records.json").read_text())
    raws[3]["conversations"][1]["value"] = ""
    (tmp_path / "val.json").write_text(json.dumps(raws))
    data = tiny.data_module(folder, val=DataPaths(str(tmp_path / "val.json"), str(folder / "images")), val_batch_size=5)
    taken = [int(index) for batch in data.val_dataloader() for index in batch.sample_index if index >= 0]
    assert taken == [i for i in range(48) if i != 3]
    assert data.quarantine is not None
    assert data.quarantine.counts == {"empty_answer": 1}
