"""Declared shapes are enforced while the tests run: a wrong one is refused before any arithmetic."""

import pytest
import torch
from jaxtyping import TypeCheckError

from accord.functional import masked_mean


def test_a_wrong_shape_is_refused() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert masked_mean(torch.ones(2, 3), mask) == 1
    with pytest.raises(TypeCheckError):
        masked_mean(torch.ones(2, 3), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(TypeCheckError):
        masked_mean(torch.ones(2, 3), mask.float())
