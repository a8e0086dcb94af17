"""The reward model on toys whose right answer is known: a planted token, soft labels with a closed form, identities."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from accord.config.schema import RewardModelSection
from accord.errors import DataError, TrainingError
from accord.models import Base, LoraSettings
from accord.rollout import Sampler, assemble_rollout
from accord.training import (
    RewardModelResult,
    encode_pairs,
    fits_in,
    normalize_reward_model,
    reward_model,
    score_preferences,
    train_reward_model,
)
from accord.types import Completion, Preference, Prompt
from tests.training.fakes import CollectingProgress, Killed, MemoryCheckpoint, build_digit_base

SETTINGS = RewardModelSection(epochs=4, learning_rate=1e-2, batch_size=16, micro_batch_size=16, max_tokens=32)


def build(split: int = 1, seed: int = 0) -> Base:
    base = build_digit_base(4, eos=True, split=split, seed=seed)
    base.add_scorer("reward", lora=LoraSettings(8, 16), seed=seed)
    return base


def draw_planted(count: int, seed: int) -> list[Preference]:
    """Random answers of 1 to 6 digits, exactly one of which holds a 3: that one is better."""
    source = random.Random(seed)
    pairs: list[Preference] = []
    while len(pairs) < count:
        prompt = "".join(source.choices("012", k=source.randint(1, 8)))
        sides = ["".join(source.choices("0123", k=source.randint(1, 6))) for _ in range(2)]
        holds = ["3" in side for side in sides]
        if holds[0] != holds[1]:
            a, b = (Completion.from_text(side, finished=source.random() < 0.8) for side in sides)
            pairs.append(Preference(Prompt(text=prompt), a, b, float(holds[0]), 0.0))
    return pairs


def build_pair(a: str, b: str, probability: float, **options: Any) -> Preference:
    return Preference(
        Prompt(text="01"), Completion.from_text(a), Completion.from_text(b), probability, 0.0, **options
    )  # fmt: skip


def train(base: Base, pairs: list[Preference], unseen: list[Preference], **changes: Any) -> RewardModelResult:
    checkpoint = changes.pop("checkpoint", MemoryCheckpoint())
    return train_reward_model(
        base, "reward", pairs, unseen, SETTINGS.model_copy(update=changes), seed=3,
        progress=CollectingProgress(), checkpoint=checkpoint,
    )  # fmt: skip


def compute_difference(base: Base, pair: Preference) -> float:
    score_a, score_b = score_preferences(base, "reward", [pair])
    return float(score_a - score_b)


@pytest.mark.parametrize("split", [0, 1])
def test_it_learns_a_planted_preference(split: int) -> None:
    base = build(split)
    result = train(base, draw_planted(640, 0), draw_planted(48, 1), epochs=3, learning_rate=5e-3)
    test = draw_planted(200, 2)
    score_a, score_b = score_preferences(base, "reward", test)
    right = (score_a > score_b) == torch.tensor([p.probability > 0.5 for p in test])
    assert right.float().mean() > 0.95
    assert result.history[-1]["validation_accuracy"] > 0.95


def test_soft_labels_are_calibrated() -> None:
    """The minimum of Bradley-Terry lies at score difference = logit(p)."""
    base = build()
    pairs = [build_pair("3", "0", 0.8), build_pair("30", "10", 0.35)]
    train(base, pairs * 400, pairs, epochs=1)
    for pair in pairs:
        expected = math.log(pair.probability / (1 - pair.probability))
        assert compute_difference(base, pair) == pytest.approx(expected, abs=0.1)


def test_weights_count() -> None:
    """Three votes' worth against one: logit(3/4). A pair of weight 0 is not read."""
    base = build()
    pairs = [build_pair("3", "0", 1.0, weight=3.0), build_pair("3", "0", 0.0, weight=1.0)]
    train(base, [*pairs, build_pair("3", "0", 0.0, weight=0.0)] * 1200, pairs, epochs=1, batch_size=48)
    assert compute_difference(base, pairs[0]) == pytest.approx(math.log(3.0), abs=0.1)


def test_the_loss_is_a_mean_by_weight() -> None:
    """A new head scores 0 everywhere, so the first step's loss is log 2 whatever the weights."""
    pairs = [build_pair("3", "0", 0.7, weight=weight) for weight in (3.0, 0.25, 1.5, 1.0)]
    row = train(build(), pairs, pairs, epochs=1, micro_batch_size=3).history[0]
    assert row["loss"] == pytest.approx(math.log(2.0), abs=1e-6)


def test_a_strength_margin_pushes_the_scores_apart() -> None:
    """With margin m the optimum d solves p s(m - d) = (1 - p) s(d + m), s the logistic function."""
    base = build()
    pair = build_pair("3", "0", 0.8, strength=0.5)
    train(base, [pair] * 800, [pair], epochs=1, margin=2.0)

    def slope(d: float) -> float:
        return 0.8 / (1 + math.exp(d - 1.0)) - 0.2 / (1 + math.exp(-d - 1.0))

    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    assert compute_difference(base, pair) == pytest.approx(low, abs=0.15)
    assert low > math.log(4.0) + 0.2


