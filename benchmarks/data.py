"""What the data layer costs, on a synthetic LLaVA set of a million records that it writes itself.

    python -m benchmarks.data [--records 1000000 --workers 4 --folder FOLDER]

Printed is a table of ratios, each against a named alternative in the same run: indexing and memory against `json.load`
of the same file, the loader against bare Pillow, length grouping against random batches, a resumed epoch against a
fresh one. Whatever is measured runs in a process of its own. FOLDER (3 GB for a million records) serves another run as
well.
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

from benchmarks.measuring import row
from lightning_switchkd.data import DataPaths, LLaVADataModule
from lightning_switchkd.data.order import Indices
from lightning_switchkd.data.processor import make_processor
from lightning_switchkd.data.prompts import prompt_style
from lightning_switchkd.data.sources import open_source
from lightning_switchkd.data.stream import Position
from lightning_switchkd.data.validate.report import padding_share
from lightning_switchkd.data.workers import prefetch

SIDE, PATCH = 336, 14  # of LLaVA-1.5's tower: 576 tokens an image
PICTURES = 300
BATCH = 8
PART = 40_000  # records that are tokenised to measure padding
READ = 256  # records that a worker reads at a time where only reading is measured
WORDS = re.findall(
    r"\w+",
    "a the of and in is on with there what image shows man woman red blue street table cat dog sitting standing near "
    "large small two three people building background appears wearing holding next left right side visible scene",
)


warnings.filterwarnings("ignore", message=".*worker processes in total.*")  # four workers are measured on any machine


# -- the data ----------------------------------------------------------------------------------------------------------


def write(folder: Path, records: int) -> None:
    """``records.json``, ``records.jsonl``, ``pictures/`` and ``processor/``; what is there is left as it is."""
    if (folder / "processor" / "processor_config.json").is_file():
        return
    random = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for i in range(PICTURES):
        noise = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        noise.resize((640, 480), Image.Resampling.BICUBIC).save(folder / "pictures" / f"{i}.jpg", quality=90)
    text = " ".join(random.choice(WORDS, 200_000))
    with (folder / "records.json").open("wb") as array, (folder / "records.jsonl").open("wb") as lines:
        for i in tqdm(range(records), desc="writing records", file=sys.stderr):
            line = orjson.dumps(_record(i, random, text))
            array.write((b"[" if i == 0 else b",\n") + line)
            lines.write(line + b"\n")
        array.write(b"]\n")
    clip = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = make_processor(_tokenizer(text), clip, PATCH, "default", 1, prompt_style("qwen_chatml"))
    processor.save_pretrained(folder / "processor")


def _record(i: int, random: np.random.Generator, text: str) -> dict[str, Any]:
    """As in mix665k: one in sixteen without an image, mostly several turns, lengths log-normal."""
    turns = []
    for turn in range(int(random.integers(1, 5))):
        asked, answered = (int(n) for n in np.minimum(random.lognormal((3.8, 4.8), (0.6, 1.0)), 8000))
        start = int(random.integers(0, len(text) - 10_000))
        image = "<image>\n" if turn == 0 and i % 16 else ""
        turns.append({"from": "human", "value": image + text[start : start + asked] + "?"})
        turns.append({"from": "gpt", "value": "It " + text[start + asked : start + asked + answered]})
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
    """The data module on one of the files."""
    paths = DataPaths(str(folder / name), str(folder / "pictures"))
    processor = str(folder / "processor")
    return LLaVADataModule(processor, paths, max_length=4096, batch_size=BATCH, num_workers=workers)


# -- what is measured --------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any]) -> float:
    """Of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def load(path: Path) -> Any:
    """The alternative: the whole file."""
    with path.open("rb") as file:
        return json.load(file)


def load_seconds(path: Path) -> float:
    """Of the alternative, when the file is in the page cache."""
    path.read_bytes()
    return seconds(lambda: load(path))


def index_seconds(path: Path) -> float:
    """Indexing a file of which there is no index."""
    for old in (path.parent / ".index").glob(f"{path.name}.*"):
        old.unlink()
    return seconds(lambda: open_source(path))


def unique_memory() -> float:
    """MB that this process and its workers have to themselves (USS), together."""
    processes = [psutil.Process(), *psutil.Process().children()]
    return float(sum(process.memory_full_info().uss for process in processes)) / 1e6


