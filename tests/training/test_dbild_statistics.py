"""Statistics of DBiLD's selected sets second_runst a reference from full logits, on one and two processes."""

from __future__ import annotations

import copy
import csv
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from lightning_switchkd.losses import Kneedle
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives import SFT, SwitchKDObjective
from lightning_switchkd.training.callbacks import DBiLDStatistics, VisionGradients
from lightning_switchkd.training.loggers import CSVLogger
from lightning_switchkd.training.module import SwitchKD

VOCABULARY = 280
KNEEDLE = Kneedle(window=48, min_k=4)


def module(folder: Path, objective: Any = None) -> SwitchKD:
    student, teacher = (VLMSpec(checkpoint=str(folder / name), dtype="float64") for name in ("student", "teacher"))
    return tiny.PlainSGD(student, teacher, objective or SwitchKDObjective(select=KNEEDLE))


class FullLogits(DBiLDStatistics):
    """Keep, before each step, the logits of every supervised token from Hugging Face's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[tuple[dict[str, list[float]], bool]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.remember(pl_module.distiller, batch)

    def remember(self, distiller: Any, batch: Any) -> None:
        teacher = distiller.teacher.vlm.model
        switched = copy.deepcopy(teacher)
        switched.model.vision_tower = copy.deepcopy(distiller.student.model.model.vision_tower)
        models = {"student": distiller.student.model, "teacher": teacher, "switch": switched}
        with_image = set(batch.image_sample.tolist())
        for b in range(len(batch)):
            pixels = batch.pixel_values.double()[batch.image_sample == b]
            with torch.no_grad():
                logits = {
                    pathway: model(
                        input_ids=batch.input_ids[b : b + 1, : int(batch.attention_mask[b].sum())],
                        pixel_values=pixels if len(pixels) else None,
                    ).logits[0]
                    for pathway, model in models.items()
                }
            for t in range(len(logits["student"]) - 1):
                if batch.labels[b, t + 1] != -100:
                    of_token = {pathway: z[t, :VOCABULARY].tolist() for pathway, z in logits.items()}
                    self.tokens.append((of_token, b in with_image))


def selected_set(row: list[float]) -> list[int]:
    """Follow docs/explanation/method.md, section 3, step by step."""
    ids = sorted(range(len(row)), key=lambda i: (-row[i], i))[: KNEEDLE.window]
    z, w = [row[i] for i in ids], len(ids)
    depth = [(w - i) * (z[0] - z[-1]) - (w - 1) * (z[i - 1] - z[-1]) for i in range(1, w + 1)]
    knee = next(i for i, d in enumerate(depth, 1) if d >= max(depth) - 1e-6 * (w - 1) * (z[0] - z[-1]))
    return ids[: min(w, max(KNEEDLE.min_k, knee))]


def expected(rows: list[dict[str, list[float]]], pathway: str) -> dict[str, float]:
    """Return means over tokens, from full distributions and sets of ids."""
    sums: dict[str, float] = {}
    ks: dict[str, list[int]] = {"teacher": [], pathway: []}
    for row in rows:
        p = {s: torch.tensor(row[s], dtype=torch.float64).softmax(0).tolist() for s in ("teacher", pathway)}
        sets = {s: set(selected_set(row[s])) for s in ("teacher", pathway)}
        values = {"overlap": len(sets["teacher"] & sets[pathway]) / len(sets["teacher"] | sets[pathway])}
        values["top1_agreement"] = float(max(p["teacher"]) == p["teacher"][p[pathway].index(max(p[pathway]))])
        for s in ("teacher", pathway):
            ks[s].append(len(sets[s]))
            values[f"k_{s}"] = len(sets[s])
            values[f"entropy_{s}"] = -sum(q * math.log(q) for q in p[s])
            for other in ("teacher", pathway):
                values[f"{s}_mass_in_{other}_set"] = sum(p[s][i] for i in sets[other])
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
    means = {name: value / len(rows) for name, value in sums.items()}
    for s, sizes in ks.items():
        for percent in (10, 50, 90):
            means[f"k_{s}_p{percent}"] = sorted(sizes)[math.ceil(percent * len(sizes) / 100) - 1]
    return means


def fit(folder: Path, root: Path, callbacks: list[Any], batch_size: int, steps: int = 4, **settings: Any) -> Any:
    settings = {"callbacks": callbacks, "logger": CSVLogger(str(root)), "max_steps": steps, **settings}
    trainer = tiny.trainer(root, log_every_n_steps=2, **settings)
    trainer.fit(module(folder), datamodule=tiny.data_module(folder, batch_size=batch_size, seed=1))
    return trainer


def logged(trainer: Any, prefix: str) -> dict[str, float]:
    """Return the last value of every metric with the prefix, from Lightning and from the logger's file."""
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.logger is not None:
        with open(f"{trainer.logger.log_dir}/metrics.csv", newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                values |= {name: float(value) for name, value in row.items() if value}
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def rank(rank: int, folder: Path, root: Path) -> None:
    trainer = fit(folder, root, [DBiLDStatistics(), VisionGradients(1)], 4, devices=2, strategy="ddp")
    if rank == 0:
        torch.save(logged(trainer, ""), root / "two.pt")


def test_statistics_equal_full_logits_on_one_and_two_processes(folder: Path, tmp_path: Path) -> None:
    reference = FullLogits()
    one = fit(folder, tmp_path / "one", [reference, VisionGradients(1)], 8)
    tiny.on_two_ranks(rank, folder, tmp_path)
    two = torch.load(tmp_path / "two.pt")
    assert any(not has_image for _, has_image in reference.tokens), "text-only tokens count in Align, not in VSD"
    half = len(reference.tokens) - sum(int(count) for count in counts_of_last_steps(folder))
    last = reference.tokens[half:]  # tokens of the last two steps, which the last log line covers
    for term, pathway in (("align", "student"), ("vsd", "switch")):
        rows = [row for row, has_image in last if has_image or term == "align"]
        values = logged(one, f"train/dbild/{term}/")
        reference_values = expected(rows, pathway)
        assert values.keys() == reference_values.keys()
        for name, value in reference_values.items():
            assert values[name] == pytest.approx(value, rel=1e-5, abs=1e-7), (term, name)
            assert two[f"train/dbild/{term}/{name}"] == pytest.approx(value, rel=1e-5, abs=1e-7), (term, name)
    gradients = logged(one, "train/vision_gradient/")
    assert gradients.keys() == {"student", "switch", "cosine", "by_term/ce", "by_term/align", "by_term/vsd"}
    for name, value in gradients.items():
        assert two[f"train/vision_gradient/{name}"] == pytest.approx(value, rel=1e-5), name


def counts_of_last_steps(folder: Path) -> list[int]:
    batches = list(tiny.data_module(folder, batch_size=8, seed=1).train_dataloader())
    return [batch.counts.token for batch in batches[2:4]]


def test_validation_statistics(folder: Path, tmp_path: Path) -> None:
    """Covers a validation set that is not a multiple of the batch size."""
    model, reference = module(folder), FullLogits()
    data = tiny.data_module(folder, val_batch_size=7)
    trainer = tiny.trainer(tmp_path, callbacks=[DBiLDStatistics()], limit_val_batches=1.0)
    metrics = trainer.validate(model, datamodule=data, verbose=False)[0]
    reference.remember(model.distiller, next(iter(tiny.data_module(folder, val_batch_size=48).val_dataloader())))
    reference_values = expected([row for row, has_image in reference.tokens if has_image], "switch")
    for name, value in reference_values.items():
        assert metrics[f"val/dbild/vsd/{name}"] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_gradients_by_pathway_and_term(folder: Path, tmp_path: Path) -> None:
    """Compare with a separate gradient of the step's loss at the features, with and without accumulation."""
    single = fit(folder, tmp_path / "single", [VisionGradients(1)], 8, steps=2)
    accumulated = fit(folder, tmp_path / "accumulated", [VisionGradients(1)], 4, steps=2, accumulate_grad_batches=2)
    fresh = module(folder)
    batches = list(tiny.data_module(folder, batch_size=8, seed=1).train_dataloader())[:2]
    tiny.trainer(tmp_path, max_steps=0).fit(fresh, datamodule=tiny.data_module(folder, batch_size=8, seed=1))
    optimizer = torch.optim.SGD([p for p in fresh.distiller.student.parameters() if p.requires_grad], lr=0.05)
    squares = {"student": 0.0, "switch": 0.0, "dot": 0.0}
    by_term: dict[str, float] = {}
    for batch in batches:
        fresh.objective.split_terms = True
        output = fresh.distiller(batch, batch.counts.tensor(), 0)
        features = [tensor for (tensor,) in output.features.values()]
        for name, loss in output.term_losses.items():
            by_term[name] = sum(float(g.square().sum()) for g in gradient(loss, features) if g is not None)
        gradients = dict(zip(output.features, gradient(output.loss, features), strict=True))
        squares["dot"] += float((gradients["student"] * gradients["switch"]).sum())
        for pathway, value in gradients.items():
            squares[pathway] += float(value.square().sum())
        optimizer.zero_grad()
        fresh.distiller(batch, batch.counts.tensor(), 0).loss.backward()
        optimizer.step()
    reference_values = {pathway: math.sqrt(squares[pathway] / 2) for pathway in ("student", "switch")}
    reference_values["cosine"] = squares["dot"] / 2 / (reference_values["student"] * reference_values["switch"])
    reference_values |= {f"by_term/{name}": math.sqrt(square) for name, square in by_term.items()}  # of the last step
    for trainer in (single, accumulated):
        values = logged(trainer, "train/vision_gradient/")
        assert values.keys() == reference_values.keys()
        for name, value in reference_values.items():
            assert values[name] == pytest.approx(value, rel=1e-5), name


def gradient(loss: Tensor, inputs: list[Tensor]) -> tuple[Any, ...]:
    return torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)


