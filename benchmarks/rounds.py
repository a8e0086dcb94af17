"""What rounds bring: the hidden utility after each one, and what refitting the reward model is worth.

    python -m benchmarks.rounds PROJECT [--samples 2] [--json FILE]

PROJECT is a finished project with simulated annotators, for instance:

    accord init three --example demo && accord run three --set project.rounds=3 --set rounds.reference=previous

Shown, all on the evaluation prompts, which nobody trained on, with the same seeds for every policy:

- gold: the hidden utility of the policy that stands after each round, its gain on the reference and on the policy that
  stood after round 1, paired by prompt, with 95 % intervals;
- accuracy: of the proxy reward model of each round, and of round 1's (as it would be without refitting), on pairs of
  answers of the policy that the round began with, where the truth prefers one; and their difference, paired by pair.

Leaves out training: it reads what `accord run` made, samples from it and scores the samples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accord.config import Config, load_config
from accord.evaluation.statistics import average_by_group, compute_mean, compute_paired_difference
from accord.loop import Stage, build_stages
from accord.loop.context import RunContext
from accord.loop.preparing import load_prompts
from accord.rewards import find_text_reward
from accord.types import Completion, Prompt, Silence, derive_seed
from accord.workspace import Workspace

Answers = list[tuple[Prompt, Completion]]


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


def compare_refitting(context: RunContext, models: Sequence[Stage], answers: Sequence[Answers]) -> list[dict[str, Any]]:
    """A row a round from 2 on: accuracy of its own and of round 1's reward model on pairs of answers[round - 1]."""
    utility = find_text_reward(context.config.simulation.utility)
    rows = []
    for model in models[1:]:
        current = answers[model.round - 1]
        pairs = [(current[i], current[i + 1]) for i in range(0, len(current) - 1, 2)]
        truth = np.array([utility(*a) - utility(*b) for a, b in pairs])
        right = {}
        for name, stage in (("refitted", model), ("round_1", models[0])):
            margins = score_pairs(context, stage, pairs)
            right[name] = ((np.sign(margins) == np.sign(truth)) + 0.5 * (margins == 0))[truth != 0]
        row: dict[str, Any] = {"round": model.round, "pairs": int((truth != 0).sum())}
        row |= {name: compute_mean(hits, seed=0).to_dict() for name, hits in right.items()}
        row["difference"] = compute_paired_difference(right["refitted"], right["round_1"], seed=0).to_dict()
        rows.append(row)
    return rows


def score_pairs(context: RunContext, stage: Stage, pairs: Sequence[tuple[Any, Any]]) -> np.ndarray[Any, Any]:
    """Score of the first answer less that of the second, under the reward model of `stage`."""
    found = context.workspace.find(stage.kind, stage.key)
    assert found is not None
    reward = context.load_reward("proxy", found)
    sides = [reward.score_texts(*zip(*side, strict=True)) for side in zip(*pairs, strict=True)]
    context.forget("proxy")
    return (sides[0] - sides[1]).cpu().numpy()


def main() -> None:
    """Read the arguments, measure, print one line a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--set", action="append", default=[], help="the settings that the project was run with")
    parser.add_argument("--samples", type=int, default=2, help="answers to each prompt, an even number")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    workspace, config = Workspace(arguments.project), load_config(arguments.project, arguments.set)
    stages = build_stages(workspace, config)
    context = RunContext(workspace, config, Silence())
    gates = [stage for stage in stages if stage.kind == "gate"]
    context.stand_on(gates[0])
    prompts = load_prompts(context, gates[0], "evaluation")
    answers = [sample_standing(context, gate, prompts, arguments.samples) for gate in (None, *gates)]
    models = [stage for stage in stages if stage.kind == "reward_model"]
    result = {"gold": compare_gold(config, answers), "refitting": compare_refitting(context, models, answers)}
    for part, rows in result.items():
        for row in rows:
            told = (
                f"{k} {v['value']:.3f} ({v['low']:.3f} to {v['high']:.3f})"
                for k, v in row.items()
                if isinstance(v, dict)
            )
            print(f"{part}, round {row['round']}: " + "; ".join(told))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
