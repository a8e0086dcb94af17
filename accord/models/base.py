"""Base: one frozen causal LM on which every role stands as a LoRA adapter and, where it scores, a small head.

Implements adding, activating and removing roles, and the passes that training is made of: logits, values, scores, each
from tokens or from the cached trunk. Leaves out loading (`loading`), files (`checkpoints`) and sampling (`rollout`).
Positions come from the mask, so prompts padded on the left, completions padded on the right, or both, change nothing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from accord.errors import ModelError
from accord.models import checkpoints
from accord.models.adapters import (
    LoraSettings,
    adapter_parameters,
    add_adapter,
    choose_adapter,
    find_adapted_layers,
    find_site,
    remove_adapter,
)
from accord.models.branches import check_branching
from accord.models.heads import ScalarHead
from accord.models.tokenizer import ChatTokenizer
from accord.models.trunk import build_probe, choose_split, find_layers, find_trunk
from accord.models.weights import compute_fingerprint, copy_model, keep_head_fast

ROLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Role:
    """What `Base` keeps of one role. `lora` None: `model` is a full copy; `head` None: it speaks rather than scores."""

    kind: Literal["policy", "scorer"]
    lora: LoraSettings | None
    model: PreTrainedModel
    head: ScalarHead | None


class Base:
    """One frozen model, many roles.

    name: as given to `load_base`. device, dtype: of the frozen weights; adapters, heads and full copies are float32.
    layers, hidden_size, vocabulary: of the model. split: decoder layers below which nothing is adapted; 0 where the
    model does not allow a split, with `split_reason` saying so (it also says how exactly split and unsplit agree).
    takes_positions: whether the model's forward takes `position_ids`.
    """

    def __init__(self, model: PreTrainedModel, tokens: ChatTokenizer, *, name: str, split: int = -1) -> None:
        """`split` as in the setting `model.split`. The model is frozen and put in evaluation mode: no dropout anywhere.

        Raises:
            ModelError: the architecture has no list of decoder layers, or the split does not fit it.
        """
        self.name = name
        self.tokens = tokens
        self.model = keep_head_fast(model.eval().requires_grad_(False))
        self.device = model.device
        self.dtype = model.dtype
        self.hidden_size: int = model.config.get_text_config().hidden_size
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        layers_name, stack = find_layers(model)
        self.layers = len(stack)
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._roles: dict[str, Role] = {}
        self._active: str | None = None
        self._adapted: list[LoraLinear] = []
        probe = self.build_inputs(*build_probe(self.vocabulary, self.device))
        self._trunk, self.split_reason = find_trunk(
            stack, choose_split(split, self.layers), lambda: self.model(**probe).logits
        )
        self.split = self._trunk.split if self._trunk else 0
        self.site = find_site(layers_name, stack, self.split)

    @cached_property
    def branching(self) -> tuple[bool, str]:
        """Whether several completions may share one row and its prompt (models/branches.py), and why or why not."""
        return check_branching(self)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of the frozen weights: the hash of the reference."""
        return compute_fingerprint(self.model)

    # Roles

    def add_policy(self, role: str, *, lora: LoraSettings | None, seed: int) -> None:
        """Add a policy that equals the base: a LoRA adapter, or with `lora` None a full trainable copy.

        A full copy is float32 (updates of 1e-5 would vanish in bfloat16) and trains every layer, so it never uses the
        trunk; it equals the base up to the base's own rounding. The frozen base stays as the reference.

        Raises:
            ModelError: the role exists already, or its name is not letters, digits, `_` and `-`.
        """
        self._check_new(role)
        if lora is None:
            self._roles[role] = Role("policy", None, copy_model(self.model), None)
        else:
            add_adapter(self.model, role, self.site, lora, seed)
            self._roles[role] = Role("policy", lora, self.model, None)
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
        self._roles[role] = Role("scorer", lora, self.model, ScalarHead(self.hidden_size, self.device))
        if init_from is not None:
            self.load_state(role, self.state(init_from))
        self._refresh()

    def remove(self, role: str) -> None:
        """Forget a role and free its weights.

        Raises:
            ModelError: there is no such role, or it is active.
        """
        found = self._role(role)
        if role == self._active:
            raise ModelError(f"role {role!r} is active", mend="leave `activate` before removing it")
        if found.lora is not None:
            remove_adapter(self.model, role)
        del self._roles[role]
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
        model = self.model if role is None else self._role(role).model
        previous = self._active
        self._choose(role)
        try:
            yield model
        finally:
            self._choose(previous)

    # Passes

    def compute_trunk(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T H"] | None:
        """Hidden states below layer `split`, the same for every role (a full copy excepted); None when split == 0."""
        return self.run_trunk(self.build_inputs(input_ids, attention_mask))

    def compute_logits(
        self,
        role: str | None,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"],
        last: int,
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B last V"]:
        """Logits that predict the last `last` columns, in the model's dtype: row t speaks of column T - last + t.

        Raises:
            ModelError: no such role, `last` outside 1 to T - 1, or a trunk of another shape.
        """
        self._check_last(input_ids, last)
        with self._prepared(role, input_ids.shape, trunk) as model:
            end = input_ids.shape[1] - 1
            columns = torch.arange(end - last, end, device=input_ids.device)
            logits: Tensor = model(**self.build_inputs(input_ids, attention_mask), logits_to_keep=columns).logits
        return logits

    def compute_values(
        self,
        role: str,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"],
        last: int,
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B last"]:
        """V of the state before each of the last `last` tokens, float32: the head on the state one column earlier.

        Raises:
            ModelError: as `compute_logits`, or the role has no head.
        """
        self._check_last(input_ids, last)
        hidden = self.compute_hidden(role, self.build_inputs(input_ids, attention_mask), trunk)
        return self.head(role)(hidden[:, -last - 1 : -1])

    def compute_scores(
        self,
        role: str,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"],
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, " B"]:
        """One score a sequence, float32: the head on the hidden state of the last real token, wherever padding is.

        Raises:
            ModelError: no such role, it has no head, or a trunk of another shape.
        """
        hidden = self.compute_hidden(role, self.build_inputs(input_ids, attention_mask), trunk)
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_real = (attention_mask.long() * columns).argmax(dim=1)
        return self.head(role)(hidden[torch.arange(len(hidden), device=hidden.device), last_real])

    def build_inputs(self, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]) -> dict[str, Any]:
        """What the model's forward takes; positions count real tokens only."""
        mask = attention_mask.long()
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}
        if self.takes_positions:
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_(min=0)
        return inputs

    def compute_hidden(
        self, role: str | None, inputs: Mapping[str, Any], trunk: Float[Tensor, "B T H"] | None = None
    ) -> Float[Tensor, "B T H"]:
        """Hidden states after the final norm; `inputs` are those of the model's own forward.

        Raises:
            ModelError: no such role, or a trunk of another shape.
        """
        with self._prepared(role, inputs["input_ids"].shape, trunk) as model:
            hidden: Tensor = model.base_model(**inputs).last_hidden_state
        return hidden

    @torch.no_grad()
    def run_trunk(self, inputs: Mapping[str, Any]) -> Float[Tensor, "B T H"] | None:
        """Hidden states below layer `split`, whoever acts; `inputs` are those of the model's own forward."""
        if self._trunk is None:
            return None
        with self.activate(None) as model:
            return self._trunk.compute(lambda: model.base_model(**inputs))

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
        """The trainable weights of a role by name: peft's names for an adapter, `head.*` for a head."""
        found = self._role(role)
        if found.lora is None:
            named = dict(found.model.named_parameters())
        else:
            named = adapter_parameters(self.model, role)
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
            parameter.copy_(state[name])

    # Files

    def save_role(self, role: str, folder: str | Path) -> None:
        """Write a role to `folder` in PEFT's format, plus `head.safetensors` and `role.json`; see `checkpoints`."""
        checkpoints.save_role(self, role, Path(folder))

    def save_merged(self, role: str, folder: str | Path) -> None:
        """Write a policy to `folder` as a whole model with its tokenizer, which `load_base` can stand on."""
        checkpoints.save_merged(self, role, Path(folder))

    def load_policy(self, role: str, folder: str | Path) -> None:
        """Add a policy from a folder that `save_role`, or PEFT, or for a full copy transformers has written.

        Raises:
            ModelError: the folder holds no policy, or one for another base or another split.
        """
        checkpoints.load_role(self, role, Path(folder), kind="policy")

    def load_scorer(self, role: str, folder: str | Path) -> None:
        """Add a scorer from a folder that `save_role` has written.

        Raises:
            ModelError: the folder holds no scorer, or one for another base or another split.
        """
        checkpoints.load_role(self, role, Path(folder), kind="scorer")

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
        adapter = role if role is not None and self._roles[role].lora is not None else None
        choose_adapter(self._adapted, adapter)
        self._active = role

    def _check_last(self, input_ids: Tensor, last: int) -> None:
        if not 1 <= last < input_ids.shape[1]:
            raise ModelError(
                f"cannot predict the last {last} of {input_ids.shape[1]} columns",
                mend="keep at least one prompt column",
            )

    @contextmanager
    def _prepared(self, role: str | None, shape: torch.Size, trunk: Tensor | None) -> Iterator[PreTrainedModel]:
        """The model acting as `role`, its lower layers bypassed where their output is given."""
        full = role is not None and self._role(role).lora is None
        with self.activate(role) as model:
            if trunk is None or full:
                yield model
                return
            if self._trunk is None or trunk.shape != (*shape, self.hidden_size):
                raise ModelError(
                    f"a trunk of shape {tuple(trunk.shape)} does not fit ids of shape {tuple(shape)}",
                    mend="compute it on the same ids with compute_trunk, where split > 0",
                )
            with self._trunk.resume(trunk):
                yield model
