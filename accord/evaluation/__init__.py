"""What is measured, and the report: intervals, the reward model's card, policy against reference, one HTML page."""

from accord.evaluation.alarm import check_looks
from accord.evaluation.comparison import summarise_rows
from accord.evaluation.diversity import compute_diversity
from accord.evaluation.gate import GateDecision, decide
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
from accord.evaluation.suspects import Suspect, find_suspects

__all__ = [
    "Estimate",
    "GateDecision",
    "PolicyEvaluation",
    "Suspect",
    "check_looks",
    "compute_diversity",
    "compute_mean",
    "compute_paired_difference",
    "compute_proportion",
    "compute_reward_card",
    "compute_win_rate",
    "decide",
    "evaluate_policy",
    "find_suspects",
    "render_report",
    "summarise_report",
    "summarise_rows",
]
