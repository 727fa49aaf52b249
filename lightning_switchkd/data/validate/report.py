"""The report of `validate-data`: a page to read, the same numbers as JSON, and a figure of the lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_switchkd.core.extras import pyplot
from lightning_switchkd.core.text import markdown_table
from lightning_switchkd.core.types import DefectCode
from lightning_switchkd.data.order import Indices
from lightning_switchkd.data.stream import BatchStream
from lightning_switchkd.data.validate.findings import Findings

FIXES: dict[DefectCode, str] = {
    "bad_json": "The sample is not valid JSON. Write the file again.",
    "schema": "A field is missing or has the wrong type. See docs/reference/data.md for the schema.",
    "roles": "User and assistant must alternate, starting with the user and ending with the assistant.",
    "image_count": "Use one `<image>` placeholder per image, in user turns only.",
    "image_missing": "The file is missing below the image root. Download it, or set image_root.",
    "image_decode": "The file is damaged or not an image. Download it again.",
    "image_size": "The image has too many pixels. Resize it.",
    "empty_answer": "An answer is empty. Write one.",
    "too_long": "The question alone is longer than data.max_length. Raise it.",
    "no_supervision": "The first question and answer do not fit into data.max_length. Raise it.",
}
"""The fix for each defect code."""

MAX_WORST_SOURCES = 10
"""Data sets in the table of those with the most invalid samples."""


def write_report(
    folder: Path,
    splits: Sequence[Findings],
    stream: BatchStream | None,
    settings: Mapping[str, Any],
    world_size_known: bool,
) -> dict[str, Any]:
    """Write ``report.md``, ``report.json`` and ``lengths.png``, and return the numbers by split.

    Args:
        folder: The folder to write to.
        splits: The findings of each split.
        stream: The training batches, with the geometry of training.
        settings: The settings of the data module.
        world_size_known: False if the number of training processes is unknown, and the stream is that of one process.
    """
    report: dict[str, Any] = {findings.split: _numbers(findings) for findings in splits}
    for findings in splits:
        if findings.split == "train" and stream is not None:
            report["train"] |= _epoch_numbers(findings, stream, settings)
            report["train"]["processes"] = stream.world_size if world_size_known else "unknown, counted as 1"
        elif "train" in report:
            train_images = np.unique(np.frombuffer(splits[0].image_hashes, np.uint64))
            images = np.unique(np.frombuffer(findings.image_hashes, np.uint64))
            report[findings.split]["images also in train"] = int(np.isin(images, train_images).sum())
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _draw(folder / "lengths.png", splits, settings["max_length"])
    page = "\n".join(line for findings in splits for line in _section(findings, report[findings.split], folder))
    (folder / "report.md").write_text(page + "\n\n![Tokens per sample](lengths.png)\n", encoding="utf-8")
    return report


def _numbers(findings: Findings) -> dict[str, Any]:
    valid = findings.valid
    tokens, images = findings.tokens[valid], findings.images[valid]
    _, id_counts = np.unique(findings.id_hashes[valid], return_counts=True)
    invalid, num_read = findings.num_invalid, findings.num_read
    fractions = {name: invalid[name] / count for name, count in num_read.items() if invalid[name]}
    quantiles = (("shortest", 0), ("median", 50), ("95 %", 95), ("99 %", 99), ("longest", 100))
    return {
        "files": findings.path,
        "records": num_read.total(),
        "usable": len(valid),
        "bad": findings.codes.total(),
        "excluded before": findings.num_excluded,
        "codes": dict(findings.codes.most_common()),
        "text only": int((images == 0).sum()),
        "several images": int((images > 1).sum()),
        "cut by max_length": findings.num_truncated,
        "ids used more than once": int((id_counts > 1).sum()),
        "tokens": int(tokens.sum()),
        "supervised tokens": findings.num_supervised,
        "tokens of a record": {name: int(np.percentile(tokens, q)) for name, q in quantiles} if len(valid) else {},
        "worst sources": {
            name: {"records": num_read[name], "bad": invalid[name]}
            for name in sorted(fractions, key=lambda name: (-fractions[name], name))[:MAX_WORST_SOURCES]
        },
    }


def _epoch_numbers(findings: Findings, stream: BatchStream, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an epoch. Invalid samples leave their places in batches empty."""
    order = stream.order(0)
    size = stream.batch_size
    orders = {"padding": order, "padding of random batches": np.random.default_rng(0).permutation(order)}
    multiple = settings["pad_to_multiple_of"]
    padding = {
        name: 0.0 if settings["packing"] else padding_share(indices, findings.tokens, size, multiple)
        for name, indices in orders.items()
    }
    return {
        "steps in an epoch": len(stream) // stream.accumulate,
        "records in a step": size * stream.world_size * stream.accumulate,
        "records in a batch": size,
        "batches accumulated": stream.accumulate,
        **padding,
    }


