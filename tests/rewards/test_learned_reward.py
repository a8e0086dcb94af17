"""The learned reward: each row as if alone, no padding to spare, and texts score as the same tokens do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from accord.errors import ConfigError, DataError
from accord.models import Base, LoraSettings, load_base
from accord.rewards import LearnedReward
from accord.rollout import Sampler
from accord.types import Completion, Prompt, Rollout
from tests.rewards.rollouts import build_prompts, build_rollout
from tests.tiny import build_tiny_model

torch.set_num_threads(1)
PROMPTS = [Prompt.from_user(text) for text in ("Hi", "Name a colour, please.", "What is an owl?", "Why?", "And you?")]


class FakeTokens:
    """Characters as tokens; a finished completion ends with 2."""

    pad_id = 0

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        return [3 + ord(c) for c in prompt.messages[0].content]

    def encode_completion(self, completion: Completion) -> list[int]:
        return [3 + ord(c) for c in completion.text] + ([2] if completion.finished else [])


class FakeBase:
    """Score = the sum of position * token, so that order, positions and stray padding all show; remembers its calls."""

    def __init__(self) -> None:
        self.tokens = FakeTokens()
        self.device = torch.device("cpu")
        self.shapes: list[tuple[int, int]] = []

    def compute_scores(
        self, role: str, input_ids: Tensor, attention_mask: Tensor, trunk: Tensor | None = None
    ) -> Tensor:
        assert role == "reward"
        self.shapes.append((input_ids.shape[0], input_ids.shape[1]))
        assert attention_mask.any(dim=0).all(), "a column of nothing but padding"
        positions = attention_mask.cumsum(dim=1)
        values = input_ids.float() if trunk is None else trunk[:, :, 0]
        return (values * positions * attention_mask).sum(dim=1)


def compute_by_hand(rollout: Rollout) -> list[float]:
    rows = [rollout.input_ids[i][rollout.attention_mask[i]].tolist() for i in range(len(rollout))]
    return [float(sum((t + 1) * token for t, token in enumerate(row))) for row in rows]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_scores_keep_their_order_whatever_the_batch_size(batch_size: int) -> None:
    rollout = build_rollout(build_prompts(5), [[5, 6, 7, 8, 2], [9], [10, 2], [11, 12, 13], [14, 2]])
    base = FakeBase()
    scores = LearnedReward(base, "reward", batch_size)(rollout)
    assert scores.tolist() == compute_by_hand(rollout)
    assert scores.dtype == torch.float32
    lengths = sorted(rollout.attention_mask.sum(dim=1).tolist())
    assert [width for _, width in base.shapes] == [max(lengths[i : i + batch_size]) for i in range(0, 5, batch_size)]
    assert [n for n, _ in base.shapes] == [min(batch_size, 5 - i) for i in range(0, 5, batch_size)]


def test_a_trunk_is_aligned_with_its_tokens() -> None:
    rollout = build_rollout(build_prompts(3), [[5, 6, 2], [9], [10, 2]])
    trunk = rollout.input_ids.float()[:, :, None].expand(-1, -1, 4).clone()
    trunk[~rollout.attention_mask] = float("nan")  # what padding holds is never read
    assert LearnedReward(FakeBase(), "reward", 2)(rollout, trunk).tolist() == compute_by_hand(rollout)


def test_texts_count_a_finished_completions_eos() -> None:
    reward = LearnedReward(FakeBase(), "reward")
    prompt = Prompt.from_user("a")  # tokens 100, then 101 for "b"
    pair = [Completion.from_text("b", finished=False), Completion.from_text("b", finished=True)]
    assert reward.score_texts([prompt, prompt], pair).tolist() == [100 + 2 * 101, 100 + 2 * 101 + 3 * 2]
    assert reward.score_texts([], []).shape == (0,)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size 0"):
        LearnedReward(FakeBase(), "reward", 0)
    with pytest.raises(DataError, match="1 prompts and 0 completions"):
        LearnedReward(FakeBase(), "reward").score_texts([Prompt.from_user("a")], [])


@pytest.fixture(scope="module", params=[0, 1], ids=["split 0", "split 1"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = build_tiny_model(tmp_path_factory.mktemp("tiny"), "llama", layers=2)
    base = load_base(str(folder), dtype="float32", split=request.param)
    base.add_scorer("reward", lora=LoraSettings(4, 8), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.parameters("reward").values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return base


def test_on_a_model_every_row_scores_as_if_alone(base: Base) -> None:
    rollout = Sampler(base).generate(None, PROMPTS, seeds=range(5), max_new_tokens=6, temperature=1.0)
    scores = LearnedReward(base, "reward", 2)(rollout)
    assert scores.std() > 0.1
    for i in range(len(rollout)):
        alone = rollout.input_ids[i][rollout.attention_mask[i]][None]
        with torch.no_grad():
            expected = base.compute_scores("reward", alone, torch.ones_like(alone, dtype=torch.bool))
        assert torch.allclose(scores[i], expected[0], atol=1e-5)
    assert not scores.requires_grad


def test_on_a_model_sampled_tokens_and_texts_score_alike(base: Base) -> None:
    """The same token under the same template: a rollout built from encoded texts, and the texts themselves."""
    texts = [("Hello.", True), ("Green", False), ("A bird of the night.", True), ("So.", True), ("Fine, thank", False)]
    completions = [Completion.from_text(text, finished=done) for text, done in texts]
    ids = [base.tokens.encode_completion(c) for c in completions]
    prompts = [base.tokens.encode_prompt(p) for p in PROMPTS]
    assert [row[-1] == base.tokens.eos_id for row in ids] == [done for _, done in texts]
    prompt_width, width = max(map(len, prompts)), max(map(len, ids))
    completion_mask = torch.tensor([[t < len(c) for t in range(width)] for c in ids])
    rollout = Rollout(
        prompts=tuple(PROMPTS),
        completions=tuple(completions),
        prompt_ids=torch.tensor([[0] * (prompt_width - len(p)) + p for p in prompts]),
        prompt_mask=torch.tensor([[t >= prompt_width - len(p) for t in range(prompt_width)] for p in prompts]),
        completion_ids=torch.tensor([c + [0] * (width - len(c)) for c in ids]),
        completion_mask=completion_mask,
        logprobs=torch.zeros(completion_mask.shape),
        finished=torch.tensor([done for _, done in texts]),
    )
    reward = LearnedReward(base, "reward", 2)
    scores = reward(rollout)
    assert torch.equal(reward.score_texts(PROMPTS, completions), scores)
    trunk = base.compute_trunk(rollout.input_ids, rollout.attention_mask)
    assert (trunk is None) == (base.split == 0)
    assert torch.allclose(reward(rollout, trunk), scores, atol=1e-5)
    cut = [Completion.from_text(c.text, finished=False) for c in completions]
    assert (reward.score_texts(PROMPTS, cut) != scores).tolist() == [done for _, done in texts]


def test_the_fakes_are_what_the_room_asks_for(tmp_path: Path) -> None:
    from accord.rewards import Scorer

    assert isinstance(FakeBase(), Scorer)
    assert isinstance(load_base(str(build_tiny_model(tmp_path)), dtype="float32"), Scorer)
