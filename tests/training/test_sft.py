"""Supervised fine-tuning and rejection sampling: they learn a toy, count the right tokens, and resume bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from accord.config import Config
from accord.config.schema import PolicySection, RejectionSamplingSection, SampleSection, SftSection
from accord.errors import DataError
from accord.looks import Alarm, Judgement, Look
from accord.models import Base, LoraSettings
from accord.rollout import Sampler
from accord.training import TRAINERS, SftResult, TrainingJob, TrainingResult, train_sft
from accord.training.rejection_sampling import choose_winners
from accord.types import Completion, Prompt, Rollout
from tests.training.fakes import CollectingProgress, Killed, MemoryCheckpoint, build_digit_base

LORA = LoraSettings(8, 16)
EXAMPLES = [
    (Prompt(text=f"{d}{e}"), Completion.from_text(f"{e}{d}" if d < e else f"{e}"))
    for d in range(4)
    for e in range(4)
    if d != e
]
PROMPTS = [Prompt(text=f"{d}{e}") for d in range(4) for e in range(4)]
CONFIG = Config(
    sample=SampleSection(max_new_tokens=6),
    policy=PolicySection(method="rejection_sampling", max_kl_nats=50.0),
    rejection_sampling=RejectionSamplingSection(candidates=6, epochs=3, learning_rate=1e-2, batch_size=8),
)


def build(split: int = 1, lora: LoraSettings | None = LORA) -> Base:
    base = build_digit_base(4, eos=True, split=0 if lora is None else split)
    base.add_policy("policy", lora=lora, seed=1)
    return base


def tune(base: Base, examples: list[tuple[Prompt, Completion]] = EXAMPLES, **changes: Any) -> SftResult:
    checkpoint = changes.pop("checkpoint", MemoryCheckpoint())
    cfg = SftSection(**{"epochs": 25, "learning_rate": 1e-2, "batch_size": 8, **changes})
    return train_sft(base, "policy", examples, cfg, seed=2, progress=CollectingProgress(), checkpoint=checkpoint)


@pytest.mark.parametrize(("split", "lora"), [(0, LORA), (1, LORA), (0, None)], ids=["unsplit", "split", "full"])
def test_sft_learns_to_answer(split: int, lora: LoraSettings | None) -> None:
    base = build(split, lora)
    history = tune(base, epochs=70).history
    assert history[-1]["nll_nats"] < 0.1 < history[0]["nll_nats"]
    asked = [prompt for prompt, _ in EXAMPLES]
    rollout = Sampler(base).generate("policy", asked, seeds=range(12), max_new_tokens=6, temperature=0.05)
    assert [c.text for c in rollout.completions] == [c.text for _, c in EXAMPLES]
    assert rollout.finished.all()


def test_the_loss_is_that_of_transformers_over_completion_tokens() -> None:
    """One batch before any step, padded and in two micro-batches, against the library's own label loss, row by row."""
    base = build()
    first = tune(base, epochs=1, batch_size=16, learning_rate=1e-12).history[0]
    total, tokens = 0.0, 0
    for prompt, completion in EXAMPLES:
        head, tail = base.tokens.encode_prompt(prompt), base.tokens.encode_completion(completion)
        labels = torch.tensor([[-100] * len(head) + tail])
        with torch.no_grad():
            total += float(base.model(input_ids=torch.tensor([head + tail]), labels=labels).loss) * len(tail)
        tokens += len(tail)
    assert first["nll_nats"] == pytest.approx(total / tokens, rel=1e-4)


def test_a_killed_sft_ends_with_the_same_bits() -> None:
    base = build()
    whole = tune(base, epochs=3)
    for kill in (1, 2, 3):
        checkpoint = MemoryCheckpoint(kill_after_saves=kill)
        with pytest.raises(Killed):
            tune(build(), epochs=3, checkpoint=checkpoint)
        again = build()
        assert tune(again, epochs=3, checkpoint=checkpoint) == whole
        wanted = base.state("policy")
        assert all(torch.equal(value, wanted[name]) for name, value in again.state("policy").items())


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(DataError, match="no examples"):
        tune(build(), [])


