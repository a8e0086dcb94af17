"""Roles: adapters and heads that stand on one frozen model, by name; the half of `Base` that keeps them.

Implements adding, choosing, saving and removing roles, and their weights. Leaves out the passes through the model
(`base`) and the files' formats (`checkpoints`).
"""

from __future__ import annotations

import copy
import gc
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from accord import distributed
from accord.errors import ModelError
from accord.models import checkpoints
from accord.models.adapters import (
    AdapterSite,
    LoraSettings,
    adapter_parameters,
    add_adapter,
    choose_adapter,
    find_adapted_layers,
    remove_adapter,
)
from accord.models.heads import ScalarHead
from accord.models.sharding import ShardedCopy, part_like
from accord.models.weights import copy_model

if TYPE_CHECKING:
    from accord.models.base import Base

ROLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Role:
    """What `Base` keeps of one role. `lora` None: `model` is a full copy; `head` None: it speaks rather than scores.

    adapter: the role whose adapter acts: itself, or for a head alone the scorer it stands on; None for a full copy.
    site: where its adapters sit; None for a full copy. on_trunk: nothing below the split is its own, so that its passes
    may start from the trunk; a pass of any other role runs every layer, whatever trunk it is given. sharded: a full
    copy whose weights are parted over the processes; `model` is then the one for passes with gradients.
    """

    kind: Literal["policy", "scorer"]
    lora: LoraSettings | None
    model: PreTrainedModel
    head: ScalarHead | None
    adapter: str | None
    site: AdapterSite | None
    on_trunk: bool
    sharded: ShardedCopy | None = None


