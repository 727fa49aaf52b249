"""The teacher cache: the same training with it and without, whoever filled it, and nothing taken from a wrong one."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from command import fit_arguments
from torch import Tensor

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.labels import supervised_positions
from lightning_switchkd.core.types import Batch
from lightning_switchkd.data.datamodule import Split
from lightning_switchkd.distillation.teacher_cache import ENTRY, KEY, HiddenStateCache, TeacherCache
from lightning_switchkd.objectives import AlignKD, LLaVAKD, SwitchKDObjective
from lightning_switchkd.training.module import SwitchKD

WIDTH = 24
"""Of the teacher of :func:`tiny.write_pair`."""


class Watched(SwitchKD):
    """Notes how many records the teacher pathway sees, and the losses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen, self.losses = 0, []

    def hidden_state_cache(self, split: Split) -> HiddenStateCache | None:
        cache = super().hidden_state_cache(split)
        if cache is not None and "write" not in vars(cache):
            write = cache.write

            def counted(batch: Batch, *hidden: Tensor) -> list[Tensor]:
                self.seen += len(batch)
                return write(batch, *hidden)

            cache.write = counted  # type: ignore[method-assign]
        return cache

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss.detach()))
        return loss


def fit(folder: Path, root: Path, cache: TeacherCache | None, steps: int = 12, **data: Any) -> Watched:
    """Twelve steps are two epochs of the tiny data."""
    model = tiny.switch_kd(folder, cls=Watched, teacher_cache=cache)
    tiny.trainer(root, max_steps=steps, limit_val_batches=2, val_check_interval=3).fit(
        model, datamodule=tiny.data_module(folder, seed=1, **data)
    )
    return model


@pytest.mark.parametrize("workers", [0, 2])
def test_trains_the_same_with_it_and_runs_the_teacher_once(folder: Path, tmp_path: Path, workers: int) -> None:
    plain = fit(folder, tmp_path, None)
    cache = TeacherCache(str(tmp_path / "cache"))
    cold, warm = (fit(folder, tmp_path, cache, num_workers=workers) for _ in range(2))
    assert (cold.seen, warm.seen) == (48, 0), "validation reads the same records here"
    for run in (cold, warm):
        assert run.losses == pytest.approx(plain.losses, rel=1e-12)
        for name, tensor in plain.state_dict().items():
            torch.testing.assert_close(run.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)


def test_rows_of_image_tokens_are_kept_apart(folder: Path, tmp_path: Path) -> None:
    """Of an objective that reads them; one that reads none shares nothing with it but the folder."""
    cache = TeacherCache(str(tmp_path / "cache"))
    settings = {"max_steps": 6, "limit_val_batches": 0}
    runs = []
    for kept, objective in ((None, LLaVAKD()), (cache, LLaVAKD()), (cache, LLaVAKD()), (cache, SwitchKDObjective())):
        model = tiny.switch_kd(folder, objective, Watched, teacher_cache=kept)
        tiny.trainer(tmp_path, **settings).fit(model, datamodule=tiny.data_module(folder, seed=1))
        runs.append(model)
    assert [run.seen for run in runs[1:]] == [48, 0, 48]
    for run in runs[1:3]:
        assert run.losses == pytest.approx(runs[0].losses, rel=1e-12)
    aligned = tiny.switch_kd(folder, AlignKD(), teacher_cache=cache)
    with pytest.raises(UserError, match=r"AlignKD also reads .* Set model\.teacher_cache to null"):
        tiny.trainer(tmp_path, **settings).fit(aligned, datamodule=tiny.data_module(folder, seed=1))


def test_no_more_than_it_may_take(folder: Path, tmp_path: Path) -> None:
    """A part of the records: the teacher runs on the others alone."""
    plain, cache = fit(folder, tmp_path, None), TeacherCache(str(tmp_path / "cache"), max_gb=3e-5)
    cold, warm = (fit(folder, tmp_path, cache) for _ in range(2))
    size = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.rows"))
    assert 2e4 < size <= 3e4
    assert 0 < warm.seen < cold.seen
    assert warm.losses == pytest.approx(plain.losses, rel=1e-12)