def test_callbacks_do_not_change_training_and_resume_exactly(folder: Path, tmp_path: Path) -> None:
    """Weights are bitwise equal with and without the callbacks. A restart between log lines logs the same values."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    def callbacks() -> list[Any]:
        return [
            DBiLDStatistics(),
            VisionGradients(2),
            ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1),
        ]

    data = {"datamodule": tiny.data_module(folder, seed=1)}
    plain, observed, resumed = module(folder), module(folder), module(folder)
    settings: dict[str, Any] = {"max_steps": 4, "log_every_n_steps": 4}
    tiny.trainer(tmp_path, **settings).fit(plain, **data)
    uninterrupted = tiny.trainer(tmp_path, callbacks=callbacks(), enable_checkpointing=True, **settings)
    uninterrupted.fit(observed, **data)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, observed.state_dict()[name]), name
    second_run = tiny.trainer(tmp_path, callbacks=callbacks(), enable_checkpointing=True, **settings)
    second_run.fit(resumed, **data, ckpt_path=str(tmp_path / "step=3.ckpt"))
    first, second = (logged(trainer, "train/") for trainer in (uninterrupted, second_run))
    assert first.keys() == second.keys()
    assert {"dbild/align/overlap", "loss/ce", "vision_gradient/switch"} <= first.keys()
    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=1e-12), name


def test_objectives_without_dbild_log_nothing(folder: Path, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, callbacks=[DBiLDStatistics(), VisionGradients()], log_every_n_steps=1, max_steps=2)
    trainer.fit(module(folder, SFT()), datamodule=tiny.data_module(folder))
    assert not logged(trainer, "train/dbild")
    assert logged(trainer, "train/vision_gradient/").keys() == {"student"}
    frozen = module(folder, SFT())
    frozen.freeze_parts = ["vision"]
    trainer = tiny.trainer(tmp_path, callbacks=[VisionGradients()], log_every_n_steps=1, max_steps=2)
    trainer.fit(frozen, datamodule=tiny.data_module(folder))
    assert not logged(trainer, "train/vision_gradient")


def test_every_n_steps(folder: Path, tmp_path: Path) -> None:
    """Every second step counts half of the tokens. 0 turns the callback off."""
    num_tokens: list[int] = []

    class Counting(DBiLDStatistics):
        def _log(self, trainer: Any, pl_module: Any, batch_size: int) -> None:
            num_tokens.append(int(self._metrics["train"]["align"].rows) if self._metrics["train"] else 0)
            super()._log(trainer, pl_module, batch_size)

    for every in (1, 2, 0):
        trainer = tiny.trainer(tmp_path, callbacks=[Counting(every)], log_every_n_steps=4, max_steps=4)
        trainer.fit(module(folder), datamodule=tiny.data_module(folder, seed=1))
    batches = list(tiny.data_module(folder, batch_size=8, seed=1).train_dataloader())[:4]
    tokens = [batch.counts.token for batch in batches]
    assert num_tokens == [sum(tokens), tokens[0] + tokens[2], 0]