class Reading(Dataset[Any]):
    """Reads records, and gives nothing back."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read

    def __getitem__(self, indices: Indices) -> int:
        return sum(len(str(self.read(index))[:1]) for index in indices.tolist())


def memory_over_an_epoch(
    way: Callable[[Path], tuple[Callable[[int], Any], Indices]], path: Path, workers: int
) -> list[float]:
    """`unique_memory` at five points of an epoch, while workers read all records in its order."""
    read, order = way(path)
    chunks = [order[i : i + READ] for i in range(0, len(order), READ)]
    looks = {int(len(chunks) * share) for share in (0.02, 0.25, 0.5, 0.75, 0.98)}
    found = []
    for number, _ in enumerate(prefetch(Reading(read), chunks, workers)):
        if number in looks:
            found.append(unique_memory())
    return found


def by_place(path: Path) -> tuple[Callable[[int], Any], Indices]:
    """Our way: any record by its number."""
    data = module(path.parent, path.name)
    return data.dataset("train").record, data.stream("train").order(0)


def as_a_list(path: Path) -> tuple[Callable[[int], Any], Indices]:
    """The alternative: a list in every process."""
    records = load(path)
    return records.__getitem__, np.random.default_rng(0).permutation(len(records))


class Bare(Dataset[Any]):
    """Decodes and resizes images by Pillow, and gives nothing back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, indices: Indices) -> int:
        for index in indices.tolist():
            with Image.open(self.folder / f"{index % PICTURES}.jpg") as image:
                image.convert("RGB").resize((SIDE * 640 // 480, SIDE), Image.Resampling.BICUBIC)
        return len(indices)


def batches_a_second(batches: Iterable[Any]) -> float:
    """Once the first one is there."""
    iterator: Iterator[Any] = iter(batches)
    next(iterator)
    begun = time.perf_counter()
    return sum(1 for _ in iterator) / (time.perf_counter() - begun)


def loader(folder: Path, workers: int, batches: int) -> list[tuple[float, float]]:
    """Batches a second of ours and of bare Pillow, on the same images, in turn."""
    torch.set_num_threads(1)
    source = open_source(folder / "records.json")
    some = [source.read(i) for i in range(min(len(source), 2 * BATCH * batches)) if i % 16][: BATCH * batches]
    (folder / "with_image.json").write_bytes(orjson.dumps(some))
    stream, pairs = module(folder, "with_image.json", workers).stream("train"), []
    for _ in range(7):
        order = stream.order(0).reshape(-1, BATCH)
        bare = DataLoader(Bare(folder / "pictures"), batch_size=None, sampler=list(order), num_workers=workers)
        pairs.append((batches_a_second(stream), batches_a_second(bare)))
    return pairs


def padding(folder: Path, accumulate: int) -> tuple[float, float]:
    """Shares of padding, grouped and at random, over a part of the data that is tokenised for it."""
    if not (folder / "part.jsonl").is_file():
        with (folder / "records.jsonl").open("rb") as lines, (folder / "part.jsonl").open("wb") as part:
            part.writelines(islice(lines, PART))
    data = module(folder, "part.jsonl")
    dataset = data.dataset("train")
    tokens = np.array(
        [len(dataset.prompter.encode(dataset.record(i)).input_ids) for i in range(len(dataset))], np.int32
    )
    order = data.stream("train", accumulate).order(0)
    shuffled = np.random.default_rng(0).permutation(order)
    return padding_share(order, tokens, BATCH), padding_share(shuffled, tokens, BATCH)


def first_batches(folder: Path, workers: int) -> list[tuple[float, float]]:
    """Seconds to the first batch in the middle of an epoch, and of a fresh one, in turn."""
    data = module(folder, workers=workers)
    middle = len(data.stream("train")) // 2
    at = {place: data.stream("train", position=lambda p=place: Position(1, p)) for place in (middle, 0)}  # type: ignore[misc]
    for stream in at.values():
        next(iter(stream))
    return [(seconds(lambda: next(iter(at[middle]))), seconds(lambda: next(iter(at[0])))) for _ in range(7)]


# -- the table ---------------------------------------------------------------------------------------------------------


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a process of its own."""
    print(f"measuring: {work.__name__.replace('_', ' ')} …", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def median(pairs: list[tuple[float, float]]) -> tuple[float, float, str]:
    """Of ours, of the other, and of the ratio of neighbours with its range."""
    ratios = [ours / theirs for ours, theirs in pairs]
    ours, theirs = (statistics.median(pathway) for pathway in zip(*pairs, strict=True))
    return ours, theirs, f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def report(folder: Path, workers: int) -> None:
    """Measures everything and prints the table."""
    array, lines, few = (folder / name for name in ("records.json", "records.jsonl", "few.jsonl"))
    with lines.open("rb") as all_lines:
        few.write_bytes(b"".join(islice(all_lines, 1000)))
    cores, size = psutil.cpu_count() or 1, array.stat().st_size / 1e6
    print(f"A file of {size:,.0f} MB, {cores} CPU cores.\n")
    row("what", "ours", "beside it", "ratio", "target")
    row(*["---"] * 5)

    beside = alone(load_seconds, array)
    for file in (array, lines):
        ours = alone(index_seconds, file)
        told = f"{size / ours:.0f} MB/s ({ours:.1f} s)"
        row(
            f"index of {file.suffix}, once",
            told,
            f"`json.load`, every time: {beside:.1f} s",
            f"{ours / beside:.2f}",
            "≥ 20 MB/s",
        )

    start = alone(memory_over_an_epoch, by_place, few, workers)[0]
    ours, beside = (
        [look - start for look in alone(memory_over_an_epoch, way, array, workers)] for way in (by_place, as_a_list)
    )
    ratio = f"{max(ours) / max(beside):.3f}"
    told = f"{max(ours):.0f} MB; over an epoch {ours[-1] - ours[0]:+.0f} MB"
    row(f"USS that a rank and {workers} workers add", told, f"`json.load`: {max(beside):,.0f} MB", ratio, "≤ 250 MB")

    ours, beside, ratio = median(alone(loader, folder, cores, 80))
    row(
        f"images a second, {cores} workers", f"{ours * BATCH:.0f}", f"bare Pillow: {beside * BATCH:.0f}", ratio, "≥ 0.9"
    )

    for accumulate in (1, 16):
        ours, beside = alone(padding, folder, accumulate)
        told = f"padding, {BATCH * accumulate} records a step"
        row(told, f"{ours:.1%}", f"random batches: {beside:.1%}", f"{ours / beside:.2f}", "≤ 3 %")

    ours, beside, ratio = median(alone(first_batches, folder, cores))
    row("first batch after a resume", f"{ours:.2f} s", f"of a fresh epoch: {beside:.2f} s", ratio, "≤ 1.1")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=4, help="of the rank whose memory is measured")
    parser.add_argument("--folder", type=Path, help="where the data is written; by default nowhere that stays")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        where = arguments.folder or Path(temporary)
        write(where, arguments.records)
        report(where, arguments.workers)
