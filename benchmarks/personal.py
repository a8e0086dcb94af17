"""Personal reward on a real model: votes of known people and of new ones, predicted with it and without.

    python -m benchmarks.personal --model DIR --work FOLDER [--votes 40,80,160] [--seeds 3] [--common linear]

The model answers the starter prompts; 20 simulated people vote on answers to most of the prompts, a common model is
fitted to their votes, and their corrections on top of it. What is shown is how often votes on answers to the other
prompts, which nothing was fitted on, are predicted:

- opposed: u = demo_utility + weight * taste for half of the people, demo_utility - weight * taste for the others, each
  in standard deviations; the issue asks for 10 points above the common model;
- shared: all of them have u = demo_utility + weight * taste; within 1 point of the common model;
- new people of the opposed kind, whom no fit has seen, after 5, 10 and 20 votes, chosen or at random.

The common model is the loop's reward model (`--common fitted`, minutes a fit) or a logistic regression on the features
that the corrections have (`--common linear`, seconds). Seeds differ in which prompts are held out, who is asked what,
and what they vote; the answers are the same. Answers, features and fits are kept in FOLDER and not made again. Leaves
out serving a policy by it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from accord.config.schema import AnnotatorSection, RewardModelSection
from accord.feedback.consensus import compute_consensus
from accord.feedback.pairs import build_pair_table
from accord.feedback.simulate import simulate_votes
from accord.feedback.splits import split_by_prompt
from accord.models import Base, LoraSettings, load_base
from accord.models.ensemble import Ensemble
from accord.rewards import find_text_reward
from accord.rewards.personal import People
from accord.rollout import Sampler
from accord.starter import load_starter_prompts
from accord.training import train_reward_model
from accord.training.personal import (
    Votes,
    add_person,
    choose_questions,
    compute_answer_features,
    fit_people,
    gather_votes,
    predict_votes,
    weigh_features,
)
from accord.training.sequences import TokenTree, build_batch, cache_trunk, encode_tree, iterate_buckets
from accord.training.tastes import find_axes
from accord.types import Completion, Preference, Prompt, Silence, Vote, derive_seed
from accord.workspace import FolderCheckpoint, read_lines, replace_lines
from benchmarks.tables import gather_rows

Pair = tuple[Prompt, Completion, Completion]
Utility = Callable[[Prompt, Completion], float]
Row = dict[str, Any]


class Cell(NamedTuple):
    """What one fit is made of. kind: "opposed" or "shared". votes: of each known person."""

    taste: str
    kind: str
    votes: int
    seed: int


COMMON = "demo_utility"
ASKED = (5, 10, 20)
VALIDATION, UNSEEN = 0.1, 0.3
"""Shares of the prompts: of the known ones, those that stop the common fit; of all, those that only test."""
CHUNK = 128
PENALTIES = tuple(10.0**power for power in range(-3, 3))
"""1 / C of the linear common model: the one under which votes on its validation prompts are most probable is taken."""


def main() -> None:
    """Measure, print, and add to the JSON file."""
    options = _parse()
    torch.set_num_threads(options.threads)
    base = load_base(options.model, dtype=options.dtype)
    options.work.mkdir(parents=True, exist_ok=True)
    answers = sample_answers(base, options.work / "answers.jsonl", options)
    features = describe(base, answers, options.work)
    trees = [encode_tree(base, prompt, (answer,)) for prompt, answer in answers]
    if options.common == "fitted":
        trees = cache_trunk(base, trees, Silence())
    cells = product(options.tastes.split(","), options.kinds.split(","), map(int, options.votes.split(",")))
    for taste, kind, votes in cells:
        found: dict[str, list[Row]] = {}
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for row in measure(base, answers, features, trees, Cell(taste, kind, votes, seed), options):
                found.setdefault(row["name"], []).append(row)
        rows = [summarise(name, same) for name, same in found.items()]
        for row in rows:
            print(*row.values(), sep=" | ", flush=True)
        if options.json:
            options.json.write_text(json.dumps({"rows": gather_rows(options.json, rows)}, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tastes", default="warmth,length_words")
    parser.add_argument("--kinds", default="opposed,shared")
    parser.add_argument("--weight", type=float, default=1.5, help="of the taste, beside 1 of what is common")
    parser.add_argument("--skill", type=float, default=2.0, help="logits for a standard deviation of utility")
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--strangers", type=int, default=10)
    parser.add_argument("--votes", default="40,80,160", help="of each known person")
    parser.add_argument("--common", choices=("fitted", "linear"), default="fitted")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=0, help="of each kind; 0: all starter prompts")
    parser.add_argument("--samples", type=int, default=2, help="answers to a prompt: votes are on all pairs of them")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=8, help="of the reward model, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def keep(path: Path, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """What `path` holds, made first where it is not there."""
    if not path.is_file():
        np.save(path, make())
    return np.asarray(np.load(path))


def sample_answers(base: Base, path: Path, options: argparse.Namespace) -> list[tuple[Prompt, Completion]]:
    """`samples` answers to each starter prompt, the prompts' answers side by side, training prompts first.

    Each chunk is kept as soon as it is there.
    """
    prompts = [prompt for part in ("train", "evaluation") for prompt in _list_prompts(part, options)]
    repeated = [prompt for prompt in prompts for _ in range(options.samples)]
    rows = read_lines(path) if path.is_file() else []
    for start in range(len(rows), len(repeated), CHUNK):
        seeds = [derive_seed(0, "answer", i) for i in range(start, min(start + CHUNK, len(repeated)))]
        rollout = Sampler(base).generate(
            None, repeated[start : start + CHUNK], seeds=seeds, max_new_tokens=options.new_tokens, temperature=0.7
        )
        pairs = zip(rollout.prompts, rollout.completions, strict=True)
        rows += [{"prompt": prompt.to_dict(), "answer": answer.to_dict()} for prompt, answer in pairs]
        replace_lines(path, rows)
    return [(Prompt.from_dict(row["prompt"]), Completion.from_dict(row["answer"])) for row in rows]


def describe(base: Base, answers: Sequence[tuple[Prompt, Completion]], folder: Path) -> NDArray[Any]:
    """The answers' features, each chunk kept as soon as it is there."""
    found = []
    for start in range(0, len(answers), CHUNK):
        chunk = answers[start : start + CHUNK]
        found.append(keep(folder / f"features-{start}.npy", partial(compute_answer_features, base, chunk)))
    return np.concatenate(found)


