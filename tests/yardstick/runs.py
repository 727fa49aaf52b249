"""Run commands of the package in this process, and reduce what they leave behind to hashes."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAMES: dict[str, Any] = json.loads(Path(__file__).with_name("names.json").read_text(encoding="utf-8"))
ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
sys.path.insert(0, str(ROOT))
PACKABLE = "flex_attention_dense"
"""An attention implementation that accepts packed samples on a CPU. FlexAttention cannot train there."""

AttentionInterface.register(PACKABLE, sdpa_attention_forward)
AttentionMaskInterface.register(PACKABLE, sdpa_mask)


class StopAt(L.Callback):
    """Send SIGTERM to this process after an optimizer step.

    Args:
        step: The optimizer step.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Send the signal once."""
        if trainer.global_step == self.step:
            self.step = -1
            os.kill(os.getpid(), signal.SIGTERM)


# -- names: the code uses old names, names.json maps them to new ones --------------------------------------------------


def new_name(kind: str, name: str) -> str:
    """Map an old name. An entry for ``a.b`` (or ``a/b``) also applies to ``a.b.c`` (or ``a/b/c``)."""
    return _mapped(NAMES[kind], name)


def old_name(kind: str, name: str) -> str:
    """Map a new name back."""
    return _mapped({new: old for old, new in NAMES[kind].items()}, name)


def _mapped(names: dict[str, str], name: str) -> str:
    for end in range(len(name), 0, -1):
        whole_part = end == len(name) or name[end] in "./"
        if whole_part and name[:end] in names:
            return names[name[:end]] + name[end:]
    return name


def command(name: str, *arguments: str) -> list[str]:
    """Return a command line in new names.

    Args:
        name: The command.
        arguments: Flags ``--key=value``, or names of files in conf/ without their ending, such as ``trainer/cpu``.
    """
    line = [new_name("commands", name)]
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            value = NAMES["values"].get(f"{key}={value}", value)
            line.append(f"--{new_name('flags', key)}{equals}{value}")
        else:
            line += ["--config", _config(new_name("configs", argument))]
    return line


def _config(name: str) -> str:
    """Return the path of a configuration. ``sweep/METHOD`` is a method of ``open_points``, and is written here."""
    kind, _, method = name.partition("/")
    if kind != "sweep":
        return str(CONF / f"{name}.yaml")
    methods = yaml.safe_load((CONF / "sweep" / "open_points.yaml").read_text(encoding="utf-8"))["methods"]
    file = Path(f"{method}.yaml")
    file.write_text(yaml.safe_dump(methods[method][-1]), encoding="utf-8")
    return str(file.resolve())


def dataset(annotations: str, weight: float = 1.0) -> str:
    """Return the value of ``--data.train`` or ``--data.val``, or one entry of a list of data sets."""
    values = {"annotations": annotations, "image_root": f"{Path(annotations).parent}/images", "weight": weight}
    named = {new_name("flags", f"data.train.{name}").rpartition(".")[2]: value for name, value in values.items()}
    return json.dumps(named)


def output(name: str) -> str:
    """Return the new name of a file or folder that a command writes."""
    return new_name("outputs", name)


def call(name: str, *arguments: str) -> None:
    """Run a command in this process.

    Raises:
        Refused: The command exits because of a user error.
    """
    module, _, function = str(NAMES["entry_point"]).partition(":")
    main: Callable[[list[str]], None] = getattr(importlib.import_module(module), function)
    try:
        main(command(name, *arguments))
    except SystemExit as exit_:
        if exit_.code == 2:
            raise Refused(type(exit_.__context__).__name__) from exit_
        raise


class Refused(Exception):  # noqa: N818
    """A command refused its settings; the argument is the type of the exception."""


# -- hashes ------------------------------------------------------------------------------------------------------------


def digest(parts: Iterable[bytes | str]) -> str:
    """Hash a sequence of values."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()[:16]


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the dtype, the shape and the bytes of a tensor."""
    flat = tensor.detach().contiguous().reshape(-1)
    return f"{tensor.dtype} {tuple(tensor.shape)}".encode() + flat.view(torch.uint8).numpy().tobytes()


def optimizer_parts(state: dict[str, Any]) -> Iterable[bytes]:
    """Yield the settings of each parameter group and the state of its parameters, in their order."""
    for group in state["param_groups"]:
        yield repr([group[name] for name in ("lr", "initial_lr", "weight_decay", "betas", "eps")]).encode()
        for index in group["params"]:
            for name, value in sorted(state["state"].get(index, {}).items()):
                yield name.encode() + tensor_bytes(torch.as_tensor(value))


def of_checkpoint(file: Path) -> dict[str, str]:
    """Hash the weights and the optimizer state in a checkpoint. Parameter names do not count, their order does."""
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    return {
        "weights": digest(map(tensor_bytes, checkpoint["state_dict"].values())),
        "optimizer": digest(part for state in checkpoint["optimizer_states"] for part in optimizer_parts(state)),
    }


def of_metrics(file: Path) -> dict[str, str]:
    """Hash the steps and values of every column of ``metrics.csv`` but those that measure time and memory."""
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    found: dict[str, str] = {}
    for column in sorted({name for row in rows for name, value in row.items() if value}):
        name = old_name("metrics", column)
        if name not in (*NAMES["timing"], "step", "epoch"):
            values = (f"{row['step']} {row['epoch']} {row[column]}" for row in rows if row[column])
            found[f"metrics/{name}"] = digest(values)
    return found


def of_run(folder: Path) -> dict[str, str]:
    """Hash what a finished run leaves behind."""
    return {
        **of_checkpoint(folder / output("checkpoints") / output("last.ckpt")),
        **of_metrics(folder / output("metrics.csv")),
    }


def of_export(folder: Path) -> dict[str, str]:
    """Hash the weights, the settings and the chat template of an exported student."""
    found = {file.name: digest([file.read_bytes()]) for file in sorted(folder.glob("*.safetensors"))}
    for file in sorted(folder.glob("*.json")):
        value = json.loads(file.read_text(encoding="utf-8"))
        for name in ("transformers_version", "_name_or_path", "name_or_path"):
            value.pop(name, None)
        found[file.name] = digest([json.dumps(value, sort_keys=True)])
    return found | {file.name: digest([file.read_bytes()]) for file in sorted(folder.glob("*.jinja"))}


def of_cache(folder: Path) -> str:
    """Hash the rows of a teacher cache, whatever its files are called."""
    return digest(sorted(file.read_bytes() for file in folder.rglob("*") if file.suffix in (".rows", ".index")))


# -- figures -----------------------------------------------------------------------------------------------------------


def scores(benchmark: str, root: Path, answers: Path, protocol: str, result: Path) -> dict[str, Any]:
    """Score an answer file, and return all figures of the result and the hash of its scores by question."""
    call(
        "score", f"--benchmark={benchmark}", f"--answers={answers}", f"--annotations={root}",
        f"--protocol={protocol}", f"--output={result}", "--allow_missing",
    )  # fmt: skip
    whole = json.loads(result.read_text(encoding="utf-8"))
    singles = json.loads(result.with_suffix(output(".questions.json")).read_text(encoding="utf-8"))
    values = {old_name("figures", name): value for name, value in {**whole, **singles}.items()}
    found = {name: values[name] for name in ("score", "low", "high", "questions", "figures", "categories", "odd")}
    by_question = {name: values[name] for name in ("ids", "scores", "texts", "pairs")}
    found["by question"] = digest([json.dumps(by_question)])
    return {**found, "ids": values["ids"]}


def findings(folder: Path) -> dict[str, Any]:
    """Return the numbers and the invalid samples that ``validate-data`` found, without its messages."""
    report = json.loads((folder / output("report.json")).read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for split, numbers in report.items():
        named = {old_name("findings", name): value for name, value in numbers.items()}
        named["codes"] = {old_name("findings", code): n for code, n in named["codes"].items()}
        named.pop("files")
        found[split] = named
    lines = (folder / output("exclude.jsonl")).read_text(encoding="utf-8").splitlines()
    invalid: list[Sequence[Any]] = []
    for line in map(json.loads, lines):
        values = {old_name("findings", name): value for name, value in line.items()}
        place = [Path(values["path"]).name, values["index"], values["id"], values["source"]]
        invalid.append([*place, old_name("findings", values["code"])])
    found["invalid samples"] = sorted(invalid, key=lambda sample: sample[:2])
    found["invalid by kind"] = dict(Counter(str(sample[-1]) for sample in found["invalid samples"]))
    return found
