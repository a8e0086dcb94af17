"""ScalarHead: one number from a hidden state. The value head of a critic, the score head of a reward model."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """w . h + b in float32, whatever the dtype of h. Both start at zero, so a new critic predicts V = 0 everywhere."""

    def __init__(self, hidden_size: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float32, device=device))

    def forward(self, hidden: Float[Tensor, "*axes H"]) -> Float[Tensor, "*axes"]:
        """(..., H) -> (...), float32."""
        return hidden.float() @ self.weight + self.bias

    @torch.no_grad()
    def normalize(self, mean: float, std: float) -> None:
        """Fold s -> (s - mean) / std into w and b, in place."""
        self.weight.div_(std)
        self.bias.sub_(mean).div_(std)
