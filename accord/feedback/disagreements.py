"""Where people disagree: the items to look at first, with who said what, and what the owner has decided since.

Implements the list. Leaves out deciding (`adjudication`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby

from accord.feedback.adjudication import Verdict, read_verdicts
from accord.feedback.database import Database
from accord.feedback.items import read_items
from accord.feedback.judgements import Judgement, measure_difference, read_judgements
from accord.types import Completion, Prompt


@dataclass(frozen=True)
class Disagreement:
    """An item that people judged differently; completions in the item's order, as are choices and ranks.

    difference: mean over pairs of people of how far their answers are apart, in (0, 1] (`measure_difference`).
    verdict: the owner's, None where there is none yet.
    """

    item_id: str
    kind: str
    round: int
    prompt: Prompt
    completions: tuple[Completion, ...]
    judgements: tuple[Judgement, ...]
    difference: float
    verdict: Verdict | None


def list_disagreements(
    database: Database, *, round: int | None = None, limit: int = 50, decided: bool = False
) -> list[Disagreement]:
    """The items that people disagree on most, at most `limit`; more votes first, then by id, where they disagree alike.

    Without those whose answer is known. decided: also those that have a verdict.
    """
    with database.read() as connection:
        verdicts = read_verdicts(connection)
        groups = [
            (item_id, given)
            for item_id, rows in groupby(read_judgements(connection, round), key=lambda row: row.item_id)
            if (given := tuple(rows))[0].gold is None and (decided or item_id not in verdicts)
        ]
        ranked = [(measure_disagreement(given), given, item_id) for item_id, given in groups if len(given) > 1]
        ranked = [row for row in ranked if row[0] > 0.0]
        ranked.sort(key=lambda row: (-row[0], -len(row[1]), row[2]))
        found = read_items(connection, [item_id for _, _, item_id in ranked[:limit]])
    return [
        Disagreement(
            item_id=item_id,
            kind=found[item_id].row.kind,
            round=found[item_id].row.round,
            prompt=found[item_id].prompt,
            completions=found[item_id].completions,
            judgements=given,
            difference=difference,
            verdict=verdicts.get(item_id),
        )
        for difference, given, item_id in ranked[:limit]
    ]


def measure_disagreement(judgements: Sequence[Judgement]) -> float:
    """Mean of `measure_difference` over all pairs of at least two judgements of one item; 0 where all say the same."""
    apart = [measure_difference(one.answer, other.answer) for one, other in combinations(judgements, 2)]
    return sum(apart) / len(apart)
