"""The PPO loop on tiny models: it learns, its identities hold, it resumes bit for bit, and it keeps the best policy."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from accord.config.schema import AlarmSection, PpoSection, SampleSection
from accord.errors import TrainingError
from accord.evaluation import check_looks
from accord.looks import Judgement, Look
from accord.models import Base, LoraSettings
from accord.rewards import LearnedReward
from accord.rollout import Sampler
from accord.training import TrainingResult, experience, train_ppo
from accord.training.experience import sample_rollout, take_prompts
from accord.training.ppo import add_critic
from accord.types import Prompt, RewardSource, Rollout
from tests.training.fakes import CollectingProgress, Killed, MemoryCheckpoint, build_digit_base

PROMPTS = [Prompt(text=t) for t in ("0", "12", "301", "2203", "11", "30", "213", "0321")]
VALIDATION = [Prompt(text=t) for t in ("3", "02", "131", "3110")]
SMALL = PpoSection(
    updates=3, prompts_per_update=8, epochs=2, minibatches=2, micro_batch_size=2, learning_rate=3e-3,
    critic_learning_rate=3e-3, evaluate_every=2, checkpoint_every=1,
)  # fmt: skip
LORA = LoraSettings(4, 8)


def count_threes(rollout: Rollout) -> torch.Tensor:
    """The share of 3s among the sampled digits: a reward that a policy can learn without finishing."""
    hits = (rollout.completion_ids == 3) & rollout.completion_mask
    return hits.sum(1).float() / rollout.completion_mask.sum(1)


def count_others(rollout: Rollout) -> torch.Tensor:
    """The opposite: a judge to whom every update is a step back."""
    return 1.0 - count_threes(rollout)


def build(split: int = 1, lora: LoraSettings | None = LORA, seed: int = 0) -> Base:
    base = build_digit_base(4, eos=True, split=0 if lora is None else split, seed=seed)
    base.add_policy("policy", lora=lora, seed=1)
    base.add_scorer("critic", lora=LORA, seed=2)
    return base


def train(base: Base, cfg: PpoSection = SMALL, **changes: Any) -> TrainingResult:
    options: dict[str, Any] = {
        "sample": SampleSection(max_new_tokens=6), "max_kl_nats": 50.0, "seed": 7, "progress": CollectingProgress(),
        "checkpoint": MemoryCheckpoint(), "validation_prompts": VALIDATION,
    }  # fmt: skip
    reward = changes.pop("reward", count_threes)
    generator = changes.pop("generator", Sampler(base, batch_size=8))
    return train_ppo(base, PROMPTS, generator, reward, cfg, **{**options, **changes})


@pytest.mark.parametrize(("split", "lora"), [(0, LORA), (1, LORA), (0, None)], ids=["unsplit", "split", "full"])
def test_it_learns_a_toy(split: int, lora: LoraSettings | None) -> None:
    cfg = SMALL.model_copy(
        update={"updates": 12, "prompts_per_update": 32, "micro_batch_size": 16, "kl_coef": 0.01, "learning_rate": 1e-2}
    )
    progress = CollectingProgress()
    result = train(build(split, lora), cfg, progress=progress)
    rows = result.history
    assert rows[-1]["score"] > rows[1]["score"] + 0.3
    assert rows[-1]["heldout_score"] > rows[0]["heldout_score"] + 0.3
    assert result.best_update > 0
    assert result.stopped is None
    assert [row["update"] for row in rows] == list(range(13))
    assert not any("seconds" in name for row in rows for name in row), "a history has no clock"
    assert any("optimise_seconds" in row for row in progress.rows)


def test_at_learning_rate_zero_nothing_moves() -> None:
    base = build()
    before = base.state("policy")
    result = train(base, SMALL.model_copy(update={"learning_rate": 0.0, "critic_learning_rate": 0.0}))
    for row in result.history[1:]:
        assert abs(row["kl_nats"]) < 1e-4
        assert abs(row["approx_kl_nats"]) < 1e-6
        assert row["ratio_max"] == pytest.approx(1.0, abs=1e-4)
        assert row["clip_fraction"] == 0.0
        assert row["sampler_gap"] == pytest.approx(1.0, abs=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in base.state("policy").items())


def test_the_first_pass_is_reinforce() -> None:
    """One step: ratio 1, nothing clipped, and the weights go where the plain policy gradient takes them."""
    one_step = SMALL.model_copy(update={"updates": 1, "epochs": 1, "minibatches": 1})
    states = {}
    for objective in ("ppo_clip", "reinforce"):
        base = build()
        row = train(base, one_step.model_copy(update={"objective": objective}), validation_prompts=()).history[-1]
        assert row["ratio_max"] == pytest.approx(1.0, abs=1e-4)
        assert row["clip_fraction"] == 0.0
        assert abs(row["approx_kl_nats"]) < 1e-6
        states[objective] = base.state("policy")
    for name, value in states["ppo_clip"].items():
        torch.testing.assert_close(value, states["reinforce"][name], atol=2e-5, rtol=1e-4)


def test_micro_batches_change_nothing() -> None:
    results, weights = [], []
    for size in (1, 3, 8):
        base = build()
        cfg = SMALL.model_copy(update={"updates": 1, "epochs": 1, "micro_batch_size": size, "ent_coef": 1.0})
        results.append(train(base, cfg).history[-1])
        weights.append(base.state("critic"))
    for other, state in zip(results[1:], weights[1:]):
        assert other == pytest.approx(results[0], rel=1e-3, abs=1e-5)
        for name, value in state.items():
            torch.testing.assert_close(value, weights[0][name], atol=2e-4, rtol=1e-3)


def test_a_head_that_learns_alone_is_the_whole_critic_with_its_adapter_held_still() -> None:
    ends = {}
    for what in ("head", "adapter"):
        base = build()
        start = {n: torch.linspace(-1, 1, v.numel()).view(v.shape) for n, v in base.state("critic").items()}
        base.load_state("critic", start)
        if what == "adapter":
            for name, parameter in base.parameters("critic").items():
                if not name.startswith("head."):
                    parameter.register_hook(torch.zeros_like)
        train(base, SMALL.model_copy(update={"critic": what}))
        ends[what] = base.state("policy"), base.state("critic")
        moved = {name for name, value in base.state("critic").items() if not torch.equal(value, start[name])}
        assert moved == {"head.weight", "head.bias"}
    for alone, held in zip(ends["head"], ends["adapter"]):
        for name, value in alone.items():
            torch.testing.assert_close(value, held[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("split", [0, 1])
def test_a_critic_on_the_reward_models_states_spares_the_scores_a_pass(split: int) -> None:
    """Once as a copy of the reward model whose head alone learns, once as a head on it: as near as floats are."""
    ends = {}
    for kind in ("copy", "head"):
        base = build(split)
        base.remove("critic")
        base.add_scorer("proxy", lora=LORA, seed=3)
        start = {n: torch.linspace(-0.3, 0.3, v.numel()).view(v.shape) for n, v in base.state("proxy").items()}
        base.load_state("proxy", start)
        if kind == "head":
            add_critic(base, "critic", SMALL, lora=LORA, seed=2, proxy="proxy")
        else:
            base.add_scorer("critic", lora=LORA, seed=2, init_from="proxy")
        scored = count_passes(base, "proxy", "compute_scores")
        rows = train(base, reward=LearnedReward(base, "proxy"), validation_prompts=()).history
        ends[kind] = base.state("policy"), base.state("critic"), rows, len(scored)
        assert all(torch.equal(value, start[name]) for name, value in base.state("proxy").items())
    for name, value in ends["copy"][0].items():
        torch.testing.assert_close(ends["head"][0][name], value, atol=2e-5, rtol=1e-4)
    for name, value in ends["head"][1].items():
        torch.testing.assert_close(value, ends["copy"][1][name], atol=2e-5, rtol=1e-4)
    for one, other in zip(ends["head"][2][1:], ends["copy"][2][1:], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["explained_variance"] == pytest.approx(other["explained_variance"], abs=1e-4)
    assert ends["copy"][3] == SMALL.updates
    assert ends["head"][3] == 0, "the scores are read off the critic's pass"


def test_a_head_on_another_role_cannot_learn_whole() -> None:
    base = build()
    base.remove("critic")
    base.add_scorer("proxy", lora=LORA, seed=3)
    add_critic(base, "critic", SMALL, lora=LORA, seed=2, proxy="proxy")
    with pytest.raises(TrainingError, match="asks for one that learns whole"):
        train(base, SMALL.model_copy(update={"critic": "adapter"}))


def test_the_samplers_logprobs_spare_a_pass_and_change_nothing_in_float32() -> None:
    ends = {}
    for source in ("trainer", "sampler"):
        base = build()
        passes = count_passes(base, "policy")
        rows = train(base, SMALL.model_copy(update={"old_logprobs": source}), validation_prompts=()).history[1:]
        ends[source] = base.state("policy"), rows, passes
    for name, value in ends["sampler"][0].items():
        torch.testing.assert_close(value, ends["trainer"][0][name], atol=2e-5, rtol=1e-4)
    micro_batches = 4  # of 2 sequences each
    assert len(ends["trainer"][2]) - len(ends["sampler"][2]) == SMALL.updates * micro_batches
    assert all(row["sampler_gap"] == pytest.approx(1.0, abs=1e-4) for row in ends["sampler"][1])
    differences = [a["entropy"] - b["entropy"] for a, b in zip(ends["sampler"][1], ends["trainer"][1])]
    assert all(0 < abs(d) < 0.5 for d in differences), "an estimate from samples beside the entropy itself"


@pytest.mark.parametrize("critic", ["adapter", "head"])
@pytest.mark.parametrize("split", [0, 1])
def test_values_taken_while_sampling_spare_the_critics_pass_and_change_nothing(
    split: int, critic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[Sequence[str | None]] = []
    compute = experience.compute_states_of

    def count(base: Base, roles: Sequence[str | None], batch: Any) -> list[torch.Tensor]:
        together.append(roles)
        return compute(base, roles, batch)

    monkeypatch.setattr(experience, "compute_states_of", count)
    ends = {}
    for source in ("pass", "sampler"):
        base = build(split)
        together.clear()
        cfg = SMALL.model_copy(update={"values": source, "critic": critic})
        rows = train(base, cfg, validation_prompts=()).history[1:]
        assert {"critic" in roles for roles in together} == {source == "pass"}
        ends[source] = base.state("policy"), base.state("critic"), rows
    for one, other in zip(ends["sampler"][:2], ends["pass"][:2], strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], atol=2e-5, rtol=1e-4)
    for one, other in zip(ends["sampler"][2], ends["pass"][2], strict=True):
        assert one["explained_variance"] == pytest.approx(other["explained_variance"], abs=1e-4)


def test_a_sampler_of_another_policy_is_caught_where_its_logprobs_are_trusted() -> None:
    base = build()
    sampler = Sampler(base, batch_size=8)

    def warm(role: str | None, prompts: Any, **options: Any) -> Rollout:
        return sampler.generate(role, prompts, **{**options, "temperature": 2.0})

    generator = SimpleNamespace(generate=warm)
    cfg = SMALL.model_copy(update={"old_logprobs": "sampler"})
    with pytest.raises(TrainingError, match="ratio is not 1 before any update"):
        train(base, cfg, generator=generator, validation_prompts=())


def count_passes(base: Base, role: str, name: str = "compute_logprobs") -> list[str]:
    """A list that grows by one with every call of the method `name` for `role`; by default log-probabilities."""
    passes: list[str] = []
    compute = getattr(base, name)

    def count(asked: str | None, *args: Any, **kwargs: Any) -> Any:
        if asked == role:
            passes.append(role)
        return compute(asked, *args, **kwargs)

    setattr(base, name, count)
    return passes


@pytest.mark.parametrize("heldout", [count_threes, count_others], ids=["a later best", "the start is best"])
def test_a_killed_run_ends_with_the_same_bits(heldout: RewardSource) -> None:
    base = build()
    whole = train(base, heldout=heldout)
    assert (whole.best_update == 0) == (heldout is count_others)
    for kill in range(1, SMALL.updates + 1):
        checkpoint = MemoryCheckpoint(kill_after_saves=kill)
        with pytest.raises(Killed):
            train(build(), checkpoint=checkpoint, heldout=heldout)
        again = build()
        resumed = train(again, checkpoint=checkpoint, heldout=heldout)
        assert resumed == whole
        for role in ("policy", "critic"):
            wanted = base.state(role)
            assert all(torch.equal(value, wanted[name]) for name, value in again.state(role).items())


def test_another_reference_is_refused_on_resume() -> None:
    checkpoint = MemoryCheckpoint(kill_after_saves=1)
    with pytest.raises(Killed):
        train(build(), checkpoint=checkpoint)
    with pytest.raises(TrainingError, match="reference's hash"):
        train(build(seed=5), checkpoint=checkpoint)


def test_the_best_policy_is_kept() -> None:
    """The judge likes the policy after update 2 of 3, whatever it does: those weights come back, not the last.

    It is asked at the start, and in each update about the rollout, which chooses nothing, and then about the look.
    """
    base = build()
    calls = []

    def judge(rollout: Rollout) -> torch.Tensor:
        calls.append(base.state("policy"))
        return torch.full((len(rollout),), {4: 9.0, 5: 5.0}.get(len(calls), 0.0))

    cfg = SMALL.model_copy(update={"evaluate_every": 1})
    result = train(base, cfg, heldout=judge)
    assert result.best_update == 2
    assert all(torch.equal(value, calls[4][name]) for name, value in base.state("policy").items())
    assert any(not torch.equal(value, calls[6][name]) for name, value in base.state("policy").items())


def test_a_policy_beyond_the_budget_is_never_the_best() -> None:
    base = build()
    before = base.state("policy")
    scores = iter((0.0, 1.0, 1.0))  # the start, the rollout, the look
    result = train(
        base,
        SMALL.model_copy(update={"updates": 1, "learning_rate": 2e-2}),
        heldout=lambda rollout: torch.full((len(rollout),), next(scores)),
        validation_prompts=PROMPTS * 4,
        max_kl_nats=0.01,
    )
    assert result.history[1]["heldout_kl_nats"] > 0.01
    assert result.best_update == 0
    assert all(torch.equal(value, before[name]) for name, value in base.state("policy").items())


def test_where_annotators_are_asked_they_say_which_checkpoint_is_best() -> None:
    """The judge likes each look less than the last; annotators prefer updates 1 and 2 to the best before, but not 3 to
    2. They hear each time which one that is."""
    base, heard, seen = build(), list[tuple[int, int]](), list[dict[str, torch.Tensor]]()

    def watch(looks: Sequence[Look], best: int) -> Judgement:
        heard.append((looks[-1].update, best))
        seen.append(base.state("policy"))
        return Judgement(better={1: True, 2: True, 3: False}.get(looks[-1].update))

    cfg, falling = SMALL.model_copy(update={"evaluate_every": 1}), iter(range(100, 0, -1))
    result = train(
        base,
        cfg,
        heldout=lambda rollout: torch.full((len(rollout),), float(next(falling))),
        max_kl_nats=100.0,
        watch=watch,
    )
    assert heard == [(0, 0), (1, 0), (2, 1), (3, 2)]
    assert result.best_update == 2
    assert all(torch.equal(value, seen[2][name]) for name, value in base.state("policy").items())


@pytest.mark.parametrize("budgets", [0.5, 1.5])
def test_how_far_it_may_go_is_the_watchs_word_alone(budgets: float) -> None:
    """A run ends at the first look beyond `alarm.kl_budgets`, in peace, and not before."""
    cfg = SMALL.model_copy(
        update={"updates": 20, "kl_controller": "fixed", "kl_coef": 0.0, "learning_rate": 5e-3, "evaluate_every": 1}
    )
    alarm = AlarmSection(kl_budgets=budgets)

    def watch(looks: Sequence[Look], _: int) -> Judgement:
        found = check_looks(looks, alarm, planned=20, max_kl_nats=0.25)
        return Judgement([each for each in found if each.kind == "kl"])

    result = train(build(), cfg, max_kl_nats=0.25, watch=watch, validation_prompts=2 * VALIDATION)
    means = [float(np.mean(look.kl_nats)) for look in result.looks]
    assert result.stopped is not None
    assert means[-1] > budgets * 0.25 >= max(means[:-1])
    assert len(result.history) == len(means) < 21


def test_the_adaptive_controller_steers_beta_by_the_kl_of_a_sequence() -> None:
    """Ziegler et al.: at KL 0 and beyond the clip, beta shrinks by 0.2 n / horizon an update; fixed stays."""
    cfg = SMALL.model_copy(update={"updates": 2, "learning_rate": 0.0, "kl_horizon": 100, "kl_coef": 0.1})
    adaptive = train(build(), cfg).history
    assert adaptive[2]["kl_coef"] == pytest.approx(0.1 * (1 - 0.2 * 8 / 100))
    fixed = train(build(), cfg.model_copy(update={"kl_controller": "fixed"})).history
    assert [row["kl_coef"] for row in fixed[1:]] == [0.1, 0.1]


def test_kl_is_measured_from_the_given_reference() -> None:
    """With another policy as the reference (as after SFT), its own copy starts at KL 0, and the bare base would not."""
    base = build()
    train(base)
    base.add_policy("reference", lora=LORA, seed=1)
    base.load_state("reference", base.state("policy"))
    still = SMALL.model_copy(update={"updates": 1, "learning_rate": 0.0, "critic_learning_rate": 0.0})
    assert abs(train(base, still, reference="reference").history[-1]["kl_nats"]) < 1e-4
    assert train(base, still).history[-1]["kl_nats"] > 0.05


def test_the_reward_is_the_score_less_penalty_and_kl() -> None:
    """Summed over tokens, on the first rollout (KL 0): the mean score less the penalty of the unfinished."""
    once = SMALL.model_copy(update={"updates": 1, "missing_eos_penalty": 0.5})
    row = train(build(), once, sample=SampleSection(max_new_tokens=3)).history[-1]
    assert 0.0 < row["finished_share"] < 0.5
    assert row["reward"] == pytest.approx(row["score"] - 0.5 * (1.0 - row["finished_share"]), abs=1e-5)


def test_prompts_come_once_a_pass_in_an_order_of_its_own() -> None:
    stream = take_prompts(PROMPTS, 0, 24, seed=3)
    for start in (0, 8, 16):
        assert {p.id for p in stream[start : start + 8]} == {p.id for p in PROMPTS}
    assert stream[:8] != stream[8:16]
    assert take_prompts(PROMPTS, 5, 9, seed=3) == stream[5:14], "the cursor is one number"


def test_no_two_sequences_of_a_run_share_their_random_numbers() -> None:
    base = build()
    sample = SampleSection(max_new_tokens=6)
    texts = []
    for update in (1, 2):
        rollout = sample_rollout(Sampler(base), "policy", PROMPTS[:1], SMALL, sample, update=update, seed=0)
        texts.append([c.text for c in rollout.completions])
    assert len(set(texts[0])) > 4, "one prompt, many answers"
    assert texts[0] != texts[1]
