"""At each look of a policy in training, annotators say whether they prefer it to the best look before.

Implements the questions, both policies' answers, the votes, and their record in the policy's artifact. Leaves out what
they mean for the alarm (`evaluation.alarm`) and for the choice of a checkpoint (`training.selection`). Its votes are
fitted on in later rounds, as all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from accord.evaluation.statistics import compute_share
from accord.looks import Challenge, Look, takes_lead
from accord.loop.context import RunContext, look_folder
from accord.loop.duelling import answer_questions, ask_annotators, read_wins
from accord.loop.interruption import Interruptible
from accord.types import Completion, Prompt
from accord.workspace import Draft

if TYPE_CHECKING:
    from accord.loop.graph import Stage

T = TypeVar("T")
Row = dict[str, Any]
ARM = "look"
"""What chose the items that people see, in the queue."""
RIVAL = "rival"
"""The best look before, beside the policy in training."""


class Challenges:
    """Asks annotators about the newest look of the role `policy`, and remembers on disk what they said.

    prompts: what the policies answer, in this order, none twice until all were asked. looks: the folder in which each
    look's weights lie (`context.look_folder`). task: the training, which waiting for people interrupts. No two looks
    share a question, so the luck that made a look the best is gone when the next one is compared with it.
    """

    def __init__(
        self,
        context: RunContext,
        stage: Stage,
        policy: str,
        prompts: Sequence[Prompt],
        looks: Path,
        task: Interruptible,
    ) -> None:
        self.context, self.stage, self.policy, self.prompts = context, stage, policy, prompts
        self.looks, self.task = looks, task
        self.votes = context.config.alarm.votes

    def __call__(self, looks: Sequence[Look], best: int) -> Challenge | None:
        """What is said of the last of `looks` beside the one after update `best`; None of the first."""
        number, update = len(looks) - 1, looks[-1].update
        if not number:
            return None
        row = self._remember(update, lambda: self._hold(number, update, best))
        return _read(row)

    def record(self, draft: Draft, looks: Sequence[Look]) -> list[Row]:
        """Write all votes to votes.jsonl and their number to the summary; returns what was said of each look.

        A row: `update`, `rival`, `votes`, `share`, what the look won, with its interval over prompts, and `better`.
        """
        rows = [self._remember(look.update, _refuse) for look in looks[1:]]
        said = [_read(row) for row in rows]
        votes = [vote for row in rows for vote in row["votes"]]
        draft.write_jsonl("votes.jsonl", votes)
        draft.summary["votes"] = len(votes)
        asked_on = [question % len(self.prompts) for question in range(self.votes)]
        return [
            {
                "update": row["update"],
                "rival": row["rival"],
                "votes": len(row["votes"]),
                "share": compute_share(row["outcomes"], asked_on).to_dict(),
                "better": takes_lead(looks[: number + 1], challenge),
            }
            for number, (row, challenge) in enumerate(zip(rows, said, strict=True), start=1)
        ]

    def _remember(self, update: int, hold: Callable[[], Row]) -> Row:
        rows: list[Row] = self.context.in_chunks(
            self.stage, [update], 1, lambda _: [hold()], label=f"challenge-{update}"
        )
        return rows[0]

    def _hold(self, number: int, update: int, best: int) -> Row:
        questions = range((number - 1) * self.votes, number * self.votes)
        role = self.context.load_policy(RIVAL, look_folder(self.looks, best))
        now, before = (self._answer(name, questions, update, of) for name, of in ((self.policy, update), (role, best)))
        self.context.forget(role)
        pairs = [(self.prompts[q % len(self.prompts)], *self._place(q, now[q], before[q])) for q in questions]
        source = f"{self.stage.address}/looks/{update}"
        people = self.context.config.feedback.source == "people"
        with self.task.interrupted() if people else nullcontext():
            votes = ask_annotators(self.context, self.stage, pairs, source, ARM)
        wins = zip(questions, read_wins(pairs, votes), strict=True)
        outcomes = [self._place(question, won, 1 - won)[0] for question, won in wins]
        return {"update": update, "rival": best, "outcomes": outcomes, "votes": votes}

    def _place(self, question: int, now: T, before: T) -> tuple[T, T]:
        """Which stands first: each every second time, on every prompt too, since annotators may lean to a side."""
        return (now, before) if (question + question // len(self.prompts)) % 2 else (before, now)

    def _answer(self, role: str, questions: Sequence[int], update: int, of: int) -> dict[int, Completion]:
        """What the look after update `of`, as `role`, answers where the one after `update` is asked about."""
        return answer_questions(
            self.context, self.stage, role, self.prompts, questions, self.context.sampler(),
            label=f"challenge-{update}-{role}", origin=f"{self.stage.address}/looks/{of}",
        )  # fmt: skip


def _read(row: Row) -> Challenge:
    return Challenge(row["update"], row["rival"], tuple(row["outcomes"]))


def _refuse() -> Row:
    raise LookupError("a look that nobody was asked about")
