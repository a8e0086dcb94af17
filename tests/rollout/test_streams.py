"""Sampling by inverse transform: the frequencies are the probabilities, the logprobs are the distribution's own."""

import torch
from scipy import stats

from accord.rollout import draw_tokens, draw_uniforms


def test_frequencies_are_the_softmax_at_the_temperature() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5]])
    draws = 20_000
    uniforms = draw_uniforms([7], draws)[0]
    tokens, _ = draw_tokens(logits.expand(draws, -1), uniforms, temperature=1.5)
    expected = torch.softmax(logits[0].double() / 1.5, 0).numpy() * draws
    assert stats.chisquare(torch.bincount(tokens, minlength=4).numpy(), expected).pvalue > 1e-3


def test_logprobs_are_those_of_the_categorical_distribution() -> None:
    logits = torch.randn(64, 11, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = draw_tokens(logits, draw_uniforms(range(64), 1)[:, 0], temperature=0.7)
    oracle = torch.distributions.Categorical(logits=logits / 0.7).log_prob(tokens)
    torch.testing.assert_close(logprobs, oracle)


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]])
    edges = torch.tensor([0.0, 0.4999999, 0.5, 0.999999999999], dtype=torch.float64)
    tokens, _ = draw_tokens(logits.expand(4, -1), edges, temperature=1.0)
    assert tokens.tolist() == [1, 1, 3, 3]


def test_a_stream_depends_on_its_seed_alone() -> None:
    together = draw_uniforms([1, 2, 3], 8)
    assert torch.equal(together[1], draw_uniforms([2], 8)[0])
    assert not torch.equal(together[0], together[1])


def test_the_two_levels_find_what_one_long_cumulative_sum_finds() -> None:
    source = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(200, 1000, generator=source)
    logits[:, 37:300] = float("-inf")
    uniforms = torch.rand(200, generator=source, dtype=torch.float64)
    tokens, _ = draw_tokens(logits, uniforms, temperature=1.0)
    cumulative = torch.softmax(logits.double(), -1).cumsum(-1)
    oracle = torch.searchsorted(cumulative, uniforms[:, None], right=True)[:, 0]
    assert (tokens == oracle).float().mean() > 0.99  # float32 softmax may move a boundary by one rounding
    assert torch.isfinite(logits.gather(1, tokens[:, None])).all()


def test_both_ends_of_the_unit_interval_draw_a_possible_token() -> None:
    logits = torch.full((2, 300), float("-inf"))
    logits[:, [5, 140, 260]] = 0.0
    edges = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert draw_tokens(logits, edges, temperature=1.0)[0].tolist() == [5, 260]
