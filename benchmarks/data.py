"""Time and memory of the data layer on a synthetic LLaVA data set of a million samples.

    python -m benchmarks.data [--samples 1000000 --workers 4 --rounds 7 --folder FOLDER]

The table compares each value with a named alternative of the same run: indexing and memory with `json.load` of the same
file, the loader with plain Pillow, length grouping with random batches, a resumed epoch with a fresh one. Each value is
measured in its own process. FOLDER keeps the data set for another run (3 GB for a million samples).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from benchmarks.table import header, row
from lightning_switchkd.data import DataPaths, LLaVADataModule
from lightning_switchkd.data.order import Indices
from lightning_switchkd.data.processor import make_processor
from lightning_switchkd.data.prompts import prompt_style
from lightning_switchkd.data.sources import open_source
from lightning_switchkd.data.stream import Position
from lightning_switchkd.data.validate.report import padding_share
from lightning_switchkd.data.workers import prefetch

SIZE, PATCH = 336, 14  # of LLaVA-1.5's vision encoder: 576 tokens per image
PICTURES = 300
BATCH = 8
PART = 40_000  # samples tokenized to measure padding
READ = 256  # samples that a worker reads at once to measure memory
WORDS = re.findall(
    r"\w+",
    "a the of and in is on with there what image shows man woman red blue street table cat dog sitting standing near "
    "large small two three people building background appears wearing holding next left right side visible scene",
)


warnings.filterwarnings(
    "ignore", message=".*worker processes in total.*"
)  # the number of workers is the same on every machine


# -- the data ----------------------------------------------------------------------------------------------------------


def write(folder: Path, num_samples: int) -> None:
    """Write ``records.json``, ``records.jsonl``, ``pictures/`` and ``processor/``, unless they exist."""
    if (folder / "processor" / "processor_config.json").is_file():
        return
    random = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for i in range(PICTURES):
        noise = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        noise.resize((640, 480), Image.Resampling.BICUBIC).save(folder / "pictures" / f"{i}.jpg", quality=90)
    text = " ".join(random.choice(WORDS, 200_000))
    with (folder / "records.json").open("wb") as array, (folder / "records.jsonl").open("wb") as lines:
        for i in tqdm(range(num_samples), desc="writing samples", file=sys.stderr):
            line = orjson.dumps(_sample(i, random, text))
            array.write((b"[" if i == 0 else b",\n") + line)
            lines.write(line + b"\n")
        array.write(b"]\n")
    clip = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor = make_processor(_tokenizer(text), clip, PATCH, "default", 1, prompt_style("qwen_chatml"))
    processor.save_pretrained(folder / "processor")


def _sample(i: int, random: np.random.Generator, text: str) -> dict[str, Any]:
    """Create a sample as in mix665k: one in 16 without an image, mostly several turns, log-normal lengths."""
    turns = []
    for turn in range(int(random.integers(1, 5))):
        question, answer = (int(n) for n in np.minimum(random.lognormal((3.8, 4.8), (0.6, 1.0)), 8000))
        start = int(random.integers(0, len(text) - 10_000))
        image = "<image>\n" if turn == 0 and i % 16 else ""
        turns.append({"from": "human", "value": image + text[start : start + question] + "?"})
        turns.append({"from": "gpt", "value": "It " + text[start + question : start + question + answer]})
    picture = {"image": f"{i % PICTURES}.jpg"} if i % 16 else {}
    return {"id": f"{i:09d}", **picture, "conversations": turns}


def _tokenizer(text: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([text, "user assistant system " * 1000], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|endoftext|>", eos_token="<|im_end|>")


def module(folder: Path, name: str = "records.json", workers: int = 0) -> LLaVADataModule:
    """Create the data module for one of the files."""
    paths = DataPaths(str(folder / name), str(folder / "pictures"))
    processor = str(folder / "processor")
    return LLaVADataModule(processor, paths, max_length=4096, batch_size=BATCH, num_workers=workers)


# -- measurements ------------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def load(path: Path) -> Any:
    """Load the whole file, as the alternative does."""
    with path.open("rb") as file:
        return json.load(file)


def load_seconds(path: Path) -> float:
    """Time the alternative with the file in the page cache."""
    path.read_bytes()
    return seconds(lambda: load(path))


def index_seconds(path: Path) -> float:
    """Time the indexing of a file without an index."""
    for old in (path.parent / ".index").glob(f"{path.name}.*"):
        old.unlink()
    return seconds(lambda: open_source(path))


def unique_memory() -> float:
    """Return the memory in MB owned by this process and its workers (USS)."""
    processes = [psutil.Process(), *psutil.Process().children()]
    return float(sum(process.memory_full_info().uss for process in processes)) / 1e6


class Reading(Dataset[Any]):
    """Read samples and discard them."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read

    def __getitem__(self, indices: Indices) -> int:
        return sum(len(str(self.read(index))[:1]) for index in indices.tolist())