def made(cache: HiddenStateCache, folder: Path, **settings: Any) -> list[Tensor]:
    """The hidden states of all batches; each says which sample and token it belongs to."""

    def states(batch: Batch) -> Tensor:
        positions = supervised_positions(batch.labels)[0]
        cached = cache.read(batch, positions)
        if missing := [place for place, of_sample in enumerate(cached) if of_sample is None]:
            part = batch.only(missing)
            owner = part.sample_index[part.sample_of]
            next_ids = part.labels.roll(-1, 1).flatten()
            hidden = torch.stack([owner, next_ids], -1).double().repeat(1, WIDTH // 2)
            computed = cache.write(part, supervised_positions(part.labels)[0], hidden)
            for place, of_sample in zip(missing, computed, strict=True):
                cached[place] = of_sample
        return torch.cat([of_sample for of_sample in cached if of_sample is not None])

    return [states(batch) for batch in tiny.data_module(folder, seed=1, **settings).stream("train")]


def opened(place: Path, room: int = 10**6, looks: float = 10.0) -> HiddenStateCache:
    return HiddenStateCache(place, 48, WIDTH, torch.float64, lambda: room, looks)


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def wanted(folder: Path, tmp_path: Path) -> list[Tensor]:
    """The rows of all batches, and a folder ``filled`` that holds them."""
    (tmp_path / "filled").mkdir()
    return made(opened(tmp_path / "filled"), folder)


@pytest.mark.parametrize("packing", [False, True])
def test_parts_of_a_batch(wanted: list[Tensor], folder: Path, tmp_path: Path, packing: bool) -> None:
    """Some records are here and some are not, in either layout: every row comes to its place."""
    made(opened(tmp_path, room=9000), folder, packing=packing)
    cache = opened(tmp_path)
    assert 0 < len(cache) < 48
    assert_equal(made(cache, folder, packing=packing), wanted)
    assert len(cache) == len(opened(tmp_path)) == 48


def test_damage_is_seen_and_mended(
    wanted: list[Tensor], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (rows,), (index,) = ((tmp_path / "filled").glob(f"*.{kind}") for kind in ("rows", "index"))
    content = bytearray(rows.read_bytes())
    content[1000] ^= 1
    rows.write_bytes(content[:-8])  # a bit has turned over, and the last record was cut short by a crash
    index.write_bytes(index.read_bytes()[:-3])  # so was the last line
    cache = opened(tmp_path / "filled")
    assert len(cache) == 47
    assert_equal(made(cache, folder), wanted)
    assert caplog.text.count("is damaged") == 1
    assert len(opened(tmp_path / "filled")) == 48
    rows.unlink()
    assert len(opened(tmp_path / "filled")) == 2, "rows that are gone are computed anew; the mended ones lie elsewhere"


def test_what_others_add_is_seen(wanted: list[Tensor], folder: Path, tmp_path: Path) -> None:
    """Two caches that were opened empty: the second finds what the first has put there meanwhile."""
    first, second = (opened(tmp_path, looks=0.0) for _ in range(2))
    for cache in (first, second, first):
        assert_equal(made(cache, folder), wanted)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.index")) == 48 * ENTRY.itemsize, "no record twice"


def test_a_full_disk_is_no_end(
    wanted: list[Tensor],
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HiddenStateCache, "_append", full)
    assert_equal(made(opened(tmp_path, looks=0.0), folder), wanted)
    assert caplog.text.count("cannot be written ([Errno 28] No space left on device)") == 1


def test_another_key_is_refused_by_its_name(folder: Path, tmp_path: Path) -> None:
    cache = TeacherCache(str(tmp_path / "cache"))
    fit(folder, tmp_path, cache, steps=1)
    key = json.loads((tmp_path / "cache" / KEY).read_text())
    assert key["trainer.precision"] == "32-true"
    for field, value in key.items():
        (tmp_path / "cache" / KEY).write_text(json.dumps({**key, field: "another"}))
        with pytest.raises(UserError, match="filled with another ") as refused:
            fit(folder, tmp_path, cache, steps=1)
        assert f"filled with another {field}: 'another' in the cache, {value!r} in this run" in str(refused.value)
    (tmp_path / "cache" / KEY).write_text(json.dumps(key))
    with pytest.raises(UserError, match=r"another data\.max_length: "):
        fit(folder, tmp_path, cache, steps=1, max_length=100)
    (tmp_path / "cache" / KEY).write_text("{")
    with pytest.raises(UserError, match="Delete the folder"):
        fit(folder, tmp_path, cache, steps=1)
    with pytest.raises(UserError, match="must be above 0"):
        TeacherCache("anywhere", max_gb=0)


def test_the_command_fills_it(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    arguments = fit_arguments(folder, tmp_path / "run", f"--model.teacher_cache.folder={tmp_path / 'cache'}")
    main(["fill-cache", *arguments[1:]])
    assert "holds 0 of 48 samples. All samples take about" in caplog.text
    (data,) = (file for file in (tmp_path / "cache").iterdir() if file.is_dir())
    assert len(HiddenStateCache(data, 48, WIDTH, torch.float32, lambda: 0)) == 48
    assert not (tmp_path / "run" / "config.yaml").exists()
    main([*arguments, "--trainer.max_steps=2", "--answer_panel.num_samples=0"])
    assert "holds 48 of 48 samples" in caplog.text
    with pytest.raises(SystemExit):
        main(["fill-cache", *fit_arguments(folder, tmp_path / "run")[1:]])
    assert "--model.teacher_cache.folder" in capsys.readouterr().err
