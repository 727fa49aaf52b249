"""What `validate-data` writes: a page to read, the same numbers for a program, and a picture of the lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_switchkd.core.types import DefectCode
from lightning_switchkd.data.order import Indices
from lightning_switchkd.data.stream import BatchStream
from lightning_switchkd.data.validate.findings import Findings

ADVICE: dict[DefectCode, str] = {
    "bad_json": "the record does not parse: write the file again",
    "schema": "a field is missing or of another type: see docs/data.md for the schema",
    "roles": "user and assistant must alternate, beginning with the user and ending with the assistant",
    "image_count": "as many `<image>` placeholders, all in user turns, as there are images",
    "image_missing": "there is no such file below the image root: fetch it, or set image_root",
    "image_decode": "the file is no image, or is cut short: fetch it again",
    "image_size": "the image has more pixels than can be trusted: shrink it",
    "empty_answer": "an answer is empty: write one",
    "too_long": "the question alone is longer than data.max_length: raise it",
    "no_supervision": "not even the first question and answer fit into data.max_length: raise it",
}
"""What to do about a bad record of each code."""

WORST = 10  # data sets listed


def write_report(
    folder: Path, found: Sequence[Findings], stream: BatchStream | None, settings: Mapping[str, Any], guessed: bool
) -> dict[str, Any]:
    """Writes ``report.md``, ``report.json`` and ``lengths.png``; returns the numbers.

    Args:
        folder: where to.
        found: the splits.
        stream: of the training split, in the geometry of training.
        settings: of the data module.
        guessed: nobody knows how many processes will train; the stream is that of one.
    """
    numbers: dict[str, Any] = {findings.split: _numbers(findings) for findings in found}
    for findings in found:
        if findings.split == "train" and stream is not None:
            numbers["train"] |= _batches(findings, stream, settings)
            numbers["train"]["processes"] = "unknown, counted as 1" if guessed else stream.world_size
        elif "train" in numbers:
            of_train = np.unique(np.frombuffer(found[0].pictures, np.uint64))
            mine = np.unique(np.frombuffer(findings.pictures, np.uint64))
            numbers[findings.split]["images also in train"] = int(np.isin(mine, of_train).sum())
    (folder / "report.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _draw(folder / "lengths.png", found, settings["max_length"])
    page = "\n".join(line for findings in found for line in _section(findings, numbers[findings.split], folder))
    (folder / "report.md").write_text(page + "\n\n![Tokens of each record](lengths.png)\n", encoding="utf-8")
    return numbers


def _numbers(findings: Findings) -> dict[str, Any]:
    good = findings.good
    tokens, images = findings.tokens[good], findings.images[good]
    _, times = np.unique(findings.ids[good], return_counts=True)
    shares = {name: findings.bad[name] / read for name, read in findings.read.items() if findings.bad[name]}
    return {
        "files": findings.path,
        "records": findings.read.total(),
        "usable": len(good),
        "bad": findings.codes.total(),
        "excluded before": findings.excluded,
        "codes": dict(findings.codes.most_common()),
        "text only": int((images == 0).sum()),
        "several images": int((images > 1).sum()),
        "cut by max_length": findings.cut,
        "ids used more than once": int((times > 1).sum()),
        "tokens": int(tokens.sum()),
        "supervised tokens": findings.supervised,
        "tokens of a record": {
            name: int(np.percentile(tokens, q))
            for name, q in (("shortest", 0), ("median", 50), ("95 %", 95), ("99 %", 99), ("longest", 100))
        }
        if len(good)
        else {},
        "worst sources": {
            name: {"records": findings.read[name], "bad": findings.bad[name]}
            for name in sorted(shares, key=lambda name: (-shares[name], name))[:WORST]
        },
    }


def _batches(findings: Findings, stream: BatchStream, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an epoch takes: bad records drop out of their batches."""
    order = stream.order(0)
    size = stream.batch_size
    shuffled = np.random.default_rng(0).permutation(order)
    padding = {
        name: 0.0 if settings["packing"] else padding_share(o, findings.tokens, size, settings["pad_to_multiple_of"])
        for name, o in (("padding", order), ("padding of random batches", shuffled))
    }
    return {
        "steps in an epoch": len(stream) // stream.accumulate,
        "records in a step": size * stream.world_size * stream.accumulate,
        "records in a batch": size,
        "batches accumulated": stream.accumulate,
        **padding,
    }


