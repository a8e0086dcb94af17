"""Policy against reference: with fakes whose every number is known, then with a tiny model and the real sampler."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny import build_tiny_model

from accord.config.schema import EvaluationSection, SampleSection
from accord.errors import DataError
from accord.evaluation import evaluate_policy
from accord.evaluation.policy import choose_fair, choose_worst, select_rollout
from accord.functional import TokenLogprobs, compute_logprobs
from accord.models import Base, LoraSettings, load_base
from accord.rollout import Sampler
from accord.types import Completion, Prompt, Rollout, Silence

PROMPTS = [Prompt.from_user(f"question {i}") for i in range(6)]
REFERENCE_LOGITS = torch.tensor([0.0, 0.0, 0.0, 0.0])
POLICY_LOGITS = torch.tensor([0.0, math.log(2.0), math.log(4.0), 0.0])  # p = 1/8, 2/8, 4/8, 1/8
SAMPLE = SampleSection(max_new_tokens=3, batch_size=4)
EVALUATION = EvaluationSection(best_of=3, examples=4)


class Counting(Silence):
    """Progress that remembers how far it went."""

    def __init__(self) -> None:
        self.total, self.done = 0, 0

    def begin(self, task: str, total: int, unit: str) -> None:
        self.total = total

    def advance(self, amount: int = 1) -> None:
        self.done += amount


class FakeBase:
    """Logits that depend on the role alone: every token of the policy is drawn from the same four numbers.

    It offers no whole logits, for (B, T, V) of them need more memory than the model.
    """

    def compute_trunk(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        return None

    def compute_logprobs(
        self, role: str | None, input_ids: torch.Tensor, mask: torch.Tensor, last: int, temperature: float, trunk: Any,
        entropy: str = "learns",
    ) -> TokenLogprobs:  # fmt: skip
        logits = (REFERENCE_LOGITS if role is None else POLICY_LOGITS).expand(len(input_ids), last, 4)
        return compute_logprobs(logits, input_ids[:, -last:], temperature)


class FakeGenerator:
    """Three tokens drawn by each seed from the role's distribution; remembers what it was asked."""

    def __init__(self) -> None:
        self.seeds: dict[str | None, list[int]] = {}

    def generate(
        self,
        role: str | None,
        prompts: Sequence[Prompt],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
    ) -> Rollout:
        self.seeds.setdefault(role, []).extend(seeds)
        log_p = torch.log_softmax((REFERENCE_LOGITS if role is None else POLICY_LOGITS) / temperature, dim=0)
        rows = [
            torch.multinomial(log_p.exp(), max_new_tokens, True, generator=torch.Generator().manual_seed(seed % 2**31))
            for seed in seeds
        ]
        ids = torch.stack(rows)
        mask = torch.ones_like(ids, dtype=torch.bool)
        ones = torch.ones(len(prompts), 1, dtype=torch.int64)
        texts = tuple(Completion.from_text(" ".join(map(str, row.tolist()))) for row in rows)
        return Rollout(tuple(prompts), texts, ones, ones.bool(), ids, mask, log_p[ids], torch.ones(len(ids)).bool())


def count_twos(rollout: Rollout) -> torch.Tensor:
    return (rollout.completion_ids == 2).sum(dim=1).float()


def evaluate(prompts: Sequence[Prompt] = PROMPTS, cfg: EvaluationSection = EVALUATION, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "proxy": count_twos, "heldout": count_twos, "gold": lambda p, c: float(c.text.count("2")),
        "toxicity": lambda p, c: 0.25 if "3" in c.text else 0.0, "sample": SAMPLE, "seed": 7, "progress": Counting(),
        "generator": FakeGenerator(),
    }  # fmt: skip
    options |= changes
    generator = options.pop("generator")
    return evaluate_policy(FakeBase(), generator, "policy", prompts, cfg=cfg, **options)  # type: ignore[arg-type]


def test_kl_and_entropy_approach_their_closed_forms() -> None:
    prompts = [Prompt.from_user(f"many {i}") for i in range(400)]
    found = evaluate(prompts, EvaluationSection(best_of=2)).metrics
    p = torch.tensor([1 / 8, 2 / 8, 4 / 8, 1 / 8])
    entropy, kl = float(-(p * p.log()).sum()), float((p * (p * 4).log()).sum())
    assert found["kl_nats"]["low"] < 3 * kl < found["kl_nats"]["high"]
    assert found["policy"]["entropy_nats"]["value"] == pytest.approx(entropy, abs=1e-6)
    assert found["reference"]["entropy_nats"]["value"] == pytest.approx(math.log(4), abs=1e-6)
    assert found["sampler_gap"] == pytest.approx(1.0, abs=1e-6)
    gains = found["policy_minus_reference"]["gold"]
    assert gains["low"] < 3 * (1 / 2 - 1 / 4) < gains["high"]


def test_policy_and_reference_share_seeds_and_best_of_n_contains_the_reference() -> None:
    generator = FakeGenerator()
    rows = evaluate(generator=generator).rows
    assert set(generator.seeds["policy"]) <= set(generator.seeds[None])
    assert len(set(generator.seeds[None])) == 6 * 3
    assert [row["seed"] for row in rows] == generator.seeds["policy"]
    assert all(row["best_of_n"]["proxy"] >= row["reference"]["proxy"] for row in rows)
    assert any(row["best_of_n"]["proxy"] > row["reference"]["proxy"] for row in rows)


