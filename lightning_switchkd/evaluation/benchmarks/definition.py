"""A benchmark as a YAML file (``conf/benchmark/``): where its files are, how it asks, how it is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.readers import READERS, layout_files
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.benchmarks.scoring import SCORINGS, Floats, Judged, Scoring
from lightning_switchkd.evaluation.benchmarks.tables import find

FOLDER = Path("conf/benchmark")
DATA_ROOT = "data/eval"

ByProtocol = str | dict[str, str]


@dataclass(frozen=True)
class Benchmark:
    """What stands in its file.

    Attributes:
        title: for tables.
        scoring: one of ``scoring.SCORINGS``.
        layouts: the forms its files come in, each ``{reader: …, …}`` with what that reader takes (``readers.READERS``);
            the first whose files are there is read.
        annotations: the folder of its files; ``{root}`` stands for what ``--data_root`` says, ``{name}`` for its name.
        prompt: what is asked: ``{question}``, ``{Question}`` (capitalised), ``{hint}``, ``{options}``, ``{ocr}``; one
            text, or one a protocol. A line that holds no other field than an empty hint or empty options is left out.
        open_prompt: what is asked where a question has no options; else as the others.
        option: a line of ``{options}``.
        settings: of the scoring.
        max_new_tokens: longest answer.
        export: ``vqav2``, ``vizwiz`` or ``mmbench``: what its server takes.
        export_ids: a table below its folder, of all ``question_id`` that the server wants, asked or not.
        training: training records; what their most frequent answer to each question would score is shown as well.
        file: where it stands.
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
    training: str = ""
    file: Path = Path()

    @property
    def name(self) -> str:
        """Of its file."""
        return self.file.stem

    @classmethod
    def read(cls, name: str) -> Benchmark:
        """One of ``conf/benchmark/``, or any YAML file.

        Raises:
            UserError: there is none of that name, or it lacks or misnames a field.
        """
        file = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
        if not file.is_file():
            raise UserError(f"there is no benchmark '{name}'. There are: {', '.join(names())}; or give a YAML file.")
        try:
            raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(f"{file} is no YAML: {error}") from None
        known = {f.name for f in fields(cls)} - {"file"}
        needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        if not isinstance(raw, dict) or not needed <= raw.keys() <= known:
            wrong = sorted(raw.keys() - known) if isinstance(raw, dict) else []
            raise UserError(
                f"{file}: a benchmark has {', '.join(sorted(needed))}, and may have {', '.join(sorted(known - needed))}"
                f"{f'; it has {wrong}' if wrong else ''}."
            )
        if raw["scoring"] not in SCORINGS:
            raise UserError(f"{file}: scoring '{raw['scoring']}' is none of {', '.join(SCORINGS)}.")
        for layout in raw["layouts"]:
            if layout.get("reader", "table") not in READERS:
                raise UserError(f"{file}: reader '{layout['reader']}' is none of {', '.join(READERS)}.")
        return cls(**raw, file=file)

    @property
    def rules(self) -> Scoring:
        """How it is scored."""
        return SCORINGS[self.scoring]

    def folder(self, data_root: str = DATA_ROOT, annotations: str | None = None) -> Path:
        """Where its files are."""
        return Path(annotations or self.annotations.format(root=data_root, name=self.name))

    def items(self, folder: Path) -> list[Item]:
        """Its questions.

        Args:
            folder: where its files are; or one of its files, of a layout that needs no other.

        Raises:
            UserError: the files of no layout are there, or they are damaged.
        """
        looked: list[str] = []
        for layout in self.layouts:
            reader = layout.get("reader", "table")
            options = {key: value for key, value in layout.items() if key != "reader"}
            root, wanted = folder, layout_files(layout)
            if folder.is_file() and len(wanted) == 1 and Path(wanted[0]).suffix == folder.suffix:
                root, options[_slot(layout)] = folder.parent, folder.name
            elif not all(find(folder, pattern) for pattern in wanted):
                looked.append(f"- {reader}: {', '.join(wanted)}")
                continue
            try:
                items = READERS[reader](root, **options)
            except (TypeError, KeyError, IndexError) as error:
                raise UserError(f"benchmark '{self.name}', {folder}: {reader} cannot read it: {error!r}") from None
            if not items:
                raise UserError(f"benchmark '{self.name}': {folder} holds no questions for the layout '{reader}'.")
            return items
        raise UserError(
            f"benchmark '{self.name}': {folder} has the files of none of its layouts (docs/evaluation.md):\n"
            + "\n".join(looked)
        )

    def prompt_of(self, item: Item, protocol: ScoringProtocol = "llava") -> str:
        """What a model is asked, without places of images."""
        if item.prompt and protocol == "llava":
            return item.prompt
        line = _of(self.option, protocol)
        values = {
            "question": item.question,
            "Question": item.question.capitalize(),
            "hint": item.hint,
            "ocr": item.ocr,
            "options": "\n".join(line.format(letter=letter, text=text) for letter, text in item.options.items()),
        }
        template = _of((not item.options and self.open_prompt) or self.prompt, protocol)
        empty = {name for name in ("hint", "options") if not values[name]}
        lines = [text for text in template.split("\n") if not (named := _fields(text)) or not named <= empty]
        return "\n".join(lines).format(**values).strip()

    def judge(self, item: Item, text: str | None, protocol: ScoringProtocol = "llava") -> Judged:
        """What an answer is worth; none is wrong."""
        return Judged(0.0) if text is None else self.rules.judge(item, text, protocol, **self.settings)

    def scores(self, items: list[Item], judged: Floats) -> tuple[float, dict[str, float], dict[str, float]]:
        """Headline, scores by category, further figures; all in per cent but MME's."""
        tally = self.rules.tally
        rows: dict[str, list[int]] = {}
        for row, item in enumerate(items):
            rows.setdefault(item.category, []).append(row)
        of = {name: tally.category([items[i] for i in rows[name]], judged[rows[name]]) for name in sorted(rows)}
        return tally.score(items, judged), of if len(of) > 1 else {}, tally.figures(items, judged, of)


def _of(value: ByProtocol, protocol: str) -> str:
    return value if isinstance(value, str) else value.get(protocol, value.get("llava", ""))


def _fields(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def _slot(layout: Mapping[str, Any]) -> str:
    return next(name for name in ("rows", "records", "questions") if name in layout)


def names() -> list[str]:
    """Those of ``conf/benchmark/``."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))