class Roles:
    """The roles of one frozen `model`; `hidden_size` is the width of their heads.

    Adapters sit at `site`, above the split, or for a policy that asks for it at `whole_site`, in every layer.
    """

    def __init__(self, model: PreTrainedModel, site: AdapterSite, whole_site: AdapterSite, hidden_size: int) -> None:
        self.model = model
        self.site = site
        self.whole_site = whole_site
        self.hidden_size = hidden_size
        self.device = model.device
        self._roles: dict[str, Role] = {}
        self._active: str | None = None
        self._adapted: list[LoraLinear] = []
        self.shard = False  # whether full copies are parted over the processes, where there are several
        self.optimizer = "adamw"  # of whatever learns here (training.optimization.OPTIMIZERS)

    # Roles

    def add_policy(self, role: str, *, lora: LoraSettings | None, seed: int, every_layer: bool = False) -> None:
        """Add a policy that equals the base: a LoRA adapter, or with `lora` None a full trainable copy.

        With `every_layer` the adapter sits below the split too, and the policy's passes never use the trunk, while
        those of critic and reward models do. A full copy is float32 (updates of 1e-5 would vanish in bfloat16) and
        trains every layer as well; it equals the base up to the base's own rounding. The frozen base stays as the
        reference. Where `shard` is set it is made in parts (`sharding`), by all processes together.

        Raises:
            ModelError: the role exists already, or its name is not letters, digits, `_` and `-`.
        """
        self._check_new(role)
        if lora is None and self.shard and distributed.count() > 1:
            parts = ShardedCopy(self.model)
            self._roles[role] = Role("policy", None, parts.model, None, None, None, on_trunk=False, sharded=parts)
        elif lora is None:
            self._roles[role] = Role("policy", None, copy_model(self.model), None, None, None, on_trunk=False)
        else:
            site = self.whole_site if every_layer else self.site
            add_adapter(self.model, role, site, lora, seed)
            self._roles[role] = Role("policy", lora, self.model, None, role, site, on_trunk=site == self.site)
        self._refresh()

    def add_scorer(self, role: str, *, lora: LoraSettings, seed: int, init_from: str | None = None) -> None:
        """Add a critic or reward model: an adapter and a scalar head, both zero, or copied from scorer `init_from`.

        Raises:
            ModelError: the role exists already, has an unfit name, or `init_from` is no scorer of the same rank.
        """
        self._check_new(role)
        start = None if init_from is None else self._scorer(init_from)
        if start is not None and start.lora != lora:
            raise ModelError(
                f"{role!r} ({lora}) cannot start from {init_from!r} ({start.lora})",
                mend="give both the same LoRA settings",
            )
        add_adapter(self.model, role, self.site, lora, seed)
        head = ScalarHead(self.hidden_size, self.device)
        self._roles[role] = Role("scorer", lora, self.model, head, role, self.site, on_trunk=True)
        if init_from is not None:
            self.load_state(role, self.state(init_from))
        self._refresh()

    def add_head(self, role: str, *, on: str) -> None:
        """Add a scorer that is a head alone, a copy of that of scorer `on`, and reads the hidden states of `on`.

        Its only weights are the head's; a pass of either serves both. The adapter goes on being that of `on`.

        Raises:
            ModelError: the role exists already, has an unfit name, or `on` is no scorer with an adapter of its own.
        """
        self._check_new(role)
        found = self._scorer(on)
        if found.adapter != on:
            raise ModelError(f"{on!r} has no adapter of its own", mend=f"stand on {found.adapter!r}")
        self._roles[role] = replace(found, head=copy.deepcopy(found.head))
        self._refresh()

    def remove(self, role: str) -> None:
        """Forget a role and free its weights.

        Raises:
            ModelError: there is no such role, it is active, or a head stands on it.
        """
        found = self._role(role)
        if role == self._active:
            raise ModelError(f"role {role!r} is active", mend="leave `activate` before removing it")
        standing = [name for name, other in self._roles.items() if other.adapter == role != name]
        if standing:
            raise ModelError(f"{standing[0]!r} stands on role {role!r}", mend=f"remove {standing[0]!r} first")
        if found.adapter == role:
            remove_adapter(self.model, role)
        del self._roles[role]
        if found.sharded is not None:
            del found
            gc.collect()  # what `fully_shard` hangs on a model refers to itself, and to the weights
        self._refresh()

    def roles(self) -> list[str]:
        """Names of the roles, in the order they were added."""
        return list(self._roles)

    def describe(self, role: str) -> Role:
        """Kind, LoRA settings, model and head of a role.

        Raises:
            ModelError: there is no such role.
        """
        return self._role(role)

    @contextmanager
    def activate(self, role: str | None) -> Iterator[PreTrainedModel]:
        """The causal LM acting as `role`, or as the reference for None. May be nested; what was active comes back.

        Raises:
            ModelError: there is no such role.
        """
        found = None if role is None else self._role(role)
        model = self.model if found is None else found.sharded.choose() if found.sharded else found.model
        previous = self._active
        self._choose(role)
        try:
            yield model
        finally:
            self._choose(previous)

    def head(self, role: str) -> ScalarHead:
        """The scalar head of `role`.

        Raises:
            ModelError: no such role, or it has no head.
        """
        head = self._scorer(role).head
        assert head is not None
        return head

    def normalize_head(self, role: str, mean: float, std: float) -> None:
        """Fold score -> (score - mean) / std into the head of `role`, so that its scores have mean 0 and variance 1.

        Raises:
            ModelError: the role has no head, or std is not a positive finite number.
        """
        if not 0 < std < float("inf"):
            raise ModelError(f"scores of {role!r} with standard deviation {std} cannot be normalised")
        self.head(role).normalize(mean, std)

    # Weights

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The trainable weights that are a role's own, by name: peft's names for an adapter, `head.*` for a head."""
        found = self._role(role)
        named: dict[str, nn.Parameter] = {}
        if found.lora is None:
            named |= found.model.named_parameters()
        elif found.adapter == role:
            named |= adapter_parameters(self.model, role)
        if found.head is not None:
            named |= {f"head.{name}": parameter for name, parameter in found.head.named_parameters()}
        return named

    def state(self, role: str) -> dict[str, Tensor]:
        """Copies of `parameters(role)`, which later steps do not touch."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters(role).items()}

    @torch.no_grad()
    def load_state(self, role: str, state: Mapping[str, Tensor]) -> None:
        """Write `state` into the weights of `role`, in place, so that an optimiser goes on with them.

        Raises:
            ModelError: names or shapes differ from those of the role.
        """
        parameters = self.parameters(role)
        wrong = sorted(parameters.keys() ^ state.keys())
        wrong = wrong or [name for name, p in parameters.items() if p.shape != state[name].shape]
        if wrong:
            raise ModelError(
                f"weights do not fit role {role!r}: {wrong[0]} and {len(wrong) - 1} more differ",
                mend="use the rank, split and model that they were trained with",
            )
        for name, parameter in parameters.items():
            parameter.copy_(part_like(state[name], parameter))
        if (parts := self._role(role).sharded) is not None:
            parts.release()

    # Files

    def save_role(self, role: str, folder: str | Path) -> None:
        """Write a role to `folder` in PEFT's format, plus `head.safetensors` and `role.json`; see `checkpoints`."""
        checkpoints.save_role(cast("Base", self), role, Path(folder))

    def save_merged(self, role: str, folder: str | Path) -> None:
        """Write a policy to `folder` as a whole model with its tokenizer, which `load_base` can stand on."""
        checkpoints.save_merged(cast("Base", self), role, Path(folder))

    def load_policy(self, role: str, folder: str | Path) -> None:
        """Add a policy from a folder that `save_role`, or PEFT, or for a full copy transformers has written.

        Raises:
            ModelError: the folder holds no policy, or one for another base or another split.
        """
        checkpoints.load_role(cast("Base", self), role, Path(folder), kind="policy")

    def load_scorer(self, role: str, folder: str | Path) -> None:
        """Add a scorer from a folder that `save_role` has written.

        Raises:
            ModelError: the folder holds no scorer, or one for another base or another split.
        """
        checkpoints.load_role(cast("Base", self), role, Path(folder), kind="scorer")

    # Inside

    def _check_new(self, role: str) -> None:
        if not ROLE_NAME.fullmatch(role):
            raise ModelError(f"{role!r} is no name for a role", mend="use letters, digits, _ and -, a letter first")
        if role in self._roles:
            raise ModelError(f"role {role!r} exists already", mend="choose another name, or remove it first")

    def _role(self, role: str) -> Role:
        if role not in self._roles:
            raise ModelError(f"no role {role!r}", mend=f"roles are {', '.join(self._roles) or 'none yet'}")
        return self._roles[role]

    def _scorer(self, role: str) -> Role:
        found = self._role(role)
        if found.head is None:
            raise ModelError(f"role {role!r} is a {found.kind} and has no head", mend="add it with add_scorer")
        return found

    def _refresh(self) -> None:
        """After adapters came or went: find them again, and let the one act that was active."""
        self._adapted = [layer for _, layer in find_adapted_layers(self.model)]
        self._choose(self._active)

    def _choose(self, role: str | None) -> None:
        choose_adapter(self._adapted, None if role is None else self._roles[role].adapter)
        self._active = role
