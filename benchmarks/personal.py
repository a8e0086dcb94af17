"""Personal reward on a real model: votes of known people and of new ones, predicted with it and without.

    python -m benchmarks.personal --model DIR --work FOLDER [--tastes warmth,length_words] [--json FILE]

The model answers the starter prompts; 20 simulated people vote on answers to the training prompts, a reward model is
fitted to their consensus, and their corrections on top of it. What is shown is how often votes on answers to the
evaluation prompts, which nothing was fitted on, are predicted:

- opposed: u = demo_utility + weight * taste for half of the people, demo_utility - weight * taste for the others, each
  in standard deviations; the issue asks for 10 points above the common model;
- shared: all of them have u = demo_utility + weight * taste; within 1 point of the common model;
- new people of the opposed kind, whom no fit has seen, after 5, 10 and 20 votes, chosen or at random.

Answers, features and fits are kept in FOLDER and not made again. Leaves out serving a policy by it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from accord.config.schema import AnnotatorSection, RewardModelSection
from accord.evaluation.statistics import compute_paired_difference
from accord.feedback.consensus import compute_consensus
from accord.feedback.pairs import build_pair_table
from accord.feedback.simulate import simulate_votes
from accord.feedback.splits import split_by_prompt
from accord.models import Base, LoraSettings, load_base
from accord.rewards import LearnedReward, find_text_reward
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
)
from accord.types import Completion, Preference, Prompt, Silence, Vote, derive_seed
from accord.workspace import FolderCheckpoint, read_lines, replace_lines
from benchmarks.tables import format_table, gather_rows

Pair = tuple[Prompt, Completion, Completion]
Utility = Callable[[Prompt, Completion], float]
COMMON = "demo_utility"
ASKED = (5, 10, 20)
VALIDATION = 0.1
CHUNK = 128


def main() -> None:
    """Measure, print, and add to the JSON file."""
    options = _parse()
    torch.set_num_threads(options.threads)
    base = load_base(options.model, dtype=options.dtype)
    options.work.mkdir(parents=True, exist_ok=True)
    answers = sample_answers(base, options.work / "answers.jsonl", options)
    features = describe(base, answers, options.work)
    rows = []
    for taste in options.tastes.split(","):
        for opposed in (True, False):
            for row in measure(base, answers, features, taste, opposed, options):
                print(*row.values(), sep=" | ", flush=True)
                rows.append(row)
    rows = gather_rows(options.json, rows)
    print(format_table(list(rows[0]), [list(row.values()) for row in rows]))
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tastes", default="warmth,length_words")
    parser.add_argument("--weight", type=float, default=1.5, help="of the taste, beside 1 of what is common")
    parser.add_argument("--skill", type=float, default=2.0, help="logits for a standard deviation of utility")
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--strangers", type=int, default=10)
    parser.add_argument("--votes", type=int, default=50, help="of each known person")
    parser.add_argument("--prompts", type=int, default=0, help="of each kind; 0: all starter prompts")
    parser.add_argument("--samples", type=int, default=2, help="answers to a prompt, in pairs")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=8, help="of the reward model, at most")
    parser.add_argument("--seed", type=int, default=0)
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
        seeds = [derive_seed(options.seed, "answer", i) for i in range(start, min(start + CHUNK, len(repeated)))]
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


def list_pairs(answers: Sequence[tuple[Prompt, Completion]]) -> Iterator[Pair]:
    """Neighbouring answers to one prompt, each in one pair, unless they are the same."""
    for (prompt, a), (_, b) in zip(answers[::2], answers[1::2], strict=True):
        if a.id != b.id:
            yield prompt, a, b


def build_utility(answers: Sequence[tuple[Prompt, Completion]], parts: dict[str, float]) -> Utility:
    """sum_name weight * (r(x) - mean) / deviation over `answers`, r the text reward of that name."""
    scales = {}
    for name in parts:
        values = np.array([find_text_reward(name)(*answer) for answer in answers])
        scales[name] = float(values.mean()), float(values.std())

    def utility(prompt: Prompt, completion: Completion) -> float:
        return sum(
            weight * (find_text_reward(name)(prompt, completion) - scales[name][0]) / scales[name][1]
            for name, weight in parts.items()
        )

    return utility


def cast_votes(
    pairs: Sequence[Pair], utilities: Sequence[Utility], names: Sequence[str], count: int, options: argparse.Namespace
) -> list[Vote]:
    """`count` votes of each person on pairs drawn for them, by their own utility."""
    votes = []
    for name, utility in zip(names, utilities, strict=True):
        source = np.random.default_rng(derive_seed(options.seed, "asked", name))
        drawn = source.choice(len(pairs), min(count, len(pairs)), replace=False)
        votes += simulate_votes(
            [pairs[i] for i in drawn],
            utility,
            [AnnotatorSection(name=name, skill=options.skill)],
            votes_per_pair=1,
            seed=options.seed,
            source="benchmark",
        )
    return votes


def measure(
    base: Base,
    answers: Sequence[tuple[Prompt, Completion]],
    features: NDArray[Any],
    taste: str,
    opposed: bool,
    options: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """The rows of one taste: known people, and where tastes are opposed new ones."""
    evaluation = {prompt.id for prompt in _list_prompts("evaluation", options)}
    pairs = list(list_pairs(answers))
    known = [pair for pair in pairs if pair[0].id not in evaluation]
    unseen = [pair for pair in pairs if pair[0].id in evaluation]
    sides = [1.0 if place % 2 or not opposed else -1.0 for place in range(options.people + options.strangers)]
    names = [f"person {place:02d}" for place in range(len(sides))]
    mixed = {side: build_utility(answers, {COMMON: 1.0, taste: side * options.weight}) for side in set(sides)}
    utilities = [mixed[side] for side in sides]
    people = slice(options.people)
    cast = cast_votes(known, utilities[people], names[people], options.votes, options)
    label = f"{taste}, {'opposed' if opposed else 'shared'}"
    prompts = sorted({vote.prompt.id for vote in cast})
    apart = split_by_prompt(prompts, VALIDATION, seed=options.seed, label="validation")
    scores = keep(
        options.work / f"{taste}-{'opposed' if opposed else 'shared'}-{options.votes}.npy",
        lambda: fit_common(base, answers, cast, apart, label, options),
    )
    place = {(prompt.id, answer.id): i for i, (prompt, answer) in enumerate(answers)}

    def look_up(votes: Sequence[Vote]) -> dict[str, Votes]:
        table = build_pair_table(votes)
        a, b = ([place[p.id, pair[side].id] for p, *pair in table.pairs] for side in (0, 1))
        return gather_votes(table, scores[a] - scores[b], features[a] - features[b])

    fresh = look_up([vote for vote in cast if vote.prompt.id in apart])
    fitted = fit_people(look_up(cast), list(fresh.values()))
    tests = look_up(cast_votes(unseen, utilities, names, len(unseen), options))
    yield score_known(fitted, {name: tests[name] for name in names[people]}, label, options.seed)
    if opposed:
        pool = look_up(cast_votes(known, utilities, names, len(known), options))
        strangers = names[options.people :]
        yield from score_new(fitted, {n: pool[n] for n in strangers}, {n: tests[n] for n in strangers}, label, options)


def fit_common(
    base: Base,
    answers: Sequence[tuple[Prompt, Completion]],
    votes: Sequence[Vote],
    apart: set[str],
    label: str,
    options: argparse.Namespace,
) -> NDArray[Any]:
    """Scores of all answers by a reward model fitted to the consensus of `votes`; prompts `apart` stop the fit."""
    preferences: Sequence[Preference] = compute_consensus(votes, "fraction").preferences
    folder = options.work / label.replace(", ", "-")
    folder.mkdir(exist_ok=True)
    role = "common"
    base.add_scorer(role, lora=LoraSettings(), seed=options.seed)
    train_reward_model(
        base,
        role,
        [p for p in preferences if p.prompt.id not in apart],
        [p for p in preferences if p.prompt.id in apart],
        RewardModelSection(epochs=options.epochs),
        seed=options.seed,
        progress=Silence(),
        checkpoint=FolderCheckpoint(folder),
    )
    scores = LearnedReward(base, role).score_texts([p for p, _ in answers], [c for _, c in answers])
    base.remove(role)
    return np.asarray(scores.double().cpu().numpy())


def find_right(people: People, name: str | None, votes: Votes) -> NDArray[Any]:
    """1 where the vote is the one that was more probable, 0 where not; for None by the common model."""
    return np.asarray((predict_votes(people, name, votes.margins, votes.features) > 0.5) == (votes.chosen > 0.5))


def score_known(people: People, tests: dict[str, Votes], label: str, seed: int) -> dict[str, Any]:
    """Accuracy on held-out votes of known people, and the gain with an interval over people."""
    common = [float(find_right(people, None, own).mean()) for own in tests.values()]
    personal = [float(find_right(people, name, own).mean()) for name, own in tests.items()]
    return build_row(f"{label}: known people", people, common, personal, seed)


def score_new(
    people: People, pool: dict[str, Votes], tests: dict[str, Votes], label: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Accuracy on held-out votes of new people after so many votes, chosen or at random."""
    for count in ASKED:
        for arm in ("chosen", "at random"):
            common, personal = [], []
            for name, own in pool.items():
                rows = choose_questions(people, own.margins, own.features, count)
                if arm == "at random":
                    source = np.random.default_rng(derive_seed(options.seed, "pool", name))
                    rows = source.choice(len(own.chosen), count, replace=False).tolist()
                grown = add_person(people, name, own.take(rows))
                common.append(float(find_right(grown, None, tests[name]).mean()))
                personal.append(float(find_right(grown, name, tests[name]).mean()))
            yield build_row(f"{label}: new, {count} votes {arm}", people, common, personal, options.seed)


def build_row(
    name: str, people: People, common: Sequence[float], personal: Sequence[float], seed: int
) -> dict[str, Any]:
    """A row of the table; shares in per cent, the gain in points with its 95 % interval over people."""
    gain = compute_paired_difference(np.array(personal), np.array(common), seed=seed)
    return {
        "name": name,
        "people": len(common),
        "tastes": people.axes.shape[1],
        "common %": round(100 * float(np.mean(common)), 1),
        "personal %": round(100 * float(np.mean(personal)), 1),
        "gain": f"{100 * gain.value:+.1f}",
        "interval": "-"
        if gain.low is None or gain.high is None
        else f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}",
    }


if __name__ == "__main__":
    main()
