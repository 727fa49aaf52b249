"""Dry runs at tiny sizes, and estimates of the recipes' full sizes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny
import torch
import yaml
from command import ROOT, configs
from torch.utils.flop_counter import FlopCounterMode

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.types import PARTS
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.distillation.flops import step_cost
from lightning_switchkd.estimation.architectures import LANGUAGE_MODELS, VISION_ENCODERS, VLMS, random_model
from lightning_switchkd.estimation.dry_run import (
    HARDWARE,
    Hardware,
    PhaseClock,
    Plan,
    _memory_lines,
    random_batch,
    random_pair,
    run_step,
)
from lightning_switchkd.estimation.memory import Geometry, Shards, step_memory
from lightning_switchkd.experiments.pipeline import load_definition
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives import SwitchKDObjective
from lightning_switchkd.training.module import SwitchKD

FULL_SIZE = ROOT / "conf" / "pipeline" / "full_size.yaml"
RECIPES = sorted(
    path.stem for path in (ROOT / "conf" / "model").glob("*.yaml") if path.stem.startswith(("qwen", "llava"))
)


def arguments(model: str, *more: str, trainer: str = "cpu") -> list[str]:
    return [
        "dry-run",
        *configs("llava", model, trainer, "switch_kd"),
        "--data.batch_size=2",
        "--trainer.precision=bf16-true",
        *more,
    ]


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink every known model to two layers."""
    for known in (VISION_ENCODERS, LANGUAGE_MODELS):
        for name, sizes in known.items():
            vision = "image_size" in sizes
            small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
            small |= {"num_attention_heads": 4} | ({"image_size": 28} if vision else {"num_key_value_heads": 2})
            monkeypatch.setitem(known, name, {**sizes, **small})


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=pytest.mark.slow if name != "llava-interleave" else ()) for name in RECIPES]
)
def test_every_recipe_steps(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each recipe keeps its parts, strategies and names."""
    main(arguments(model, "--steps=1", "--devices=4", "--hardware=h100-80g"))
    output = capsys.readouterr().out
    for phase in ("student pathway", "teacher pathway", "switch pathway", "heads and losses", "backward", "optimizer"):
        assert phase in output
    assert "4 × h100-80g" in output
    assert " peak. Estimate: " in output


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize(("trainer", "sharding"), [("ddp", "not sharded"), ("fsdp2", "sharded over 8")])
def test_arithmetic_alone(trainer: str, sharding: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The default: no step, no GPU whatever the trainer, and units of the run's size."""
    main(arguments("llava-interleave", "--price=3", "--num_samples=1000", trainer=trainer))
    output = capsys.readouterr().out
    assert f"Memory of each of 8 × a100-80g, {sharding}:" in output
    assert "GFLOP per step" in output
    assert " MiB" in output
    assert "less than 0.01 at 3.00 per GPU hour" in output
    assert "Measured" not in output
    assert not re.search(r"\b0\.0+ ", output)


def test_arithmetic_equals_the_measured_path() -> None:
    """FLOPs and memory from sizes alone equal those of models with weights. A step that runs counts the same to 2 %."""
    sizes = {"attn_implementation": "eager", "width": 64}
    student, teacher = tiny.spec(**sizes), tiny.spec(**{**sizes, "width": 96}, tied=False)  # type: ignore[arg-type]
    pairs = [random_pair(SwitchKD(student, teacher), None, torch.device(device)) for device in ("meta", "cpu")]
    assert all(p.is_meta for p in pairs[0].parameters())
    shape = Geometry(2, 24, 1, 6)
    none: dict[str, set[Any]] = {"student": set(), "teacher": set()}
    costs = [step_cost(distiller).total(2 * 24, 2 * 24**2, 2, 2 * 6) for distiller in pairs]
    memories = [step_memory(distiller, shape, 4, none) for distiller in pairs]
    assert costs[0] == costs[1]
    assert memories[0] == memories[1]
    batch, clock = random_batch(pairs[1].student, shape, torch.device("cpu")), PhaseClock(torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        run_step(pairs[1], batch, torch.optim.SGD(pairs[1].student.parameters()), clock, autocast=False)
    assert costs[0] == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--hardware=abacus"], "hardware: unknown value 'abacus'. Choose one of 'rtx4090', 'l40s'"),
        (["--answer=500"], "--answer must be between 0 and --text (160), got 500"),
        (["--num_samples=0"], "--num_samples must be at least 1, got 0"),
        (["--price=-1"], "--price must be at least 0, got -1"),
        (["--model.student.lm=somebody/unknown"], "the sizes of 'somebody/unknown' are unknown"),
    ],
)
def test_invalid_settings(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments("qwen2.5-0.5b-siglip", *more))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("memory", "verdict"),
    [
        ({"student weights": 10e9, "activations": 9e9}, "fits"),
        ({"student weights": 10e9, "activations": 90e9}, "does NOT fit. Lower data.batch_size or use TRAINER=fsdp2"),
        ({"student weights": 10e9, "optimizer": 90e9}, "does NOT fit. Weights, gradients and optimizer alone exceed"),
    ],
)
def test_the_verdict_names_what_helps(memory: dict[str, float], verdict: str) -> None:
    total = _memory_lines(Plan(hardware="rtx4090"), memory, Shards())[-1]
    assert f"of 24 GiB: {verdict}" in total


