"""Personal reward: the common reward model and, for each person, a correction in the directions where people differ.

Implements the scores of one person, of the average over people, and of the worst-off, on the last-token features of a
fitted reward model; and the people's file. Leaves out fitting the corrections (`training.personal`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from accord.errors import ConfigError, DataError
from accord.models import Base
from accord.types import Rollout

AVERAGE, WORST_OFF, COMMON = "average", "worst_off", "common"
PEOPLE_FILE = "people.safetensors"
BATCH = 16


@dataclass(frozen=True)
class People:
    """Corrections by name, and the directions they live in.

    axes (H, P): what a last-token state's features are, phi(h) = axes^T h. shifts: by person, (P,): the posterior mean
    of delta. spreads: by person, (P, P): its posterior covariance. prior (P, P): how far people differ at all.
    """

    axes: Float[Tensor, "H P"]
    prior: Float[Tensor, "P P"]
    shifts: Mapping[str, Float[Tensor, " P"]]
    spreads: Mapping[str, Float[Tensor, "P P"]]

    def save(self, folder: Path) -> None:
        """Write `people.safetensors`: axes, prior, `shift/NAME`, `spread/NAME`."""
        tensors = {"axes": self.axes, "prior": self.prior}
        tensors |= {f"shift/{name}": value for name, value in self.shifts.items()}
        tensors |= {f"spread/{name}": value for name, value in self.spreads.items()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / PEOPLE_FILE)

    @classmethod
    def load(cls, folder: Path) -> People:
        """Read what `save` wrote.

        Raises:
            DataError: there is no such file.
        """
        path = folder / PEOPLE_FILE
        if not path.is_file():
            raise DataError(
                "this reward model knows no people", where=str(path), mend="fit them with training.personal.fit_people"
            )
        tensors = load_file(path)
        shifts, spreads = (
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            for prefix in ("shift/", "spread/")
        )
        return cls(tensors["axes"], tensors["prior"], shifts, spreads)


class PersonalReward:
    """s_j(x) = w . h + b + delta_j . phi(h), h the last real token's state under `role`. A `RewardSource`.

    serve: a person's name; "average": the mean over people; "worst_off": the least over them; "common": s = w . h + b.

    Raises: ConfigError where `serve` is nobody's name.
    """

    def __init__(self, base: Base, role: str, people: People, serve: str) -> None:
        if serve not in (AVERAGE, WORST_OFF, COMMON, *people.shifts):
            raise ConfigError(
                f"nobody is called {serve!r}",
                where="PersonalReward",
                mend=f"use {COMMON}, {AVERAGE}, {WORST_OFF}, or one of {', '.join(people.shifts)}",
            )
        self.base, self.role, self.people, self.serve = base, role, people, serve

    def __call__(self, rollout: Rollout) -> Float[Tensor, " B"]:
        """(B,) scores for whom the policy serves."""
        common, features = compute_features(self.base, self.role, rollout)
        projected = features @ self.people.axes.to(features)
        shifts = torch.stack([self.people.shifts[name] for name in self.people.shifts]).to(projected)
        everyone = common[:, None] + projected @ shifts.t()
        if self.serve == AVERAGE:
            return everyone.mean(dim=1)
        if self.serve == WORST_OFF:
            return everyone.amin(dim=1)
        return common if self.serve == COMMON else everyone[:, list(self.people.shifts).index(self.serve)]


@torch.no_grad()
def compute_features(base: Base, role: str, rollout: Rollout) -> tuple[Float[Tensor, " B"], Float[Tensor, "B H"]]:
    """(common scores, last-token states) of a rollout under the reward model `role`, float32."""
    scores, states = [], []
    for ids, mask in zip(rollout.input_ids.split(BATCH), rollout.attention_mask.split(BATCH), strict=True):
        hidden = base.compute_hidden(role, base.build_inputs(ids, mask))
        columns = torch.arange(ids.shape[1], device=ids.device)
        last = hidden[torch.arange(len(ids), device=ids.device), (mask.long() * columns).argmax(dim=1)]
        states.append(last.float())
        scores.append(base.head(role)(last))
    return torch.cat(scores), torch.cat(states)
