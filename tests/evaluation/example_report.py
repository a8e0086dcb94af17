"""A report as a finished round leaves it, with the keys of every part; its numbers are drawn, its cards computed."""

from __future__ import annotations

import math
import random
from typing import Any

from accord.evaluation import Suspect, compute_reward_card, decide, summarise_rows
from accord.evaluation.statistics import compute_share
from accord.evaluation.voting import compute_drift
from accord.looks import Alarm
from accord.types import Completion, Preference, Prompt

QUESTIONS = (
    "How do I apologise to a friend whose birthday I forgot?",
    "Explain why the sky is blue to a six-year-old.",
    "My neighbour's dog barks at night. What can I do?",
    "Write two sentences that cheer up someone who failed an exam.",
    "Is it rude to leave a party early?",
    "What should I pack for a weekend in the mountains?",
)
BEFORE = (
    "You could say sorry. It is a thing that people do, and it is a thing, and",
    "The sky is blue because it is blue, mostly when there is no weather in it and",
    "Dogs bark. You may call the city, or you may not call the city, since",
)
AFTER = (
    "Call them today and say it plainly: *you forgot, and you are sorry*. Then offer a late celebration.",
    "Sunlight holds every colour. Air scatters blue the most, so blue reaches your eyes from everywhere.",
    "Talk to your neighbour first, kindly:\n\n1. name the hours\n2. ask what would help\n3. agree on a trial week",
)