def padding_share(order: Indices, tokens: NDArray[np.int32], batch_size: int, multiple: int = 1) -> float:
    """The share of padding among all tokens of an epoch's batches.

    Args:
        order: ``[n]`` records, whole batches.
        tokens: of each record; a record of 0 is left out of its batch.
        batch_size: records in a micro-batch.
        multiple: batches are padded to a multiple of it.

    >>> padding_share(np.array([0, 1, 2, 3]), np.array([4, 2, 3, 0], dtype=np.int32), 2)
    0.1818...
    """
    lengths = tokens[order].reshape(-1, batch_size)
    widths = -(-lengths.max(1) // multiple) * multiple
    area = int((widths * (lengths > 0).sum(1)).sum())
    return 1 - int(lengths.sum()) / area if area else 0.0


def _section(findings: Findings, numbers: Mapping[str, Any], folder: Path) -> list[str]:
    usable, good = numbers["usable"] / max(1, numbers["records"]), max(1, numbers["usable"])
    excluded = f", {numbers['excluded before']:,} excluded before" if numbers["excluded before"] else ""
    lines = [
        f"# {findings.split}: {numbers['files']}",
        "",
        f"{numbers['records']:,} records looked at{excluded}; **{numbers['usable']:,} can be used ({usable:.1%})**, "
        f"{numbers['bad']:,} cannot.",
        "",
        f"- {numbers['text only']:,} ({numbers['text only'] / good:.1%}) are text only, {numbers['several images']:,} "
        f"({numbers['several images'] / good:.1%}) have several images.",
        f"- {numbers['tokens']:,} tokens, {numbers['supervised tokens']:,} of them supervised; `max_length` cuts "
        f"{numbers['cut by max_length']:,} records short.",
        f"- {numbers['ids used more than once']:,} ids are used more than once.",
    ]
    if lengths := numbers["tokens of a record"]:
        lines.append("- Tokens of a record: " + ", ".join(f"{value:,} ({name})" for name, value in lengths.items()))
    if "images also in train" in numbers:
        lines.append(f"- {numbers['images also in train']:,} of its images are in train as well.")
    if "steps in an epoch" in numbers:
        lines.append(
            f"- An epoch takes {numbers['steps in an epoch']:,} optimizer steps of {numbers['records in a step']} "
            f"records (batch_size {numbers['records in a batch']} x accumulated {numbers['batches accumulated']} x "
            f"processes {numbers['processes']}); {numbers['padding']:.1%} of the tokens are padding "
            f"({numbers['padding of random batches']:.1%} in random batches)."
        )
    if numbers["bad"]:
        lines += ["", "| code | records | what to do |", "|---|---|---|"]
        lines += [f"| `{code}` | {n:,} | {ADVICE[code]} |" for code, n in findings.codes.most_common()]
        lines += ["", "| source | records | bad |", "|---|---|---|"]
        lines += [f"| {name} | {n['records']:,} | {n['bad']:,} |" for name, n in numbers["worst sources"].items()]
        lines += ["", "For example:", ""]
        lines += [
            f"- `{code}`: record {example.index} (id {example.id}) of {example.path}: {example.error}"
            for code, examples in findings.examples.items()
            for example in examples
        ]
        lines += ["", f"To train without them: `--data.exclude={folder / 'exclude.jsonl'}`"]
    return [*lines, ""]


def _draw(path: Path, found: Sequence[Findings], max_length: int) -> None:
    """Histograms of tokens a record, one above the other."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(found), 1, figsize=(8, 2.2 + 1.8 * len(found)), squeeze=False, sharex=True)
    for axis, findings in zip(axes[:, 0], found, strict=True):
        axis.hist(findings.tokens[findings.good], bins=60)
        axis.axvline(max_length, color="black", linestyle="dashed", linewidth=1, label=f"max_length {max_length:,}")
        axis.set_ylabel("records")
        axis.set_title(f"{findings.split}: {len(findings.good):,} records", fontsize=10)
    axes[0, 0].legend(fontsize=8)
    axes[-1, 0].set_xlabel("tokens of a record")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
