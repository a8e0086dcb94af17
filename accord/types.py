"""The words of the loop as frozen values: prompts, completions, votes, preferences, rollouts; the seams between rooms.

Implements identity (content hashes) and validation of a single value. Leaves out all I/O: files live in `feedback`
and `workspace`, token ids in `models`, sampling in `rollout`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from accord.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

VoteKind = Literal["comparison", "ranking", "rating", "flag", "withdrawal"]
Choice = Literal["a", "b", "tie", "both_bad"]
ROLES = ("system", "user", "assistant", "tool")


def compute_content_id(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `value` as canonical JSON: the same content has the same id everywhere."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def derive_seed(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for one use: the SHA-256 of `seed` and `labels`. Independent of call order and platform."""
    text = json.dumps([seed, *labels], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. `role` is one of system, user, assistant, tool."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"unknown role {self.role!r}", mend=f"use one of {', '.join(ROLES)}")

    def to_dict(self) -> dict[str, str]:
        """`{"role": ..., "content": ...}`, the field's usual form."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a completion answers: a chat (`messages`, whole, every turn) or a bare text (`text`), never both."""

    messages: tuple[Message, ...] = ()
    text: str | None = None

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.text is not None):
            raise DataError("a prompt is either a chat with at least one message or a text", mend="give exactly one")

    @property
    def id(self) -> str:
        """Content hash, 16 hex digits."""
        return compute_content_id(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """`{"messages": [...]}` for a chat, `{"text": ...}` for a text."""
        if self.text is not None:
            return {"text": self.text}
        return {"messages": [m.to_dict() for m in self.messages]}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Prompt:
        """Inverse of `to_dict`."""
        if "messages" in row:
            return cls(messages=tuple(Message(m["role"], m["content"]) for m in row["messages"]))
        return cls(text=row["text"])

    @classmethod
    def from_user(cls, content: str, system: str | None = None) -> Prompt:
        """A chat of one user turn, with an optional system turn before it."""
        head = (Message("system", system),) if system is not None else ()
        return cls(messages=(*head, Message("user", content)))


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's answer. Usually one assistant message; where two chats part earlier, all turns from there on.

    `finished` is False where sampling was cut off before EOS. `origin` says who wrote it (a policy's artifact key, a
    file, a person); it is not part of the identity and never shown to annotators.
    """

    messages: tuple[Message, ...]
    finished: bool = True
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.messages:
            raise DataError("a completion has at least one message", mend="give the assistant's turn")

    @property
    def text(self) -> str:
        """Content of the last message."""
        return self.messages[-1].content

    @property
    def id(self) -> str:
        """Content hash of the messages and of `finished`, 16 hex digits."""
        return compute_content_id([[m.to_dict() for m in self.messages], self.finished])

    def to_dict(self) -> dict[str, Any]:
        """`{"messages": [...], "finished": bool, "origin": str}`."""
        return {"messages": [m.to_dict() for m in self.messages], "finished": self.finished, "origin": self.origin}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Completion:
        """Inverse of `to_dict`."""
        messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
        return cls(messages, row.get("finished", True), row.get("origin", ""))

    @classmethod
    def from_text(cls, text: str, *, finished: bool = True, origin: str = "") -> Completion:
        """One assistant message."""
        return cls((Message("assistant", text),), finished, origin)


@dataclass(frozen=True, slots=True)
class Vote:
    """One judgement by one annotator. Append-only: a change of mind is a new vote whose `supersedes` names the old.

    comparison: two completions, `choice`, and `strength` 1 (barely better) to 7 (vastly better), None where not asked.
    ranking: K >= 2 completions and `ranks`, 1 = best, equal numbers are ties.
    rating: one completion and `rating` in [0, 1].
    flag: one completion and `flag`, the reason it is harmful or broken.
    withdrawal: says no more than that the vote which it `supersedes` no longer counts; the completions are that vote's.
    """

    id: str
    kind: VoteKind
    prompt: Prompt
    completions: tuple[Completion, ...]
    annotator: str
    choice: Choice | None = None
    strength: int | None = None
    ranks: tuple[int, ...] | None = None
    rating: float | None = None
    flag: str | None = None
    created_at: str = ""  # ISO 8601, UTC
    guideline_version: str | None = None
    simulated: bool = False
    source: str = ""  # where it came from: a file's name, "web", a stage's key
    supersedes: str | None = None

    def __post_init__(self) -> None:
        problem = _vote_problem(self)
        if problem:
            raise DataError(f"vote {self.id}: {problem}", mend="see docs/formats.md, 'One vote per line'")


def _vote_problem(vote: Vote) -> str | None:
    """What is wrong with `vote`, or None."""
    count = len(vote.completions)
    wanted = {"comparison": vote.choice, "ranking": vote.ranks, "rating": vote.rating, "flag": vote.flag}
    wanted["withdrawal"] = vote.supersedes
    if vote.kind not in wanted:
        return f"unknown kind {vote.kind!r}"
    if wanted[vote.kind] is None:
        return f"a {vote.kind} lacks its judgement"
    if not vote.annotator:
        return "no annotator"
    if vote.kind == "comparison":
        if count != 2:
            return f"a comparison has 2 completions, not {count}"
        if vote.choice not in ("a", "b", "tie", "both_bad"):
            return f"unknown choice {vote.choice!r}"
        if vote.strength is not None and not 1 <= vote.strength <= 7:
            return f"strength {vote.strength} is outside 1 to 7"
    elif vote.kind == "ranking":
        if count < 2 or vote.ranks is None or len(vote.ranks) != count:
            return "a ranking has one rank for each of at least 2 completions"
        if min(vote.ranks) < 1:
            return "ranks start at 1"
    elif vote.kind == "withdrawal":
        return None if count else "a withdrawal shows what the vote before it showed"
    elif count != 1:
        return f"a {vote.kind} has 1 completion, not {count}"
    elif vote.kind == "rating" and not (vote.rating is not None and 0.0 <= vote.rating <= 1.0):
        return f"rating {vote.rating} is outside [0, 1]"
    return None


@dataclass(frozen=True, slots=True)
class Preference:
    """What a set of votes says of one pair.

    probability: P(a is better), in [0, 1]. uncertainty: its standard error. weight: how much the pair counts in a fit
    (1 by default; 0 where nobody preferred anything, as for 'both bad'). strength: mean strength of the votes in
    [0, 1] (vote strength / 7), None where nobody gave one. votes: how many votes speak of the pair.
    """

    prompt: Prompt
    a: Completion
    b: Completion
    probability: float
    uncertainty: float
    weight: float = 1.0
    strength: float | None = None
    votes: int = 1

    @property
    def id(self) -> str:
        """Content hash of prompt and both completions, in this order."""
        return compute_content_id([self.prompt.id, self.a.id, self.b.id])

    def to_dict(self) -> dict[str, Any]:
        """JSON form, the line of `preferences.jsonl`."""
        return {
            "prompt": self.prompt.to_dict(),
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "probability": self.probability,
            "uncertainty": self.uncertainty,
            "weight": self.weight,
            "strength": self.strength,
            "votes": self.votes,
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Preference:
        """Inverse of `to_dict`."""
        rest = {k: row[k] for k in ("probability", "uncertainty", "weight", "strength", "votes")}
        return cls(
            Prompt.from_dict(row["prompt"]), Completion.from_dict(row["a"]), Completion.from_dict(row["b"]), **rest
        )


@dataclass(frozen=True)
class Rollout:
    """B prompts, one sampled completion each, as tokens. P prompt columns (padded left), C completion columns (right).

    prompt_ids (B, P) int64; prompt_mask (B, P) bool, True on real tokens.
    completion_ids (B, C) int64; completion_mask (B, C) bool, True on sampled tokens, the EOS included.
    logprobs (B, C) float32: log pi_old of each sampled token at the sampling temperature, in nats; 0 where masked.
    finished (B,) bool: EOS was sampled (truncated is not terminated).
    completions: the decoded texts, for people and text rewards; never encoded again.
    prompt_trunk (B, P, H), completion_trunk (B, C, H) or None: the frozen layers' output at each token, in the dtype of
    the weights, 0 where masked, where the sampler was asked to keep what it computed anyway.
    critic_states (B, C + 1, H) or None: a critic's final hidden states, where the sampler was asked for them. Column t
    knows all before token t, and column n of a completion of n tokens all of it; 0 behind it.
    """

    prompts: tuple[Prompt, ...]
    completions: tuple[Completion, ...]
    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    logprobs: Tensor
    finished: Tensor
    prompt_trunk: Tensor | None = None
    completion_trunk: Tensor | None = None
    critic_states: Tensor | None = None

    @property
    def trunk(self) -> Tensor | None:
        """(B, P + C, H): prompt then completion; None where it was not kept."""
        import torch

        if self.prompt_trunk is None or self.completion_trunk is None:
            return None
        return torch.cat([self.prompt_trunk, self.completion_trunk], dim=1)

    @property
    def input_ids(self) -> Tensor:
        """(B, P + C) int64: prompt then completion."""
        import torch

        return torch.cat([self.prompt_ids, self.completion_ids], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """(B, P + C) bool, True on real tokens."""
        import torch

        return torch.cat([self.prompt_mask, self.completion_mask], dim=1)

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class ReadRollout(Rollout):
    """A rollout that a scorer's adapter has read.

    end_states: by the role whose adapter it is, (B, H): hidden states at each row's last real token. A score is a head
    on these. They hold as long as that adapter does not learn.
    """

    end_states: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_rollout(cls, rollout: Rollout, end_states: Mapping[str, Tensor]) -> ReadRollout:
        """The same rollout with these states."""
        return cls(**{own.name: getattr(rollout, own.name) for own in fields(Rollout)}, end_states=end_states)


RewardSource = Callable[[Rollout], "Tensor"]
"""A score source: a rollout of B completions -> (B,) float32 scores."""

TextReward = Callable[[Prompt, Completion], float]
"""A score source that needs only text: one prompt and completion -> one number."""


@runtime_checkable
class Generator(Protocol):
    """Anything that generates text with its sampling logprobs, so that another engine can be plugged in."""

    def generate(
        self,
        role: str | None,
        prompts: Sequence[Prompt],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        critic: str | None = None,
    ) -> Rollout:
        """One completion for each prompt; sequence i is a function of prompt i, seed i and the role's weights alone.

        critic: the scorer whose `critic_states` the rollout should bring, from a generator that can; never given to one
        that is not asked for them.
        """
        ...


@runtime_checkable
class Progress(Protocol):
    """Where long work tells how far it is. The command line draws it; tests collect it."""

    def stage(self, name: str, state: Literal["started", "finished", "already done"], seconds: float = 0.0) -> None:
        """A stage of the loop starts, has finished after `seconds`, or was finished by an earlier run."""
        ...

    def begin(self, task: str, total: int, unit: str) -> None:
        """A task of `total` units starts (it replaces the one before)."""
        ...

    def advance(self, amount: int = 1) -> None:
        """`amount` more units are done."""
        ...

    def log(self, metrics: Mapping[str, float | int | str]) -> None:
        """One row of live metrics (a line of rounds/NNN/metrics.jsonl)."""
        ...


class Silence:
    """`Progress` for work that nobody watches."""

    def stage(self, name: str, state: Literal["started", "finished", "already done"], seconds: float = 0.0) -> None:
        """Nothing."""

    def begin(self, task: str, total: int, unit: str) -> None:
        """Nothing."""

    def advance(self, amount: int = 1) -> None:
        """Nothing."""

    def log(self, metrics: Mapping[str, float | int | str]) -> None:
        """Nothing."""


@runtime_checkable
class Checkpoint(Protocol):
    """Where a long stage keeps its state, so that a killed run goes on where it was."""

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the last checkpoint, atomically. `state` is JSON."""
        ...

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint, or None."""
        ...


class Forgetful:
    """`Checkpoint` of work that takes seconds: stopped, it is done again from its beginning."""

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Nothing."""

    def load(self) -> None:
        """Never anything."""
