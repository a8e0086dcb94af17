"""Samples to browse and search: what annotators are shown, what evaluation compared, round by round.

Implements reading of finished artifacts, which never change, and the search over words, answers, numbers and endings.
Leaves out the page (`dashboard`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from accord.types import Completion, Prompt
from accord.web.rounds import list_rounds
from accord.workspace import Workspace, read_lines

SIDES = (("reference", "Before"), ("policy", "After"), ("best_of_n", "Best of n"))
BEFORE, AFTER, BEST = (words for _, words in SIDES)
CHANGE = "Change"
"""Of a sample instead of an answer: its number after, less the one before."""
NUMBERS = ("heldout", "proxy", "gold", "toxicity", "length_tokens", "kl_nats")
"""What a page shows and searches of what was measured of an answer; docs/evaluation.md says what each means."""


@dataclass(frozen=True)
class Answer:
    """One answer under the name of who wrote it, with the numbers that were measured of it."""

    name: str
    completion: Completion
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Sample:
    """A prompt with its answers; `source` is where it stands."""

    source: str
    prompt: Prompt
    answers: tuple[Answer, ...]

    @property
    def question(self) -> str:
        """The prompt's text."""
        return "\n".join(turn.content for turn in self.prompt.messages) or self.prompt.text or ""

    def find_number(self, name: str, number: str) -> float | None:
        """The number of the answer of that name, or its change; None where it was not measured."""
        found = {answer.name: answer.numbers.get(number) for answer in self.answers}
        if name != CHANGE:
            return found.get(name)
        before, after = found.get(BEFORE), found.get(AFTER)
        return None if before is None or after is None else after - before


@dataclass(frozen=True)
class Search:
    """What is looked for. words: each must stand in the prompt or in the answer. who: the name of an answer, CHANGE, or
    "" for any. number: one of NUMBERS, which must lie in [low, high]. ending: "finished", "cut" or "" for any. order:
    "high" or "low" first, by the number; "" leaves the order of the file."""

    words: str = ""
    who: str = ""
    number: str = ""
    low: float | None = None
    high: float | None = None
    ending: str = ""
    order: str = ""

    def finds(self, sample: Sample) -> bool:
        """Whether the sample, or for CHANGE its policy's answer, has all that is looked for in one answer."""
        name = AFTER if self.who == CHANGE else self.who
        return any(self._fits(sample, answer) for answer in sample.answers if answer.name == name or not name)

    def _fits(self, sample: Sample, answer: Answer) -> bool:
        text = f"{sample.question}\n{answer.completion.text}".lower()
        if not all(word in text for word in self.words.lower().split()):
            return False
        if self.ending and answer.completion.finished != (self.ending == "finished"):
            return False
        if not self.number or (self.low is None and self.high is None):
            return True
        value = sample.find_number(self.who if self.who == CHANGE else answer.name, self.number)
        return value is not None and not (
            (self.low is not None and value < self.low) or (self.high is not None and value > self.high)
        )

    def sort(self, samples: list[Sample]) -> list[Sample]:
        """In the order that is asked for; those without the number stand last."""
        if not self.number or not self.order:
            return samples
        sign = -1.0 if self.order == "high" else 1.0

        def place(sample: Sample) -> tuple[bool, float]:
            names = [self.who] if self.who else [answer.name for answer in sample.answers]
            found = [value for name in names if (value := sample.find_number(name, self.number)) is not None]
            return (not found, min((sign * value for value in found), default=0.0))

        return sorted(samples, key=place)


def list_sample_sources(workspace: Workspace) -> dict[str, Path]:
    """Name -> file of samples to browse, newest round first: what evaluation compared, what annotators are shown."""
    sources: dict[str, Path] = {}
    for view in list_rounds(workspace):
        for kind, file, words in (
            ("evaluation", "completions.jsonl", "before and after"),
            ("samples", "samples.jsonl", "shown to annotators"),
        ):
            for done in view.stages:
                path = workspace.root / "artifacts" / kind / done.key / file
                if done.stage == kind and path.is_file():
                    sources[f"round {view.number}: {words}"] = path  # the newest key of the round stays
    return sources


@lru_cache(maxsize=16)
def read_samples(path: Path, source: str = "") -> tuple[Sample, ...]:
    """The samples in a file of a finished artifact; it never changes, so it is read once."""
    read: Callable[[Mapping[str, Any], str], Sample] = _read_shown if path.name == "samples.jsonl" else _read_compared
    return tuple(read(row, source) for row in read_lines(path))


def _read_shown(row: Mapping[str, Any], source: str) -> Sample:
    """A row of samples: the answers of one policy, which nobody has measured."""
    answers = (Answer(f"Answer {i}", Completion.from_dict(c), {}) for i, c in enumerate(row["completions"], 1))
    return Sample(source, Prompt.from_dict(row["prompt"]), tuple(answers))


def _read_compared(row: Mapping[str, Any], source: str) -> Sample:
    """A row of an evaluation: the reference's, the policy's and the best-of-n answer with their numbers."""
    answers = (
        Answer(
            words,
            Completion.from_dict(row[side]["completion"]),
            {name: float(row[side][name]) for name in NUMBERS if isinstance(row[side].get(name), int | float)},
        )
        for side, words in SIDES
        if side in row
    )
    return Sample(source, Prompt.from_dict(row["prompt"]), tuple(answers))


def search_samples(sources: Mapping[str, Path], wanted: Search) -> list[Sample]:
    """The samples of all these files in which `wanted` is found."""
    every: Iterable[Sample] = (sample for name, path in sources.items() for sample in read_samples(path, name))
    return wanted.sort([sample for sample in every if wanted.finds(sample)])
