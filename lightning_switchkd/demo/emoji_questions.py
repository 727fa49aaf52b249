"""Questions about emoji scenes, for five abilities, with their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lightning_switchkd.demo.digits import PLACES, all_scans
from lightning_switchkd.demo.emoji_scenes import GRID, Scene
from lightning_switchkd.demo.emoji_things import things

ABILITIES = {
    "perception": "what is in a place, its color, or its group.",
    "reasoning": "how many, where, which is more, or which is higher.",
    "ocr": "the word, letter by letter, or the handwritten digit.",
    "hallucination": "whether a thing is there. Half of the things are not.",
    "domain": "the kind of a thing, such as fruit, or whether a kind is there.",
}
"""What each ability asks. Absent things are random, frequent, or of a present kind, as in POPE."""


@dataclass
class Asker:
    """Writes questions about scenes. The answers of each kind of yes-no question alternate between yes and no.

    Attributes:
        names: Things of the split, most frequent first.
        colors: Colors of things. None for a style with unknown colors.
        rng: Random numbers of the split.
    """

    names: Sequence[str]
    colors: dict[str, str] | None
    rng: np.random.Generator
    _turn: dict[str, int] = field(default_factory=dict)

    def ask(self, ability: str, scene: Scene) -> tuple[str, str, str] | None:
        """Write a question: kind, question, answer. None if the scene allows no question about the ability."""
        kinds: dict[str, tuple[Callable[[Scene], tuple[str, str] | None], ...]] = {
            "perception": (self._name, self._colour, self._group),  # method names are written to the data as "kind"
            "reasoning": (self._count, self._position, self._compare, self._higher),
            "ocr": (self._word, self._digit),
            "hallucination": (self._exists,),
            "domain": (self._kind, self._any_of_kind),
        }
        for i in self.rng.permutation(len(kinds[ability])).tolist():
            if (turn := kinds[ability][i](scene)) is not None:
                return kinds[ability][i].__name__.removeprefix("_"), *turn
        return None

    def describe(self, scene: Scene) -> str:
        """Write a caption.

        Half of the captions list the cells in reading order. A model learns these fast, because a word's place in the
        text is its place in the image. The other half name things with their places in random order, which teaches to
        find things by place and places by thing.
        """
        turn = self._alternate("describe", of=4)
        if turn < 2:
            return " ".join(scene.seen)
        if turn == 2:
            phrases = [f"{name} {PLACES[GRID][i]}" for i, name in enumerate(scene.cells) if name is not None]
        else:
            phrases = [f"{PLACES[GRID][i]} {seen}" for i, seen in enumerate(scene.seen)]
        return ", ".join(self.rng.permutation(phrases).tolist())

    def _alternate(self, key: str, of: int = 2) -> int:
        self._turn[key] = self._turn.get(key, -1) + 1
        return self._turn[key] % of

    def _choose(self, options: Sequence[str]) -> str:
        return str(self.rng.choice(list(options)))

    def _somewhere(self, scene: Scene) -> tuple[str, str]:
        cell = int(self.rng.choice([i for i, name in enumerate(scene.cells) if name is not None]))
        return str(scene.cells[cell]), PLACES[GRID][cell]

    def _name(self, scene: Scene) -> tuple[str, str]:
        name, place = self._somewhere(scene)
        return self._choose([f"What is {place}?", f"Name the thing {place}."]), name

    def _colour(self, scene: Scene) -> tuple[str, str] | None:
        name, place = self._somewhere(scene)
        if self.colors is None or name not in self.colors:
            return None
        return self._choose([f"What colour is the thing {place}?", f"Which colour is {place}?"]), self.colors[name]

    def _group(self, scene: Scene) -> tuple[str, str]:
        name, place = self._somewhere(scene)
        return f"Is the thing {place} an animal, food, travel, an object or an activity?", things()[name].group

    def _count(self, scene: Scene) -> tuple[str, str]:
        """Ask for a count. All counts of the scene, and zero, are equally likely."""
        shown = scene.shown
        number = int(self.rng.choice(sorted({0, *map(shown.count, shown)})))
        name = self._choose(self._absent(scene) if number == 0 else [n for n in shown if shown.count(n) == number])
        return self._choose([f"How many of {name} are there?", f"Count: {name}."]), str(number)

    def _position(self, scene: Scene) -> tuple[str, str] | None:
        once = [name for name in scene.shown if scene.shown.count(name) == 1]
        if not once:
            return None
        name = self._choose(once)
        return self._choose([f"Where is the {name}?", f"Find the {name}."]), scene.place(name)

    def _compare(self, scene: Scene) -> tuple[str, str] | None:
        groups = [things()[name].group for name in scene.shown]
        a, b = self.rng.permutation(sorted({"animal", "food", "travel", "object"}))[:2].tolist()
        yes = groups.count(a) > groups.count(b)
        if yes != (self._alternate("compare") == 0):
            a, b, yes = b, a, groups.count(b) > groups.count(a)
        return f"Are there more of {a} than of {b}?", "yes" if yes else "no"

    def _higher(self, scene: Scene) -> tuple[str, str] | None:
        rows = {name: i // GRID for i, name in enumerate(scene.cells) if name and scene.shown.count(name) == 1}
        pairs = [(a, b) for a in rows for b in rows if rows[a] < rows[b]]
        if not pairs:
            return None
        a, b = pairs[int(self.rng.integers(len(pairs)))]
        first, second = (a, b) if self.rng.random() < 0.5 else (b, a)
        return f"Which is higher, the {first} or the {second}?", a

    def _word(self, scene: Scene) -> tuple[str, str] | None:
        if scene.word is None:
            return None
        return self._choose(["Spell the word.", "What is written?"]), " ".join(scene.word[0])

    def _digit(self, scene: Scene) -> tuple[str, str] | None:
        if scene.digit is None:
            return None
        return self._choose(["Which digit is written?", "Read the digit."]), str(all_scans().target[scene.digit[0]])

    def _absent(self, scene: Scene) -> list[str]:
        return [name for name in self.names if name not in scene.shown]

    def _exists(self, scene: Scene) -> tuple[str, str]:
        if self._alternate("exists") == 0:
            name, reply = self._choose(scene.shown), "yes"
        else:
            absent = self._absent(scene)
            kinds = {things()[shown].kind for shown in scene.shown}
            negatives = (absent, absent[:12], [n for n in absent if things()[n].kind in kinds] or absent)
            name, reply = self._choose(negatives[self._alternate("absent", of=3)]), "no"
        article = "an" if name[0] in "aeiou" else "a"
        return self._choose([f"Is there {article} {name}?", f"Can you see {article} {name}?"]), reply

    def _kind(self, scene: Scene) -> tuple[str, str]:
        name, place = self._somewhere(scene)
        return f"What kind of thing is {place}?", things()[name].kind

    def _any_of_kind(self, scene: Scene) -> tuple[str, str]:
        kinds = {things()[name].kind for name in scene.shown}
        yes = self._alternate("any_of_kind") == 0
        others = {things()[name].kind for name in self.names} - kinds
        return f"Is any {self._choose(sorted(kinds if yes else others))} there?", "yes" if yes else "no"
