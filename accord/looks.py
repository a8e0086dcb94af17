"""What a run in training shows of itself, and what is said of it: looks, alarms, and the seam between them.

Implements the values alone, so that what takes looks (`training`), what judges them (`evaluation`) and what simulates
them (`laboratory`) need not know one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accord.types import Completion, Prompt


@dataclass(frozen=True)
class Look:
    """One held-out evaluation of a policy in training; every look has the same n validation prompts and seeds.

    update: updates done. completions (n,), token_ids (n,): the different tokens of each. kl_nats (n,): log pi - log
    pi_ref of each completion. proxy (n,): what is optimised. heldout (n,): the independent judge. gold (n,): the hidden
    utility, None where there is none; it is drawn and never decides. disagreement (n,): between the members of the
    proxy's ensemble, None for a single model.
    """

    update: int
    prompts: tuple[Prompt, ...]
    completions: tuple[Completion, ...]
    token_ids: tuple[tuple[int, ...], ...]
    length_tokens: tuple[float, ...]
    kl_nats: tuple[float, ...]
    proxy: tuple[float, ...]
    heldout: tuple[float, ...]
    gold: tuple[float, ...] | None = None
    disagreement: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for a checkpoint."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return plain | {name: [item.to_dict() for item in plain[name]] for name in ("prompts", "completions")}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Look:
        """Inverse of `to_dict`."""
        rest: dict[str, Any] = {n: None if row[n] is None else tuple(row[n]) for n in _LOOK_NUMBERS}
        return cls(
            update=row["update"],
            prompts=tuple(map(Prompt.from_dict, row["prompts"])),
            completions=tuple(map(Completion.from_dict, row["completions"])),
            token_ids=tuple(map(tuple, row["token_ids"])),
            **rest,
        )


_LOOK_NUMBERS = ("length_tokens", "kl_nats", "proxy", "heldout", "gold", "disagreement")


@dataclass(frozen=True)
class Alarm:
    """Why training must stop. kind: docs/alarm.md. update: when it rang. reason: one or two sentences in plain words.

    measured: the numbers that it rests on, by name.
    """

    kind: str
    update: int
    reason: str
    measured: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """`{"kind", "update", "reason", "measured"}`."""
        return {"kind": self.kind, "update": self.update, "reason": self.reason, "measured": dict(self.measured)}


ROUNDING = 1e-4
"""A smaller gain of the judge's mean is none: scores have variance 1 on the reference's answers, and are rounded."""


@dataclass(frozen=True)
class Challenge:
    """What annotators said of the last look beside the best one before it, which was taken after update `rival`.

    outcomes (n,): a question each, 1 where they preferred the last look's answer, 0 the other, 0.5 neither.
    """

    update: int
    rival: int
    outcomes: tuple[float, ...]

    @property
    def won(self) -> int:
        """Questions on which the last look's answer was preferred."""
        return sum(outcome > 0.5 for outcome in self.outcomes)

    @property
    def lost(self) -> int:
        """Questions on which the other's was."""
        return sum(outcome < 0.5 for outcome in self.outcomes)

    @property
    def lead(self) -> float:
        """By how many standard errors of a tie it won; below 0: lost."""
        return (self.won - self.lost) / math.sqrt(max(1, self.won + self.lost))

    @property
    def worse(self) -> bool:
        """Whether annotators hold it for worse, by more than a standard error."""
        return self.lead < -1


def takes_lead(looks: Sequence[Look], challenge: Challenge) -> bool:
    """Whether the last of `looks` is the best now: annotators prefer it by more than a standard error, or prefer it and
    so does the judge.

    Else the one before stays, which is nearer to the reference: the one-standard-error rule of Breiman et al. 1984
    (Classification and Regression Trees, section 3.4.3), with the judge's word for what votes leave open.
    """
    before = next(look for look in looks if look.update == challenge.rival)
    gain = (sum(looks[-1].heldout) - sum(before.heldout)) / len(before.heldout)
    return challenge.lead > 1 or (challenge.lead > 0 and gain > ROUNDING)


@dataclass(frozen=True)
class Judgement:
    """What is said of the last look. alarms: that ring now; none: all is well.

    better: whether it takes the place of the best look before by annotators' votes; None: nobody was asked, and the
    judge's score decides.
    """

    alarms: Sequence[Alarm] = ()
    better: bool | None = None


Watch = Callable[[Sequence[Look], int], Judgement]
"""What is asked after every look, with all looks of the run so far and the update of the best one before the last."""
