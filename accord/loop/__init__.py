"""The loop: prompts, samples, votes, consensus, reward models, policy, evaluation, report, and round again."""

from accord.loop.graph import Stage, build_stages
from accord.loop.reporting import build_report
from accord.loop.runner import PlannedStage, RunResult, plan, run

__all__ = ["PlannedStage", "RunResult", "Stage", "build_report", "build_stages", "plan", "run"]