def count_threes(rollout: Rollout) -> torch.Tensor:
    hits = (rollout.completion_ids == 3) & rollout.completion_mask
    return hits.sum(1).float() / rollout.completion_mask.sum(1)


def build_job(base: Base, **changes: Any) -> TrainingJob:
    options: dict[str, Any] = {
        "prompts": PROMPTS, "validation_prompts": PROMPTS[:8], "heldout": None, "reference": None, "seed": 4,
        "progress": CollectingProgress(), "checkpoint": MemoryCheckpoint(),
    }  # fmt: skip
    return TrainingJob(base=base, config=CONFIG, generator=Sampler(base), proxy=count_threes, **{**options, **changes})


def run(base: Base, **changes: Any) -> TrainingResult:
    return TRAINERS["rejection_sampling"](build_job(base, **changes))


def test_rejection_sampling_learns_from_its_winners() -> None:
    many = [Prompt(text=f"{p.text}{d}") for p in PROMPTS for d in range(4)]
    result = run(build(), prompts=many, validation_prompts=PROMPTS * 4)
    assert [row["update"] for row in result.history] == [0, 1, 2, 3]
    assert result.history[0]["winner_score"] > result.history[0]["score"] + 0.1
    assert result.history[-1]["heldout_score"] > result.history[0]["heldout_score"] + 0.05
    assert result.best_update > 0


def test_winners_are_the_best_of_their_candidates() -> None:
    """With as many prompts and seeds again, sampled by hand one prompt at a time, no candidate beats the winner."""
    job = build_job(build())
    winners, metrics = choose_winners(job)
    assert len(winners) == len(PROMPTS)
    shares = [s.ids[-s.branch_tokens[0] :].count(3) / s.branch_tokens[0] for s in winners]
    assert sum(shares) / len(shares) == pytest.approx(metrics["winner_score"], abs=1e-6)
    assert all(s.ids[:2] == tuple(job.base.tokens.encode_prompt(p)) for s, p in zip(winners, PROMPTS))


def test_rejection_sampling_keeps_the_best_epoch() -> None:
    base = build()
    seen: list[dict[str, torch.Tensor]] = []

    def judge(rollout: Rollout) -> torch.Tensor:
        seen.append(base.state("policy"))
        return torch.full((len(rollout),), [0.0, 0.0, 2.0, 1.0][len(seen) - 1])

    assert run(base, heldout=judge).best_update == 2
    assert all(torch.equal(value, seen[2][name]) for name, value in base.state("policy").items())


def test_an_alarm_ends_rejection_sampling_and_the_epoch_before_stands() -> None:
    """Rings after epoch 2 of 3: no third, the best before it is kept; killed there and started again, the same."""

    def watch(looks: Sequence[Look], _: int) -> Judgement:
        update = looks[-1].update
        return Judgement([Alarm("reversal", update, "the judge fell")] if update == 2 else [])

    base = build()
    whole = run(base, watch=watch)
    assert [row["update"] for row in whole.history] == [0, 1, 2]
    assert whole.best_update < 2
    assert whole.stopped is not None and "update 2" in whole.stopped
    checkpoint = MemoryCheckpoint(kill_after_saves=3)
    with pytest.raises(Killed):
        run(build(), watch=watch, checkpoint=checkpoint)
    assert run(build(), watch=watch, checkpoint=checkpoint) == whole


def test_a_killed_rejection_sampling_ends_with_the_same_bits() -> None:
    base = build()
    counter = MemoryCheckpoint()
    whole = run(base, checkpoint=counter)
    assert counter.saves == 4
    for kill in range(1, 5):
        checkpoint = MemoryCheckpoint(kill_after_saves=kill)
        with pytest.raises(Killed):
            run(build(), checkpoint=checkpoint)
        again = build()
        assert run(again, checkpoint=checkpoint) == whole
        wanted = base.state("policy")
        assert all(torch.equal(value, wanted[name]) for name, value in again.state("policy").items())