def test_best_of_n_is_chosen_by_the_proxy_alone() -> None:
    against = evaluate(heldout=lambda rollout: -count_twos(rollout)).rows
    assert [row["best_of_n"]["proxy"] for row in against] == [row["best_of_n"]["proxy"] for row in evaluate().rows]


def test_kl_bound_of_best_of_n() -> None:
    assert evaluate().metrics["best_of_n_kl_bound_nats"] == pytest.approx(math.log(3) - 2 / 3)


def test_identical_models_tie() -> None:
    rows = evaluate().rows
    same = [row | {"policy": row["policy"] | {"gold": row["reference"]["gold"]}} for row in rows]
    from accord.evaluation import summarise_rows

    found = summarise_rows(same, best_of=3, seed=0)
    assert found["win_rate_against_reference"]["gold"]["value"] == 0.5
    assert found["policy_minus_reference"]["gold"]["value"] == 0.0


def test_works_without_gold_and_heldout_and_says_so() -> None:
    result = evaluate(gold=None, heldout=None)
    assert result.metrics["win_rate_against_reference"]["gold"] is None
    assert result.metrics["policy"]["heldout"] is None
    assert result.metrics["policy_minus_best_of_n"]["proxy"] is not None
    assert result.metrics["best_of_n"]["entropy_nats"] is None


def test_the_same_seed_gives_the_same_json_and_it_is_json() -> None:
    first, second = json.dumps(evaluate().to_dict(), allow_nan=False), json.dumps(evaluate().to_dict(), allow_nan=False)
    assert first == second
    assert first != json.dumps(evaluate(seed=8).to_dict())


def test_several_samples_of_a_prompt_are_one_observation() -> None:
    progress = Counting()
    result = evaluate(cfg=EvaluationSection(samples=3, best_of=2, examples=20), progress=progress)
    assert (result.metrics["prompts"], result.metrics["completions"], len(result.rows)) == (6, 18, 18)
    assert result.metrics["policy"]["proxy"]["n"] == 6
    assert (progress.total, progress.done) == (18, 18)
    assert len({row["seed"] for row in result.rows}) == 18
    assert [row["prompt_id"] for row in result.examples] == [p.id for p in PROMPTS]


def test_examples_are_a_fair_draw_and_losses_are_the_worst() -> None:
    rows = [
        {"prompt_id": str(i), "policy": {"heldout": float(-i), "gold": None, "proxy": 0.0},
         "reference": {"heldout": 0.5 - 2 * (i % 2), "gold": None, "proxy": 0.0}}
        for i in range(40)
    ]  # fmt: skip
    draws = [choose_fair(rows, 10, seed) for seed in range(200)]
    seen = [sum(row["prompt_id"] == str(i) for draw in draws for row in draw) for i in range(40)]
    assert min(seen) > 20, "every prompt has the same chance, 50 of 200"
    assert max(seen) < 85
    assert [row["prompt_id"] for row in choose_worst(rows, 3)] == ["38", "39", "36"]
    assert choose_worst(rows[:1], 3)[0]["prompt_id"] == "0"
    assert choose_worst([rows[1]], 3) == [], "a win is no loss"


def test_no_prompts_and_broken_scores_are_refused() -> None:
    with pytest.raises(DataError, match="no evaluation prompts"):
        evaluate([])
    with pytest.raises(DataError):
        evaluate(heldout=lambda rollout: torch.full((len(rollout),), float("nan")))


def test_select_rollout_keeps_rows_whole() -> None:
    rollout = FakeGenerator().generate(None, PROMPTS, seeds=range(6), max_new_tokens=3, temperature=1.0)
    part = select_rollout(rollout, [4, 1])
    assert part.prompts == (PROMPTS[4], PROMPTS[1])
    assert part.completion_ids.tolist() == [rollout.completion_ids[4].tolist(), rollout.completion_ids[1].tolist()]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_model(folder)
    return load_base(str(folder), dtype="float32")


def test_an_untrained_policy_of_a_real_model_is_its_reference(base: Base) -> None:
    base.add_policy("policy", lora=LoraSettings(rank=2, alpha=4), seed=0)
    result = evaluate_policy(
        base, Sampler(base, 4), "policy", PROMPTS,
        proxy=lambda rollout: rollout.completion_mask.sum(dim=1).float(), heldout=None, gold=None,
        toxicity=lambda p, c: 0.0, cfg=EVALUATION, sample=SampleSection(max_new_tokens=5, batch_size=4), seed=0,
        progress=Counting(),
    )  # fmt: skip
    found = result.metrics
    assert found["kl_nats"]["value"] == pytest.approx(0.0, abs=1e-5)
    assert found["win_rate_against_reference"]["proxy"]["value"] == 0.5
    assert [r["policy"]["completion"] for r in result.rows] == [r["reference"]["completion"] for r in result.rows]
    assert found["sampler_gap"] == pytest.approx(1.0, abs=1e-4)
    assert 0 < found["policy"]["entropy_nats"]["value"] < math.log(base.vocabulary)
    base.remove("policy")
