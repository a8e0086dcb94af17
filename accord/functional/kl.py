"""KL divergence between two policies: estimators from sampled tokens, per sequence, exact, and of best-of-n.

Implements the estimators k1, k2 and k3 of Schulman (2020, "Approximating KL divergence"). All are in nats and all take
the log-probabilities of tokens that were sampled from the *first* policy. Leaves out the choice between them: Accord
puts k1 into the reward, logs k3 between the old and the new policy, and has no KL in the loss, where only k2 has the
right gradient.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from accord.errors import DataError


def compute_k1(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """k1 = log pi(x) - log ref(x) for x ~ pi. E[k1] = KL(pi || ref), but one sample may be negative.

    As a loss its expected gradient is 0: it says nothing of the KL. (*shape), (*shape) -> (*shape), nats.
    """
    return logprobs - ref_logprobs


def compute_k2(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """k2 = 1/2 (log pi(x) - log ref(x))^2 for x ~ pi. Never negative; biased as a value.

    As a loss on samples of pi its expected gradient is that of KL(pi || ref), exactly. (*shape), (*shape) -> (*shape),
    nats.
    """
    return 0.5 * (logprobs - ref_logprobs).square()


def compute_k3(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """k3 = ref(x) / pi(x) - 1 - log(ref(x) / pi(x)) for x ~ pi. E[k3] = KL(pi || ref), never negative, of low variance.

    As a loss its expected gradient is that of KL(ref || pi), the other direction. (*shape), (*shape) -> (*shape), nats.
    """
    log_ratio = ref_logprobs - logprobs
    return (torch.expm1(log_ratio) - log_ratio).clamp_min(0.0)  # the clamp only removes rounding


def compute_sequence_kl(
    logprobs: Float[Tensor, "B C"], ref_logprobs: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]
) -> Float[Tensor, " B"]:
    """sum_t log pi(y_t | ...) - log ref(y_t | ...) over each sequence's real tokens: k1 of the whole sequence.

    Its mean over sequences sampled from pi estimates KL(pi || ref). (B, C) each -> (B,), nats per sequence.
    """
    return torch.where(mask, compute_k1(logprobs, ref_logprobs), 0.0).sum(dim=1)


def compute_categorical_kl(
    logits: Float[Tensor, "*shape V"], ref_logits: Float[Tensor, "*shape V"]
) -> Float[Tensor, "*shape"]:
    """Exact KL(p || q) = sum_j p_j (log p_j - log q_j) of p = softmax(logits), q = softmax(ref_logits).

    Where p_j = 0 the term is 0; where q_j = 0 and p_j > 0 the result is infinite. (*shape, V) each -> (*shape), nats.
    """
    log_p = torch.log_softmax(logits, dim=-1)
    log_q = torch.log_softmax(ref_logits, dim=-1)
    possible = log_p > -math.inf
    gap = torch.where(possible, log_p, 0.0) - torch.where(possible, log_q, 0.0)
    return (log_p.exp() * gap).sum(dim=-1)


def compute_best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n, in nats: an upper bound of KL(best-of-n || ref), reached where scores never tie.

    Source: Stiennon et al. 2020, Appendix G.3; as a bound, Beirami et al. 2024, Theorem 1.

    Raises:
        DataError: `n` is below 1.
    """
    if n < 1:
        raise DataError(f"best of {n}", where="compute_best_of_n_kl", mend="choose n >= 1")
    return math.log(n) - (n - 1) / n
