"""Stages that change the policy and judge it: supervised fine-tuning, the method of [policy], evaluation.

Implements these stages on the rooms below. Leaves out the algorithms (`training`) and the measures (`evaluation`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from accord.evaluation import evaluate_policy
from accord.loop.anchoring import load_anchor
from accord.loop.budget import choose_policy_batch, choose_sft_batch, set_batch
from accord.loop.challenging import Challenges
from accord.loop.context import RunContext, adapter_folder
from accord.loop.demonstrating import build_examples, load_demonstrations
from accord.loop.interruption import Interruptible
from accord.loop.mixing import mix_sources
from accord.loop.preparing import load_preferences, load_prompts
from accord.loop.serving import load_served
from accord.loop.watching import build_watch, keep_looks, record_looks, record_watch
from accord.rewards import EnsembleReward, as_source, find_text_reward
from accord.rewards.personal import PersonalReward
from accord.training import TRAINERS, TrainingJob, train_sft
from accord.training.ppo import add_critic
from accord.types import Prompt
from accord.workspace import Draft, FolderCheckpoint

if TYPE_CHECKING:
    from accord.loop.graph import Stage


def fine_tune(context: RunContext, stage: Stage, draft: Draft) -> None:
    """SFT on the preferred completions of the training prompts and on what people wrote in place of an answer.

    Its result is the reference of what follows.
    """
    base = context.base
    apart = {p.id for p in load_prompts(context, stage, "evaluation")}
    preferences = [p for p in load_preferences(context, stage) if p.probability != 0.5 and p.prompt.id not in apart]
    examples = [(p.prompt, p.a if p.probability > 0.5 else p.b) for p in preferences]
    written = [row for row in load_demonstrations(context, stage) if Prompt.from_dict(row["prompt"]).id not in apart]
    examples += build_examples(written)
    context.forget("policy")
    context.add_policy("policy", stage.seed)
    checkpoint = FolderCheckpoint(context.workspace.scratch_folder(stage.kind, stage.key))
    result = train_sft(
        base, "policy", examples, context.config.sft, seed=stage.seed, progress=context.progress, checkpoint=checkpoint,
        micro_batch_size=context.tell_micro_batch(choose_sft_batch(base, "policy", examples, context.config)),
    )  # fmt: skip
    base.save_merged("policy", draft.folder / "model")
    context.forget("policy")
    draft.write_jsonl("history.jsonl", result.history)
    draft.write_jsonl("demonstrations.jsonl", written)
    draft.summary.update(examples=len(examples), demonstrations=len(written))


def improve_policy(context: RunContext, stage: Stage, draft: Draft) -> None:
    """Optimise the policy against the proxy reward by the method of [policy]; the best checkpoint is what is kept.

    Where annotators are asked at each look (`challenging`), their votes are in the artifact; where they will choose
    among its looks (`choosing`), all that may be kept are.
    """
    cfg, base = context.config, context.base
    prompts = load_prompts(context, stage, "train")
    validation = prompts[: min(cfg.ppo.validation_prompts, len(prompts) // 4)]
    proxy, heldout = (load_served(context, stage, part) for part in ("proxy", "heldout"))
    context.forget("policy")
    common = proxy.common if isinstance(proxy, PersonalReward) else proxy
    ensemble = common if isinstance(common, EnsembleReward) else None
    start = context.load_standing("policy", context.parent(stage, "start")) if "start" in stage.parents else None
    if start is None:
        context.add_policy("policy", stage.seed)
    add_critic(base, "critic", cfg.ppo, lora=context.lora, seed=stage.seed, proxy="proxy")
    reference = load_anchor(context, stage)
    micro_batch_size = context.tell_micro_batch(choose_policy_batch(base, prompts, cfg))
    scratch, chosen_among = context.workspace.scratch_folder(stage.kind, stage.key), "keep_looks" in stage.section
    trained_on, task = prompts[len(validation) :], Interruptible(context.progress)
    ask = Challenges(context, stage, "policy", trained_on, scratch, task) if cfg.alarm.votes else None
    watch = build_watch(cfg, ask)
    job = TrainingJob(
        base=base,
        policy="policy",
        prompts=trained_on,
        validation_prompts=validation,
        generator=context.sampler(keep_trunk=True),
        proxy=mix_sources(cfg.reward, proxy),
        heldout=heldout,
        reference=reference,
        config=set_batch(cfg, micro_batch_size),
        seed=stage.seed,
        progress=task,
        checkpoint=FolderCheckpoint(scratch),
        watch=keep_looks(watch, base, "policy", scratch) if chosen_among or ask else watch,
        gold=as_source(find_text_reward(stage.section["gold"])) if "gold" in stage.section else None,
        disagreement=None if ensemble is None else ensemble.disagreement,
        micro_batch_size=micro_batch_size,
    )
    result = TRAINERS[cfg.policy.method](job)
    base.save_role("policy", adapter_folder(draft.folder))
    for role in reversed(base.roles()):
        context.forget(role)
    draft.write_jsonl("history.jsonl", result.history)
    record_watch(context, draft, result, ask.record(draft, result.looks) if ask else None)
    if chosen_among:
        record_looks(scratch, draft, result, cfg.policy.max_kl_nats)
    draft.summary.update(
        base_fingerprint=base.fingerprint,
        method=cfg.policy.method,
        best_update=result.best_update,
        stopped=result.stopped,
    )


def evaluate(context: RunContext, stage: Stage, draft: Draft) -> None:
    """Policy against reference and best-of-n, on prompts nobody trained on, with the same seeds."""
    cfg, base = context.config, context.base
    gold = find_text_reward(cfg.simulation.utility) if cfg.feedback.source == "simulated" else None
    proxy, heldout = (load_served(context, stage, part) for part in ("proxy", "heldout"))
    role = context.load_policy("policy", context.parent(stage, "policy").folder)
    result = evaluate_policy(
        base,
        context.sampler(),
        role,
        load_prompts(context, stage, "evaluation"),
        proxy=proxy,
        heldout=heldout,
        gold=gold,
        toxicity=find_text_reward(cfg.evaluation.toxicity),
        cfg=cfg.evaluation,
        sample=cfg.sample,
        seed=stage.seed,
        progress=context.progress,
    )
    for name in ("policy", "proxy", "heldout"):
        context.forget(name)
    draft.write_json("evaluation.json", result.to_dict())
    draft.write_jsonl("completions.jsonl", result.rows)
