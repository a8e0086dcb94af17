"""The stage in which annotators choose which look of the round's policy is kept: a tournament of their answers.

Implements answering, asking, and the artifact: the chosen weights, the votes, what each look won. Leaves out who meets
whom and who wins (`evaluation.tournament`), and which looks may be kept (`watching`). Its votes are fitted on in later
rounds, as all others.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accord import distributed
from accord.evaluation.tournament import Duel, compute_standings, draw_duels, find_winner
from accord.feedback.items import NewItem
from accord.feedback.queue import Queue
from accord.feedback.records import vote_to_dict
from accord.loop.asking import wait_for_votes
from accord.loop.comparing import read_outcomes
from accord.loop.context import RunContext, adapter_folder, look_folder
from accord.loop.preparing import cast_votes, load_prompts
from accord.loop.repeating import Pair, name_pair
from accord.loop.sampling import SAMPLE_CHUNK
from accord.types import Completion, Prompt, derive_seed
from accord.workspace import Draft

if TYPE_CHECKING:
    from accord.loop.graph import Stage

Row = dict[str, Any]
ARM = "tournament"
"""What chose the items that people see, in the queue."""


def choose_look(context: RunContext, stage: Stage, draft: Draft) -> None:
    """Keep the look of the policy that wins most of `tournament.votes` votes; without a look, the policy as it is.

    Raises:
        VotesMissing: people's votes are missing and the run was started with `--no-wait`.
    """
    policy = context.parent(stage, "policy")
    updates = [row["update"] for row in policy.read_jsonl("looks.jsonl")]
    duels = draw_duels(len(updates), stage.section["tournament"]["votes"], seed=stage.seed)
    pairs = answer_duels(context, stage, updates, duels)
    votes = ask(context, stage, pairs)
    standings = compute_standings(len(updates), duels, read_wins(pairs, votes))
    update = updates[find_winner(standings)] if updates else policy.summary["best_update"]
    chosen = look_folder(policy.folder, update) if updates else policy.folder
    shutil.copytree(adapter_folder(chosen), adapter_folder(draft.folder))
    draft.write_jsonl("votes.jsonl", votes)
    told = {"votes": len(votes), "update": update, "judged_update": policy.summary["best_update"]}
    shares = [
        {"update": each, "share": None if standing is None else standing.to_dict()}
        for each, standing in zip(updates, standings, strict=True)
    ]
    draft.write_json("tournament.json", told | {"standings": shares})
    draft.summary.update(told)


def answer_duels(
    context: RunContext, stage: Stage, updates: Sequence[int], duels: Sequence[Duel]
) -> list[tuple[Prompt, Completion, Completion]]:
    """The prompt and both answers of each duel of the looks after these updates.

    Question i is training prompt i, and after the last prompt the first again, answered anew. All looks answer a
    question with the same seed.
    """
    prompts, sample = load_prompts(context, stage, "train"), context.config.sample
    wanted: dict[int, set[int]] = {}
    for duel in duels:
        for entrant in (duel.first, duel.second):
            wanted.setdefault(entrant, set()).add(duel.question)
    total = sum(map(len, wanted.values())) * sample.max_new_tokens
    context.progress.begin(f"{len(wanted)} checkpoints answer", total, "tokens")
    found = {
        (entrant, question): answer
        for entrant, questions in sorted(wanted.items())
        for question, answer in answer_as(context, stage, prompts, updates[entrant], sorted(questions)).items()
    }
    return [
        (prompts[d.question % len(prompts)], found[d.first, d.question], found[d.second, d.question]) for d in duels
    ]


def answer_as(
    context: RunContext, stage: Stage, prompts: Sequence[Prompt], update: int, questions: Sequence[int]
) -> dict[int, Completion]:
    """What the look after `update` answers to each question, in chunks that a killed run need not make again."""
    sample, origin = context.config.sample, f"{stage.parents['policy']}/looks/{update}"
    role = context.load_policy("entrant", context.parent(stage, "policy"), update)
    sampler = context.sampler(on_tokens=context.progress.advance)

    def sample_chunk(chunk: Sequence[int]) -> list[Row]:
        rollout = sampler.generate(
            role,
            [prompts[question % len(prompts)] for question in chunk],
            seeds=[derive_seed(stage.seed, "question", question) for question in chunk],
            max_new_tokens=sample.max_new_tokens,
            temperature=sample.temperature,
        )
        return [Completion(c.messages, c.finished, origin).to_dict() for c in rollout.completions]

    rows = context.in_chunks(stage, questions, SAMPLE_CHUNK, sample_chunk, label=f"look-{update}")
    context.forget(role)
    return dict(zip(questions, map(Completion.from_dict, rows), strict=True))


def ask(context: RunContext, stage: Stage, pairs: Sequence[Pair]) -> list[Row]:
    """One vote on each pair that differs and says something, of simulated annotators or of people, who are waited for.

    A pair of texts that comes up twice is asked about once.
    """
    differing = [pair for pair in pairs if pair[1].id != pair[2].id and all(side.text.strip() for side in pair[1:])]
    shown, number = list({name_pair(pair): pair for pair in differing}.values()), stage.round
    votes: list[Row] = []
    with distributed.first_alone() as working:
        if working and context.config.feedback.source == "simulated":
            votes = cast_votes(context, stage, shown, stage.address, votes_per_pair=1)
        elif working and shown:
            queue = Queue(context.store.database)
            items = [NewItem("comparison", p, (a, b), overlap=1, arm=ARM, source=stage.address) for p, a, b in shown]
            queue.add_items(items, round=number, seed=stage.seed)
            wait_for_votes(context, queue, number, stage.address)
            votes = [vote_to_dict(vote) for vote in queue.votes(number) if vote.source == stage.address]
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
