"""Objectives: what is minimised, one file each. Tensors and floats in, a NamedTuple of loss and metrics out.

`ppo.objective` and `reward_model.objective` in accord.toml name an entry of the two dictionaries below. To add one: a
file here, a line below, a section in docs/objectives.md, a test in tests/losses. Knows nothing of settings or models.
"""

from accord.losses.bradley_terry import compute_bradley_terry_loss
from accord.losses.metrics import combine_metrics
from accord.losses.policy import PolicyLoss, PolicyObjective, compute_log_ratio, compute_ratio_metrics
from accord.losses.ppo import compute_ppo_clip_loss
from accord.losses.preference import PreferenceLoss, PreferenceObjective, compute_margin_metrics, weighted_mean
from accord.losses.reinforce import compute_reinforce_loss
from accord.losses.sft import SftLoss, compute_sft_loss
from accord.losses.value import ValueLoss, compute_value_loss

POLICY_OBJECTIVES: dict[str, PolicyObjective] = {
    "ppo_clip": compute_ppo_clip_loss,
    "reinforce": compute_reinforce_loss,
}

PREFERENCE_OBJECTIVES: dict[str, PreferenceObjective] = {
    "bradley_terry": compute_bradley_terry_loss,
}

__all__ = [
    "POLICY_OBJECTIVES",
    "PREFERENCE_OBJECTIVES",
    "PolicyLoss",
    "PolicyObjective",
    "PreferenceLoss",
    "PreferenceObjective",
    "SftLoss",
    "ValueLoss",
    "combine_metrics",
    "compute_bradley_terry_loss",
    "compute_log_ratio",
    "compute_margin_metrics",
    "compute_ppo_clip_loss",
    "compute_ratio_metrics",
    "compute_reinforce_loss",
    "compute_sft_loss",
    "compute_value_loss",
    "weighted_mean",
]