def test_hardware_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(HARDWARE) == set(get_args(Hardware))
    with pytest.raises(SystemExit):
        main(["dry-run", "--help"])
    assert f"--hardware {{{','.join(HARDWARE)}}}" in capsys.readouterr().out


def test_sizes_match_the_model_cards() -> None:
    """Millions of parameters, by the vendors' model cards."""
    cards = {"qwen2.5-0.5b": 494, "qwen2.5-1.5b": 1544, "qwen2.5-3b": 3086, "qwen1.5-0.5b": 464, "qwen1.5-7b": 7721}
    encoders = {"siglip-so400m-patch14-384": 428, "clip-vit-large-patch14-336": 304}
    for lm, millions in cards.items():
        vlm = random_model(VLMSpec(vision="clip-vit-large-patch14-336", lm=lm), "student", torch.bfloat16, "meta")
        body = {id(p): p.numel() for p in [*vlm.language_model.parameters(), vlm.model.lm_head.weight]}
        assert sum(body.values()) / 1e6 == pytest.approx(millions, rel=0.01), lm
    for encoder, millions in encoders.items():
        vlm = random_model(VLMSpec(vision=encoder, lm="qwen2.5-0.5b"), "student", torch.bfloat16, "meta")
        number = sum(p.numel() for p in vlm.model.model.vision_tower.parameters())
        assert number / 1e6 == pytest.approx(millions, rel=0.01), encoder
    assert {lm for _, lm, _ in VLMS.values()} <= LANGUAGE_MODELS.keys()


def test_memory_equals_the_tensors() -> None:
    """Weights, gradients and optimizer states to the byte. Sharding divides only blocks."""
    student, teacher = tiny.vlm(), tiny.vlm(seed=1, width=24, lm="llama", tied=False)
    distiller = Distiller(student, teacher, SwitchKDObjective(), 100)
    batch = random_batch(student, Geometry(2, 20, 1, 5), torch.device("cpu"))
    optimizer = torch.optim.AdamW([p for p in distiller.parameters() if p.requires_grad])
    distiller(batch, batch.counts.tensor(), 0).loss.backward()
    gradients = [p.grad for p in distiller.parameters() if p.grad is not None]
    optimizer.step()
    none: dict[str, set[Any]] = {"student": set(), "teacher": set()}
    memory = step_memory(distiller, Geometry(2, 20, 1, 5), 4, none)
    assert memory["student weights"] == 4 * sum(p.numel() for p in student.parameters())
    assert memory["teacher weights"] == 4 * sum(p.numel() for p in teacher.parameters())
    assert memory["gradients"] == 4 * sum(g.numel() for g in gradients)
    states = [t for s in optimizer.state.values() for t in s.values() if t.dim()]
    assert memory["optimizer"] == 4 * sum(t.numel() for t in states)
    half = step_memory(distiller, Geometry(2, 20, 1, 5), 4, none, Shards(2))
    whole_teacher = step_memory(distiller, Geometry(2, 20, 1, 5), 4, none, Shards(2, teacher=False))
    assert half["optimizer"] == memory["optimizer"] / 2
    blocks = 4 * sum(p.numel() for part in PARTS for b in teacher.blocks(part) for p in b.parameters())
    assert half["teacher weights"] == memory["teacher weights"] - blocks / 2
    assert whole_teacher["teacher weights"] == memory["teacher weights"]


def test_stages_of_a_pipeline(folder: Path, tmp_path: Path) -> None:
    """Each stage of a pipeline starts from the student of the previous stage."""
    common = [
        "fit",
        f"--data.processor={folder / 'processor'}",
        f"--data.train.annotations={folder / 'records.json'}",
        f"--data.train.image_root={folder / 'images'}",
        f"--model.teacher.checkpoint={folder / 'teacher'}",
        "--data.max_bad_fraction=1",  # text-only records have no captions
        "--trainer.accumulate_grad_batches=1",
        "--ckpt_path=last",
    ]
    student = folder / "student"
    for stage in ("pretrain", "distil"):
        settings = load_definition(FULL_SIZE, "pipeline")["stages"][stage]["settings"]
        settings["model"].pop("student", None)
        (tmp_path / "stage.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        files = [*configs("llava", "qwen2.5-0.5b-siglip", "cpu", None), "--config", str(tmp_path / "stage.yaml")]
        overrides = [f"--model.student.checkpoint={student}", "--model.student.vision=null", "--model.student.lm=null"]
        main([common[0], *files, *common[1:], *overrides, f"--trainer.default_root_dir={tmp_path / stage}"])
        student = tmp_path / stage / "student"
        assert (student / "config.json").is_file()
    before, after = tiny.load_weights(folder / "student"), tiny.load_weights(tmp_path / "pretrain" / "student")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("multi_modal_projector" in name for name in changed), "pretraining trains only the projector"


def test_slurm_starts_every_stage_by_itself() -> None:
    """SLURM signals only the processes of a job step, so `srun` launches each stage, not `make`."""
    environment = {**os.environ, "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    command = ["bash", str(ROOT / "docs" / "how-to" / "cluster" / "slurm.sh"), "-n", "PIPELINE=full_size"]
    commands = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "pipeline --pipeline conf/pipeline/full_size.yaml" in commands
    assert "--launcher=srun" in commands
    assert "--trainer.num_nodes=2 --trainer.devices=4" in commands
