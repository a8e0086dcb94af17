"""Personal reward: the common reward model and, for each person, a correction in the directions where people differ.

Implements the features of an answer, the scores of one person, of the average over people, and of the worst-off, and
the people's file. Leaves out fitting the corrections (`training.personal`).

The features come from the frozen layers that all roles share, not from the reward model: its last state is trained to
hold one number, the common score, and where people disagree their votes cancel and teach it nothing. The mean state
over the answer tells its tone and its words; the last one tells how it ended; and the number of tokens, which a mean
forgets, how long it is. PPO and the reward model have these states already, so that a personal score costs no pass of
its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from accord.errors import ConfigError, DataError
from accord.models import Base
from accord.rewards.learned import EnsembleReward, LearnedReward
from accord.rewards.sources import Scored, score_in_parts
from accord.types import Rollout

AVERAGE, WORST_OFF, COMMON = "average", "worst_off", "common"
GROUPS = (COMMON, AVERAGE, WORST_OFF)
"""Whom a policy can serve beside a person by name."""
PEOPLE_FILE = "people.safetensors"
BATCH = 16


@dataclass(frozen=True)
class People:
    """Corrections by name, and the K directions they live in.

    axes (F, K): where an answer's features phi stand on them, axes^T (phi - centre). centre (F,): the mean answer.
    slope: logits in a point of the common score. unit: logits in a point of a personal score. prior (K, K): how far
    people differ at all. shifts: by person, (K,): the posterior mean of delta, in logits. spreads: by person, (K, K):
    its posterior covariance.
    """

    axes: Float[Tensor, "F K"]
    centre: Float[Tensor, " F"]
    slope: float
    unit: float
    prior: Float[Tensor, "K K"]
    shifts: Mapping[str, Float[Tensor, " K"]]
    spreads: Mapping[str, Float[Tensor, "K K"]]

    def save(self, folder: Path) -> None:
        """Write `people.safetensors`: axes, centre, slope, unit, prior, `shift/NAME`, `spread/NAME`."""
        tensors = {"axes": self.axes, "centre": self.centre, "prior": self.prior}
        tensors |= {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("slope", "unit")}
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
            raise DataError("no people are known here", where=str(path), mend="fit them: reward.people = true")
        tensors = load_file(path)
        shifts, spreads = (
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            for prefix in ("shift/", "spread/")
        )
        slope, unit = float(tensors["slope"]), float(tensors["unit"])
        return cls(tensors["axes"], tensors["centre"], slope, unit, tensors["prior"], shifts, spreads)


def require_served(serve: str, names: Iterable[str], where: str) -> None:
    """Refuse to serve nobody.

    Raises:
        ConfigError: `serve` is neither a group nor one of `names`; it gives the nearest that is.
    """
    known = [*GROUPS, *names]
    if serve not in known:
        near = difflib.get_close_matches(serve, known, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
        raise ConfigError(f"nobody is called {serve!r}", where=where, mend=mend)


class PersonalReward:
    """s_j(x) = (slope s(x) + delta_j . axes^T (phi(x) - centre)) / unit, s the common score. A `RewardSource`.

    serve: a person's name; "average": the mean over people; "worst_off": the least over them; "common": s alone, as for
    somebody whom these people do not know. `score` returns the part `common` as well, beside the common source's own
    parts.
    """

    takes_trunk = True

    def __init__(self, base: Base, common: LearnedReward | EnsembleReward, people: People, serve: str) -> None:
        self.base, self.common, self.people, self.serve = base, common, people, serve

    def __call__(self, rollout: Rollout, trunk: Float[Tensor, "B T H"] | None = None) -> Float[Tensor, " B"]:
        """(B,) scores for whom the policy serves; `trunk` as in `LearnedReward`."""
        return self.score(rollout, trunk).total

    def score(self, rollout: Rollout, trunk: Float[Tensor, "B T H"] | None = None) -> Scored:
        """Scores for whom the policy serves, and the parts of the common source with `common`, its score."""
        found = score_in_parts(self.common, rollout, trunk)
        features = describe_rollout(self.base, rollout, trunk).to(found.total)
        return Scored(self.correct(found.total, features), {**found.parts, "common": found.total})

    def correct(self, common: Float[Tensor, " B"], features: Float[Tensor, "B F"]) -> Float[Tensor, " B"]:
        """The scores for whom the policy serves, from the common ones and the answers' features."""
        people = self.people
        if self.serve not in (AVERAGE, WORST_OFF, *people.shifts):
            return common
        places = (features - people.centre.to(features)) @ people.axes.to(features)
        names = [self.serve] if self.serve in people.shifts else list(people.shifts)
        shifts = torch.stack([people.shifts[name] for name in names]).to(places)
        everyone = (people.slope * common[:, None] + places @ shifts.t()) / people.unit
        if self.serve in people.shifts:
            return everyone[:, 0]
        return everyone.mean(dim=1) if self.serve == AVERAGE else everyone.amin(dim=1)


@torch.no_grad()
def describe_rollout(base: Base, rollout: Rollout, trunk: Float[Tensor, "B T H"] | None = None) -> Float[Tensor, "B F"]:
    """Features of a rollout's completions."""
    ids, mask = rollout.input_ids, rollout.attention_mask
    answers = torch.cat([torch.zeros_like(rollout.prompt_mask), rollout.completion_mask], dim=1)
    found = []
    for start in range(0, len(rollout), BATCH):
        rows = slice(start, start + BATCH)
        states = None if trunk is None else trunk[rows]
        found.append(describe_answers(base, ids[rows], mask[rows], answers[rows], states))
    return torch.cat(found)


def describe_answers(
    base: Base,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Bool[Tensor, "B T"],
    answers: Bool[Tensor, "B T"],
    trunk: Float[Tensor, "B T H"] | None = None,
) -> Float[Tensor, "B F"]:
    """phi, F = 2 H + 1, float32: the trunk's mean state over the n tokens where `answers`, the state of the last real
    token, and log(1 + n).

    Where the base is not split, the reference's last hidden states stand for the trunk's. An answer without tokens has
    a mean of 0.
    """
    if trunk is None:
        inputs = base.build_inputs(input_ids, attention_mask)
        trunk = base.run_trunk(inputs) if base.split else base.compute_hidden(None, inputs)
    assert trunk is not None, "a split base computes a trunk"
    states, weights = trunk.float(), answers.to(trunk.device).float()
    total = torch.einsum("bth,bt->bh", states, weights)
    count = weights.sum(dim=1, keepdim=True)
    mean = total / count.clamp(min=1.0)
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (attention_mask.long() * columns).argmax(dim=1).to(states.device)
    return torch.cat([mean, states[torch.arange(len(states), device=states.device), last], count.log1p()], dim=1)
