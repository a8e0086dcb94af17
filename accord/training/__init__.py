"""Training: one flat loop per file. `TRAINERS` names the methods that improve a policy.

To add a method: write `accord/training/NAME.py` with a function TrainingJob -> TrainingResult, add a line to
`TRAINERS`, a page under docs/ and a test. It is then chosen by `[policy] method = "NAME"`.
"""

from collections.abc import Callable

from accord.training.job import MetricRow, TrainingJob, TrainingResult
from accord.training.ppo import run_ppo, train_ppo
from accord.training.rejection_sampling import run_rejection_sampling
from accord.training.reward_model import (
    RewardModelResult,
    encode_pairs,
    fits_in,
    normalize_reward_model,
    score_preferences,
    train_reward_model,
)
from accord.training.sft import SftResult, train_sft

TRAINERS: dict[str, Callable[[TrainingJob], TrainingResult]] = {
    "ppo": run_ppo,
    "rejection_sampling": run_rejection_sampling,
}

__all__ = [
    "TRAINERS",
    "MetricRow",
    "RewardModelResult",
    "SftResult",
    "TrainingJob",
    "TrainingResult",
    "encode_pairs",
    "fits_in",
    "normalize_reward_model",
    "run_ppo",
    "run_rejection_sampling",
    "score_preferences",
    "train_ppo",
    "train_reward_model",
    "train_sft",
]
