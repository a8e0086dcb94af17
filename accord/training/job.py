"""What every policy trainer is given and what it returns, so that a new method is one file and one line.

Leaves out how a method works: each has its own file, and `training.TRAINERS` names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accord.config import Config
from accord.looks import Alarm, Look, Watch
from accord.models import Base
from accord.types import Checkpoint, Generator, Progress, Prompt, RewardSource

MetricRow = dict[str, Any]
"""One row of a history: metric names (docs/ppo.md, 'Metrics') to plain numbers. No clocks: artifacts hold the rows."""


@dataclass(frozen=True)
class TrainingJob:
    """The inputs of a policy trainer. The roles `policy` and `critic` exist on `base`; `policy` is changed in place.

    prompts train; validation_prompts, disjoint from them, choose the best checkpoint. proxy is what is optimised;
    heldout, fitted on other votes, only judges (None: the proxy judges). reference: the role that the policy must stay
    near, None for the base with no adapter. checkpoint keeps a killed run's state. A method without a critic leaves
    that role alone. watch: asked after every held-out evaluation whether an alarm rings; gold and disagreement are
    recorded beside the scores and never used. micro_batch_size: sequences in a forward pass of a method that fine-tunes
    (that of PPO is a setting).
    """

    base: Base
    config: Config
    prompts: Sequence[Prompt]
    validation_prompts: Sequence[Prompt]
    generator: Generator
    proxy: RewardSource
    heldout: RewardSource | None
    reference: str | None
    seed: int
    progress: Progress
    checkpoint: Checkpoint
    policy: str = "policy"
    critic: str = "critic"
    watch: Watch | None = None
    gold: RewardSource | None = None
    disagreement: RewardSource | None = None
    micro_batch_size: int = 8


@dataclass(frozen=True)
class TrainingResult:
    """What a policy trainer returns; the policy's role holds the best weights.

    history: one `MetricRow` an update, the first (update 0) from before any. best_update: the update whose weights the
    policy now holds; 0 where nothing beat the start. stopped: why it ended before its last update, or None. looks:
    every held-out evaluation; alarms: what rang.
    """

    history: list[MetricRow]
    best_update: int
    stopped: str | None = None
    looks: Sequence[Look] = ()
    alarms: Sequence[Alarm] = ()
