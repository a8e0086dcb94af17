"""ChatTokenizer: prompts and completions as token ids, with the EOS that the template means, a PAD that is not EOS.

Implements the choice of EOS and PAD, prompts under the chat template (or bare texts under the tokenizer's own BOS), and
completions whose only EOS is the one that says they are finished. Leaves out padding and masks, which belong to whoever
batches, and the proof that all this holds for a given model (`doctor`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from accord.errors import DataError, ModelError
from accord.types import Completion, Message, Prompt

_PROBE = (Message("user", "Name a colour."), Message("assistant", "Green"))


class ChatTokenizer:
    """Token ids of prompts and completions for one model.

    pad_id: never EOS. eos_id: the token that ends a completion. vocabulary: rows of the model's logits.
    has_template: whether chats can be rendered; without a template only `Prompt.text` is accepted.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_candidates: Iterable[int] = (),
        vocabulary: int | None = None,
        where: str | None = None,
    ) -> None:
        """`eos_candidates`: the ids that the model's own configuration calls EOS, most trusted first.

        Raises:
            ModelError: no EOS is known, or the tokenizer has more tokens than the model has embeddings.
        """
        self.inner = tokenizer
        self.where = where
        self.vocabulary = vocabulary or len(tokenizer)
        if len(tokenizer) > self.vocabulary:
            raise ModelError(
                f"the tokenizer has {len(tokenizer)} tokens, the model {self.vocabulary} embeddings",
                where=where,
                mend="use the tokenizer that the model was trained with",
            )
        self.has_template = tokenizer.chat_template is not None
        candidates = list(dict.fromkeys(eos_candidates))
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in candidates:
            candidates.append(tokenizer.eos_token_id)
        if not candidates:
            raise ModelError(
                "neither the model's configuration nor its tokenizer names an EOS token",
                where=where,
                mend="set eos_token_id in the model's config.json",
            )
        closing = self._find_closing_token() if self.has_template else None
        self.eos_id: int = closing if closing in candidates else candidates[0]
        self.pad_id: int = self._choose_pad({*candidates, self.eos_id})

    @property
    def bos_id(self) -> int | None:
        """The tokenizer's BOS, None where it has none."""
        return self.inner.bos_token_id

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """The chat as one string under the model's own template. Thinking is switched off where a template offers it.

        Raises:
            ModelError: no template, or the template refuses the chat (an unknown role, turns that do not alternate).
        """
        if not self.has_template:
            raise ModelError(
                "the model has no chat template, so it cannot answer chats",
                where=self.where,
                mend="use text prompts, or a model with a chat template",
            )
        try:
            rendered = self.inner.apply_chat_template(
                [m.to_dict() for m in messages],
                tokenize=False,
                add_generation_prompt=generation_prompt,
                enable_thinking=False,
            )
        except TemplateError as error:
            roles = ", ".join(m.role for m in messages)
            raise ModelError(
                f"the chat template refuses a chat of {roles}: {error}",
                where=self.where,
                mend="leave out or reorder the turns that this model does not know",
            ) from error
        return str(rendered)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids that a completion follows.

        A chat is rendered with the generation prompt, unless its last turn is the assistant's: then the completion
        starts with another turn. A text gets the tokenizer's own BOS and never an EOS; an empty text is that BOS.

        Raises:
            ModelError: a chat, and the model has no template that takes it.
        """
        if prompt.text is not None:
            ids = self._encode(prompt.text, special=True)
            while ids and ids[-1] == self.eos_id and self.eos_id != self.bos_id:
                ids.pop()
            return ids or [self.eos_id if self.bos_id is None else self.bos_id]
        return self._encode(self.render(prompt.messages, generation_prompt=prompt.messages[-1].role != "assistant"))

    def encode_completion(self, completion: Completion) -> list[int]:
        """Ids that follow `encode_prompt`: the answer, with EOS where it is finished; never a BOS.

        Special tokens spelt out inside a single answer are plain text, so EOS stands at its end or nowhere. Several
        turns are rendered under the template, from its first turn to the EOS that closes the last one.

        Raises:
            DataError: several turns of which the last is not the assistant's.
            ModelError: several turns, and the model has no template that takes them.
        """
        if len(completion.messages) == 1 and completion.messages[0].role == "assistant":
            ids = self._encode(completion.text, split_special_tokens=True)
        else:
            ids = self._encode(self._render_turns(completion))
        return [*ids, self.eos_id] if completion.finished else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens, spaces exactly as the model wrote them."""
        return str(self.inner.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _encode(self, text: str, *, special: bool = False, **options: Any) -> list[int]:
        return list(self.inner(text, add_special_tokens=special, verbose=False, **options)["input_ids"])

    def _render_turns(self, completion: Completion) -> str:
        """The turns of `completion` as the template writes them after a prompt, up to the end of the last answer."""
        turns = completion.messages
        if turns[-1].role != "assistant":
            raise DataError(f"a completion ends with the {turns[-1].role}'s turn", mend="end it with the assistant's")
        first = turns[0].role == "assistant"
        head = _PROBE[:1] if first else _PROBE
        before = self.render(head, generation_prompt=first)
        whole = self.render([*head, *turns], generation_prompt=False)
        closing = self._eos_text()
        end = whole.rfind(closing)
        if not whole.startswith(before) or end < len(before):
            raise ModelError(
                "the chat template does not write later turns after earlier ones",
                where=self.where,
                mend="use completions of one assistant turn with this model",
            )
        return whole[len(before) : end]

    def _eos_text(self) -> str:
        return str(self.inner.convert_ids_to_tokens(self.eos_id))

    def _find_closing_token(self) -> int | None:
        """The special token that the template writes after an assistant's answer, or None."""
        try:
            rest = self.render(_PROBE, generation_prompt=False).rpartition(_PROBE[1].content)[2]
        except ModelError:
            return None
        ids = self._encode(rest.lstrip())
        return ids[0] if ids and ids[0] in self._special_ids() else None

    def _special_ids(self) -> set[int]:
        added = {i for i, token in self.inner.added_tokens_decoder.items() if token.special}
        return added | set(self.inner.all_special_ids)

    def _choose_pad(self, eos_ids: set[int]) -> int:
        """PAD: the tokenizer's own if no EOS, else an unused special token, an unused embedding, or the rarest token.

        Masks, not ids, say what is padding; PAD only must not look like the end of a completion.
        """
        used = set(eos_ids)
        if self.bos_id is not None:
            used.add(self.bos_id)
        if self.has_template and (chat := self._try_probe()):
            used |= set(self._encode(chat))
        own, unknown = self.inner.pad_token_id, self.inner.unk_token_id
        if own is not None and own not in eos_ids:
            return int(own)
        spare = sorted(i for i in self._special_ids() - used if i < self.vocabulary)
        if unknown is not None and unknown in spare:
            return int(unknown)
        if spare:
            return spare[0]
        if len(self.inner) < self.vocabulary:
            return len(self.inner)
        return max(i for i in range(self.vocabulary) if i not in used)

    def _try_probe(self) -> str | None:
        try:
            return self.render(_PROBE, generation_prompt=True)
        except ModelError:
            return None
