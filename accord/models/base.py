"""Base: one frozen causal LM on which every role stands as a LoRA adapter and, where it scores, a small head.

Implements the passes that training is made of: logits, log-probabilities, values, scores, each from tokens or from the
cached trunk. Leaves out keeping the roles (`roles`), loading (`loading`), files (`checkpoints`), sampling (`rollout`).
Positions come from the mask, so prompts padded on the left, completions padded on the right, or both, change nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from accord.errors import ModelError
from accord.functional import EntropyUse, TokenLogprobs, compute_head_logprobs, compute_logprobs
from accord.models.adapters import find_site
from accord.models.branches import check_branching
from accord.models.decoding import check_packed_decoding
from accord.models.packing import pack_model, reading_rows
from accord.models.roles import Role, Roles
from accord.models.tokenizer import ChatTokenizer
from accord.models.trunk import build_probe, choose_split, find_layers, find_trunk
from accord.models.weights import compute_fingerprint, is_head_plain, keep_head_fast

__all__ = ["Base", "Role"]


class Base(Roles):
    """One frozen model, many roles.

    name: as given to `load_base`. device, dtype: of the frozen weights; adapters, heads and full copies are float32.
    layers, hidden_size, vocabulary: of the model. split: decoder layers below which nothing is adapted; 0 where the
    model does not allow a split, with `split_reason` saying so (it also says how exactly split and unsplit agree).
    stack: the decoder layers. takes_positions: whether the model's forward takes `position_ids`. packed: the weights of
    layers that run packed (models/packing.py), else empty. head_is_plain: whether logits are hidden states times the
    head's matrix, no more.
    """

    def __init__(self, model: PreTrainedModel, tokens: ChatTokenizer, *, name: str, split: int = -1) -> None:
        """`split` as in the setting `model.split`. The model is frozen and put in evaluation mode: no dropout anywhere.

        Raises:
            ModelError: the architecture has no list of decoder layers, or the split does not fit it.
        """
        keep_head_fast(model.eval().requires_grad_(False))
        self.name = name
        self.tokens = tokens
        self.dtype = model.dtype
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        layers_name, self.stack = find_layers(model)
        self.layers = len(self.stack)
        probe = self.build_inputs(*build_probe(self.vocabulary, model.device))
        real = probe["attention_mask"].bool()
        self.packed = pack_model(self.stack, lambda: model(**probe).logits[real])
        self.head_is_plain = is_head_plain(model, probe)
        self._trunk, self.split_reason = find_trunk(
            self.stack, choose_split(split, self.layers), lambda: model(**probe).logits
        )
        self.split = self._trunk.split if self._trunk else 0
        above, everywhere = (find_site(layers_name, self.stack, first) for first in (self.split, 0))
        super().__init__(model, above, everywhere, model.config.get_text_config().hidden_size)

    @cached_property
    def branching(self) -> tuple[bool, str]:
        """Whether several completions may share one row and its prompt (models/branches.py), and why or why not."""
        return check_branching(self)

    @cached_property
    def decodes_packed(self) -> bool:
        """Whether `decoding.PackedDecoder` stands for the model's own decoding, as it does where layers are packed."""
        return check_packed_decoding(self)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of the frozen weights: the hash of the reference."""
        return compute_fingerprint(self.model)

    # Passes

    def compute_trunk(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T H"] | None:
        """Hidden states below layer `split`, the same for every role that is `on_trunk`; None when split == 0."""
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

    def compute_logprobs(
        self,
        role: str | None,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"],
        last: int,
        temperature: float,
        trunk: Float[Tensor, "B T H"] | None = None,
        *,
        entropy: EntropyUse = "learns",
        states: Float[Tensor, "B last H"] | None = None,
    ) -> TokenLogprobs:
        """log p of each of the last `last` tokens and the entropy at its position, (B, last) in nats; 0 where masked.

        `entropy` as in `compute_head_logprobs`. The head reads real tokens only, a few at a time, so that no
        (B, last, V) is ever held (except where the role is not one that `speaks_plainly`: then all goes through
        `compute_logits`). states: what `compute_states` gave for this role, where the caller has it; no pass runs then.

        Raises:
            ModelError: as `compute_logits`.
        """
        self._check_last(input_ids, last)
        ids, mask = input_ids[:, -last:], attention_mask[:, -last:]
        if not self.speaks_plainly(role):
            logits = self.compute_logits(role, input_ids, attention_mask, last, trunk)
            found = compute_logprobs(logits, ids, temperature)
            return TokenLogprobs(*(values.masked_fill(~mask, 0.0) for values in found))
        if states is None:
            states = self.compute_states(role, input_ids, attention_mask, last, trunk)
        head = self.model.get_output_embeddings()
        found = compute_head_logprobs(states[mask], head.weight, ids[mask], temperature, entropy=entropy)
        return TokenLogprobs(*(values.new_zeros(mask.shape).masked_scatter(mask, values) for values in found))

    def speaks_plainly(self, role: str | None) -> bool:
        """Whether the role's logits are its hidden states times the frozen head's matrix, no more.

        A full copy has a head of its own, which learns; some models change their logits.
        """
        return self.head_is_plain and (role is None or self._role(role).lora is not None)

    def compute_values(
        self,
        role: str,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"],
        last: int,
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B last"]:
        """V of the state before each of the last `last` tokens, float32: the head on `compute_states`.

        Raises:
            ModelError: as `compute_logits`, or the role has no head.
        """
        return self.head(role)(self.compute_states(role, input_ids, attention_mask, last, trunk))

    def compute_states(
        self,
        role: str | None,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"],
        last: int,
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B last H"]:
        """Hidden states that know all before each of the last `last` tokens: those of one column earlier.

        Those of masked tokens mean nothing.

        Raises:
            ModelError: as `compute_logits`.
        """
        self._check_last(input_ids, last)
        wanted = _shift_back(attention_mask[:, -last:], input_ids.shape[1])
        inputs = self.build_inputs(input_ids, attention_mask)
        return self.compute_hidden(role, inputs, trunk, wanted=wanted)[:, -last - 1 : -1]

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
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_real = (attention_mask.long() * columns).argmax(dim=1)
        wanted = columns == last_real[:, None]
        hidden = self.compute_hidden(role, self.build_inputs(input_ids, attention_mask), trunk, wanted=wanted)
        return self.head(role)(hidden[torch.arange(len(hidden), device=hidden.device), last_real])

    def build_inputs(self, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]) -> dict[str, Any]:
        """What the model's forward takes; positions count real tokens only."""
        mask = attention_mask.long()
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}
        if self.takes_positions:
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_(min=0)
        return inputs

    def compute_hidden(
        self,
        role: str | None,
        inputs: Mapping[str, Any],
        trunk: Float[Tensor, "B T H"] | None = None,
        *,
        wanted: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T H"]:
        """Hidden states after the final norm; `inputs` are those of the model's own forward.

        wanted: the rows that are read, where not all are; the others mean nothing then.

        Raises:
            ModelError: no such role, or a trunk of another shape.
        """
        with (
            self._prepared(role, inputs["input_ids"].shape, trunk) as model,
            reading_rows(self.stack[-1], wanted),
        ):
            hidden: Tensor = model.base_model(**inputs).last_hidden_state
        return hidden

    @torch.no_grad()
    def run_trunk(self, inputs: Mapping[str, Any]) -> Float[Tensor, "B T H"] | None:
        """Hidden states below layer `split`, whoever acts; `inputs` are those of the model's own forward."""
        if self._trunk is None:
            return None
        with self.activate(None) as model:
            return self._trunk.compute(lambda: model.base_model(**inputs))

    # Inside

    def _check_last(self, input_ids: Tensor, last: int) -> None:
        if not 1 <= last < input_ids.shape[1]:
            raise ModelError(
                f"cannot predict the last {last} of {input_ids.shape[1]} columns",
                mend="keep at least one prompt column",
            )

    @contextmanager
    def _prepared(self, role: str | None, shape: torch.Size, trunk: Tensor | None) -> Iterator[PreTrainedModel]:
        """The model acting as `role`, its lower layers bypassed where their output is given."""
        on_trunk = role is None or self._role(role).on_trunk
        with self.activate(role) as model:
            if trunk is None or not on_trunk:
                yield model
                return
            if self._trunk is None or trunk.shape != (*shape, self.hidden_size):
                raise ModelError(
                    f"a trunk of shape {tuple(trunk.shape)} does not fit ids of shape {tuple(shape)}",
                    mend="compute it on the same ids with compute_trunk, where split > 0",
                )
            with self._trunk.resume(trunk):
                yield model


def _shift_back(mask: Bool[Tensor, "B last"], length: int) -> Bool[Tensor, "B length"]:
    """The columns that predict the last tokens where `mask` is True: each one column earlier."""
    return functional.pad(mask, (length - mask.shape[1] - 1, 1))
