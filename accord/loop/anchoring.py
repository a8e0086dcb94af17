"""The anchor that a round's KL is measured from: the base, the policy promoted last, or a moving average of those.

Implements the stage that moves the average, and loading whichever anchor a stage names. Leaves out when which is used
(`graph`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from accord.loop.context import RunContext, adapter_folder
from accord.workspace import Draft

if TYPE_CHECKING:
    from accord.loop.graph import Stage


def move_anchor(context: RunContext, stage: Stage, draft: Draft) -> None:
    """anchor <- d anchor + (1 - d) promoted, weight by weight, d = `rounds.ema_decay`; the first anchor is the base.

    Of adapters the factors A and B are averaged, not their product: policies of one project descend from each other, so
    their factors lie close together. Nothing is written where both are the base itself.
    """
    promoted = context.load_standing("promoted", context.parent(stage, "promoted"))
    older = context.load_standing("older", context.parent(stage, "older")) if "older" in stage.parents else None
    if promoted is None and older is not None:
        promoted, older, share = older, None, 1 - stage.section["ema_decay"]
    else:
        share = stage.section["ema_decay"]
    if promoted is not None:
        context.base.load_state(promoted, _average(context, promoted, older, share, stage.seed))
        context.base.save_role(promoted, adapter_folder(draft.folder))
    for role in ("promoted", "older"):
        context.forget(role)
    draft.summary["is_base"] = promoted is None


def load_anchor(context: RunContext, stage: Stage) -> str | None:
    """The role that the stage's KL is measured from; None for the base."""
    if "anchor" not in stage.parents:
        return None
    return context.load_standing("anchor", context.parent(stage, "anchor"))


def _average(context: RunContext, role: str, older: str | None, share: float, seed: int) -> dict[str, Tensor]:
    """share * older + (1 - share) * role; the base, as `older` None, is an adapter whose B is 0."""
    base, state = context.base, context.base.state(role)
    if older is None and context.policy_lora is not None:
        return {name: (1 - share) * value if ".lora_B." in name else value for name, value in state.items()}
    if older is None:
        older = "older"
        context.add_policy(older, seed)
    before = base.state(older)
    return {name: share * before[name] + (1 - share) * value for name, value in state.items()}
