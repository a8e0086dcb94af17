"""Stages before anything is fitted: model examined, prompts chosen, votes cast, consensus reached.

Implements these stages on the rooms below. Leaves out sampling (`sampling`), the order of stages (`graph`) and the
statistics of votes (`feedback`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accord.config.schema import AnnotatorSection
from accord.errors import DataError
from accord.feedback.agreement import compute_agreement
from accord.feedback.consensus import compute_consensus
from accord.feedback.importing.rows import parse_rows
from accord.feedback.records import vote_from_dict, vote_to_dict
from accord.feedback.simulate import simulate_votes
from accord.feedback.splits import split_by_prompt
from accord.loop.context import RunContext
from accord.loop.demonstrating import keep_demonstrations
from accord.loop.repeating import Pair, choose_anchors, put_first, read_disputed
from accord.loop.selecting import read_pairs, trace_votes
from accord.models.doctor import require_healthy, run_doctor
from accord.rewards import PROBES, find_text_reward
from accord.starter import load_starter_prompts
from accord.types import Completion, Preference, Prompt, derive_seed
from accord.workspace import Draft, Workspace

if TYPE_CHECKING:
    from accord.loop.graph import Stage

SMALLEST_SIDE = 2
"""Annotators on each side, at least, where they are parted."""
VOTES_TO_PART = 2
"""Mean votes a pair from which parting the annotators leaves votes on nearly every pair of both sides."""

DEFAULT_ANNOTATORS = (
    AnnotatorSection(name="expert", skill=16.0),
    AnnotatorSection(name="careful", skill=10.0, tie_rate=0.1),
    AnnotatorSection(name="average", skill=6.0, tie_rate=0.1),
    AnnotatorSection(name="left-leaning", skill=6.0, side_bias=0.8),
    AnnotatorSection(name="hasty", skill=4.0, inconsistency=0.25),
)
"""Five simulated annotators of different skill, side bias, tie rate and inconsistency."""


def examine_model(context: RunContext, stage: Stage, draft: Draft) -> None:
    """Prove on this very model what an optimiser relies on; a model that fails is refused here."""
    results = run_doctor(context.base)
    draft.write_json("doctor.json", [asdict(result) for result in results])
    require_healthy(results)
    draft.summary["checks"] = len(results)
    draft.summary["base_fingerprint"] = context.base.fingerprint
    draft.summary["split"] = context.base.split


def find_prompt_file(workspace: Workspace, source: str) -> Path:
    """The prompt file that a setting names, relative to the project.

    Raises:
        DataError: there is no such file.
    """
    path = workspace.root / source
    if not path.is_file():
        raise DataError(
            "no such prompt file", where=str(path), mend='give a .jsonl file, "starter", "votes" or "split"'
        )
    return path


def read_prompt_file(path: Path) -> list[Prompt]:
    """Prompts of a .jsonl file, one `{"messages": [...]}`, `{"text": ...}` or `{"prompt": ...}` a line.

    Raises:
        DataError: a line is not such a prompt; it names file and line.
    """
    return parse_rows(path, _parse_prompt, what="prompt", mend='{"prompt": "..."} or {"messages": [...]}')


def _parse_prompt(row: dict[str, Any]) -> Prompt:
    """A bare string is one turn of a user."""
    given = row.get("prompt")
    if isinstance(given, str):
        return Prompt.from_user(given)
    return Prompt.from_dict(row if given is None else {"messages": given})


def choose_prompts(context: RunContext, stage: Stage, draft: Draft) -> None:
    """Training and evaluation prompts, apart: none is on both sides, none is longer than the limit."""
    section = context.config.prompts
    train = _read_prompts(context, stage, "train")
    if section.evaluation == "split":
        chosen = split_by_prompt(
            [p.id for p in train], section.evaluation_fraction, seed=stage.seed, label="evaluation"
        )
        evaluation = [p for p in train if p.id in chosen]
    else:
        evaluation = _read_prompts(context, stage, "evaluation")
    probes = [PROBES[name]() for name in section.probes]  # on top of the limits
    train_probes, evaluation_probes = ([p for both in probes for p in both[side]] for side in (0, 1))
    apart = {p.id for p in (*evaluation, *evaluation_probes)}
    train = [p for p in dict.fromkeys(train) if p.id not in apart]
    evaluation = list(dict.fromkeys(evaluation))
    kept_train, kept_evaluation = _short_enough(context, train), _short_enough(context, evaluation)
    draft.summary["left_out_too_long"] = len(train) + len(evaluation) - len(kept_train) - len(kept_evaluation)
    for name, kept, limit, added in (
        ("train", kept_train, section.limit, [p for p in train_probes if p.id not in apart]),
        ("evaluation", kept_evaluation, section.evaluation_limit, evaluation_probes),
    ):
        kept = sorted(kept, key=lambda p: derive_seed(stage.seed, name, p.id))[: limit or None]
        if not kept:
            raise DataError(f"no {name} prompts are left", where=f"prompts.{name}", mend="raise prompts.max_tokens")
        kept = list(dict.fromkeys([*kept, *added]))
        draft.write_jsonl(f"{name}.jsonl", [p.to_dict() for p in kept])
        draft.summary[name] = len(kept)


def _read_prompts(context: RunContext, stage: Stage, part: Literal["train", "evaluation"]) -> list[Prompt]:
    source: str = getattr(context.config.prompts, part)
    if source == "starter":
        return load_starter_prompts(part)
    if source == "votes":
        rows = context.parent(stage, "votes").read_jsonl("votes.jsonl")
        return list(dict.fromkeys(Prompt.from_dict(row["prompt"]) for row in rows))
    return read_prompt_file(find_prompt_file(context.workspace, source))


def _short_enough(context: RunContext, prompts: Sequence[Prompt]) -> list[Prompt]:
    limit = context.config.prompts.max_tokens
    return [p for p in prompts if len(context.base.tokens.encode_prompt(p)) <= limit]


def load_prompts(context: RunContext, stage: Stage, part: str) -> list[Prompt]:
    """The `train` or `evaluation` prompts of the stage's prompts artifact."""
    return [Prompt.from_dict(row) for row in context.parent(stage, "prompts").read_jsonl(f"{part}.jsonl")]


