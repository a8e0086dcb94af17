"""What rounds bring: the hidden utility after each one, and what refitting the reward model is worth.

    python -m benchmarks.rounds PROJECT [--samples 6] [--json FILE]

PROJECT is a finished project with simulated annotators, for instance:

    accord init three --example demo && accord run three --set project.rounds=3 --set rounds.reference=previous

Shown, with the same seeds for every policy:

- gold: the hidden utility of the policy that stands after each round, its gain on the reference and on the policy that
  stood after round 1, on the evaluation prompts, which nobody trained on, paired by prompt, with 95 % intervals;
- accuracy: of the proxy reward model of each round, and of round 1's (as it would be without refitting), on all pairs
  of answers to one prompt of the policy that the round began with, and of the one that it made; and their difference,
  paired by prompt. Once over all pairs of which the truth prefers one, once over the clear ones. The prompts are those
  of the evaluation and all others on which no proxy was ever fitted, the judge's and the tests'.

Leaves out training: it reads what `accord run` made, samples from it and scores the samples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accord.config import Config, load_config
from accord.evaluation.statistics import average_by_group, compute_mean, compute_paired_difference
from accord.loop import Stage, build_stages
from accord.loop.context import RunContext
from accord.loop.fitting import split_prompts
from accord.loop.preparing import load_prompts
from accord.rewards import find_text_reward
from accord.types import Completion, Prompt, Silence, derive_seed
from accord.workspace import Workspace

Answers = list[tuple[Prompt, Completion]]
Values = NDArray[np.float64]
CLEAR = 0.05
"""Of the hidden utility, which is in [0, 1]: of a smaller difference the demo's annotators say little (the middle one,
14 logits a point, prefers the better answer on two votes of three), so whoever learns from votes can know little."""


def sample_standing(context: RunContext, gate: Stage | None, prompts: Sequence[Prompt], samples: int) -> Answers:
    """`samples` answers to each prompt by the policy that a gate promoted; None: by the reference. Seeds are common."""
    role = None
    if gate is not None:
        found = context.workspace.find(gate.kind, gate.key)
        if found is None:
            raise SystemExit(f"round {gate.round} is not finished: accord run {context.workspace.root}")
        role = context.load_standing("standing", found)
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    cfg = context.config.sample
    rollout = context.sampler().generate(
        role,
        repeated,
        seeds=[derive_seed(0, "rounds", i) for i in range(len(repeated))],
        max_new_tokens=cfg.max_new_tokens,
        temperature=cfg.temperature,
    )
    context.forget("standing")
    return list(zip(rollout.prompts, rollout.completions, strict=True))


def compare_gold(config: Config, answers: Sequence[Answers]) -> list[dict[str, Any]]:
    """A row a round: mean hidden utility, and its gain on the reference (answers[0]) and on round 1 (answers[1])."""
    utility = find_text_reward(config.simulation.utility)
    groups = [prompt.id for prompt, _ in answers[0]]
    means = [average_by_group([utility(*answer) for answer in found], groups) for found in answers]
    return [
        {
            "round": number,
            "gold": compute_mean(means[number], seed=0).to_dict(),
            "gain_on_reference": compute_paired_difference(means[number], means[0], seed=0).to_dict(),
            "gain_on_round_1": compute_paired_difference(means[number], means[1], seed=0).to_dict(),
        }
        for number in range(1, len(answers))
    ]


def compare_refitting(
    context: RunContext, models: Sequence[Stage], answers: Sequence[Answers], samples: int
) -> list[dict[str, Any]]:
    """A row for each round from 2 on, policy ("began": that the round began with; "made": that it made) and kind of
    pair ("all", "clear"): accuracy of the round's own reward model, of round 1's, and their difference."""
    utility = find_text_reward(context.config.simulation.utility)
    rows = []
    for model in models[1:]:
        for policy, found in (("began", answers[model.round - 1]), ("made", answers[model.round])):
            gold = np.array([utility(*answer) for answer in found])
            scores = {name: score_answers(context, stage, found) for name, stage in (("own", model), ("1", models[0]))}
            for kind, least in (("all", 0.0), ("clear", CLEAR)):
                row: dict[str, Any] = {"round": model.round, "policy": policy, "kind": kind}
                rows.append(row | compare_accuracy(gold, scores["own"], scores["1"], samples, least))
    return rows


def compare_accuracy(gold: Values, refitted: Values, first: Values, samples: int, least: float) -> dict[str, Any]:
    """Accuracy of two reward models on all pairs of the `samples` neighbouring answers to one prompt, where the truth
    differs by more than `least`. All three: (answers,).

    Pairs of one prompt are not independent: their mean is one value, and intervals resample prompts.
    """
    a, b = np.triu_indices(samples, 1)
    truth, *margins = (v.reshape(-1, samples)[:, a] - v.reshape(-1, samples)[:, b] for v in (gold, refitted, first))
    counted = np.abs(truth) > least
    prompts = counted.any(axis=1)
    hits = [np.where(counted, (np.sign(m) == np.sign(truth)) + 0.5 * (m == 0), 0.0).sum(axis=1) for m in margins]
    own, old = (hit[prompts] / counted[prompts].sum(axis=1) for hit in hits)
    return {
        "pairs": int(counted.sum()),
        "refitted": compute_mean(own, seed=0).to_dict(),
        "round_1": compute_mean(old, seed=0).to_dict(),
        "difference": compute_paired_difference(own, old, seed=0).to_dict(),
    }


def list_unseen(context: RunContext, models: Sequence[Stage]) -> list[Prompt]:
    """The training prompts that no round's proxy was fitted on or stopped by."""
    seen: set[str] = set()
    for model in models:
        train, validation, _ = split_prompts(context, model, "proxy")
        seen |= train | validation
    return [prompt for prompt in load_prompts(context, models[0], "train") if prompt.id not in seen]


def score_answers(context: RunContext, stage: Stage, answers: Answers) -> Values:
    """(answers,) scores under the reward model of `stage`."""
    found = context.workspace.find(stage.kind, stage.key)
    assert found is not None
    scores = context.load_reward("proxy", found).score_texts(*zip(*answers, strict=True))
    context.forget("proxy")
    return np.asarray(scores.double().cpu().numpy())


def main() -> None:
    """Read the arguments, measure, print one line a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--set", action="append", default=[], help="the settings that the project was run with")
    parser.add_argument("--samples", type=int, default=6, help="answers to each prompt")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    workspace, config = Workspace(arguments.project), load_config(arguments.project, arguments.set)
    stages = build_stages(workspace, config)
    context = RunContext(workspace, config, Silence())
    gates = [stage for stage in stages if stage.kind == "gate"]
    context.stand_on(gates[0])
    models = [stage for stage in stages if stage.kind == "reward_model"]
    evaluation, samples = load_prompts(context, gates[0], "evaluation"), arguments.samples
    prompts = [*evaluation, *list_unseen(context, models)]
    answers = [sample_standing(context, gate, prompts, samples) for gate in (None, *gates)]
    result = {
        "gold": compare_gold(config, [found[: len(evaluation) * samples] for found in answers]),
        "refitting": compare_refitting(context, models, answers, samples),
    }
    for part, rows in result.items():
        for row in rows:
            numbers = {name: value for name, value in row.items() if isinstance(value, dict)}
            told = (f"{k} {v['value']:.3f} ({v['low']:.3f} to {v['high']:.3f})" for k, v in numbers.items())
            print(f"{part}, {', '.join(f'{k} {v}' for k, v in row.items() if k not in numbers)}: {'; '.join(told)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
