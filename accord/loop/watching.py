"""The watch over a policy in training, and what it leaves behind for people.

Implements the alarm with the project's settings, and its record: alarms, the tokens that bought the reward, and the
answers on which proxy and judge part most, each beside the start's answer to the same prompt; and the weights of each
look, where annotators are to choose among them. Leaves out the tests (`evaluation.alarm`), stopping (`training`),
asking about looks (`challenging`) and about the disputed answers (`preparing`, `asking`), and the choice (`choosing`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from accord import distributed
from accord.config import Config
from accord.evaluation import check_looks, find_suspects
from accord.looks import Challenge, Judgement, Look, Watch, takes_lead
from accord.loop.context import RunContext, adapter_folder, look_folder
from accord.models import Base
from accord.training import TrainingResult
from accord.training.selection import summarise_look
from accord.workspace import Draft

Ask = Callable[[Sequence[Look], int], Challenge | None]
"""What annotators say of the last look beside the one after the update given; None: they are not asked."""


def build_watch(cfg: Config, ask: Ask | None = None) -> Watch | None:
    """The alarm of `[alarm]`, for as many looks as the method takes after the start; ask: annotators at each look."""
    if not cfg.alarm.enabled:
        return None

    def watch(looks: Sequence[Look], best: int) -> Judgement:
        challenge = ask(looks, best) if ask else None
        alarms = check_looks(
            looks, cfg.alarm, planned=count_looks(cfg), max_kl_nats=cfg.policy.max_kl_nats, challenge=challenge
        )
        return Judgement(alarms, None if challenge is None else takes_lead(looks, challenge))

    return watch


def count_looks(cfg: Config) -> int:
    """How many looks the method takes after the start, where nothing stops it."""
    if cfg.policy.method == "ppo":
        return -(-cfg.ppo.updates // cfg.ppo.evaluate_every)
    return cfg.rejection_sampling.epochs


def keep_looks(watch: Watch | None, base: Base, policy: str, folder: Path) -> Watch:
    """`watch` that at each look first writes the weights of `policy` to `folder`; the last of a killed run is written
    again when it goes on."""

    def keep(looks: Sequence[Look], best: int) -> Judgement:
        with TemporaryDirectory() as nowhere:  # all processes have part in it, the first one's file is kept
            own = folder if distributed.is_first() else Path(nowhere)
            base.save_role(policy, adapter_folder(look_folder(own, looks[-1].update)))
        return watch(looks, best) if watch else Judgement()

    return keep


def record_looks(folder: Path, draft: Draft, result: TrainingResult, max_kl_nats: float) -> None:
    """Take the looks that may be kept into the artifact: looks.jsonl, and the weights from `folder`.

    These are all that no alarm spoke of and whose mean KL is within the budget; the start is always among them.
    """
    rang = {alarm.update for alarm in result.alarms}
    rows = [{"update": look.update, **summarise_look(look)} for look in result.looks if look.update not in rang]
    kept = [row for row in rows if row["update"] == 0 or row["heldout_kl_nats"] <= max_kl_nats]
    draft.write_jsonl("looks.jsonl", kept)
    if distributed.is_first():
        for row in kept:
            shutil.copytree(look_folder(folder, row["update"]), look_folder(draft.folder, row["update"]))


def record_watch(
    context: RunContext, draft: Draft, result: TrainingResult, challenges: Sequence[dict[str, Any]] | None = None
) -> None:
    """Write alarm.json (alarms, suspects, and challenges, where there were any) and, after an alarm, disputed.jsonl."""
    base, rang = context.base, bool(result.alarms)
    suspects = find_suspects(result.looks, lambda token: base.tokens.decode([token])) if rang else []
    found = {"alarms": [a.to_dict() for a in result.alarms], "suspects": [s.to_dict() for s in suspects]}
    draft.write_json("alarm.json", found if challenges is None else found | {"challenges": list(challenges)})
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
