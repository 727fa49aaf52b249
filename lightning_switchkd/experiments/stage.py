"""One stage of a pipeline: a command, what it reads, what it makes, and whether it is finished."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import orjson
import yaml
from omegaconf import OmegaConf

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import write_atomic
from lightning_switchkd.core.paths import existing
from lightning_switchkd.core.runs import changed_settings

CONTENT = ("model.safetensors", "model.safetensors.index.json", "manifest.json", "student/model.safetensors")
"""Files that stand for a whole folder in a digest: of a model, a data set, a run."""

MODELS = ("checkpoint", "vision", "lm", "processor")
DATA = ("annotations", "image_root")
READ_BY_FIT = ("model.", "data.processor", "data.train", "data.val")
"""Keys of the settings whose values are inputs of a training: their last part, and their beginning."""


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline.

    Attributes:
        name: Its name, unique in the pipeline.
        folder: Run folder of a training. The log and the state are next to it: ``FOLDER.log``, ``FOLDER.stage.json``.
        command: Command and flags, without configuration files.
        output: File or folder that exists when the stage is finished.
        configs: Configuration files of a training, in order.
        settings: Settings of a training that follow its configuration files.
        prepared: Folder of a model that can be used instead of a training with the same settings.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    output: Path
    configs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    prepared: Path | None = None

    @property
    def trains(self) -> bool:
        """Check whether the stage is a training, which resumes from checkpoints."""
        return self.command[0] == "fit"

    def beside(self, ending: str) -> Path:
        """Return a file next to the run folder."""
        return self.folder.with_name(self.folder.name + ending)

    @property
    def log(self) -> Path:
        """Return the file with everything that the stage printed."""
        return self.beside(".log")

    def result(self) -> str:
        """Return what the last run of a command printed after its progress: all that follows the first empty line."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        return text.rpartition("\n$ ")[2].partition("\n\n")[2]

    def arguments(self) -> list[str]:
        """Return the arguments of the command line. Writes the settings of a training to ``FOLDER.yaml``."""
        if not self.trains:
            return list(self.command)
        files = list(self.configs)
        if self.settings:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(dict(self.settings), sort_keys=False, allow_unicode=True)
            write_atomic(self.beside(".yaml"), f"# Settings of the stage {self.name}.\n{text}")
            files.append(str(self.beside(".yaml")))
        root = f"--trainer.default_root_dir={self.folder}"
        return ["fit", *(f"--config={file}" for file in files), *self.command[1:], root]

    # -- inputs --------------------------------------------------------------------------------------------------------

    @cached_property
    def effective_settings(self) -> dict[str, Any]:
        """The settings of a training: files, own settings and flags, merged in this order.

        Raises:
            UserError: A file is not a configuration, or a reference between settings leads nowhere.
        """
        merged: Any = OmegaConf.create()
        try:
            for file in self.configs:
                values = yaml.safe_load(existing(file).read_text("utf-8"))
                merged = OmegaConf.merge(merged, OmegaConf.create(values or {}))
            merged = OmegaConf.merge(merged, OmegaConf.create(dict(self.settings)))
            for flag in self.command[1:]:
                key, _, value = flag.removeprefix("--").partition("=")
                if not key.endswith("+"):
                    OmegaConf.update(merged, key, yaml.safe_load(value), merge=False, force_add=True)
            OmegaConf.update(merged, "trainer.default_root_dir", str(self.folder), force_add=True)
            resolved = OmegaConf.to_container(merged, resolve=True)
        except (yaml.YAMLError, ValueError) as error:  # OmegaConf's errors are ValueErrors too
            raise UserError(f"Stage '{self.name}': its settings cannot be read: {error}") from None
        assert isinstance(resolved, dict)
        return {str(key): value for key, value in resolved.items()}

    def inputs(self) -> dict[str, str]:
        """Return the files, folders and hub ids that the stage reads, each with the setting that names it."""
        if self.trains:
            return dict(_inputs(self.effective_settings))
        flags = (word.partition("=") for word in self.command[1:])
        own = str(self.output), str(self.folder)
        return {value: flag for flag, _, value in flags if "/" in value and value not in own and flag != "--output"}

    def digest(self) -> dict[str, Any]:
        """Return everything that the result depends on, except the code: settings, and hashes of the inputs."""
        settings = self.effective_settings if self.trains else {"command": list(self.command)}
        return as_json({"settings": settings, "inputs": _hashes(self.inputs())})

    def check_writable(self) -> None:
        """Check that the run folder, and the files next to it, can be written.

        Raises:
            UserError: They cannot.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.folder.parent):
                pass
        except OSError as error:
            raise UserError(
                f"Stage '{self.name}': cannot write to {self.folder} ({error.strerror}). Choose another folder "
                "(RUN=...)."
            ) from None

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the stored state: ``digest``, ``started`` and ``finished`` times, and ``prepared``. Empty if new.

        A training that ended before it wrote its configuration changed nothing in the run folder (its settings were
        refused, or it was interrupted). Then, the state is still that from ``before``.
        """
        stored = self._stored()
        config = self.folder / "config.yaml"
        began = config.is_file() and config.stat().st_mtime >= stored.get("started", 0)
        return stored if began or "finished" in stored or not self.trains else stored.get("before", {})

    def _stored(self) -> dict[str, Any]:
        file = self.beside(".stage.json")
        try:
            return dict(orjson.loads(file.read_bytes())) if file.is_file() else {}
        except (orjson.JSONDecodeError, TypeError):
            return {}  # written by nothing of ours: the stage runs again

    def store(self, **changes: Any) -> None:
        """Change entries of the stored state of a stage that has started."""
        stored = {name: value for name, value in self._stored().items() if name != "before"}
        write_atomic(self.beside(".stage.json"), json.dumps({**stored, **changes}))

    def finished(self) -> bool:
        """Check that the output exists, and was made from the same settings and inputs.

        The inputs of a prepared model need not be on this machine.
        """
        return "finished" in self.state() and not self.changes()

    def start(self) -> bool:
        """Store that the stage starts. Return whether it can resume from a checkpoint of an earlier start.

        A checkpoint counts only if it belongs to a run with the same settings and inputs.
        """
        state, digest = self.state(), self.digest()
        same = state.get("digest") == digest and "prepared" not in state
        if not same:
            state.pop("before", None)
            started = {"digest": digest, "started": time.time(), "before": state}
            write_atomic(self.beside(".stage.json"), json.dumps(started))
        return self.trains and same and (self.folder / "checkpoints" / "last.ckpt").is_file()

    def changes(self) -> list[str]:
        """Return the settings and inputs that changed since the stage finished. Empty if it never finished."""
        state = self.state()
        if "finished" not in state:
            return []
        if not self.output.exists():
            return [f"{self.output} is missing"]
        parts = ("settings",) if "prepared" in state else ("settings", "inputs")
        present = self.digest()
        return [change for part in parts for change in changed_settings(state["digest"][part], present[part])]


def _inputs(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the models, processors and data files that a training reads, each with its dotted key."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _inputs(child, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for child in value:
            yield from _inputs(child, key)
    elif isinstance(value, str) and key.startswith(READ_BY_FIT) and key.rpartition(".")[2] in (*MODELS, *DATA):
        yield value, key


def _hashes(inputs: Mapping[str, str]) -> dict[str, str]:
    """Hash the inputs that exist on this machine. A folder counts by its weights or its manifest."""
    files = {name: Path(name) for name in sorted(inputs)}
    for name, path in files.items():
        if path.is_dir():
            files[name] = next((path / content for content in CONTENT if (path / content).is_file()), path)
    return {name: sha256(path)[:16] for name, path in files.items() if path.is_file()}


def sha256(file: Path) -> str:
    """Compute the SHA-256 of a file, as hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def as_json(value: dict[str, Any]) -> dict[str, Any]:
    """Return a value as it comes back from a JSON file."""
    return dict(json.loads(json.dumps(value)))
