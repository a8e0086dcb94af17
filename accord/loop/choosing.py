"""The stage in which annotators choose which look of the round's policy is kept: a tournament of their answers.

Implements answering and asking in each heat, and the artifact: the chosen weights, the votes, the heats. Leaves out who
meets whom and who wins (`evaluation.tournament`), and which looks may be kept (`watching`). Its votes are fitted on in
later rounds, as all others.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accord import distributed
from accord.evaluation.tournament import Duel, hold_tournament
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
from accord.workspace import Draft, read_lines, replace_lines

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
    looks = policy.read_jsonl("looks.jsonl")
    votes: list[Row] = []
    if looks:
        contest = _Contest(context, stage, [row["update"] for row in looks], load_prompts(context, stage, "train"))

        def play(heat: int, duels: Sequence[Duel]) -> list[float]:
            pairs = contest.answer(heat, duels)
            votes.extend(contest.ask(heat, pairs))
            return read_wins(pairs, votes)

        heats = hold_tournament(len(looks), stage.section["tournament"]["votes"], play, seed=stage.seed)
        update = contest.updates[heats[-1].order[0]]
        chosen = look_folder(policy.folder, update)
    else:
        heats, update, chosen = [], policy.summary["best_update"], policy.folder
    shutil.copytree(adapter_folder(chosen), adapter_folder(draft.folder))
    draft.write_jsonl("votes.jsonl", votes)
    told = {"votes": len(votes), "update": update, "judged_update": policy.summary["best_update"]}
    named = [heat.to_dict() | {"entrants": [looks[i]["update"] for i in heat.entrants]} for heat in heats]
    draft.write_json("tournament.json", told | {"heats": named})
    draft.summary.update(told)


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


@dataclass(frozen=True)
class _Contest:
    """One run's looks, by number of their update, and the prompts on which they meet: question i is prompt i, and
    after the last prompt the first again, answered anew."""

    context: RunContext
    stage: Stage
    updates: Sequence[int]
    prompts: Sequence[Prompt]

    def answer(self, heat: int, duels: Sequence[Duel]) -> list[Pair]:
        """The prompt and both answers of each duel; all looks answer a question with the same seed."""
        wanted: dict[int, set[int]] = {}
        for duel in duels:
            for entrant in (duel.first, duel.second):
                wanted.setdefault(entrant, set()).add(duel.question)
        context, new = self.context, self.context.config.sample.max_new_tokens
        context.progress.begin(f"{len(wanted)} checkpoints answer", sum(map(len, wanted.values())) * new, "tokens")
        found: dict[tuple[int, int], Completion] = {}
        for entrant, questions in sorted(wanted.items()):
            answers = self._sample(heat, entrant, sorted(questions))
            found |= {(entrant, question): answer for question, answer in answers}
        return [(self._find_prompt(d.question), found[d.first, d.question], found[d.second, d.question]) for d in duels]

    def ask(self, heat: int, pairs: Sequence[Pair]) -> list[Row]:
        """The votes on those pairs that differ and say something, each pair of texts asked about once.

        A heat's votes are kept when it ends, so that a change of mind later does not change who is in the next.
        """
        shown = {name_pair(p): p for p in pairs if p[1].id != p[2].id and all(side.text.strip() for side in p[1:])}
        path = self.context.workspace.scratch_folder(self.stage.kind, self.stage.key) / f"votes-{heat}.jsonl"
        if not distributed.agree(path.exists()):
            with distributed.first_alone() as working:
                if working:
                    replace_lines(path, self._cast(f"{self.stage.address}/{heat}", list(shown.values())))
        return distributed.agree(read_lines(path))

    def _cast(self, source: str, pairs: Sequence[Pair]) -> list[Row]:
        """One vote on each pair, of simulated annotators or of people, who are waited for."""
        context, number = self.context, self.stage.round
        if context.config.feedback.source == "simulated":
            return cast_votes(context, self.stage, pairs, source, votes_per_pair=1)
        queue = Queue(context.store.database)
        items = [NewItem("comparison", p, (a, b), overlap=1, arm=ARM, source=source) for p, a, b in pairs]
        queue.add_items(items, round=number, seed=self.stage.seed)
        if items:
            wait_for_votes(context, queue, number, source)
        return [vote_to_dict(vote) for vote in queue.votes(number) if vote.source == source]

    def _sample(self, heat: int, entrant: int, questions: Sequence[int]) -> Iterator[tuple[int, Completion]]:
        """(question, answer) of one look, in chunks that a killed run need not make again."""
        context, stage, sample = self.context, self.stage, self.context.config.sample
        update = self.updates[entrant]
        role = context.load_policy("entrant", context.parent(stage, "policy"), update)
        sampler = context.sampler(on_tokens=context.progress.advance)

        def sample_chunk(chunk: Sequence[int]) -> list[Row]:
            rollout = sampler.generate(
                role,
                [self._find_prompt(question) for question in chunk],
                seeds=[derive_seed(stage.seed, "question", question) for question in chunk],
                max_new_tokens=sample.max_new_tokens,
                temperature=sample.temperature,
            )
            origin = f"{stage.parents['policy']}/looks/{update}"
            return [Completion(c.messages, c.finished, origin).to_dict() for c in rollout.completions]

        rows = context.in_chunks(stage, questions, SAMPLE_CHUNK, sample_chunk, label=f"heat-{heat}-look-{update}")
        context.forget(role)
        return zip(questions, map(Completion.from_dict, rows), strict=True)

    def _find_prompt(self, question: int) -> Prompt:
        return self.prompts[question % len(self.prompts)]
