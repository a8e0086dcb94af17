"""Token log-probabilities and entropy against torch.distributions, finite differences and scipy."""

import pytest
import scipy.special
import torch
from jaxtyping import TypeCheckError

from accord.errors import DataError
from accord.functional import compute_head_logprobs, compute_logprobs, logprobs

SHAPE = (3, 4, 7)


def draw(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(SHAPE, generator=generator, dtype=torch.float64).mul(3).to(dtype)
    return logits, torch.randint(SHAPE[-1], SHAPE[:2], generator=generator)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
@pytest.mark.parametrize("chunk", [1, 20, 2**22])
def test_equals_torchs_categorical(temperature, chunk, monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
    logits, ids = draw()
    oracle = torch.distributions.Categorical(logits=logits / temperature)
    ours = compute_logprobs(logits, ids, temperature)
    torch.testing.assert_close(ours.logprobs, oracle.log_prob(ids))
    torch.testing.assert_close(ours.entropy, oracle.entropy())


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("chunk", [1, 20, 2**22])
def test_gradients_equal_finite_differences(temperature, chunk, monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
    logits, ids = draw()
    assert torch.autograd.gradcheck(
        lambda x: tuple(compute_logprobs(x, ids, temperature)), logits.requires_grad_(), atol=1e-7
    )


@pytest.mark.parametrize("output", [0, 1])
def test_each_output_may_be_used_alone(output):
    logits, ids = draw()
    oracle = torch.distributions.Categorical(logits=logits.requires_grad_())
    wanted = (oracle.log_prob(ids), oracle.entropy())[output].sum()
    (expected,) = torch.autograd.grad(wanted, logits)
    (actual,) = torch.autograd.grad(compute_logprobs(logits, ids)[output].sum(), logits)
    torch.testing.assert_close(actual, expected)


def test_low_precision_logits_are_read_in_float32():
    """The result is that of the rounded logits in full precision; the gradient comes back in the type of the logits."""
    logits, ids = draw(torch.bfloat16)
    logits.requires_grad_()
    ours = compute_logprobs(logits, ids)
    exact = scipy.special.log_softmax(logits.detach().double().numpy(), axis=-1)
    assert ours.logprobs.dtype == ours.entropy.dtype == torch.float32
    expected = torch.from_numpy(exact).gather(2, ids[..., None]).squeeze(2).float()
    torch.testing.assert_close(ours.logprobs, expected)
    (ours.logprobs.sum() + ours.entropy.sum()).backward()
    assert logits.grad.dtype == torch.bfloat16


def test_huge_logits_stay_finite():
    ours = compute_logprobs(torch.tensor([[[1e4, -1e4, 0.0]]]), torch.tensor([[1]]))
    assert ours.logprobs.tolist() == [[-2e4]]
    assert ours.entropy.tolist() == [[0.0]]


def test_a_forbidden_token_adds_nothing():
    """A logit of -infinity: the distribution over the others, entropy log 2, no gradient anywhere near NaN."""
    logits = torch.tensor([[[0.0, float("-inf"), 0.0]]], requires_grad=True)
    ours = compute_logprobs(logits, torch.tensor([[0]]))
    torch.testing.assert_close(ours.entropy, torch.full((1, 1), 2.0).log())
    (ours.logprobs + ours.entropy).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[[0.5, 0.0, -0.5]]]))


def test_no_float32_copy_of_the_logits_is_kept_for_the_backward_pass():
    logits, ids = draw(torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append((t.dtype, t.numel())) or t, lambda t: t):
        compute_logprobs(logits.requires_grad_(), ids)
    wide = [count for dtype, count in kept if dtype == torch.float32]
    assert sum(wide) <= ids.numel()
    assert sum(count for _, count in kept) == logits.numel() + 2 * ids.numel()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_an_impossible_temperature_is_refused(temperature):
    with pytest.raises(DataError, match="temperature"):
        compute_logprobs(*draw(), temperature)


def test_ids_of_another_shape_are_refused():
    logits, ids = draw()
    with pytest.raises(
        (DataError, TypeCheckError), match=r"do not speak of|ids"
    ):  # either guard, where shapes are checked
        compute_logprobs(logits[:, :-1], ids)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_from_hidden_states_and_the_heads_matrix_both_values_and_gradients_are_autograds(monkeypatch, temperature):
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 3 * 50)  # three rows at a time
    source = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 16, generator=source, dtype=torch.float64).requires_grad_()
    weight = torch.randn(50, 16, generator=source, dtype=torch.float64)
    ids = torch.randint(50, (8,), generator=source)
    onto = torch.randn(2, 8, generator=source, dtype=torch.float64)
    ours = compute_head_logprobs(hidden, weight, ids, temperature)
    plain = torch.distributions.Categorical(logits=hidden @ weight.T / temperature)
    theirs = (plain.log_prob(ids), plain.entropy())
    for mine, oracle in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, oracle)
    (gradient,) = torch.autograd.grad((ours.logprobs * onto[0] + ours.entropy * onto[1]).sum(), hidden)
    (oracle,) = torch.autograd.grad((theirs[0] * onto[0] + theirs[1] * onto[1]).sum(), hidden, retain_graph=True)
    torch.testing.assert_close(gradient, oracle)
    constant = compute_head_logprobs(hidden, weight, ids, temperature, entropy="constant")
    assert not constant.entropy.requires_grad
    torch.testing.assert_close(constant.entropy, theirs[1])
    unread = compute_head_logprobs(hidden, weight, ids, temperature, entropy="unread")
    assert unread.entropy.isnan().all() and not unread.entropy.requires_grad
    assert torch.equal(unread.logprobs, constant.logprobs)
    (gradient,) = torch.autograd.grad((constant.logprobs * onto[0]).sum(), hidden)
    torch.testing.assert_close(gradient, torch.autograd.grad((theirs[0] * onto[0]).sum(), hidden)[0])
