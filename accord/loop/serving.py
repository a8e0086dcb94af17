"""Stages that learn where annotators differ, on top of both reward models; and whose reward a policy is optimised for.

Implements gathering each annotator's votes with the common margins, the accuracy with and without a correction on votes
that nothing was fitted on, and the score source that `reward.serve` names. Leaves out the fit (`training.personal`) and
the scores (`rewards.personal`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from accord.config import Config
from accord.feedback.pairs import PairTable, build_pair_table
from accord.feedback.people import People as Accounts
from accord.feedback.records import vote_from_dict
from accord.feedback.store import VoteStore
from accord.loop.context import RunContext
from accord.loop.fitting import split_prompts
from accord.loop.preparing import DEFAULT_ANNOTATORS
from accord.rewards import EnsembleReward, LearnedReward, find_text_reward
from accord.rewards.personal import GROUPS, People, PersonalReward, require_served
from accord.training.personal import (
    Votes,
    compute_answer_features,
    fit_people,
    gather_votes,
    is_apart,
    predict_votes,
    scale_scores,
    weigh_features,
)
from accord.types import Completion, Prompt, Vote
from accord.workspace import Draft, Workspace

if TYPE_CHECKING:
    from accord.loop.graph import Stage

Answer = tuple[Prompt, Completion]
TRAITS = ("length_words", "sentiment", "finished", "plain_words", "no_repetition", "on_topic", "toxicity")
"""Text rewards that a correction is held against, to say in words what somebody likes more than others do."""


def fit_proxy_people(context: RunContext, stage: Stage, draft: Draft) -> None:
    """Where annotators differ from the proxy."""
    _fit(context, stage, draft, "proxy")


def fit_heldout_people(context: RunContext, stage: Stage, draft: Draft) -> None:
    """Where annotators differ from the held-out judge, by their votes on its own prompts."""
    _fit(context, stage, draft, "heldout")


def load_served(context: RunContext, stage: Stage, part: str) -> LearnedReward | EnsembleReward | PersonalReward:
    """The reward model `part` of the stage, as whom `reward.serve` names sees it."""
    common = context.load_reward(part, context.parent(stage, part))
    if f"{part}_people" not in stage.parents:
        return common
    people = People.load(context.parent(stage, f"{part}_people").folder)
    return PersonalReward(context.base, common, people, context.config.reward.serve)


def check_served(workspace: Workspace, config: Config) -> None:
    """Refuse before any work to serve somebody whom nobody has heard of.

    Known are the simulated annotators, or whoever has voted or has an account. With neither votes nor accounts nothing
    can be said yet, and the stage that fits the people says it.

    Raises:
        ConfigError: the name is unknown; the nearest known one is given.
    """
    if config.reward.serve in GROUPS:
        return
    if config.feedback.source == "simulated":
        names = [annotator.name for annotator in config.simulation.annotators or DEFAULT_ANNOTATORS]
    else:
        store = VoteStore(workspace.locate_votes(config.project.database))
        voted = (vote.annotator for vote in store.votes() if not vote.simulated)
        names = list(dict.fromkeys([*voted, *(account.name for account in Accounts(store.database).list())]))
    if names:
        require_served(config.reward.serve, names, "reward.serve")


def _fit(context: RunContext, stage: Stage, draft: Draft, part: str) -> None:
    """Corrections by votes on the part's own prompts, judged by votes on the test prompts; all annotators' in both."""
    train, validation, test = split_prompts(context, stage, part)
    votes = _load_votes(context, stage)
    own, fresh, unseen = (
        build_pair_table(vote for vote in votes if vote.prompt.id in ids)
        for ids in (train | validation, validation, test)
    )
    answers = list(dict.fromkeys(a for table in (own, unseen) for a in _list_answers(table)))
    context.progress.begin(f"where people differ from the {part}", len(answers), "answers")
    reward = context.load_reward(part, context.parent(stage, part))
    scores = reward.score_texts([prompt for prompt, _ in answers], [answer for _, answer in answers])
    context.forget(part)
    features = compute_answer_features(context.base, answers)
    context.progress.advance(len(answers))
    place = {answer: i for i, answer in enumerate(answers)}
    common = scores.double().cpu().numpy()
    known, heard, tests = (_gather(table, place, common, features) for table in (own, fresh, unseen))
    fitted = fit_people(known, list(heard.values()), weights=weigh_features(features.shape[1]))
    people = scale_scores(fitted, common, features)
    if part == "proxy":  # who has votes on no prompt of the judge's is judged as everybody
        require_served(context.config.reward.serve, people.shifts, "reward.serve")
    people.save(draft.folder)
    card = describe_people(people, known, tests, find_likes(people, answers, features))
    draft.write_json("people.json", card)
    apart = sum(row["apart"] for row in card["annotators"])
    draft.summary.update(tastes=card["tastes"], people=len(people.shifts), apart=apart)


def _load_votes(context: RunContext, stage: Stage) -> list[Vote]:
    """All votes behind the stage's preferences."""
    found = []
    for address in context.parent(stage, "preferences").manifest["parents"].values():
        kind, _, key = address.partition("/")
        artifact = context.workspace.find(kind, key)
        rows = artifact.read_jsonl("votes.jsonl") if artifact else []
        found += [vote_from_dict(row, address) for row in rows]
    return found


