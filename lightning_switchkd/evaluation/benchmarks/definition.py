"""Benchmark definitions: entries of ``conf/benchmarks.yaml`` that name the files, the prompt and the scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from string import Formatter
from typing import Any, get_args

import yaml

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.paths import read_mapping
from lightning_switchkd.core.renamed import upgrade_benchmark
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.layouts import READERS, file_option, layout_files, reader_of
from lightning_switchkd.evaluation.benchmarks.readers import Turns
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.benchmarks.scoring import SCORINGS, Judged, Scoring
from lightning_switchkd.evaluation.benchmarks.tables import find, load_json

BENCHMARKS = "conf/benchmarks.yaml"
DATA_ROOT = "data/eval"

SAMPLE_SUFFIXES = (".json", ".jsonl", ".parquet", ".tar")
"""Endings of files with LLaVA samples."""

SOURCES = "sources.json"
"""File next to LLaVA samples with the meaning of each ``source``."""

ByProtocol = str | dict[str, str]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, as an entry of ``conf/benchmarks.yaml`` or a YAML file of its own defines it.

    Attributes:
        title: Title for tables.
        scoring: Key of ``scoring.SCORINGS``.
        layouts: Layouts that its files may have. Each is ``{reader: …, …}`` with the arguments of that reader
            (``layouts.READERS``). The first layout whose files exist is read.
        annotations: Folder of its files. ``{root}`` stands for ``--data_root``, ``{name}`` for the benchmark's name.
        prompt: Prompt template with ``{question}``, ``{Question}`` (capitalized), ``{hint}``, ``{options}``, ``{ocr}``:
            one text for all protocols, or one for each that is available. A line that contains only empty hints or
            empty options is dropped.
        open_prompt: Prompt template of questions without options. Default: ``prompt``.
        option: Template of a line of ``{options}``.
        settings: Settings of the scoring.
        max_new_tokens: Maximum length of an answer.
        export: Format of its server: ``vqav2``, ``vizwiz`` or ``mmbench``.
        export_ids: Table in its folder that lists every ``question_id`` the server requires, asked or not.
        training: Files of training samples for the text-only baseline: one or several.
        questions: Number of scored questions of the complete benchmark. 0 if it does not matter.
        categories: Meaning of each category, for reports.
        source: Name in ``conf/benchmarks.yaml``, or the path of a YAML file or of LLaVA samples.
    """

    title: str
    scoring: str
    layouts: list[dict[str, Any]]
    annotations: str = "{root}/{name}"
    prompt: ByProtocol = "{question}"
    open_prompt: ByProtocol = ""
    option: ByProtocol = "{letter}. {text}"
    settings: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 128
    export: str = ""
    export_ids: str = ""
    training: str | list[str] = ""
    questions: int = 0
    categories: dict[str, str] = field(default_factory=dict)
    source: str = ""

    @property
    def name(self) -> str:
        """Return the name in ``conf/benchmarks.yaml``, or the name of the file without its suffix."""
        return Path(self.source).stem if _is_file(self.source) else self.source

    @classmethod
    def read(cls, name: str) -> Benchmark:
        """Read a definition.

        Args:
            name: Name in ``conf/benchmarks.yaml``, or the path of a YAML file or of LLaVA samples.

        Raises:
            UserError: The definition is missing or invalid.
        """
        source = upgrade_benchmark(name)
        if Path(source).suffix in SAMPLE_SUFFIXES:
            return cls.of_samples(source, source, images_beside(source))
        if _is_file(source) and Path(source).is_file():
            place, raw = source, read_mapping(source)
        elif source in (entries := read_mapping(BENCHMARKS)):
            place, raw = f"{BENCHMARKS}: {source}", entries[source]
        else:
            available = ", ".join(sorted(entries))
            raise UserError(
                f"Unknown benchmark '{source}'. Available benchmarks: {available}. Or give a YAML file or a LLaVA file."
            )
        known = {f.name for f in fields(cls)} - {"source"}
        required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        if not isinstance(raw, dict) or not required <= raw.keys() <= known:
            unknown = sorted(raw.keys() - known) if isinstance(raw, dict) else []
            raise UserError(
                f"{place} is not a valid benchmark{f': unknown fields {unknown}' if unknown else ''}. "
                f"Required fields: {', '.join(sorted(required))}. "
                f"Optional fields: {', '.join(sorted(known - required))}."
            )
        if raw["scoring"] not in SCORINGS:
            raise UserError(f"{place}: unknown scoring '{raw['scoring']}'. Use one of {', '.join(SCORINGS)}.")
        if {"normaliser", "normalizer"} & (raw.get("settings") or {}).keys():
            raise UserError(f"{place}: settings.normalizer was removed. Use scoring: vqav2, consensus or short_answer.")
        for name in ("prompt", "open_prompt", "option"):
            value, protocols = raw.get(name, ""), get_args(ScoringProtocol)
            if not isinstance(value, str | dict) or (isinstance(value, dict) and not value.keys() <= set(protocols)):
                raise UserError(
                    f"{place}: '{name}' must be one text, or one per protocol ({', '.join(protocols)}), got {value!r}."
                )
        for layout in raw["layouts"]:
            if reader_of(layout) not in READERS:
                raise UserError(f"{place}: unknown reader '{layout['reader']}'. Use one of {', '.join(READERS)}.")
        if not (benchmark := cls(**raw, source=source)).protocols:
            possible = ", ".join(SCORINGS[benchmark.scoring])
            raise UserError(f"{place}: no prompt for the protocols of '{benchmark.scoring}'. Add one of {possible}.")
        return benchmark

    @classmethod
    def of_samples(
        cls, annotations: str, source: str, image_root: str | None, turns: Turns = "last", training: Sequence[str] = ()
    ) -> Benchmark:
        """Define a benchmark of samples in LLaVA's format, scored by exact match.

        Args:
            annotations: The samples.
            source: Its YAML file, or the samples. The name of the file is the benchmark's.
            image_root: Folder that image paths are relative to.
            turns: Questions of a conversation to ask.
            training: Files of training samples.
        """
        return cls(
            title=Path(source).stem,
            scoring="exact",
            layouts=[{"reader": "samples", "annotations": annotations, "image_root": image_root, "turns": turns}],
            annotations=".",
            training=list(training),
            categories=_sources_beside(annotations),
            source=source,
        )

    @property
    def from_samples(self) -> bool:
        """True if the questions are LLaVA samples of any source, named on the command line or in a run."""
        return any(reader_of(layout) == "samples" for layout in self.layouts)

    def write(self) -> None:
        """Write the YAML file."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "source"}
        defaults = {f.name: f.default for f in fields(self)}
        changed = {name: value for name, value in values.items() if value and value != defaults[name]}
        file = Path(self.source)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(changed, sort_keys=False), encoding="utf-8")

    @property
    def protocols(self) -> list[ScoringProtocol]:
        """Return the protocols that have this benchmark: a scoring and prompts."""
        templates = [value for value in (self.prompt, self.open_prompt, self.option) if isinstance(value, dict)]
        return [protocol for protocol in SCORINGS[self.scoring] if all(protocol in value for value in templates)]

    def rules(self, protocol: ScoringProtocol) -> Scoring:
        """Return the scoring.

        Raises:
            UserError: The protocol is not available for this benchmark.
        """
        if protocol not in self.protocols:
            raise UserError(
                f"--protocol: {protocol} is not available for '{self.name}' "
                f"(docs/reference/benchmarks-and-protocols.md). Use one of {', '.join(self.protocols)}."
            )
        return SCORINGS[self.scoring][protocol]

    def folder(self, data_root: str = DATA_ROOT, annotations: str | None = None) -> Path:
        """Return the folder of the benchmark's files."""
        return Path(annotations or self.annotations.format(root=data_root, name=self.name))

    def available(self, folder: Path) -> bool:
        """Return whether the folder has all files of a layout."""
        return self._layout(folder) is not None

    def items(self, folder: Path) -> list[Item]:
        """Read the questions.

        Args:
            folder: Folder of the files, or the only file of a layout.

        Raises:
            UserError: No layout has all its files in the folder, or a file is damaged.
        """
        layout = self._layout(folder)
        if layout is None:
            tried = "\n".join(f"- {reader_of(layout)}: {', '.join(layout_files(layout))}" for layout in self.layouts)
            raise UserError(
                f"Benchmark '{self.name}': no layout matches the files in {folder}. Provide the files of one of these "
                f"layouts (docs/how-to/evaluate.md):\n{tried}"
            )
        root = folder if folder.is_dir() else folder.parent
        reader, options = reader_of(layout), {key: value for key, value in layout.items() if key != "reader"}
        try:
            items = READERS[reader](root, **options)
        except (TypeError, KeyError, IndexError) as error:
            raise UserError(
                f"Benchmark '{self.name}': the reader '{reader}' cannot read {folder}: {error!r}. "
                "Check the files and the layout."
            ) from None
        if not items:
            raise UserError(f"Benchmark '{self.name}': {folder} has no questions for the layout '{reader}'.")
        return items

    def _layout(self, folder: Path) -> dict[str, Any] | None:
        """Return the first layout whose files exist. If the folder is a file, that file replaces the layout's."""
        for layout in self.layouts:
            patterns = layout_files(layout)
            if folder.is_file() and len(patterns) == 1 and Path(patterns[0]).suffix == folder.suffix:
                return {**layout, file_option(layout): folder.name}
            if all(find(folder, pattern) for pattern in patterns):
                return layout
        return None

    def prompt_of(self, item: Item, protocol: ScoringProtocol = "llava") -> str:
        """Return the prompt of a question, without image placeholders.

        Raises:
            UserError: The benchmark's files have LLaVA's complete prompts alone, and the protocol is another one.
        """
        if item.prompt and protocol == "llava":
            return item.prompt
        if item.prompt and item.prompt == item.question:
            raise UserError(
                f"--protocol: the files of '{self.name}' contain complete prompts of llava, so that {protocol} cannot "
                "ask its own. Use the files of the Hub, or llava."
            )
        line = _of_protocol(self.option, protocol)
        values = {
            "question": item.question,
            "Question": item.question.capitalize(),
            "hint": item.hint,
            "ocr": item.ocr,
            "options": "\n".join(line.format(letter=letter, text=text) for letter, text in item.options.items()),
        }
        template = _of_protocol((not item.options and self.open_prompt) or self.prompt, protocol)
        empty = {name for name in ("hint", "options") if not values[name]}
        lines = [text for text in template.split("\n") if not (named := _fields(text)) or not named <= empty]
        return "\n".join(lines).format(**values).lstrip()

    def judge(self, item: Item, text: str | None, protocol: ScoringProtocol = "llava") -> Judged:
        """Score one answer. A missing answer (None) scores 0."""
        return Judged(0.0) if text is None else self.rules(protocol).judge(item, text, **self.settings)


def _is_file(source: str) -> bool:
    return Path(source).suffix in (".yaml", ".yml", *SAMPLE_SUFFIXES)


def _of_protocol(value: ByProtocol, protocol: str) -> str:
    return value if isinstance(value, str) else value[protocol]


def _fields(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def _sources_beside(annotations: str) -> dict[str, str]:
    """Return the meaning of each source of samples, from the file next to them, if any.

    Raises:
        UserError: The file has other content.
    """
    file = Path(annotations).parent / SOURCES
    sources = load_json(file) if file.is_file() else {}
    if not isinstance(sources, dict) or not all(isinstance(meaning, str) for meaning in sources.values()):
        raise UserError(f'{file} must map the sources of samples to texts, {{"ocr": "words in the image"}}. Fix it.')
    return sources


def images_beside(file: str) -> str:
    """Return the folder ``images`` next to a file, or the file's own folder."""
    folder = Path(file).parent
    return str(folder / "images" if (folder / "images").is_dir() else folder)