def _list_prompts(part: str, options: argparse.Namespace) -> list[Prompt]:
    prompts = load_starter_prompts("train" if part == "train" else "evaluation")
    return prompts[: options.prompts or None]


def list_pairs(answers: Sequence[tuple[Prompt, Completion]], samples: int) -> Iterator[Pair]:
    """All pairs of the `samples` neighbouring answers to one prompt that are not the same."""
    for start in range(0, len(answers), samples):
        for (prompt, a), (_, b) in combinations(answers[start : start + samples], 2):
            if a.id != b.id:
                yield prompt, a, b


def grade(answers: Sequence[tuple[Prompt, Completion]], name: str) -> NDArray[Any]:
    """(answers,) the text reward `name` in standard deviations."""
    values = np.array([find_text_reward(name)(*answer) for answer in answers])
    return np.asarray((values - values.mean()) / values.std())


def build_utility(answers: Sequence[tuple[Prompt, Completion]], values: NDArray[Any]) -> Utility:
    """The utility that has these values: a table, since every vote asks for two."""
    table = {(prompt.id, answer.id): float(value) for (prompt, answer), value in zip(answers, values, strict=True)}
    return lambda prompt, completion: table[prompt.id, completion.id]


def cast_votes(
    pairs: Sequence[Pair], utilities: Sequence[Utility], names: Sequence[str], count: int, seed: int, skill: float
) -> list[Vote]:
    """`count` votes of each person on pairs drawn for them, by their own utility."""
    votes = []
    for name, utility in zip(names, utilities, strict=True):
        source = np.random.default_rng(derive_seed(seed, "asked", name))
        drawn = source.choice(len(pairs), min(count, len(pairs)), replace=False)
        votes += simulate_votes(
            [pairs[i] for i in drawn],
            utility,
            [AnnotatorSection(name=name, skill=skill)],
            votes_per_pair=1,
            seed=seed,
            source="benchmark",
        )
    return votes