def _list_answers(table: PairTable) -> list[Answer]:
    return [(prompt, answer) for prompt, a, b in table.pairs for answer in (a, b)]


def _gather(
    table: PairTable, place: dict[Answer, int], scores: NDArray[np.float64], features: NDArray[np.float64]
) -> dict[str, Votes]:
    if not table.pairs:
        return {}
    a, b = ([place[prompt, sides[i]] for prompt, *sides in table.pairs] for i in (0, 1))
    return gather_votes(table, scores[a] - scores[b], features[a] - features[b])


def describe_people(
    people: People, known: dict[str, Votes], tests: dict[str, Votes], likes: dict[str, tuple[str, float]]
) -> dict[str, Any]:
    """people.json: for each annotator votes fitted on, and the share of test votes that each model predicts.

    Ties are no test votes. apart: differs from the common model beyond chance (`training.personal.is_apart`).
    """
    rows = []
    for name in people.shifts:
        own = tests.get(name)
        decided = None if own is None else own.take(own.chosen != 0.5)
        trait, correlation = likes.get(name, (None, None))
        rows.append(
            {
                "name": name,
                "votes": len(known[name].chosen),
                "test_votes": 0 if decided is None else len(decided.chosen),
                "common_accuracy": _measure(people, None, decided),
                "personal_accuracy": _measure(people, name, decided),
                "apart": is_apart(people, name),
                "trait": trait,
                "correlation": correlation,
            }
        )
    averages = {key: _average(rows, key) for key in ("common_accuracy", "personal_accuracy")}
    return {"tastes": people.axes.shape[1], **averages, "annotators": rows}


def _measure(people: People, name: str | None, votes: Votes | None) -> float | None:
    if votes is None or not len(votes.chosen):
        return None
    predicted = predict_votes(people, name, votes.margins, votes.features) > 0.5
    return float((predicted == (votes.chosen > 0.5)).mean())


def _average(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """Over all test votes."""
    total = sum(row["test_votes"] for row in rows)
    right = float(sum(row[key] * row["test_votes"] for row in rows if row["test_votes"]))
    return right / total if total else None


def find_likes(
    people: People, answers: Sequence[Answer], features: NDArray[np.float64]
) -> dict[str, tuple[str, float]]:
    """For each person apart the trait of `TRAITS` that goes most with their correction, with the correlation."""
    apart = [name for name in people.shifts if is_apart(people, name)]
    if not apart:
        return {}
    traits = {name: np.array([find_text_reward(name)(*answer) for answer in answers]) for name in TRAITS}
    places = features @ people.axes.double().numpy()
    found = {}
    for name in apart:
        correction = places @ people.shifts[name].double().numpy()
        strengths = {
            t: float(np.corrcoef(correction, values)[0, 1]) for t, values in traits.items() if values.std() > 0
        }
        if strengths:
            trait = max(strengths, key=lambda t: abs(strengths[t]))
            found[name] = trait, strengths[trait]
    return found
