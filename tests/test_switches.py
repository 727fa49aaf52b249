"""Precision and speed switches: every combination trains as the plain run does, in less memory where it says so."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import lightning as L
import pytest
import tiny
import torch
import yaml
from torch import Tensor

from lightning_switchkd.callbacks import GreedyValidation
from lightning_switchkd.cli import main
from lightning_switchkd.data.datamodule import DataPaths
from lightning_switchkd.distiller import Distiller
from lightning_switchkd.module import SwitchKD
from lightning_switchkd.objectives import SwitchKDObjective
from lightning_switchkd.vlm.build import VLMSpec, build
from lightning_switchkd.vlm.seams import VLM, Part

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


def specs(folder: Path, run: Run, **teacher: Any) -> tuple[VLMSpec, VLMSpec]:
    """Student and teacher as the run has them: the student's tower and language model, the teacher's language model."""

    def spec(name: str, parts: list[Part], **more: Any) -> VLMSpec:
        return VLMSpec(
            checkpoint=str(folder / name),
            attn_implementation=run.attention,
            compile=parts if run.compiled else [],
            activation_checkpointing=parts if run.recomputed else [],
            **more,
        )

    return spec("student", STUDENT_PARTS), spec("teacher", TEACHER_PARTS, **teacher)


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
"""Learning rate of the runs in bf16-true, whose weights swallow smaller steps. The others take smaller ones: on its way a
run passes places where Kneedle's leading set changes, and there 1e-7 of rounding becomes 1e-4 at this rate."""


@pytest.fixture(scope="session")
def plain(folder: Path) -> dict[Run, tuple[Weights, float]]:
    """Runs with no switch on but clipping."""
    alone = [Run(), Run(lr=ROUGH), Run("bf16-true", lr=ROUGH)]
    return {run: train(folder, folder, run) for one in alone for run in (one, replace(one, clipped=True))}


@pytest.fixture(scope="session")
def start(folder: Path) -> Weights:
    return weights_of(build(VLMSpec(checkpoint=str(folder / "student")), tiny.tokenizer(), "student"))


def weights_of(model: VLM) -> Weights:
    """A copy of every parameter in float64; a tied head counts once."""
    return {name: parameter.detach().double() for name, parameter in model.named_parameters()}


def distance(a: Weights, b: Weights) -> float:
    return float(torch.stack([(a[name] - b[name]).square().sum() for name in b]).sum().sqrt())


IN_CI = {Run(compiled=True), Run(compiled=True, recomputed=True, clipped=True)}
RUNS = [
    Run(precision, compiled, recomputed, attention, careful, careful, ROUGH if precision == "bf16-true" else Run.lr)
    for precision, compiled, recomputed, attention, careful in product(
        ("32-true", "bf16-mixed", "bf16-true"), (False, True), (False, True), ("sdpa", "eager"), (False, True)
    )
]
RUNS += sorted(IN_CI - {*RUNS}, key=str)


@pytest.mark.parametrize(
    "run",
    [pytest.param(run, marks=pytest.mark.slow if run.compiled and run not in IN_CI else ()) for run in RUNS],
    ids=str,
)
def test_switches_train_as_the_plain_run(
    folder: Path, tmp_path: Path, plain: dict[Any, Any], start: Weights, run: Run
) -> None:
    """Tolerances are at least twice what was measured over all combinations (docs/speed.md)."""
    weights, loss = train(folder, tmp_path, run)
    exact, exact_loss = plain[Run(clipped=run.clipped, lr=run.lr)]
    moved = distance(exact, start)
    assert moved > 0.01
    if run.precision == "32-true":
        assert max(float((weights[name] - exact[name]).abs().max()) for name in exact) < 1e-5
        assert loss == pytest.approx(exact_loss, rel=1e-5)
    elif run.precision == "bf16-mixed":
        assert distance(weights, exact) < 0.05 * moved
        assert loss == pytest.approx(exact_loss, rel=0.01)
    else:  # weights of 8 bits swallow small updates, whatever else is switched on: compared with their like
        assert distance(weights, plain[Run("bf16-true", clipped=run.clipped, lr=run.lr)][0]) < 0.12 * moved
        assert loss == pytest.approx(exact_loss, rel=0.1)


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


def _rank(rank: int, port: int, folder: Path, root: Path) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    os.environ.update(place, WORLD_SIZE="2", LOCAL_RANK=str(rank), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    weights, _ = train(folder, root, ALL_ON, 5, "records", devices=2, strategy="ddp")
    if rank == 0:
        torch.save(weights, root / "weights.pt")


@pytest.mark.slow
def test_compiled_and_recomputed_on_two_ranks(folder: Path, tmp_path: Path) -> None:
    """Both switches on both models under DDP give the weights of one plain process; ranks have batches of text only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, port, folder, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(400)
    assert [process.exitcode for process in ranks] == [0, 0]
    two, (one, _) = torch.load(tmp_path / "weights.pt"), train(folder, tmp_path, Run(), 5, "records")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)


# -- recomputation -----------------------------------------------------------------------------------------------------


def pair(student: list[Part], teacher: list[Part], **changes: Any) -> Distiller:
    """A pair of one seed whose named parts are recomputed."""
    models = (
        tiny.vlm(seed=0, activation_checkpointing=student, **changes),
        tiny.vlm(seed=1, activation_checkpointing=teacher, width=24, lm="llama", tied=False, **changes),
    )
    return Distiller(*models, SwitchKDObjective(), vocabulary=280).train()


def bytes_kept(model: Distiller) -> int:
    """What autograd keeps of one forward pass for its backward pass, parameters apart."""
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    total = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    batch = tiny.batch(images=(8, 7, 8))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(batch, batch.counts.tensor(), 0).loss
    loss.backward()  # the tensors live until here, so that no address is used twice
    return total


def test_recomputation_keeps_less() -> None:
    """Each part by itself, the frozen teacher's language model through the switch included, and all together."""
    plain = bytes_kept(pair([], []))
    alone = [bytes_kept(pair(*parts)) for parts in ((["vision"], []), (["projector"], []), (["lm"], []), ([], ["lm"]))]
    assert max(alone) < plain
    assert bytes_kept(pair(["vision", "lm"], ["lm"])) < 0.6 * plain


@pytest.mark.parametrize("lm", ["qwen2", "llama", "phi3", "stablelm", "gemma", "mistral", "qwen3"])
def test_recomputed_gradients_are_equal(lm: str) -> None:
    """Bit by bit, and with dropout too: the recomputation draws the same random numbers."""
    gradients = []
    for parts in ([], ["vision", "projector", "lm"]):
        model, batch = tiny.vlm(activation_checkpointing=parts, lm=lm), tiny.batch()
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5
        torch.manual_seed(0)
        image_embeds = model.train().project(model.encode_image(batch.pixel_values))
        model.head(model.decode(batch.input_ids, batch.attention_mask, image_embeds)).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[1][name], gradient) for name, gradient in gradients[0].items())