def measure(
    base: Base,
    answers: Sequence[tuple[Prompt, Completion]],
    features: NDArray[Any],
    trees: Sequence[TokenTree],
    cell: Cell,
    options: argparse.Namespace,
) -> Iterator[Row]:
    """The rows of one cell: known people, and where tastes are opposed new ones."""
    pairs = list(list_pairs(answers, options.samples))
    held = split_by_prompt(sorted({prompt.id for prompt, _ in answers}), UNSEEN, seed=cell.seed, label="unseen")
    known = [pair for pair in pairs if pair[0].id not in held]
    unseen = [pair for pair in pairs if pair[0].id in held]
    opposed = cell.kind == "opposed"
    sides = [1.0 if place % 2 or not opposed else -1.0 for place in range(options.people + options.strangers)]
    names = [f"person {place:02d}" for place in range(len(sides))]
    liked, taste = grade(answers, COMMON), options.weight * grade(answers, cell.taste)
    mixed = {side: build_utility(answers, liked + side * taste) for side in set(sides)}
    utilities = [mixed[side] for side in sides]
    people = slice(options.people)
    cast = cast_votes(known, utilities[people], names[people], cell.votes, cell.seed, options.skill)
    apart = split_by_prompt(sorted({vote.prompt.id for vote in cast}), VALIDATION, seed=cell.seed, label="validation")
    place = {(prompt.id, answer.id): i for i, (prompt, answer) in enumerate(answers)}

    def look_up(votes: Sequence[Vote], scores: NDArray[Any]) -> dict[str, Votes]:
        table = build_pair_table(votes)
        a, b = ([place[p.id, pair[side].id] for p, *pair in table.pairs] for side in (0, 1))
        return gather_votes(table, scores[a] - scores[b], features[a] - features[b])

    fresh_cast = [vote for vote in cast if vote.prompt.id in apart]
    if options.common == "linear":
        unscored = np.zeros(len(answers))
        seen = look_up([vote for vote in cast if vote.prompt.id not in apart], unscored)
        scores = fit_linear(seen, look_up(fresh_cast, unscored), features)
    else:
        path = options.work / f"{'-'.join(map(str, cell))}.npy"
        scores = keep(path, lambda: fit_common(base, trees, cast, apart, path.with_suffix(""), cell.seed, options))
    heard = list(look_up(fresh_cast, scores).values())
    fitted = fit_people(look_up(cast, scores), heard, weights=weigh_features(features.shape[1]))
    tests = look_up(cast_votes(unseen, utilities, names, len(unseen), cell.seed, options.skill), scores)
    label = f"{cell.taste}, {cell.kind}, {cell.votes} votes each, {options.common}"
    yield score_known(fitted, {name: tests[name] for name in names[people]}, label)
    if opposed:
        new, theirs = names[options.people :], utilities[options.people :]
        pool = look_up(cast_votes(known, theirs, new, len(known), cell.seed, options.skill), scores)
        yield from score_new(fitted, {n: pool[n] for n in new}, {n: tests[n] for n in new}, label, cell.seed)


def fit_linear(seen: Mapping[str, Votes], fresh: Mapping[str, Votes], features: NDArray[Any]) -> NDArray[Any]:
    """Scores of all answers by a logistic regression on everybody's votes `seen`, its ridge chosen by votes `fresh`."""
    differences, chosen, unseen, theirs = (
        np.concatenate([getattr(own, part) for own in votes.values()])
        for votes in (seen, fresh)
        for part in ("features", "chosen")
    )
    axes = find_axes(differences)
    models = [
        LogisticRegression(C=1 / penalty, fit_intercept=False, max_iter=1000).fit(differences @ axes, chosen > 0.5)
        for penalty in PENALTIES
    ]
    best = max(models, key=lambda model: -log_loss(theirs > 0.5, model.predict_proba(unseen @ axes)[:, 1]))
    return np.asarray(features @ axes @ best.coef_[0])


