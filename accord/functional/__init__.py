"""Pure tensor mathematics: each function is one equation, on torch tensors alone, with the formula in its docstring.

Knows nothing of models, settings or files. What is optimised lies one floor up, in `accord.losses`.
"""

from accord.functional.controllers import compute_linear, compute_warmup_cosine, update_kl_coef, update_multiplier
from accord.functional.explained_variance import compute_explained_variance
from accord.functional.gae import Advantages, compute_gae
from accord.functional.kl import (
    compute_best_of_n_kl,
    compute_categorical_kl,
    compute_k1,
    compute_k2,
    compute_k3,
    compute_sequence_kl,
)
from accord.functional.logprobs import EntropyUse, TokenLogprobs, compute_head_logprobs, compute_logprobs
from accord.functional.masking import compute_last_index, masked_mean, masked_sum, masked_variance, masked_whiten
from accord.functional.shaping import shape_rewards

__all__ = [
    "Advantages",
    "EntropyUse",
    "TokenLogprobs",
    "compute_best_of_n_kl",
    "compute_categorical_kl",
    "compute_explained_variance",
    "compute_gae",
    "compute_head_logprobs",
    "compute_k1",
    "compute_k2",
    "compute_k3",
    "compute_last_index",
    "compute_linear",
    "compute_logprobs",
    "compute_sequence_kl",
    "compute_warmup_cosine",
    "masked_mean",
    "masked_sum",
    "masked_variance",
    "masked_whiten",
    "shape_rewards",
    "update_kl_coef",
    "update_multiplier",
]
