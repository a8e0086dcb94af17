"""The stage in which people vote: samples go into the labelling queue, and the loop waits until enough came back.

Implements the items of a round and the wait. The queue outlives the process: a run that is stopped while it waits goes
on where it was. Leaves out serving the page (`web`) and what a vote means (`feedback`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Any

from accord.config import Config
from accord.errors import AccordError
from accord.feedback.gold import read_gold_file
from accord.feedback.items import ItemKind, NewItem, Overlap
from accord.feedback.progress import Progress
from accord.feedback.queue import Queue
from accord.feedback.records import vote_to_dict
from accord.loop.context import RunContext
from accord.loop.demonstrating import keep_demonstrations
from accord.loop.repeating import Pair, choose_anchors, part_votes, read_disputed
from accord.loop.selecting import list_answers, read_pairs, trace_votes
from accord.types import Completion, Prompt, compute_content_id
from accord.workspace import Draft, Workspace

if TYPE_CHECKING:
    from accord.loop.graph import Stage

POLL_SECONDS = 1.0


class VotesMissing(AccordError):
    """The loop waits for people's votes, and was asked not to wait."""

    exit_code = 7


def ask_people(context: RunContext, stage: Stage, draft: Draft) -> None:
    """Put the round's samples before people, wait for the votes that are wanted, and keep those of this round.

    Raises:
        VotesMissing: votes are missing and the run was started with `--no-wait`.
    """
    label = context.config.label
    pairs = read_pairs(context, stage) if "selection" in stage.parents else None
    if pairs is None:
        rows = context.parent(stage, "samples").read_jsonl("samples.jsonl")
        asked = list(build_items(rows, label.ask, stage.address))
    else:
        asked = list(build_selected(pairs, stage.address))
    asked += read_gold(context.workspace, context.config)
    disputed, anchors = read_disputed(context, stage), choose_anchors(context, stage)
    queue = Queue(context.store.database)
    queue.add_items(  # first in the queue
        [NewItem("comparison", *split_pair(pair), arm="disputed", source=stage.address) for pair in disputed],
        round=stage.round,
        seed=stage.seed,
    )
    asked += [
        NewItem("comparison", *split_pair(pair), overlap=label.overlap, arm="anchor", source=stage.address)
        for pair in anchors
    ]
    queue.add_items(
        asked,
        round=stage.round,
        seed=stage.seed,
        overlap=Overlap(share=label.overlap_share, high=label.overlap),
        repeat_share=label.repeat_share,
    )
    progress = wait_for_votes(context, queue, stage.round)
    cast = [vote_to_dict(vote) for vote in queue.votes(stage.round)]
    votes, held = part_votes(cast, anchors, disputed)
    draft.write_jsonl("votes.jsonl", votes)
    draft.write_jsonl("anchor_votes.jsonl", held)
    keep_demonstrations(context, votes, draft)
    if pairs is not None:
        draft.write_jsonl("arms.jsonl", list(trace_votes(votes, pairs)))
    draft.summary["votes"] = len(cast)
    draft.summary["items"] = progress.items
    draft.summary["simulated"] = False


def split_pair(pair: Pair) -> tuple[Prompt, tuple[Completion, Completion]]:
    """Prompt, and both completions."""
    prompt, a, b = pair
    return prompt, (a, b)


def describe_asking(workspace: Workspace, config: Config) -> dict[str, Any]:
    """The settings that shape what people are asked, with the hash of the gold items.

    Raises:
        DataError: `label.gold` names no file, or the file has a line that is no gold item.
    """
    label = config.label
    asked = {"ask": label.ask, "overlap": label.overlap, "overlap_share": label.overlap_share}
    gold = [
        [item.prompt.to_dict(), [c.to_dict() for c in item.completions], item.gold]
        for item in read_gold(workspace, config)
    ]
    return {**asked, "repeat_share": label.repeat_share, "gold": compute_content_id(gold) if gold else ""}


def read_gold(workspace: Workspace, config: Config) -> list[NewItem]:
    """The gold items of the settings, if any; a path is taken from the project's folder. Raises as `read_gold_file`."""
    return read_gold_file(workspace.root / config.label.gold) if config.label.gold else []


def build_items(rows: list[dict[str, Any]], ask: ItemKind, source: str) -> Iterator[NewItem]:
    """The items of sampled rows: each pair of different answers, all in one ranking, or each answer."""
    for row in rows:
        prompt = Prompt.from_dict(row["prompt"])
        answers = list_answers(row)
        groups: dict[str, list[tuple[Completion, ...]]] = {
            "comparison": list(combinations(answers, 2)),
            "ranking": [answers] if len(answers) > 1 else [],
            "rating": [(answer,) for answer in answers],
        }
        for group in groups[ask]:
            yield NewItem(ask, prompt, group, source=source)


def build_selected(pairs: list[dict[str, Any]], source: str) -> Iterator[NewItem]:
    """A comparison of each pair that was chosen, with the arm that chose it and its propensity."""
    for pair in pairs:
        sides = Completion.from_dict(pair["a"]), Completion.from_dict(pair["b"])
        arm, propensity = pair["arm"], pair["propensity"]
        prompt = Prompt.from_dict(pair["prompt"])
        yield NewItem("comparison", prompt, sides, arm=arm, propensity=propensity, source=source)


def wait_for_votes(context: RunContext, queue: Queue, number: int, source: str | None = None) -> Progress:
    """Until the votes of round `number` are in (`is_enough`), on all its items or on those of `source`; says where
    people label, and how many votes there are."""
    progress = queue.progress(round=number, source=source)
    if not is_enough(progress):
        if not context.wait:
            raise votes_missing(context, progress)
        link = context.workspace.label_link() or f"accord label {context.workspace.root}"
        context.progress.begin(f"people vote at {link}", progress.wanted, "votes")
    seen = 0
    while not is_enough(progress):
        context.progress.advance(progress.cast - seen)
        seen = progress.cast
        time.sleep(POLL_SECONDS)
        progress = queue.progress(round=number, source=source)
    return progress


def is_enough(progress: Progress) -> bool:
    """No vote is missing, or everyone has judged or skipped all that they could: nobody is left to wait for."""
    return not progress.missing or (progress.complete and progress.cast > 0 and not progress.leased)


def votes_missing(context: RunContext, progress: Progress) -> VotesMissing:
    """How many votes are missing, and where they are cast."""
    link, root = context.workspace.label_link(), context.workspace.root
    mend = f"label at {link}" if link else f"let people label with: accord label {root}"
    return VotesMissing(
        f"{progress.missing} of {progress.wanted} votes are missing",
        where=context.config.project.name,
        mend=f"{mend}; then go on with: accord run {root}",
    )