def fit_common(
    base: Base,
    trees: Sequence[TokenTree],
    votes: Sequence[Vote],
    apart: set[str],
    folder: Path,
    seed: int,
    options: argparse.Namespace,
) -> NDArray[Any]:
    """Scores of all answers by a reward model fitted to the consensus of `votes`; prompts `apart` stop the fit."""
    preferences: Sequence[Preference] = compute_consensus(votes, "fraction").preferences
    folder.mkdir(exist_ok=True)
    role = "common"
    base.add_scorer(role, lora=LoraSettings(), seed=seed)
    train_reward_model(
        base,
        role,
        [p for p in preferences if p.prompt.id not in apart],
        [p for p in preferences if p.prompt.id in apart],
        RewardModelSection(epochs=options.epochs),
        seed=seed,
        progress=Silence(),
        checkpoint=FolderCheckpoint(folder),
    )
    scores = score_trees(base, role, trees)
    base.remove(role)
    return scores


@torch.no_grad()
def score_trees(base: Base, role: str, trees: Sequence[TokenTree]) -> NDArray[Any]:
    """Scores of answers whose trunk is there already: of every fit only its own layers are computed."""
    scores, ensemble = np.zeros(len(trees)), Ensemble(base, (role,), base.split)
    for group in iterate_buckets([len(tree) for tree in trees], 4096):
        batch = build_batch(base, [trees[i] for i in group])
        found = ensemble.compute_branch_scores(batch.input_ids, batch.branches, batch.trunk)
        scores[group] = found[0, :, 0].double().cpu().numpy()
    return scores


def find_right(people: People, name: str | None, votes: Votes) -> NDArray[Any]:
    """1 where the vote is the one that was more probable, 0 where not; for None by the common model."""
    return np.asarray((predict_votes(people, name, votes.margins, votes.features) > 0.5) == (votes.chosen > 0.5))


def score_known(people: People, tests: dict[str, Votes], label: str) -> Row:
    """Accuracy on held-out votes of known people, by the common model and by their own."""
    common = [float(find_right(people, None, own).mean()) for own in tests.values()]
    personal = [float(find_right(people, name, own).mean()) for name, own in tests.items()]
    return {"name": f"{label}: known people", "people": people, "common": common, "personal": personal}


def score_new(people: People, pool: dict[str, Votes], tests: dict[str, Votes], label: str, seed: int) -> Iterator[Row]:
    """Accuracy on held-out votes of new people after so many votes, chosen or at random."""
    for count, arm in product(ASKED, ("chosen", "at random")):
        common, personal = [], []
        for name, own in pool.items():
            rows = choose_questions(people, own.margins, own.features, count)
            if arm == "at random":
                source = np.random.default_rng(derive_seed(seed, "pool", name))
                rows = source.choice(len(own.chosen), count, replace=False).tolist()
            grown = add_person(people, name, own.take(rows))
            common.append(float(find_right(grown, None, tests[name]).mean()))
            personal.append(float(find_right(grown, name, tests[name]).mean()))
        yield {"name": f"{label}: new, {count} votes {arm}", "people": people, "common": common, "personal": personal}


def summarise(name: str, seeds: Sequence[Row]) -> Row:
    """A line of the table: means over the seeds in per cent, and the gain in points, of each seed and their mean."""
    common, personal = (100 * np.array([np.mean(row[part]) for row in seeds]) for part in ("common", "personal"))
    gains = personal - common
    return {
        "name": name,
        "tastes": " ".join(str(row["people"].axes.shape[1]) for row in seeds),
        "common %": round(float(common.mean()), 1),
        "personal %": round(float(personal.mean()), 1),
        "gain": f"{gains.mean():+.1f}",
        "of each seed": " ".join(f"{gain:+.1f}" for gain in gains),
    }


if __name__ == "__main__":
    main()