def test_one_score_in_training_and_in_ppo() -> None:
    """The same token is scored whatever the padding: alone, in a padded batch, in a rollout, and over the trunk."""
    base = build()
    pairs = draw_planted(24, 4)
    train(base, pairs, pairs, epochs=1)
    scores, _ = score_preferences(base, "reward", pairs)
    prompts = [base.tokens.encode_prompt(p.prompt) for p in pairs]
    answers = [base.tokens.encode_completion(p.a) for p in pairs]
    rollout = assemble_rollout(
        base, [p.prompt for p in pairs], prompts, answers, [[0.0] * len(a) for a in answers],
        [p.a.finished for p in pairs],
    )  # fmt: skip
    trunk = base.compute_trunk(rollout.input_ids, rollout.attention_mask)
    with torch.no_grad():
        for states in (None, trunk):
            found = base.compute_scores("reward", rollout.input_ids, rollout.attention_mask, states)
            torch.testing.assert_close(found, scores, atol=1e-5, rtol=1e-4)
        alone = [torch.tensor([prompt + answer]) for prompt, answer in zip(prompts, answers, strict=True)]
        found = torch.cat([base.compute_scores("reward", ids, torch.ones_like(ids).bool()) for ids in alone])
    torch.testing.assert_close(found, scores, atol=1e-5, rtol=1e-4)


def test_eos_stands_exactly_where_a_completion_is_finished() -> None:
    base = build()
    cut = Preference(Prompt(text="0"), Completion.from_text("12"), Completion.from_text("12", finished=False), 1.0, 0.0)
    (pair,), _ = encode_pairs(base, [cut], 32)
    assert pair.trees[0].ids == (0, 1, 2, base.tokens.eos_id, 1, 2)
    assert pair.trees[0].branch_tokens == (3, 2)


def test_micro_batches_change_nothing() -> None:
    pairs = draw_planted(16, 5)
    histories = [train(build(), pairs, pairs, epochs=1, micro_batch_size=size).history for size in (1, 5, 16)]
    for other in histories[1:]:
        assert other[0] == pytest.approx(histories[0][0], rel=1e-4, abs=1e-5)


def test_the_best_epoch_is_restored() -> None:
    """Validation contradicts training, so each epoch makes it worse: the run ends after the second, keeps the first."""
    base = build()
    pairs = draw_planted(64, 6)
    flipped = [Preference(p.prompt, p.b, p.a, p.probability, 0.0) for p in draw_planted(32, 7)]
    result = train(base, pairs, flipped, epochs=6)
    assert result.best_epoch == 1
    assert len(result.history) == 2
    score_a, score_b = score_preferences(base, "reward", flipped)
    p = torch.tensor([pair.probability for pair in flipped])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(score_a - score_b, p)
    assert float(loss) == pytest.approx(result.history[0]["validation_loss"], abs=1e-4)


def test_a_killed_fit_ends_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_model, "CHECKPOINT_STEPS", 2)
    pairs, unseen = draw_planted(80, 8), draw_planted(16, 9)
    base = build()
    counter = MemoryCheckpoint()
    whole = train(base, pairs, unseen, epochs=2, checkpoint=counter)
    assert counter.saves == 6
    for kill in range(1, counter.saves + 1):
        checkpoint = MemoryCheckpoint(kill_after_saves=kill)
        with pytest.raises(Killed):
            train(build(), pairs, unseen, epochs=2, checkpoint=checkpoint)
        again = build()
        assert train(again, pairs, unseen, epochs=2, checkpoint=checkpoint) == whole
        wanted = base.state("reward")
        assert all(torch.equal(value, wanted[name]) for name, value in again.state("reward").items())
    with pytest.raises(TrainingError, match="reference's hash"):
        train(build(seed=9), pairs, unseen, epochs=2, checkpoint=checkpoint)


def test_pairs_that_are_too_long_are_left_out_and_counted() -> None:
    base = build()
    long = build_pair("3" * 40, "0", 1.0)
    pairs = [*draw_planted(16, 10), long]
    assert not fits_in(base, long, 32)
    assert all(fits_in(base, pair, 32) for pair in pairs[:-1])
    assert train(base, pairs, pairs, epochs=1).left_out == 2
    with pytest.raises(DataError, match="longer than 32 tokens"):
        train(build(), [long], pairs, epochs=1)


def test_normalised_scores_have_mean_zero_and_variance_one() -> None:
    base = build()
    pairs = draw_planted(64, 11)
    train(base, pairs, pairs, epochs=1)
    prompts = [pair.prompt for pair in pairs]
    rollout = Sampler(base).generate(None, prompts, seeds=range(64), max_new_tokens=8, temperature=1.0)
    before = base.compute_scores("reward", rollout.input_ids, rollout.attention_mask).detach()
    mean, std = normalize_reward_model(base, "reward", [rollout])
    after = base.compute_scores("reward", rollout.input_ids, rollout.attention_mask).detach()
    assert float(after.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(after.var(correction=0)) == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(after, (before - mean) / std, atol=1e-4, rtol=1e-4)


def test_scores_that_do_not_vary_cannot_be_normalised() -> None:
    base = build()
    prompts = [Prompt(text="0"), Prompt(text="1")]
    rollout = Sampler(base).generate(None, prompts, seeds=[0, 1], max_new_tokens=4, temperature=1.0)
    with pytest.raises(TrainingError, match="same score"):
        normalize_reward_model(base, "reward", [rollout])