def padding_share(order: Indices, tokens: NDArray[np.int32], batch_size: int, multiple: int = 1) -> float:
    """Return the fraction of padding among all tokens of an epoch's batches.

    Args:
        order: ``[n]`` samples, whole batches.
        tokens: Tokens of each sample. A sample with 0 tokens is skipped.
        batch_size: Samples in a micro-batch.
        multiple: Batches are padded to a multiple of this length.

    >>> padding_share(np.array([0, 1, 2, 3]), np.array([4, 2, 3, 0], dtype=np.int32), 2)
    0.1818...
    """
    lengths = tokens[order].reshape(-1, batch_size)
    widths = -(-lengths.max(1) // multiple) * multiple
    area = int((widths * (lengths > 0).sum(1)).sum())
    return 1 - int(lengths.sum()) / area if area else 0.0


def _section(findings: Findings, numbers: Mapping[str, Any], folder: Path) -> list[str]:
    valid, num_valid = numbers["usable"] / max(1, numbers["records"]), max(1, numbers["usable"])
    excluded = f" {numbers['excluded before']:,} more were excluded by `data.exclude`." * bool(
        numbers["excluded before"]
    )
    lines = [
        f"# {findings.split}: {numbers['files']}",
        "",
        f"**{numbers['usable']:,} of {numbers['records']:,} samples are valid ({valid:.1%})**, {numbers['bad']:,} are "
        f"invalid.{excluded}",
        "",
        f"- Text only: {numbers['text only']:,} samples ({numbers['text only'] / num_valid:.1%})",
        f"- Several images: {numbers['several images']:,} samples ({numbers['several images'] / num_valid:.1%})",
        f"- Tokens: {numbers['tokens']:,}, of which {numbers['supervised tokens']:,} are supervised",
        f"- Truncated to `max_length`: {numbers['cut by max_length']:,} samples",
        f"- Duplicate ids: {numbers['ids used more than once']:,}",
    ]
    if lengths := numbers["tokens of a record"]:
        lines.append("- Tokens per sample: " + ", ".join(f"{value:,} ({name})" for name, value in lengths.items()))
    if "images also in train" in numbers:
        lines.append(f"- Images that are also in train: {numbers['images also in train']:,}")
    if "steps in an epoch" in numbers:
        lines += [
            f"- Optimizer steps per epoch: {numbers['steps in an epoch']:,}, of {numbers['records in a step']} samples "
            f"(batch_size {numbers['records in a batch']} x accumulated {numbers['batches accumulated']} x processes "
            f"{numbers['processes']})",
            f"- Padding: {numbers['padding']:.1%} of all tokens ({numbers['padding of random batches']:.1%} without "
            "grouping by length)",
        ]
    if numbers["bad"]:
        fixes = [[f"`{code}`", f"{count:,}", FIXES[code]] for code, count in findings.codes.most_common()]
        worst = [[name, f"{n['records']:,}", f"{n['bad']:,}"] for name, n in numbers["worst sources"].items()]
        lines += ["", markdown_table([["code", "samples", "fix"], *fixes])]
        lines += ["", markdown_table([["source", "samples", "invalid"], *worst])]
        lines += ["", "Examples:", ""]
        lines += [
            f"- `{code}`: sample {example.index} (id {example.id}) of {example.path}: {example.error}"
            for code, examples in findings.examples.items()
            for example in examples
        ]
        lines += ["", f"To skip the invalid samples: `--data.exclude={folder / 'exclude.jsonl'}`"]
    return [*lines, ""]


def _draw(path: Path, splits: Sequence[Findings], max_length: int) -> None:
    """Draw a histogram of tokens per sample for each split, one above the other."""
    plt = pyplot("validate-data")
    figure, axes = plt.subplots(len(splits), 1, figsize=(8, 2.2 + 1.8 * len(splits)), squeeze=False, sharex=True)
    for axis, findings in zip(axes[:, 0], splits, strict=True):
        axis.hist(findings.tokens[findings.valid], bins=60)
        axis.axvline(max_length, color="black", linestyle="dashed", linewidth=1, label=f"max_length {max_length:,}")
        axis.set_ylabel("samples")
        axis.set_title(f"{findings.split}: {len(findings.valid):,} valid samples", fontsize=10)
    axes[0, 0].legend(fontsize=8)
    axes[-1, 0].set_xlabel("tokens per sample")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