def simulate_annotators(context: RunContext, stage: Stage, draft: Draft) -> None:
    """Simulated annotators vote on the pairs that were chosen, or on all, through the same store as people.

    What the alarm of the round before disputed is among them; votes on anchor pairs are kept apart.
    """
    chosen = read_pairs(context, stage) if "selection" in stage.parents else None
    pairs = _list_pairs(context, stage) if chosen is None else [_read_pair(row) for row in chosen]
    pairs = put_first(read_disputed(context, stage), pairs)
    anchors = choose_anchors(context, stage)
    each = context.config.simulation.votes_per_pair
    rows = cast_votes(context, stage, pairs, stage.address, votes_per_pair=each)
    held = cast_votes(context, stage, anchors, f"{stage.address}/anchors", votes_per_pair=each)
    draft.write_jsonl("votes.jsonl", rows)
    draft.write_jsonl("anchor_votes.jsonl", held)
    if chosen is not None:
        draft.write_jsonl("arms.jsonl", list(trace_votes(rows, chosen)))
    draft.summary["votes"] = len(rows) + len(held)
    draft.summary["pairs"] = len(pairs)
    draft.summary["simulated"] = True


def cast_votes(
    context: RunContext, stage: Stage, pairs: Sequence[Pair], source: str, *, votes_per_pair: int
) -> list[dict[str, Any]]:
    """The simulated annotators' votes on `pairs`, as the store has them."""
    section = context.config.simulation
    votes = simulate_votes(
        pairs,
        find_text_reward(section.utility),
        section.annotators or DEFAULT_ANNOTATORS,
        votes_per_pair=votes_per_pair,
        seed=stage.seed,
        source=source,
    )
    context.store.add(votes)
    return [vote_to_dict(v) for v in context.store.votes(source=source)] if votes else []


def _list_pairs(context: RunContext, stage: Stage) -> list[Pair]:
    return [
        (Prompt.from_dict(row["prompt"]), a, b)
        for row in context.parent(stage, "samples").read_jsonl("samples.jsonl")
        for a, b in combinations([Completion.from_dict(c) for c in row["completions"]], 2)
        if a.id != b.id
    ]


def _read_pair(row: dict[str, Any]) -> Pair:
    return Prompt.from_dict(row["prompt"]), Completion.from_dict(row["a"]), Completion.from_dict(row["b"])


def collect_votes(context: RunContext, stage: Stage, draft: Draft) -> None:
    """A snapshot of every current vote of people in feedback.db."""
    rows = [vote_to_dict(v) for v in context.store.votes(current=True) if not v.simulated]
    draft.write_jsonl("votes.jsonl", rows)
    keep_demonstrations(context, rows, draft)
    draft.summary["votes"] = len(rows)
    draft.summary["simulated"] = False


def reach_consensus(context: RunContext, stage: Stage, draft: Draft) -> None:
    """Votes become preferences with uncertainty; agreement and each annotator's skill and side bias are reported.

    Before anything is fitted the annotators are parted: preferences of those whose votes fit the proxy, and of those
    whose votes fit the held-out judge, each by a consensus of its own. preferences.jsonl has everyone's.
    """
    votes = [
        vote_from_dict(row, stage.address)
        for name in stage.parents
        for row in context.parent(stage, name).read_jsonl("votes.jsonl")
    ]
    method, share = stage.section["consensus"], stage.section["heldout_annotators"]
    preferences, report = compute_consensus(votes, method)
    if not preferences:
        raise DataError("the votes say nothing of any pair", where="feedback.db", mend="import comparisons or rankings")
    draft.write_jsonl("preferences.jsonl", [p.to_dict() for p in preferences])
    enough = sum(p.votes for p in preferences) >= VOTES_TO_PART * len(preferences)
    judges = choose_judges([v.annotator for v in votes], share if enough else 0.0, context.config.project.seed)
    for part in ("proxy", "heldout") if judges else ():
        own = compute_consensus([v for v in votes if (v.annotator in judges) == (part == "heldout")], method)
        draft.write_jsonl(f"{part}.jsonl", [p.to_dict() for p in own.preferences])
    draft.write_json(
        "consensus.json",
        {
            "annotators": report.to_dict(),
            "agreement": compute_agreement(votes, seed=stage.seed).to_dict(),
            "judges": sorted(judges),
        },
    )
    draft.summary["preferences"] = len(preferences)
    draft.summary["votes"] = len(votes)


def choose_judges(annotators: Iterable[str], share: float, seed: int) -> set[str]:
    """The `share` of the annotators whose votes fit the judge alone, by a hash of the name; none where either side
    would have fewer than two."""
    names = set(annotators)
    judges = split_by_prompt(names, share, seed=seed, label="judges")
    return judges if min(len(judges), len(names) - len(judges)) >= SMALLEST_SIDE else set()


def load_preferences(context: RunContext, stage: Stage, part: str = "preferences") -> list[Preference]:
    """The preferences that count (weight above 0): everyone's, or those of the annotators of `proxy` or `heldout`."""
    artifact = context.parent(stage, "preferences")
    parted = (artifact.folder / f"{part}.jsonl").is_file()
    rows = artifact.read_jsonl(f"{part}.jsonl" if parted else "preferences.jsonl")
    return [p for p in (Preference.from_dict(row) for row in rows) if p.weight > 0]
