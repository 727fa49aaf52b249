"""Tiny random models, batches and data in real Hugging Face classes, for all tests that need a pair."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as token_decoders
from torch import Tensor
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from lightning_switchkd.core.labels import count_supervised
from lightning_switchkd.core.types import IGNORE_INDEX, Batch, Counts
from lightning_switchkd.data.datamodule import DataPaths, LLaVADataModule
from lightning_switchkd.data.processor import make_processor
from lightning_switchkd.data.prompts import prompt_style
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.auto import build
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives import Objective, SwitchKDObjective
from lightning_switchkd.objectives.terms import ObjectiveInputs
from lightning_switchkd.training.module import SwitchKD

ENCODERS: dict[str, dict[str, Any]] = {
    "clip": {"feature_strategy": "default"},
    "siglip": {"feature_strategy": "full"},
}
IMAGE_SIZE, PATCH = 16, 8
TOKENS_PER_IMAGE = (IMAGE_SIZE // PATCH) ** 2


def tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with the control tokens of Qwen2.5 and ``<image>``."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = token_decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=specials, initial_alphabet=alphabet)
    core.train_from_iterator(["What is there? a cat and a dog"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|endoftext|>", eos_token="<|im_end|>")


def spec(
    encoder: str = "clip",
    lm: str = "qwen2",
    tied: bool = True,
    width: int = 16,
    layers: int = 2,
    heads: int = 2,
    **changes: Any,
) -> VLMSpec:
    """Describe a tiny model from parts with random weights."""
    vision = {
        "model_type": f"{encoder}_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
    }
    text = {
        "model_type": lm,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,
    }
    return VLMSpec(**{"vision": vision, "lm": text, **ENCODERS[encoder], **changes})


def vlm(seed: int = 0, **changes: Any) -> VLMAdapter:
    """Build a tiny random model."""
    torch.manual_seed(seed)
    return build(spec(**changes), tokenizer(), "student")


def image_embeds(vlm: VLMAdapter, batch: Batch) -> list[Tensor]:
    """Encode and project the images of a batch."""
    return vlm.project(vlm.encode(batch.vision), batch.vision)


def batch(seed: int = 0, images: tuple[int, ...] = (1, 0, 2), answer: tuple[int, ...] = (3, 5, 2)) -> Batch:
    """Create samples with the given numbers of images and supervised tokens, and random ids."""
    generator = torch.Generator().manual_seed(seed)
    rows, labels = [], []
    for n_images, n_answer in zip(images, answer, strict=True):
        text = torch.randint(10, 200, (4 + n_answer,), generator=generator).tolist()
        ids = [text[0], *[3] * (TOKENS_PER_IMAGE * n_images), *text[1:]]
        rows.append(torch.tensor(ids))
        labels.append(torch.tensor([IGNORE_INDEX] * (len(ids) - n_answer) + ids[len(ids) - n_answer :]))
    pad = torch.nn.utils.rnn.pad_sequence
    padded = pad(labels, batch_first=True, padding_value=IGNORE_INDEX)
    per_sample = count_supervised(padded)
    counts = Counts(
        token=int(per_sample.sum()),
        visual_token=int(per_sample[torch.tensor(images) > 0].sum()),
        image_token=TOKENS_PER_IMAGE * sum(images),
        image=sum(images),
    )
    owners = [row for row, n in enumerate(images) for _ in range(n)] or [-1]
    return Batch(
        input_ids=pad(rows, batch_first=True),
        attention_mask=pad([torch.ones_like(r) for r in rows], batch_first=True),
        labels=padded,
        pixel_values=torch.randn(len(owners), 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator) * (sum(images) > 0),
        image_sample=torch.tensor(owners),
        sample_index=torch.arange(len(rows)),
        counts=counts,
        window=counts,
        sample_ids=tuple(str(i) for i in range(len(rows))),
    )


def write_data(folder: Path, samples: int = 48, encoder: str = "clip") -> Path:
    """Write a LLaVA data set of random images and a processor: multi-turn and text-only samples, uneven answers."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    raw: list[dict[str, Any]] = []
    for i in range(samples):
        turns = []
        for turn in range(1 + i % 2):
            question = ("<image>\n" if turn == 0 and i % 4 < 2 else "") + f"What is in {i}?"
            turns += [
                {"from": "human", "value": question},
                {"from": "gpt", "value": "a cat " * (1 + (i * 7) % 5) + "."},
            ]
        raw.append({"id": i, "conversations": turns, "source": f"kind{i % 2}"})
        if i % 4 < 2:
            Image.fromarray(random.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
            raw[-1]["image"] = f"{i}.png"
    (folder / "records.json").write_text(json.dumps(raw), encoding="utf-8")
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    processor = make_processor(
        tokenizer(), image_processor, PATCH, ENCODERS[encoder]["feature_strategy"], int(encoder == "clip"),
        prompt_style("qwen_chatml"),
    )  # fmt: skip
    processor.save_pretrained(folder / "processor")
    return folder


def write_pair(folder: Path) -> Path:
    """Write data, processor, student and a wider teacher. The teacher's folder has a processor as well."""
    write_data(folder)
    save_vlm(folder / "student", seed=0)
    save_vlm(folder / "teacher", seed=1, width=24, lm="llama", tied=False)
    shutil.copytree(folder / "processor", folder / "teacher", dirs_exist_ok=True)
    return folder


def switch_kd(
    folder: Path,
    objective: Objective | None = None,
    cls: type[SwitchKD] = SwitchKD,
    student: str = "student",
    dtype: Any = "float64",
    **changes: Any,
) -> SwitchKD:
    """Create a module that trains the pair in ``folder``."""
    spec = VLMSpec(checkpoint=str(folder / student), dtype=dtype)
    teacher = VLMSpec(checkpoint=str(folder / "teacher"), dtype=dtype)
    return cls(spec, teacher, objective or SwitchKDObjective(), **{"lr": 1e-2, **changes})


class PlainSGD(SwitchKD):
    """Train with SGD, which shows errors of scale that AdamW hides."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.distiller.student.parameters() if p.requires_grad], lr=0.05)


def data_module(folder: Path, **changes: Any) -> LLaVADataModule:
    """Create a data module with the samples of ``folder`` for training and validation."""
    paths = DataPaths(str(folder / "records.json"), str(folder / "images"))
    settings = {"train": paths, "val": paths, "batch_size": 8, "max_length": 128, **changes}
    return LLaVADataModule(str(folder / "processor"), **settings)


def trainer(folder: Path, **changes: Any) -> L.Trainer:
    """Create a trainer on the CPU without output."""
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 5,
        "default_root_dir": str(folder),
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        **changes,
    }
    return L.Trainer(**settings)


def save_vlm(folder: Path, seed: int, **changes: Any) -> str:
    """Write a tiny model as a checkpoint folder."""
    vlm(seed=seed, **changes).model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@contextmanager
def small_disk(size: int) -> Iterator[str]:
    """Mount a folder of limited size. Skip the test where mounting is not allowed."""
    with TemporaryDirectory() as folder:
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
        ).returncode:
            pytest.skip("mounting a small tmpfs is not allowed here")
        try:
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Load the weights of a model folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return the environment variables that make a process a rank of this machine."""
    run = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks, "NODE_RANK": 0}
    return {name: str(value) for name, value in (run | {"LOCAL_RANK": rank, "OMP_NUM_THREADS": 1}).items()}


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _as_rank(rank: int, port: int, seconds: float, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(seconds - 5, exit=True)  # a rank that hangs reports where
    os.environ.update(rank_environment(rank, 2, port))
    torch.set_num_threads(1)
    target(rank, *arguments)


def fork_server() -> ForkServerContext:
    """Return a context that forks processes from one that has imported everything and run nothing."""
    context = multiprocessing.get_context("forkserver")  # with `spawn`, gloo aborts some processes at exit
    context.set_forkserver_preload(["tiny", "lightning_switchkd.cli.lightning"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server itself does not get this process's path
        forkserver.ensure_running()
    return context


def on_two_ranks(target: Callable[..., None], *arguments: Any, seconds: float = 180) -> None:
    """Run ``target(rank, *arguments)`` in two processes, as the ranks of one machine."""
    context, port = fork_server(), free_port()
    ranks = [context.Process(target=_as_rank, args=(rank, port, seconds, target, arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(seconds)
    exit_codes = [process.exitcode for process in ranks]
    assert exit_codes == [0, 0], f"exit codes of the ranks: {exit_codes}"


def inputs_of(model: Distiller, batch: Batch) -> ObjectiveInputs:
    """Run the pathways of a distiller, and return what its objective is given."""
    inputs: list[ObjectiveInputs] = []
    handle = model.objective.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    model(batch, batch.counts.tensor(), 0)
    handle.remove()
    return inputs[0]
