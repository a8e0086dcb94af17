"""The ensemble's fit: what the bootstrap weighs, what members learn, and that a kill changes nothing."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from accord.config.schema import RewardModelSection
from accord.models import Base, LoraSettings
from accord.models.ensemble import Ensemble, add_ensemble
from accord.rewards import EnsembleReward
from accord.rewards.combine import COMBINATIONS, compute_disagreement
from accord.rollout import Sampler
from accord.training import RewardModelResult, normalize_reward_model, reward_model, train_reward_model
from accord.training.reward_model import draw_bootstrap, encode_pairs, score_preferences_by_member
from accord.types import Completion, Preference, Prompt
from tests.training.fakes import CollectingProgress, Killed, MemoryCheckpoint, build_digit_base

SETTINGS = RewardModelSection(epochs=2, learning_rate=5e-3, batch_size=16, micro_batch_size=16, max_tokens=32)


def build(members: int = 3) -> tuple[Base, Ensemble]:
    base = build_digit_base(4, eos=True, split=1, layers=3)
    return base, add_ensemble(base, "reward", members, own_layers=1, lora=LoraSettings(8, 16), seed=0)


def draw_pairs(count: int, seed: int) -> list[Preference]:
    """Random answers of six digits; the one with more 3s is better."""
    generator = torch.Generator().manual_seed(seed)
    pairs: list[Preference] = []
    while len(pairs) < count:
        prompt, a, b = ("".join(map(str, torch.randint(4, (6,), generator=generator).tolist())) for _ in range(3))
        if a.count("3") != b.count("3"):
            first, second = Completion.from_text(a), Completion.from_text(b)
            pairs.append(Preference(Prompt(text=prompt), first, second, float(a.count("3") > b.count("3")), 0.0))
    return pairs


def train(
    ensemble: Ensemble, pairs: list[Preference], unseen: list[Preference], checkpoint: MemoryCheckpoint | None = None
) -> RewardModelResult:
    return train_reward_model(
        ensemble.base, ensemble, pairs, unseen, SETTINGS, seed=3, progress=CollectingProgress(),
        checkpoint=checkpoint or MemoryCheckpoint(),
    )  # fmt: skip


def test_a_bootstrap_draws_prompts_with_replacement() -> None:
    """Counts sum to the number of prompts, pairs of one prompt share them, and 1 - 1/e of the prompts are drawn."""
    base, _ = build()
    pairs, _ = encode_pairs(base, draw_pairs(600, 0), 32)
    drawn = draw_bootstrap([*pairs, pairs[0]], 4, seed=1)
    assert drawn[-1].counts == drawn[0].counts
    prompts = {pair.prompt_id: pair.counts for pair in drawn}
    for member in range(4):
        counts = Counter(counts[member] for counts in prompts.values())
        assert sum(count * times for count, times in counts.items()) == len(prompts)
        assert counts[0] / len(prompts) == pytest.approx(math.exp(-1), abs=0.06)
    assert draw_bootstrap(pairs, 4, seed=1)[0].counts == drawn[0].counts
    assert {pair.counts for pair in draw_bootstrap(pairs, 1, seed=1)} == {(1,)}


def test_members_weigh_pairs_by_their_own_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contradicting votes on one pair: a member's optimum is logit of the share that it drew."""
    _, ensemble = build(2)
    a, b = Completion.from_text("3"), Completion.from_text("0")
    pro, contra = (Preference(Prompt(text="01"), a, b, p, 0.0) for p in (1.0, 0.0))
    counts = {1.0: (3, 1), 0.0: (1, 3)}

    def fix(pairs: list[reward_model.TokenPair], members: int, seed: int) -> list[reward_model.TokenPair]:
        return [reward_model.replace(pair, counts=counts[pair.probability]) for pair in pairs]

    monkeypatch.setattr(reward_model, "draw_bootstrap", fix)
    train(ensemble, [pro, contra] * 800, [pro, contra])
    scores = score_preferences_by_member(ensemble, [pro])[:, 0]
    differences = (scores[:, 0] - scores[:, 1]).tolist()
    assert differences == pytest.approx([math.log(3.0), -math.log(3.0)], abs=0.2)


def test_members_learn_and_differ() -> None:
    base, ensemble = build()
    train(ensemble, draw_pairs(480, 1), draw_pairs(48, 2))
    test = draw_pairs(200, 3)
    scores = score_preferences_by_member(ensemble, test)
    right = (scores[..., 0] > scores[..., 1]) == torch.tensor([p.probability > 0.5 for p in test])
    assert (right.float().mean(dim=1) > 0.8).all()
    prompts = [pair.prompt for pair in test]
    rollout = Sampler(base).generate(None, prompts, seeds=range(200), max_new_tokens=6, temperature=1.0)
    normalize_reward_model(base, ensemble, [rollout])
    reward = EnsembleReward(ensemble)
    members = reward.score_members(rollout)
    torch.testing.assert_close(members.mean(dim=1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(members.var(dim=1, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    total, parts = reward.score(rollout)
    torch.testing.assert_close(total, members.sum(dim=0) / 3)
    assert 0.05 < float(parts["disagreement"].mean()) < 1.0


def test_a_killed_fit_ends_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_model, "CHECKPOINT_STEPS", 2)
    pairs, unseen = draw_pairs(60, 8), draw_pairs(16, 9)
    _, ensemble = build()
    counter = MemoryCheckpoint()
    whole = train(ensemble, pairs, unseen, counter)
    for kill in range(1, counter.saves + 1):
        checkpoint = MemoryCheckpoint(kill_after_saves=kill)
        with pytest.raises(Killed):
            train(build()[1], pairs, unseen, checkpoint)
        _, again = build()
        assert train(again, pairs, unseen, checkpoint) == whole
        assert all(torch.equal(value, ensemble.state()[name]) for name, value in again.state().items())


def test_combinations_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 2.0]])
    assert COMBINATIONS["mean"](scores).tolist() == [2.0, 0.0, 2.0]
    assert COMBINATIONS["worst"](scores).tolist() == [1.0, 0.0, 2.0]
    assert COMBINATIONS["variance_penalised"](scores).tolist() == [1.5, 0.0, 2.0]
    assert compute_disagreement(scores).tolist() == [1.0, 0.0, 0.0]
