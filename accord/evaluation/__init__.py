"""What is measured, and the report: intervals, the reward model's card, policy against reference, one HTML page."""

from accord.evaluation.comparison import summarise_rows
from accord.evaluation.diversity import compute_diversity
from accord.evaluation.policy import PolicyEvaluation, evaluate_policy
from accord.evaluation.report import render_report
from accord.evaluation.reward_card import compute_reward_card
from accord.evaluation.statistics import (
    Estimate,
    compute_mean,
    compute_paired_difference,
    compute_proportion,
    compute_win_rate,
)
from accord.evaluation.summary import summarise_report

__all__ = [
    "Estimate",
    "PolicyEvaluation",
    "compute_diversity",
    "compute_mean",
    "compute_paired_difference",
    "compute_proportion",
    "compute_reward_card",
    "compute_win_rate",
    "evaluate_policy",
    "render_report",
    "summarise_report",
    "summarise_rows",
]