# -- what the switches leave alone -------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {"compile": ["lm"], "activation_checkpointing": ["vision", "projector", "lm"]}


def greedy(model: VLM) -> list[list[int]]:
    batch = tiny.batch()
    ids, mask = batch.input_ids.flip(1), batch.attention_mask.flip(1)  # left-padded, in some order
    image_embeds = model.project(model.encode_image(batch.pixel_values))
    answers = model.generate(ids, mask, image_embeds, max_new_tokens=12, stop_ids=[0])
    assert answers.shape[1] == 12
    return [list(row) for row in answers.tolist()]


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_generate_is_unchanged(grad: bool, training: bool) -> None:
    """The key-value cache is filled once and read as ever; nothing is compiled for it."""
    import torch._dynamo.utils

    torch._dynamo.utils.counters.clear()
    plain, switched = tiny.vlm().train(training), tiny.vlm(**EVERYTHING).train(training)
    with torch.set_grad_enabled(grad):
        assert greedy(switched) == greedy(plain)
    assert not torch._dynamo.utils.counters["stats"]


def test_names_export_and_copies_are_unchanged(tmp_path: Path) -> None:
    plain, switched = tiny.vlm(), tiny.vlm(**EVERYTHING)
    assert [*switched.state_dict()] == [*plain.state_dict()]
    assert [*dict(switched.named_modules())] == [*dict(plain.named_modules())]
    plain.model.save_pretrained(tmp_path / "plain")
    switched.model.save_pretrained(tmp_path / "switched")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "switched" / name).read_bytes()
    again = copy.deepcopy(switched)
    for block in again.blocks("vision"):
        for parameter in block.parameters():
            parameter.data.zero_()
    pixels = tiny.batch().pixel_values
    assert torch.equal(switched.encode_image(pixels), plain.encode_image(pixels)), "a copy uses its own weights"
    assert not torch.equal(again.encode_image(pixels), plain.encode_image(pixels))


@pytest.mark.parametrize("lm", ["qwen2", "llama", "phi3", "stablelm", "gemma", "mistral", "qwen3"])
def test_blocks(lm: str) -> None:
    model = tiny.vlm(lm=lm)
    assert [type(block).__name__ for block in model.blocks("vision")] == ["CLIPEncoderLayer"] * 2, "the third is unused"
    assert len(model.blocks("lm")) == 2
    assert len(model.blocks("projector")) == 1


# -- dtypes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("teacher_dtype", ["float32", "bfloat16"])
def test_rotary_frequencies_stay_float32(folder: Path, tmp_path: Path, precision: Any, teacher_dtype: Any) -> None:
    """Through building, casting, training and greedy validation, in student and teacher."""
    model = SwitchKD(*specs(folder, Run(recomputed=True), dtype=teacher_dtype), SwitchKDObjective())
    trainer = tiny.trainer(
        tmp_path, precision=precision, max_steps=2, limit_val_batches=1, val_check_interval=2,
        callbacks=[GreedyValidation(records=4, max_new_tokens=3)],
    )  # fmt: skip
    trainer.fit(model, datamodule=tiny.data_module(folder))
    assert "val/exact_match" in trainer.callback_metrics
    for vlm, name in ((model.distiller.student, "student"), (model.distiller.frozen_teacher, "teacher")):
        as_loaded = build(VLMSpec(checkpoint=str(folder / name)), tiny.tokenizer(), name)
        frequencies = dict(as_loaded.named_buffers())
        assert any("inv_freq" in buffer for buffer in frequencies)
        for buffer, tensor in vlm.named_buffers():
            assert torch.equal(tensor, frequencies[buffer]), buffer
            assert tensor.dtype == frequencies[buffer].dtype, buffer


def test_parts_keep_their_buffers() -> None:
    model = tiny.vlm(dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for n, b in model.named_buffers() if "inv_freq" in n} == {torch.float32}


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


def test_no_compiler_is_said_in_one_paragraph(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch._inductor.config
    from torch._inductor.utils import fresh_cache

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with fresh_cache(), pytest.raises(SystemExit) as stop:
        main(command(folder, tmp_path, "--model.student.compile=[lm]"))
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "model.student.compile: torch.compile could not compile a Qwen2DecoderLayer" in said
    assert "C++ compiler" in said
    assert "Traceback" not in said
