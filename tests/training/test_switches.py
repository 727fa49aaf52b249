"""Precision and speed switches: every combination trains as the plain run does, in less memory where it says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import lightning as L
import pytest
import tiny
import torch
import yaml
from torch import Tensor

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.types import Part
from lightning_switchkd.data.datamodule import DataPaths
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.auto import build
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives import SwitchKDObjective
from lightning_switchkd.training.module import SwitchKD

STUDENT_PARTS: list[Part] = ["vision", "lm"]
TEACHER_PARTS: list[Part] = ["lm"]
Weights = dict[str, Tensor]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, student and teacher folders."""
    folder = tiny.write_data(tmp_path_factory.mktemp("switches") / "data")
    records = json.loads((folder / "records.json").read_text(encoding="utf-8"))
    with_image = [record for record in records if "image" in record]  # one number of images a batch: fewer graphs
    (folder / "with_image.json").write_text(json.dumps(with_image), encoding="utf-8")
    tiny.save_vlm(folder / "student", seed=0)
    tiny.save_vlm(folder / "teacher", seed=1, layers=3, tied=False)  # of the student's width: fewer kernels
    return folder


@pytest.fixture(autouse=True)
def _every_graph_is_compiled() -> Iterator[None]:
    """A block that runs eager after too many graphs would pass unseen; graphs of other tests do not count."""
    import torch._dynamo

    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


# -- all combinations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What is switched on in a run of 20 optimizer steps on 8 records each."""

    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"
    compiled: bool = False
    recomputed: bool = False
    attention: str = "sdpa"
    clipped: bool = False
    accumulated: bool = False
    lr: float = 0.002

    def __str__(self) -> str:
        on = [name for name in ("compiled", "recomputed", "clipped", "accumulated") if getattr(self, name)]
        return "-".join([self.precision, self.attention, *on])


class PlainSGD(SwitchKD):
    """Shows errors of scale that AdamW would hide."""

    def __init__(self, *args: Any, lr: float) -> None:
        super().__init__(*args)
        self.lr_sgd = lr

    def configure_optimizers(self) -> Any:
        trainable = [p for p in self.distiller.student.parameters() if p.requires_grad]
        return torch.optim.SGD(trainable, lr=self.lr_sgd)


class Losses(L.Callback):
    """Keeps the loss of every micro-batch, a share of its optimizer step's."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.shares.append(float(outputs["loss"]))


def specs(folder: Path, run: Run) -> tuple[VLMSpec, VLMSpec]:
    """The run's student and teacher: the student's encoder and language model, the teacher's language model."""

    def spec(name: str, parts: list[Part]) -> VLMSpec:
        return VLMSpec(
            checkpoint=str(folder / name),
            attn_implementation=run.attention,
            compile=parts if run.compiled else [],
            activation_checkpointing=parts if run.recomputed else [],
        )

    return spec("student", STUDENT_PARTS), spec("teacher", TEACHER_PARTS)


def train(
    folder: Path, root: Path, run: Run, steps: int = 20, records: str = "with_image", **settings: Any
) -> tuple[Weights, float]:
    """The student's weights after so many steps, and the mean loss of the last five."""
    model, losses = PlainSGD(*specs(folder, run), SwitchKDObjective(), lr=run.lr), Losses()
    window = 2 if run.accumulated else 1
    trainer = tiny.trainer(
        root,
        precision=run.precision,
        max_steps=steps,
        gradient_clip_val=0.5 if run.clipped else None,
        accumulate_grad_batches=window,
        callbacks=[losses],
        **settings,
    )
    data = tiny.data_module(
        folder,
        train=DataPaths(str(folder / f"{records}.json"), str(folder / "images")),
        batch_size=8 // window // trainer.world_size,
        seed=1,
        pad_to_multiple_of=128,
    )
    trainer.fit(model, datamodule=data)
    return weights_of(model.distiller.student), sum(losses.shares[-5 * window :]) / 5


ROUGH = 0.01
"""Learning rate of the runs in bf16-true, whose weights swallow smaller steps. The others take smaller ones: where
Kneedle's leading set changes on the way, 1e-7 of rounding becomes 1e-4 at this rate."""


@pytest.fixture(scope="session")
def plain(folder: Path) -> Callable[[Run], tuple[Weights, float]]:
    """Train a run with no switch on but clipping, once."""
    return cache(lambda run: train(folder, folder, run))


@pytest.fixture(scope="session")
def start(folder: Path) -> Weights:
    return weights_of(build(VLMSpec(checkpoint=str(folder / "student")), tiny.tokenizer(), "student"))


def weights_of(model: VLMAdapter) -> Weights:
    """A copy of every parameter in float64; a tied head counts once."""
    return {name: parameter.detach().double() for name, parameter in model.named_parameters()}


def distance(a: Weights, b: Weights) -> float:
    return float(torch.stack([(a[name] - b[name]).square().sum() for name in b]).sum().sqrt())


