"""Answers of different policies to the same questions, before annotators: what a tournament and an alarm rest on.

Implements answering, asking simulated annotators or people, and what their votes say of each pair. Leaves out which
policies meet (`choosing`, `challenging`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accord import distributed
from accord.feedback.items import NewItem
from accord.feedback.queue import Queue
from accord.feedback.records import vote_to_dict
from accord.loop.asking import wait_for_votes
from accord.loop.comparing import read_outcomes
from accord.loop.context import RunContext
from accord.loop.preparing import cast_votes
from accord.loop.repeating import Pair, name_pair
from accord.loop.sampling import SAMPLE_CHUNK
from accord.types import Completion, Generator, Prompt, derive_seed

if TYPE_CHECKING:
    from accord.loop.graph import Stage

Row = dict[str, Any]


def answer_questions(
    context: RunContext,
    stage: Stage,
    role: str,
    prompts: Sequence[Prompt],
    questions: Sequence[int],
    sampler: Generator,
    *,
    label: str,
    origin: str,
) -> dict[int, Completion]:
    """What `role` answers to each question, in chunks that a killed run need not make again.

    Question i is prompt i, and after the last prompt the first again, answered anew. All roles answer a question with
    the same seed. label: apart for each such work of one stage. origin: of the completions.
    """
    sample = context.config.sample

    def sample_chunk(chunk: Sequence[int]) -> list[Row]:
        rollout = sampler.generate(
            role,
            [prompts[question % len(prompts)] for question in chunk],
            seeds=[derive_seed(stage.seed, "question", question) for question in chunk],
            max_new_tokens=sample.max_new_tokens,
            temperature=sample.temperature,
        )
        return [Completion(c.messages, c.finished, origin).to_dict() for c in rollout.completions]

    rows = context.in_chunks(stage, questions, SAMPLE_CHUNK, sample_chunk, label=label)
    return dict(zip(questions, map(Completion.from_dict, rows), strict=True))


def ask_annotators(context: RunContext, stage: Stage, pairs: Sequence[Pair], source: str, arm: str) -> list[Row]:
    """One vote on each pair that differs and says something, of simulated annotators or of people, who are waited for.

    A pair of texts that comes up twice is asked about once. source: of the votes. arm: what chose the items, in the
    queue.

    Raises:
        VotesMissing: people's votes are missing and the run was started with `--no-wait`.
    """
    differing = [pair for pair in pairs if pair[1].id != pair[2].id and all(side.text.strip() for side in pair[1:])]
    shown, number = list({name_pair(pair): pair for pair in differing}.values()), stage.round
    votes: list[Row] = []
    with distributed.first_alone() as working:
        if working and context.config.feedback.source == "simulated":
            votes = cast_votes(context, stage, shown, source, votes_per_pair=1)
        elif working and shown:
            queue = Queue(context.store.database)
            items = [NewItem("comparison", p, (a, b), overlap=1, arm=arm, source=source) for p, a, b in shown]
            queue.add_items(items, round=number, seed=stage.seed)
            wait_for_votes(context, queue, number, source)
            votes = [vote_to_dict(vote) for vote in queue.votes(number) if vote.source == source]
    return distributed.agree(votes)


def read_wins(pairs: Sequence[Pair], votes: Sequence[Mapping[str, Any]]) -> list[float]:
    """What the first answer of each pair won: the mean of its votes, 1 to 0; 0.5 without one that prefers anything.

    An answer that says nothing is not shown: it loses to one that does.
    """
    outcomes: dict[tuple[str, frozenset[str]], list[tuple[str, float]]] = {}
    for prompt, (a, b), won in read_outcomes(votes):
        outcomes.setdefault((prompt, frozenset((a, b))), []).append((a, won))

    def read(pair: Pair) -> float:
        _, first, second = pair
        said = bool(first.text.strip()), bool(second.text.strip())
        if not all(said):
            return 0.5 + 0.5 * (said[0] - said[1])
        wins = [won if a == first.id else 1 - won for a, won in outcomes.get(name_pair(pair), ())]
        return sum(wins) / len(wins) if wins else 0.5

    return [read(pair) for pair in pairs]