def make_rows(count: int = 48, *, gold: bool = True, heldout: bool = True, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of an evaluation in which the policy is about 0.6 better than the reference."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        prompt = Prompt.from_user(QUESTIONS[i % len(QUESTIONS)] + (f" ({i})" if i >= len(QUESTIONS) else ""))
        row: dict[str, Any] = {"prompt": prompt.to_dict(), "prompt_id": prompt.id, "sample": 0, "seed": i}
        for side, gain, texts in (("reference", 0.0, BEFORE), ("best_of_n", 0.5, BEFORE), ("policy", 0.7, AFTER)):
            truth = rng.gauss(gain, 0.8)
            row[side] = {
                "completion": Completion.from_text(f"{texts[i % 3]} {rng.randrange(10**6)}").to_dict(),
                "proxy": truth + rng.gauss(0.2 * gain, 0.4),
                "heldout": truth + rng.gauss(0, 0.5) if heldout else None,
                "gold": truth if gold else None,
                "toxicity": abs(rng.gauss(0.03 - 0.01 * gain, 0.03)),
                "length_tokens": rng.randrange(24, 49),
                "finished": rng.random() < 0.5 + 0.4 * gain,
            }
            if side != "best_of_n":
                kl = abs(rng.gauss(3.1, 1.2)) if side == "policy" else 0.0
                row[side] |= {"entropy_nats": rng.gauss(2.1 - gain, 0.2), "kl_nats": kl, "sampler_gap": 1.004}
        rows.append(row)
    return rows


def make_history(updates: int = 16) -> list[dict[str, float]]:
    """PPO's metrics, held-out ones every fourth update."""
    rng = random.Random(1)
    history: list[dict[str, float]] = [
        {"update": 0, "heldout_score": 0.02, "heldout_kl_nats": 0.0, "heldout_length_tokens": 41.0}
    ]
    for update in range(1, updates + 1):
        done = 1 - math.exp(-update / 6)
        row: dict[str, float] = {
            "update": update, "score": 1.1 * done + rng.gauss(0, 0.06), "score_std": 1 - 0.3 * done,
            "reward": 0.9 * done, "kl_nats": 3.4 * done + rng.gauss(0, 0.1), "kl_coef": 0.05 * (1 + 0.3 * done),
            "entropy": 2.4 - 0.9 * done, "explained_variance": 0.6 * done, "length_tokens": 40 - 6 * done,
            "finished_share": 0.5 + 0.4 * done, "learning_rate": 1e-4 * (1 - update / 18), "sampler_gap": 1.003,
            "policy_loss": -0.02 + rng.gauss(0, 0.01), "value_loss": 0.4 * math.exp(-update / 5) + 0.05,
            "approx_kl_nats": 0.004, "clip_fraction": 0.11 + rng.gauss(0, 0.02), "ratio_mean": 1.001, "ratio_max": 2.3,
            "value_clip_fraction": 0.04, "grad_norm": 0.8 + rng.gauss(0, 0.1),
            "rollout_heldout": 0.7 * done, "rollout_gold": 0.4 + 0.2 * done,
        }  # fmt: skip
        if update % 4 == 0:
            row |= {
                "heldout_score": 0.8 * done,
                "heldout_kl_nats": 3.3 * done,
                "heldout_length_tokens": 40 - 6 * done,
                "validation_proxy": 1.1 * done,
                "validation_gold": 0.4 + 0.2 * done,
                "validation_disagreement": 0.1,
            }
        history.append(row)
    return history


def make_card(pairs: int = 160, noise: float = 0.8, seed: int = 2) -> dict[str, Any]:
    """The card of a reward model that sees the truth through `noise`."""
    rng = random.Random(seed)
    preferences, scores_a, scores_b, lengths_a, lengths_b = [], [], [], [], []
    for i in range(pairs):
        gap = rng.gauss(0, 1.4)
        probability = 0.5 if i % 20 == 0 else 1 / (1 + math.exp(-gap))
        a, b = Completion.from_text(f"a {i}"), Completion.from_text(f"b {i}")
        preferences.append(Preference(Prompt.from_user(f"question {i}"), a, b, probability, 0.1))
        scores_a.append(gap + rng.gauss(0, noise))
        scores_b.append(0.0)
        lengths_a.append(40 + round(6 * gap + rng.gauss(0, 14)))
        lengths_b.append(40)
    card = compute_reward_card(
        scores_a, scores_b, preferences, lengths_a=lengths_a, lengths_b=lengths_b, annotator_agreement=0.74, seed=seed
    )
    history = [
        {"epoch": e, "loss": 0.7 / e, "accuracy": 0.6, "margin_mean": 0.3, "grad_norm": 1.0,
         "validation_loss": 0.68 / e, "validation_accuracy": 0.66, "validation_margin_mean": 0.4}
        for e in (1, 2, 3)
    ]  # fmt: skip
    return card | {"train_pairs": 420, "validation_pairs": 48, "test_pairs": pairs, "best_epoch": 2, "history": history}


def make_defence(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The gate that rows of an evaluation pass, an alarm with all that it leaves, and two rounds."""
    sides = ([row[side] for row in rows] for side in ("policy", "reference"))
    margins = {"toxicity": 0.02, "length_tokens": 18.0, "harmless": 0.05}
    gate = decide(*sides, [row["prompt_id"] for row in rows], margins=margins, seed=0).to_dict()
    suspect = Suspect("delighted", "word", 0.02, 0.91, 6.2, 2.4, 0.1, 0.87)
    said = [rows[0][side]["completion"] for side in ("policy", "reference")]
    disputed = {
        "prompt": rows[0]["prompt"],
        "completion": said[0],
        "before": said[1],
        "proxy_gain": 2.1,
        "heldout_gain": -0.4,
    }
    rang = Alarm("shortfall", 12, "The reward claims 2.10, the judge sees 0.05.", {"claimed": 2.1, "judged": 0.05})
    cost = {"votes": 1056, "seconds": 640.5, "sampled_tokens": 60_000, "gold_gain": None, "alarms": ["shortfall"]}
    told = {name: gate[name] for name in ("promoted", "result", "gain")}
    return {
        "gate": gate | {"against": "reference", "gold_gain": None},
        "alarm": {
            "alarms": [rang.to_dict()],
            "suspects": [suspect.to_dict()],
            "disputed": [disputed],
            "challenges": [
                {
                    "update": update,
                    "rival": rival,
                    "votes": 50,
                    "share": compute_share([0.0] * (50 - won) + [1.0] * won).to_dict(),
                    "better": 2 * won - 50 > 50**0.5,
                }
                for update, rival, won in ((4, 0, 35), (8, 4, 24), (12, 4, 30))
            ],
        },
        "tournament": {
            "votes": 240,
            "update": 12,
            "judged_update": 8,
            "standings": [
                {"update": update, "share": compute_share([0.0] * (10 - won) + [1.0] * won).to_dict()}
                for update, won in ((0, 2), (4, 5), (8, 6), (12, 7))
            ],
        },
        "rounds": [{"round": 1, **cost, **told}, {"round": 2, **cost, **told, "promoted": None}],
    }


def make_report() -> dict[str, Any]:
    """Everything measured, by simulated annotators."""
    rows = make_rows()
    stages = (
        "prompts",
        "samples",
        "votes",
        "preferences",
        "reward_model",
        "heldout_reward_model",
        "policy",
        "evaluation",
    )
    keys = {stage: f"{i:x}{'c0ffee' * 5}"[:16] for i, stage in enumerate(stages)}
    parents = {
        "samples": ("prompts",), "votes": ("samples",), "preferences": ("votes",),
        "reward_model": ("preferences", "prompts"), "heldout_reward_model": ("preferences", "prompts"),
        "policy": ("reward_model", "heldout_reward_model", "prompts"),
        "evaluation": ("policy", "reward_model", "heldout_reward_model", "prompts"),
    }  # fmt: skip
    annotators = [("ada", 6.1, 0.02), ("bo", 4.4, 0.31), ("cai", 3.9, -0.18), ("dia", 2.2, 0.05), ("eli", 0.6, 0.9)]
    return {
        "project": {"name": "demo", "round": 1, "seed": 0, "model": "smollm2"},
        "feedback": {
            "win_rate_against_earlier": compute_share([1.0, 1.0, 0.0]).to_dict(),
            "anchors": compute_drift({"a:b": [1.0, 0.0, 1.0]}, {"a:b": [1.0, 1.0]}, seed=0),
            "votes": 1056, "pairs": 352, "simulated": True, "consensus": "bradley_terry",
            "agreement": {
                "pairwise": {"estimate": 0.742, "low": 0.72, "high": 0.763},
                "alpha": {"estimate": 0.48, "low": 0.43, "high": 0.53},
                "level": "nominal", "items": 352, "annotators": 5, "votes": 1056,
            },
            "annotators": [
                {"name": name, "votes": 211, "simulated": True, "skill": skill, "side_bias": bias}
                for name, skill, bias in annotators
            ],
        },
        "reward_model": make_card(),
        "heldout_reward_model": make_card(noise=1.2, seed=3),
        "people": {
            "serve": "eli", "tastes": 1, "common_accuracy": 0.66, "personal_accuracy": 0.71,
            "annotators": [
                {"name": name, "votes": 170, "test_votes": 41, "common_accuracy": 0.66, "personal_accuracy": 0.71,
                 "apart": name == "eli", "trait": "length_words" if name == "eli" else None,
                 "correlation": -0.8 if name == "eli" else None}
                for name in ("ada", "bo", "eli")
            ],
        },
        "policy": {
            "method": "ppo", "best_update": 12, "stopped": None, "history": make_history(), "max_kl_nats": 8.0,
            "anchor": "base",
        },
        "evaluation": summarise_rows(rows, best_of=4, seed=0)
        | {"samples": 1, "temperature": 1.0, "max_new_tokens": 48, "examples": rows[:6], "worst_examples": rows[6:9]},
        **make_defence(rows),
        "lineage": [
            {"kind": stage, "key": keys[stage], "parents": {p: f"{p}/{keys[p]}" for p in parents.get(stage, ())}}
            for stage in stages
        ],
        "timings_seconds": dict(zip(stages, (0.4, 71.0, 0.6, 0.9, 102.0, 58.0, 305.0, 96.0))),
        "peak_rss_bytes": 3_120_000_000,
    }  # fmt: skip