def memory_over_an_epoch(
    access: Callable[[Path], tuple[Callable[[int], Any], Indices]], path: Path, workers: int
) -> list[float]:
    """Return `unique_memory` at five points of an epoch while workers read all samples in its order."""
    read, order = access(path)
    chunks = [order[i : i + READ] for i in range(0, len(order), READ)]
    probes = {int(len(chunks) * fraction) for fraction in (0.02, 0.25, 0.5, 0.75, 0.98)}
    memory = []
    for number, _ in enumerate(prefetch(Reading(read), chunks, workers)):
        if number in probes:
            memory.append(unique_memory())
    return memory


def by_index(path: Path) -> tuple[Callable[[int], Any], Indices]:
    """Read samples by number, as this package does."""
    data = module(path.parent, path.name)
    return data.dataset("train").sample, data.stream("train").order(0)


def as_list(path: Path) -> tuple[Callable[[int], Any], Indices]:
    """Load a list of all samples in every process, as the alternative does."""
    samples = load(path)
    return samples.__getitem__, np.random.default_rng(0).permutation(len(samples))


class PlainPillow(Dataset[Any]):
    """Decode and resize images by Pillow and discard them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, indices: Indices) -> int:
        for index in indices.tolist():
            with Image.open(self.folder / f"{index % PICTURES}.jpg") as image:
                image.convert("RGB").resize((SIZE * 640 // 480, SIZE), Image.Resampling.BICUBIC)
        return len(indices)


def batches_per_second(batches: Iterable[Any]) -> float:
    """Measure the rate after the first batch."""
    iterator: Iterator[Any] = iter(batches)
    next(iterator)
    start = time.perf_counter()
    return sum(1 for _ in iterator) / (time.perf_counter() - start)


def loader(folder: Path, workers: int, batches: int, rounds: int) -> list[tuple[float, float]]:
    """Measure batches per second of this package and of plain Pillow, alternating, on the same images."""
    torch.set_num_threads(1)
    source = open_source(folder / "records.json")
    with_image = [source.read(i) for i in range(min(len(source), 2 * BATCH * batches)) if i % 16][: BATCH * batches]
    (folder / "with_image.json").write_bytes(orjson.dumps(with_image))
    stream, pairs = module(folder, "with_image.json", workers).stream("train"), []
    for _ in range(rounds):
        order = stream.order(0).reshape(-1, BATCH)
        plain = DataLoader(PlainPillow(folder / "pictures"), batch_size=None, sampler=list(order), num_workers=workers)
        pairs.append((batches_per_second(stream), batches_per_second(plain)))
    return pairs


def padding(folder: Path, accumulate: int) -> tuple[float, float]:
    """Measure the share of padding in grouped and in random batches, over a tokenized part of the data."""
    if not (folder / "part.jsonl").is_file():
        with (folder / "records.jsonl").open("rb") as lines, (folder / "part.jsonl").open("wb") as part:
            part.writelines(islice(lines, PART))
    data = module(folder, "part.jsonl")
    dataset = data.dataset("train")
    tokens = np.array(
        [len(dataset.prompter.encode(dataset.sample(i)).input_ids) for i in range(len(dataset))], np.int32
    )
    order = data.stream("train", accumulate).order(0)
    shuffled = np.random.default_rng(0).permutation(order)
    return padding_share(order, tokens, BATCH), padding_share(shuffled, tokens, BATCH)


def first_batches(folder: Path, workers: int, rounds: int) -> list[tuple[float, float]]:
    """Time the first batch in the middle of an epoch and fresh epoch, alternating."""
    data = module(folder, workers=workers)
    middle = len(data.stream("train")) // 2
    at = {place: data.stream("train", position=lambda p=place: Position(1, p)) for place in (middle, 0)}  # type: ignore[misc]
    for stream in at.values():
        next(iter(stream))
    return [(seconds(lambda: next(iter(at[middle]))), seconds(lambda: next(iter(at[0])))) for _ in range(rounds)]


# -- the table ---------------------------------------------------------------------------------------------------------


def isolated(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a call in its own process."""
    print(f"measuring: {work.__name__.replace('_', ' ')} …", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def median(pairs: list[tuple[float, float]]) -> tuple[float, float, str]:
    """Return the medians of ours, of the alternative and of the ratio of neighbors, with the ratio's range."""
    ratios = [ours / theirs for ours, theirs in pairs]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return ours, theirs, f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def report(folder: Path, workers: int, rounds: int) -> None:
    """Measure everything and print the table."""
    array, lines, few = (folder / name for name in ("records.json", "records.jsonl", "few.jsonl"))
    with lines.open("rb") as all_lines:
        few.write_bytes(b"".join(islice(all_lines, 1000)))
    cores, size = psutil.cpu_count() or 1, array.stat().st_size / 1e6
    print(f"File of {size:,.0f} MB, {cores} CPU cores.\n")
    header("measured", "this package", "alternative", "ratio", "target")

    theirs = isolated(load_seconds, array)
    for file in (array, lines):
        ours = isolated(index_seconds, file)
        cell = f"{size / ours:.0f} MB/s ({ours:.1f} s)"
        row(
            f"index of {file.suffix}, once",
            cell,
            f"`json.load`, every time: {theirs:.1f} s",
            f"{ours / theirs:.2f}",
            "≥ 20 MB/s",
        )

    start = isolated(memory_over_an_epoch, by_index, few, workers)[0]
    ours, theirs = (
        [memory - start for memory in isolated(memory_over_an_epoch, access, array, workers)]
        for access in (by_index, as_list)
    )
    ratio = f"{max(ours) / max(theirs):.3f}"
    cell = f"{max(ours):.0f} MB, over an epoch {ours[-1] - ours[0]:+.0f} MB"
    row(f"USS added by a rank and {workers} workers", cell, f"`json.load`: {max(theirs):,.0f} MB", ratio, "≤ 250 MB")

    ours, theirs, ratio = median(isolated(loader, folder, cores, 80, rounds))
    row(
        f"images per second, {cores} workers",
        f"{ours * BATCH:.0f}",
        f"plain Pillow: {theirs * BATCH:.0f}",
        ratio,
        "≥ 0.9",
    )

    for accumulate in (1, 16):
        ours, theirs = isolated(padding, folder, accumulate)
        cell = f"padding, {BATCH * accumulate} samples per step"
        row(cell, f"{ours:.1%}", f"random batches: {theirs:.1%}", f"{ours / theirs:.2f}", "≤ 3 %")

    ours, theirs, ratio = median(isolated(first_batches, folder, cores, rounds))
    row("first batch after a resume", f"{ours:.2f} s", f"fresh epoch: {theirs:.2f} s", ratio, "≤ 1.1")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000, help="size of the data set")
    parser.add_argument("--workers", type=int, default=4, help="loader processes while memory is measured")
    parser.add_argument("--rounds", type=int, default=7, help="times that the loader and the first batch are measured")
    parser.add_argument("--folder", type=Path, help="folder of the data set (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        write(folder, arguments.samples)
        report(folder, arguments.workers, arguments.rounds)
