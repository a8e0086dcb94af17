"""Proximal policy optimisation of a language model against a reward, near a reference.

Implements InstructGPT's PPO (Ouyang et al. 2022, after Ziegler et al. 2019 and Schulman et al. 2017) on one base: the
policy, the critic and the reference share its frozen layers, which are computed once a rollout. The loop below is the
algorithm; the equations are in `accord/functional` and `accord/losses`, the passes over the model in `experience`.
Leaves out pretraining gradients (PPO-ptx) and running moments of the reward: a reward model is normalised once, in its
head (`reward_model.normalize_reward_model`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from accord.config.schema import PpoSection, SampleSection
from accord.distributed import gather_metrics
from accord.functional import (
    compute_explained_variance,
    compute_gae,
    compute_linear,
    compute_sequence_kl,
    masked_mean,
    masked_whiten,
    shape_rewards,
    update_kl_coef,
)
from accord.looks import Watch
from accord.losses import POLICY_OBJECTIVES, combine_metrics, compute_log_ratio, compute_value_loss
from accord.models import Base, LoraSettings
from accord.rewards import name_parts, resume_source, score_in_parts, steer_source
from accord.training import checks
from accord.training.experience import (
    choose_entropy,
    compute_experience,
    compute_token_logprobs,
    compute_token_values,
    iterate_micro_batches,
    iterate_minibatches,
    sample_rollout,
)
from accord.training.job import MetricRow, TrainingJob, TrainingResult
from accord.training.optimization import build_optimizer, merge_means, take_step
from accord.training.selection import Judge
from accord.training.state import PpoState
from accord.training.stopwatch import Stopwatch
from accord.types import Checkpoint, Generator, Progress, Prompt, RewardSource, derive_seed


def train_ppo(
    base: Base,
    prompts: Sequence[Prompt],
    generator: Generator,
    reward: RewardSource,
    cfg: PpoSection,
    *,
    sample: SampleSection,
    max_kl_nats: float,
    seed: int,
    progress: Progress,
    checkpoint: Checkpoint,
    policy: str = "policy",
    critic: str = "critic",
    reference: str | None = None,
    heldout: RewardSource | None = None,
    validation_prompts: Sequence[Prompt] = (),
    watch: Watch | None = None,
    gold: RewardSource | None = None,
    disagreement: RewardSource | None = None,
) -> TrainingResult:
    """Improve `policy` in place by `cfg.updates` rollouts; afterwards it holds the best weights (see `selection.Best`).

    Per update, with y ~ pi_old(. | x) at the sampling temperature:
    r_t = -beta (log pi_old - log pi_ref)_t + [t = T] (r_phi(x, y) - penalty [no EOS]); GAE; advantages whitened over
    the rollout; then `epochs` x `minibatches` steps on L = L_clip + vf_coef L_value - ent_coef H.
    Micro-batches change nothing: means are over the tokens of the whole minibatch. docs/ppo.md explains each metric.

    Raises:
        TrainingError: a check of `training.checks` failed, the critic is not what `cfg.critic` asks for (`add_critic`
            makes one that is), or the checkpoint was made on another reference.
    """
    checks.check_tokens(base.tokens)
    checks.check_critic(base, critic, cfg)
    objective = POLICY_OBJECTIVES[cfg.objective]
    judge = Judge(
        base, policy, reference, generator, heldout or reward, reward, validation_prompts, sample, max_kl_nats, seed,
        gold=gold, disagreement=disagreement, watch=watch,
    )  # fmt: skip
    optimizers = {
        policy: build_optimizer(base, policy, cfg.learning_rate),
        critic: build_optimizer(base, critic, cfg.critic_learning_rate, head_only=cfg.critic == "head"),
    }
    state = PpoState.resume(base, reference, optimizers, checkpoint) or PpoState.start(base, reference, judge, cfg)
    resume_source(reward, state.reward)
    progress.begin("ppo", cfg.updates, "updates")
    progress.advance(state.update)
    clock = Stopwatch()
    while state.update < cfg.updates and not state.record.stopped:
        update, where = state.update + 1, f"ppo, update {state.update + 1}"

        # y ~ pi_old(. | x); the frozen trunk once, then log pi_old, log pi_ref and V on top of it.
        rollout = sample_rollout(generator, policy, prompts, cfg, sample, update=update, seed=seed, critic=critic)
        checks.check_rollout(rollout, base.tokens)
        clock.lap("sample")
        old = compute_experience(
            base, rollout, policy=policy, critic=critic, reference=reference,
            temperature=sample.temperature, micro_batch_size=cfg.micro_batch_size,
            trust_sampler=cfg.old_logprobs == "sampler", keep_critic_states=cfg.critic == "head",
        )  # fmt: skip
        rollout, mask = old.rollout, rollout.completion_mask
        kl = compute_sequence_kl(old.logprobs, old.ref_logprobs, mask)
        gap = checks.compute_sampler_gap(rollout.logprobs, old.logprobs, mask)
        checks.check_sampler_gap(gap, base.dtype, where=where)
        checks.check_kl(kl, budget_nats=max_kl_nats, where=where)
        clock.lap("experience")

        # r_phi(x, y), KL shaping, advantages.
        scores, parts_of_scores = score_in_parts(reward, rollout, old.trunk)
        checks.check_finite({"score": scores, "value": old.values}, where=where)
        settled = scores - cfg.missing_eos_penalty * (~rollout.finished).float()
        rewards = shape_rewards(settled, old.logprobs, old.ref_logprobs, mask, state.kl_coef)
        raw_advantages, returns = compute_gae(rewards, old.values, mask, cfg.gamma, cfg.gae_lambda)
        advantages = masked_whiten(raw_advantages, mask)
        clock.lap("score")

        steps: list[dict[str, float]] = []
        factor = compute_linear(state.update, cfg.updates)
        rates = [factor * cfg.learning_rate, factor * cfg.critic_learning_rate]
        for epoch in range(cfg.epochs):
            shuffle = derive_seed(seed, "minibatch", update, epoch)
            for rows in iterate_minibatches(len(rollout), cfg.minibatches, shuffle):
                tokens = int(mask[rows].sum())
                parts = []
                for batch in iterate_micro_batches(rollout, old.trunk, rows, cfg.micro_batch_size):
                    # The roles have no weight in common, so one's graph is gone before the other's is built.
                    logprobs, entropy = compute_token_logprobs(
                        base, policy, batch, sample.temperature, entropy=choose_entropy(cfg)
                    )
                    old_logprobs = batch.take(old.logprobs)
                    if not steps:
                        log_ratio = compute_log_ratio(logprobs, old_logprobs, batch.mask)
                        checks.check_first_pass(log_ratio, batch.mask, base.dtype, where=where)
                        if cfg.old_logprobs == "sampler":
                            gap = checks.compute_sampler_gap(old_logprobs, logprobs.detach(), batch.mask)
                            checks.check_sampler_gap(gap, base.dtype, where=where)
                    policy_loss = objective(
                        logprobs, old_logprobs, batch.take(advantages), batch.mask,
                        clip_range=cfg.clip_range, denominator=tokens,
                    )  # fmt: skip
                    bonus = cfg.ent_coef * masked_mean(entropy, batch.mask, tokens) if cfg.ent_coef else 0.0
                    torch.autograd.backward(policy_loss.loss - bonus)
                    value_loss = compute_value_loss(
                        compute_token_values(base, critic, batch, old.critic_states), batch.take(old.values),
                        batch.take(returns), batch.mask, clip_range=cfg.value_clip_range, denominator=tokens,
                    )  # fmt: skip
                    torch.autograd.backward(cfg.vf_coef * value_loss.loss)
                    losses = {"policy_loss": policy_loss.loss.detach(), "value_loss": value_loss.loss.detach()}
                    parts.append(losses | policy_loss.metrics | value_loss.metrics)
                step = combine_metrics(gather_metrics(parts))
                step["grad_norm"] = take_step(list(optimizers.values()), rates, max_grad_norm=cfg.max_grad_norm)
                checks.check_finite(step, where=where)
                steps.append(step)
        clock.lap("optimise")

        kl_nats = float(kl.mean())
        row: MetricRow = {
            "update": update,
            "score": float(scores.mean()),
            "score_std": float(scores.std(correction=0)),
            "reward": float(rewards.sum(1).mean()),
            "kl_nats": kl_nats,
            "kl_coef": state.kl_coef,
            "entropy": float(masked_mean(old.entropy, mask)),
            "explained_variance": compute_explained_variance(old.values, returns, mask),
            "length_tokens": float(mask.sum(1).float().mean()),
            "finished_share": float(rollout.finished.float().mean()),
            "learning_rate": rates[0],
            "sampler_gap": gap,
            **merge_means(steps),
            **judge.observe(rollout, old.trunk),
            **name_parts(parts_of_scores, state.reward),
        }
        state.reward = steer_source(reward, parts_of_scores)
        if cfg.kl_controller == "adaptive":
            state.kl_coef = update_kl_coef(state.kl_coef, kl_nats, cfg.kl_target_nats, len(rollout), cfg.kl_horizon)
        due = update % cfg.evaluate_every == 0 or update == cfg.updates
        look = judge.take_look(update, where) if due else None
        state.finish_update(row, look, judge)
        clock.lap("evaluate")
        checks.check_history(state.history, cfg.updates)
        if update % cfg.checkpoint_every == 0:
            state.save(base, optimizers, checkpoint)
        clock.lap("checkpoint")
        progress.advance()
        progress.log({**state.history[-1], **clock.read(), **checks.find_warnings(row)})
    best = state.record.best
    best.restore(base, policy)
    best_update = best.update if best.weights else state.update
    return TrainingResult(state.history, best_update, state.record.stopped, state.record.looks, state.record.alarms)


def add_critic(base: Base, critic: str, cfg: PpoSection, *, lora: LoraSettings, seed: int, proxy: str) -> None:
    """Add the critic that `cfg.critic` asks for, which starts as the reward model `proxy`.

    "head": a head on the states of `proxy`, so that one pass gives values and scores. "adapter": a copy of it, which
    learns whole.

    Raises:
        ModelError: as `Base.add_head` and `Base.add_scorer`.
    """
    if cfg.critic == "head":
        base.add_head(critic, on=proxy)
    else:
        base.add_scorer(critic, lora=lora, seed=seed, init_from=proxy)


def run_ppo(job: TrainingJob) -> TrainingResult:
    """PPO under the common signature of `training.TRAINERS`."""
    return train_ppo(
        job.base,
        job.prompts,
        job.generator,
        job.proxy,
        job.config.ppo,
        sample=job.config.sample,
        max_kl_nats=job.config.policy.max_kl_nats,
        seed=job.seed,
        progress=job.progress,
        checkpoint=job.checkpoint,
        policy=job.policy,
        critic=job.critic,
        reference=job.reference,
        heldout=job.heldout,
        validation_prompts=job.validation_prompts,
        watch=job.watch,
        gold=job.gold,
        disagreement=job.disagreement,
    )