RUNS = [
    Run(precision, compiled, recomputed, attention, careful, careful, ROUGH if precision == "bf16-true" else Run.lr)
    for precision, compiled, recomputed, attention, careful in product(
        ("32-true", "bf16-mixed", "bf16-true"), (False, True), (False, True), ("sdpa", "eager"), (False, True)
    )
    if (compiled + recomputed + (attention == "eager") + careful) % 2  # each precision: all values of any three
]
COMPILED = {Run(compiled=True), Run(compiled=True, recomputed=True, clipped=True)}
RUNS += sorted(COMPILED - {*RUNS}, key=str)
IN_CI = {Run("bf16-mixed", False, True, "eager", True, True)}


@pytest.mark.parametrize(
    "run",
    [pytest.param(run, marks=() if run in IN_CI else pytest.mark.slow) for run in RUNS],
    ids=str,
)
def test_switches_train_as_the_plain_run(
    folder: Path, tmp_path: Path, plain: Callable[[Run], tuple[Weights, float]], start: Weights, run: Run
) -> None:
    """Tolerances are at least twice what was measured over all combinations (docs/how-to/make-training-faster.md)."""
    weights, loss = train(folder, tmp_path, run)
    exact, exact_loss = plain(Run(clipped=run.clipped, lr=run.lr))
    moved = distance(exact, start)
    assert moved > 0.01
    if run.precision == "32-true":
        assert max(float((weights[name] - exact[name]).abs().max()) for name in exact) < 1e-5
        assert loss == pytest.approx(exact_loss, rel=1e-5)
    elif run.precision == "bf16-mixed":
        assert distance(weights, exact) < 0.05 * moved
        assert loss == pytest.approx(exact_loss, rel=0.01)
    else:  # weights of 8 bits swallow small updates, whatever else is switched on: compared with their like
        assert distance(weights, plain(Run("bf16-true", clipped=run.clipped, lr=run.lr))[0]) < 0.12 * moved
        assert loss == pytest.approx(exact_loss, rel=0.12)


@pytest.mark.parametrize("accumulated", [False, True])
def test_clipping_holds_for_the_whole_optimizer_step(
    folder: Path, tmp_path: Path, start: Weights, accumulated: bool
) -> None:
    """The first step of SGD goes exactly as far as the clipped norm of its gradient says."""
    run = Run(recomputed=True, clipped=True, accumulated=accumulated)
    weights, _ = train(folder, tmp_path, run, steps=1)
    assert distance(weights, start) == pytest.approx(0.5 * run.lr, rel=1e-3)


# -- two processes -----------------------------------------------------------------------------------------------------

ALL_ON = Run(compiled=True, recomputed=True)


def _rank(rank: int, folder: Path, root: Path) -> None:
    weights, _ = train(folder, root, ALL_ON, 5, "records", devices=2, strategy="ddp")
    if rank == 0:
        torch.save(weights, root / "weights.pt")


@pytest.mark.slow
def test_compiled_and_recomputed_on_two_ranks(folder: Path, tmp_path: Path) -> None:
    """Both switches on both models under DDP give the weights of one plain process; ranks have batches of text only."""
    tiny.on_two_ranks(_rank, folder, tmp_path, seconds=400)
    two, (one, _) = torch.load(tmp_path / "weights.pt"), train(folder, tmp_path, Run(), 5, "records")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)


# -- command line ------------------------------------------------------------------------------------------------------


def command(folder: Path, root: Path, *more: str) -> list[str]:
    records = [f"--data.train.{k}={folder / v}" for k, v in (("annotations", "records.json"), ("image_root", "images"))]
    return [
        "fit",
        f"--data.processor={folder / 'processor'}",
        *records,
        f"--model.student.checkpoint={folder / 'student'}",
        f"--trainer.default_root_dir={root}",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=1",
        "--trainer.use_distributed_sampler=false",
        *more,
    ]


def test_switches_are_plain_settings(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    switches = ["--model.student.compile=[vision,lm]", "--model.student.activation_checkpointing=[projector]"]
    with pytest.raises(SystemExit) as stop:
        main([*command(folder, tmp_path, *switches), "--print_config"])
    assert stop.value.code == 0
    student = yaml.safe_load(capsys.readouterr().out)["model"]["student"]
    assert (student["compile"], student["activation_checkpointing"]) == (["vision", "lm"], ["projector"])


def test_an_unknown_part_is_a_mistake(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting in ("compile", "activation_checkpointing"):
        with pytest.raises(SystemExit) as stop:
            main(command(folder, tmp_path, f"--model.student.{setting}=[head]"))
        said = capsys.readouterr().err
        assert stop.value.code == 2
        assert "head" in said
        assert "vision" in said
        assert "Traceback" not in said


def test_no_compiler_is_said_in_one_paragraph(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    with config.patch({"cpp.cxx": ("no-such-compiler",)}), fresh_cache(), pytest.raises(SystemExit) as stop:
        main(command(folder, tmp_path, "--model.student.compile=[lm]"))
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "model.student.compile: torch.compile could not compile a Qwen2DecoderLayer" in said
    assert "C++ compiler" in said
    assert "Traceback" not in said
