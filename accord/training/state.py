"""All that a PPO run carries from update to update, and its place in a checkpoint.

Implements start, resume and save. Holds the counters that schedules, data order and every random draw are functions of
(`update`), beta, the history, the best policy, and the reference's hash; weights and optimisers live in their roles.
Leaves out generator states and reward moments: no draw depends on an earlier one (`types.derive_seed`), and a reward
model is normalised once, in its head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from accord.config.schema import PpoSection
from accord.looks import Alarm, Look
from accord.models import Base
from accord.models.sharding import gather_tensors, part_like
from accord.training.job import MetricRow
from accord.training.optimization import check_reference, compute_reference_hash, pack_roles, select, unpack_roles
from accord.training.selection import Best, Judge, Record, summarise_look
from accord.types import Checkpoint

BEST = "best/"
"""Prefix of the best policy's weights among a checkpoint's tensors."""


@dataclass
class PpoState:
    """update: updates done, from which follow the data cursor, the schedules and all seeds. kl_coef: beta for the next.

    history: a row an update. record: looks, alarms and the best policy so far. reference: what `compute_reference_hash`
    gave at the start. reward: what the reward source has steered itself to, {} for one that does not.
    """

    update: int
    kl_coef: float
    history: list[MetricRow]
    record: Record
    reference: str
    reward: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, base: Base, reference: str | None, judge: Judge, cfg: PpoSection) -> PpoState:
        """Before the first update: the policy as it came is judged, so that the best can be no worse than the start."""
        state = cls(0, cfg.kl_coef, [], Record(), compute_reference_hash(base, reference))
        look = judge.take_look(0, "ppo, update 0")
        state.history.append({"update": 0, **summarise_look(look)})
        state.record.add(look, judge)
        return state

    def finish_update(self, row: MetricRow, look: Look | None, judge: Judge) -> None:
        """Count the update, keep its row and its look, and keep the policy where it is the best so far."""
        self.update += 1
        self.history.append({**row, **summarise_look(look)})
        self.record.add(look, judge)

    def save(self, base: Base, optimizers: Mapping[str, torch.optim.Optimizer], checkpoint: Checkpoint) -> None:
        """Replace the run's checkpoint."""
        tensors = pack_roles(base, optimizers)
        tensors |= {BEST + name: value for name, value in gather_tensors(self.record.best.weights).items()}
        state = {
            "update": self.update,
            "kl_coef": self.kl_coef,
            "history": self.history,
            "best_update": self.record.best.update,
            "best_score": self.record.best.score,
            "looks": [look.to_dict() for look in self.record.looks],
            "alarms": [alarm.to_dict() for alarm in self.record.alarms],
            "reference": self.reference,
            "reward": self.reward,
        }
        checkpoint.save(tensors, state)

    @classmethod
    def resume(
        cls,
        base: Base,
        reference: str | None,
        optimizers: Mapping[str, torch.optim.Optimizer],
        checkpoint: Checkpoint,
    ) -> PpoState | None:
        """Put roles and optimisers back as the checkpoint has them; None where there is no checkpoint.

        optimizers: the policy's first, whose best weights the checkpoint holds too.

        Raises:
            TrainingError: the checkpoint was made on another reference.
        """
        found = checkpoint.load()
        if found is None:
            return None
        tensors, state = found
        current = compute_reference_hash(base, reference)
        check_reference(state["reference"], current, where="ppo checkpoint")
        unpack_roles(base, optimizers, tensors)
        learned = base.parameters(next(iter(optimizers)))
        weights = {name: part_like(value, learned[name]) for name, value in select(tensors, BEST).items()}
        best = Best(state["best_update"], state["best_score"], weights)
        looks = [Look.from_dict(row) for row in state["looks"]]
        record = Record(looks, [Alarm(**row) for row in state["alarms"]], best)
        return cls(state["update"], state["kl_coef"], state["history"], record, current, state["reward"])
