"""The stage in which annotators choose which look of the round's policy is kept: a tournament of their answers.

Implements the stage and its artifact: the chosen weights, the votes, what each look won. Leaves out who meets whom and
who wins (`evaluation.tournament`), answering and asking (`duelling`), and which looks may be kept (`watching`). Its
votes are fitted on in later rounds, as all others.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from accord.evaluation.tournament import Duel, compute_standings, draw_duels, find_winner
from accord.loop.context import RunContext, adapter_folder, look_folder
from accord.loop.duelling import answer_questions, ask_annotators, read_wins
from accord.loop.preparing import load_prompts
from accord.types import Completion, Prompt
from accord.workspace import Draft

if TYPE_CHECKING:
    from accord.loop.graph import Stage

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
    votes = ask_annotators(context, stage, pairs, stage.address, ARM)
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
    """What the look after `update` answers to each question."""
    role = context.load_policy("entrant", look_folder(context.parent(stage, "policy").folder, update))
    found = answer_questions(
        context, stage, role, prompts, questions, context.sampler(on_tokens=context.progress.advance),
        label=f"look-{update}", origin=f"{stage.parents['policy']}/looks/{update}",
    )  # fmt: skip
    context.forget(role)
    return found
