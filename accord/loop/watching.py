"""The watch over a policy in training, and what it leaves behind for people.

Implements the alarm with the project's settings, and its record: alarms, the tokens that bought the reward, and the
answers on which proxy and judge part most, each beside the start's answer to the same prompt. Leaves out the tests
(`evaluation.alarm`), stopping (`training`) and asking about the disputed answers (`preparing`, `asking`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from accord.config import Config
from accord.evaluation import check_looks, find_suspects
from accord.looks import Alarm, Look, Watch
from accord.loop.context import RunContext
from accord.training import TrainingResult
from accord.workspace import Draft


def build_watch(cfg: Config) -> Watch | None:
    """The alarm of `[alarm]`, for as many looks as the method takes after the start."""
    if not cfg.alarm.enabled:
        return None
    updates, every = cfg.ppo.updates, cfg.ppo.evaluate_every
    planned = -(-updates // every) if cfg.policy.method == "ppo" else cfg.rejection_sampling.epochs

    def watch(looks: Sequence[Look]) -> list[Alarm]:
        return check_looks(looks, cfg.alarm, planned=planned, max_kl_nats=cfg.policy.max_kl_nats)

    return watch


def record_watch(context: RunContext, draft: Draft, result: TrainingResult) -> None:
    """Write alarm.json (alarms, suspects) and, after an alarm, disputed.jsonl."""
    base, rang = context.base, bool(result.alarms)
    suspects = find_suspects(result.looks, lambda token: base.tokens.decode([token])) if rang else []
    found = {"alarms": [a.to_dict() for a in result.alarms], "suspects": [s.to_dict() for s in suspects]}
    draft.write_json("alarm.json", found)
    draft.write_jsonl("disputed.jsonl", list_disputed(result.looks, context.config.alarm.disputed) if rang else [])
    draft.summary["alarms"] = [alarm.kind for alarm in result.alarms]


def list_disputed(looks: Sequence[Look], count: int) -> list[dict[str, Any]]:
    """The `count` prompts of the last look on which the proxy's gain since the start exceeds the judge's the most.

    Gains are compared in standard deviations of the start's scores, since the two have units of their own. A row:
    prompt, completion (now), before (the start's answer), proxy_gain and heldout_gain in these units. Prompts on which
    the answer is the start's own are left out.
    """
    if len(looks) < 2:
        return []
    start, now = looks[0], looks[-1]
    gains = {}
    for name in ("proxy", "heldout"):
        before, after = np.asarray(getattr(start, name)), np.asarray(getattr(now, name))
        gains[name] = (after - before) / (float(before.std()) or 1.0)
    order = np.argsort(gains["heldout"] - gains["proxy"], kind="stable")
    rows = [
        {
            "prompt": now.prompts[i].to_dict(),
            "completion": replace(now.completions[i], origin="alarm").to_dict(),
            "before": replace(start.completions[i], origin="start").to_dict(),
            "proxy_gain": float(gains["proxy"][i]),
            "heldout_gain": float(gains["heldout"][i]),
        }
        for i in order.tolist()
        if now.completions[i].id != start.completions[i].id
    ]
    return rows[:count]
