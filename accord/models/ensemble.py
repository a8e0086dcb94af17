"""Ensembles: K scorers on one base that share every layer below their own, and are read in one pass over it.

Implements members that differ in the adapters of the topmost layers and in their heads; below the layer `fork` they
have one adapter in common, whose states are computed once for all. Members are ordinary scorers: each has a name, and
a folder that PEFT can read. Leaves out how their scores become one (`rewards.combine`) and their fitting (`training`).

Why not own adapters all the way down to the split: with SmolLM2 (30 layers, split 20) four members would cost 2.0 times
one model, of which four own layers cost 1.4. The members' own layers run one member after the other: on top of shared
states a matrix product of K-fold rows costs K products, and needs K times the memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from accord.errors import ModelError
from accord.models.adapters import LoraSettings, find_adapted_layers, share_adapter
from accord.models.base import Base
from accord.models.branches import build_branch_inputs, find_branch_ends, mark_columns
from accord.models.lanes import compute_hidden_of
from accord.models.packing import reading_rows
from accord.models.trunk import Trunk, find_layers
from accord.types import derive_seed

CARD = "ensemble.json"


@dataclass(frozen=True)
class Ensemble:
    """K >= 1 scorers of `base`, `roles`, of which all but the layers from `fork` on is common.

    `fork` equal to `base.split`: nothing but the frozen trunk is common.
    """

    base: Base
    roles: tuple[str, ...]
    fork: int

    def __len__(self) -> int:
        return len(self.roles)

    def compute_scores(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"],
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "K B"]:
        """Each member's `base.compute_scores`, float32: member k's score of row b is [k, b]."""
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_real = (attention_mask.long() * columns).argmax(dim=1, keepdim=True)
        return self._read(self.base.build_inputs(input_ids, attention_mask), trunk, last_real)[..., 0]

    def compute_branch_scores(
        self,
        input_ids: Int[Tensor, "B T"],
        branches: Int[Tensor, "B T"],
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "K B N"]:
        """Each member's scores of the N completions that share a row (models/branches.py), float32."""
        inputs = build_branch_inputs(self.base, input_ids, branches)
        return self._read(inputs, trunk, find_branch_ends(branches))

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every trainable weight once, under `ROLE/NAME` of the first member that has it."""
        named: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        for role in self.roles:
            for name, parameter in self.base.parameters(role).items():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    named[f"{role}/{name}"] = parameter
        return named

    def state(self) -> dict[str, Tensor]:
        """Copies of `parameters()`."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters().items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Write `state` into the members' weights, in place.

        Raises:
            ModelError: names or shapes differ from those of the members.
        """
        parameters = self.parameters()
        if parameters.keys() != state.keys() or any(p.shape != state[n].shape for n, p in parameters.items()):
            raise ModelError("weights do not fit the ensemble", mend="use the members and layers they were saved with")
        for name, parameter in parameters.items():
            parameter.copy_(state[name])

    def save(self, folder: Path) -> None:
        """Member 1 into `folder` as `Base.save_role` does; of several, member k into `folder/member-k`, and a card."""
        for number, role in enumerate(self.roles, 1):
            self.base.save_role(role, locate_member(folder, number))
        if len(self) > 1:
            card = {"members": len(self), "fork": self.fork}
            (folder / CARD).write_text(json.dumps(card, sort_keys=True) + "\n")

    def _read(
        self, inputs: Mapping[str, Any], trunk: Tensor | None, columns: Int[Tensor, "B N"]
    ) -> Float[Tensor, "K B N"]:
        """The heads on N hidden states of each row, by each member; the common layers run once."""
        rows, length = torch.arange(len(columns), device=columns.device)[:, None], inputs["input_ids"].shape[1]
        wanted = mark_columns(columns, length)
        if len(self) == 1 or self.fork <= self.base.split:
            states = trunk if trunk is not None or len(self) == 1 else self.base.run_trunk(inputs)
            passes = compute_hidden_of(self.base, self.roles, inputs, states, wanted=wanted)
            return torch.stack([self.base.head(r)(h[rows, columns]) for r, h in zip(self.roles, passes, strict=True)])
        shared = Trunk(find_layers(self.base.model)[1], self.fork)
        states = shared.compute(lambda: self.base.compute_hidden(self.roles[0], inputs, trunk), grad=True)
        scores = []
        for role in self.roles:
            with self.base.activate(role) as model, shared.resume(states), reading_rows(self.base.stack[-1], wanted):
                hidden = model.base_model(**inputs).last_hidden_state
                scores.append(self.base.head(role)(hidden[rows, columns]))
        return torch.stack(scores)


def name_members(role: str, members: int) -> tuple[str, ...]:
    """The roles of an ensemble: `role` itself is the first member, then `role-2` to `role-K`."""
    return (role, *(f"{role}-{number}" for number in range(2, members + 1)))


def add_ensemble(base: Base, role: str, members: int, *, own_layers: int, lora: LoraSettings, seed: int) -> Ensemble:
    """Add `members` scorers that differ in the `own_layers` topmost layers (all above the split, where that is fewer).

    The first is exactly what `base.add_scorer(role, ..., seed)` makes. With a base that is not split nothing can be
    common, and every member has adapters in all layers.

    Raises:
        ModelError: as `Base.add_scorer`.
    """
    roles = name_members(role, members)
    for number, name in enumerate(roles):
        base.add_scorer(name, lora=lora, seed=seed if number == 0 else derive_seed(seed, "member", number))
    fork = max(base.split, base.layers - own_layers) if base.split and members > 1 else base.split
    _tie(base, roles, fork)
    return Ensemble(base, roles, fork)


def load_ensemble(base: Base, role: str, folder: Path) -> Ensemble:
    """Add what `Ensemble.save` wrote; a folder without `ensemble.json` is one scorer, an ensemble of one.

    Raises:
        ModelError: as `Base.load_scorer`.
    """
    card = json.loads((folder / CARD).read_text()) if (folder / CARD).is_file() else {"members": 1, "fork": base.split}
    roles = name_members(role, card["members"])
    for number, name in enumerate(roles, 1):
        base.load_scorer(name, locate_member(folder, number))
    _tie(base, roles, card["fork"])
    return Ensemble(base, roles, card["fork"])


def locate_member(folder: Path, number: int) -> Path:
    """Where member `number` (from 1) of a saved ensemble lies."""
    return folder if number == 1 else folder / f"member-{number}"


@torch.no_grad()
def add_weight_average(ensemble: Ensemble, role: str) -> None:
    """Add the scorer whose weights are the mean of the members': mean_k of W + s B_k A_k, and of the heads.

    The mean of K updates of rank r has rank K r at most, and is held exactly: A stacks the A_k, B the B_k / K.
    Source: Rame et al. 2024, "WARM: On the Benefits of Weight Averaged Reward Models", section 3.

    Raises:
        ModelError: the role exists already, or a member has no adapter.
    """
    base, count = ensemble.base, len(ensemble)
    lora = base.describe(ensemble.roles[0]).lora
    if lora is None:
        raise ModelError(f"{ensemble.roles[0]!r} has no adapter to average")
    base.add_scorer(role, lora=LoraSettings(lora.rank * count, lora.alpha * count), seed=0)
    states = [base.state(member) for member in ensemble.roles]
    averaged = {}
    for name in states[0]:
        values = [state[name] for state in states]
        if ".lora_A." in name:
            averaged[name] = torch.cat(values, dim=0)
        elif ".lora_B." in name:
            averaged[name] = torch.cat(values, dim=1) / count
        else:
            averaged[name] = torch.stack(values).mean(dim=0)
    base.load_state(role, averaged)


def _tie(base: Base, roles: Sequence[str], fork: int) -> None:
    """Give all members the first one's adapter, the very same tensors, in the layers below `fork`."""
    stack = find_layers(base.model)[1]
    low = {id(module) for layer in list(stack)[:fork] for module in layer.modules()}
    for _, layer in find_adapted_layers(base.model):
        if id(layer) in low:
            share_adapter(layer, roles[0], roles[1:])
