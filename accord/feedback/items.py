"""What is to be judged: items, how many people judge each, known answers, repeats; and items as they are shown.

Implements adding items, which is idempotent because an item is named by its content, the draw of the overlap, and
reading items with their texts. Leaves out who gets which item (`leasing`) and choosing pairs (`selection`).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sqlalchemy import Connection, Row, bindparam, func, select

from accord.errors import DataError, NotFoundError
from accord.feedback import schema
from accord.feedback.log import Transaction
from accord.feedback.queue_schema import item_completions, items, leases
from accord.feedback.records import require_answer, require_different, require_text
from accord.feedback.texts import BATCH_TEXTS, insert_texts, messages_from_json, prompt_from_json
from accord.types import Completion, Prompt, compute_content_id

ItemKind = Literal["comparison", "ranking", "rating"]
REMEMBERED_ITEMS = 1000
EVERYBODY = 1_000_000  # the overlap of an item with a known answer: each annotator is asked


@dataclass(frozen=True)
class Overlap:
    """How many people judge an item: `high` for a `share` of the items drawn at random, `low` for the others."""

    share: float = 0.1
    high: int = 3
    low: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0 or not 1 <= self.low <= self.high:
            raise DataError(
                f"overlap of {self.high} for a share {self.share}, {self.low} for the rest is impossible",
                mend="give a share from 0 to 1, and 1 <= low <= high",
            )


@dataclass(frozen=True)
class NewItem:
    """Something to judge: 2 completions to compare, at least 2 to rank, or 1 to rate.

    overlap: how many people; None has it drawn (`Overlap`), or asks everybody where there is a `gold` answer, or one
    person where it repeats another item. gold: the known answer in the order given, `{"choice": "a"}`,
    `{"ranks": [2, 1]}` or `{"rating": 0.5}`. repeat_of: the id of an item; only those who answered that are asked.
    arm, propensity: what chose the item, and with which probability (`selection`).
    """

    kind: ItemKind
    prompt: Prompt
    completions: tuple[Completion, ...]
    overlap: int | None = None
    gold: Mapping[str, Any] | None = None
    repeat_of: str | None = None
    arm: str = "given"
    propensity: float = 1.0
    source: str = "web"

    def __post_init__(self) -> None:
        count = len(self.completions)
        if not {"comparison": count == 2, "ranking": count >= 2, "rating": count == 1}.get(self.kind, False):
            raise DataError(f"a {self.kind} of {count} completions cannot be asked", mend="see docs/queue.md")
        for place, completion in enumerate(self.completions, 1):
            require_answer(completion, f"completion {place}")
        require_different(self.completions)
        if self.overlap is not None and self.overlap < 1:
            raise DataError(f"an overlap of {self.overlap}", mend="ask at least one person")
        if not 0.0 < self.propensity <= 1.0:
            raise DataError(f"a propensity of {self.propensity}", mend="give the probability of being chosen, above 0")
        if self.gold is not None:
            _check_gold(self.kind, self.gold, count)


@dataclass(frozen=True)
class LeasedItem:
    """An item as one annotator sees it: completions in the order to show, without origin; nothing says if it is gold.

    expires_at: ISO 8601; until then the item is theirs. Work that comes later is still kept.
    """

    lease_id: str
    kind: ItemKind
    prompt: Prompt
    completions: tuple[Completion, ...]
    expires_at: str
    round: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, fit for a browser."""
        shown = [[message.to_dict() for message in completion.messages] for completion in self.completions]
        return {
            "lease_id": self.lease_id,
            "kind": self.kind,
            "prompt": self.prompt.to_dict(),
            "completions": [{"messages": messages} for messages in shown],
            "expires_at": self.expires_at,
            "round": self.round,
        }


@dataclass(frozen=True)
class Item:
    """A stored item: its row of the table `items`, with its texts. For the server only."""

    row: Row[Any]
    prompt: Prompt
    completions: tuple[Completion, ...]

    def show(self, lease: Any) -> LeasedItem:
        """The item in the order that `lease` (a row of `leases`, or a mapping like it) drew, blind to origins."""
        blind = tuple(replace(self.completions[place], origin="") for place in json.loads(lease["shown"]))
        return LeasedItem(lease["id"], self.row.kind, self.prompt, blind, lease["expires_at"], self.row.round)


def compute_item_id(item: NewItem, round: int) -> str:
    """Content hash of round, kind, texts, origins and what it repeats; 16 hex digits."""
    texts = [[completion.id, completion.origin] for completion in item.completions]
    return compute_content_id([round, item.kind, item.prompt.id, texts, item.repeat_of])


def compute_pair_id(item: NewItem) -> str:
    """Content hash of kind and texts, whatever their order, origins and round; 16 hex digits."""
    return compute_content_id([item.kind, item.prompt.id, sorted(completion.id for completion in item.completions)])


def insert_items(
    transaction: Transaction,
    new: Sequence[NewItem],
    *,
    round: int,
    seed: int,
    overlap: Overlap,
    places: Mapping[str, int] | None = None,
) -> dict[str, NewItem]:
    """Stores those items that are not there yet, in an order drawn from `seed`; returns these in that order, by id.

    `places`: where in the order an item stands that repeats another, by the id of the other; beside what stood there.
    Of the items without an overlap of their own, round(share * n) get the high one: those whose hash with the seed
    sorts first. Raises NotFoundError where an item repeats one that is not there.
    """
    named = {compute_item_id(item, round): item for item in new}
    stored = _find_items(transaction, [*named, *(item.repeat_of for item in new if item.repeat_of)])
    for item in named.values():
        if item.repeat_of and item.repeat_of not in stored and item.repeat_of not in named:
            raise NotFoundError(f"there is no item {item.repeat_of} to repeat", mend="add the item before its repeat")
    fresh = {key: item for key, item in named.items() if key not in stored}
    drawn = sorted(
        (k for k, i in fresh.items() if i.overlap is None and i.gold is None and i.repeat_of is None),
        key=lambda key: _draw(seed, "overlap", key),
    )
    high = set(drawn[: int(overlap.share * len(drawn) + 0.5)])
    insert_texts(transaction, (i.prompt for i in fresh.values()), (c for i in fresh.values() for c in i.completions))
    last = transaction.execute(select(func.max(items.c.position))).scalar()
    # Repeats stand behind the rest, so that the rows they point to are there, and so that time passes in between.
    order = sorted(fresh, key=lambda key: (fresh[key].repeat_of is not None, _draw(seed, "order", key)))
    rows, shown = [], []
    for position, key in enumerate(order, start=0 if last is None else last + 1):
        position = (places or {}).get(fresh[key].repeat_of or "", position)
        item = fresh[key]
        standard = EVERYBODY if item.gold else 1 if item.repeat_of else overlap.high if key in high else overlap.low
        rows.append(_build_row(key, item, item.overlap or standard, position, round, transaction.at))
        for place, completion in enumerate(item.completions):
            shown.append(
                {"item_id": key, "position": place, "completion_id": completion.id, "origin": completion.origin}
            )
    for start in range(0, len(rows), BATCH_TEXTS):
        transaction.insert(items, rows[start : start + BATCH_TEXTS])
    transaction.insert(item_completions, shown)
    return {key: fresh[key] for key in order}


def read_items(connection: Connection, ids: Sequence[str]) -> dict[str, Item]:
    """The items of these ids, with texts and origins. Ids that are not there are left out."""
    found: dict[str, Item] = {}
    for start in range(0, len(ids), BATCH_TEXTS):
        rows = connection.execute(_ITEMS, {"ids": ids[start : start + BATCH_TEXTS]}).all()
        texts = _read_texts(connection, [row.id for row in rows])
        found.update((row.id, Item(row, *texts[row.id])) for row in rows)
    return found


def require_item(connection: Connection, item_id: str) -> Item:
    """One item. Raises NotFoundError where there is none."""
    found = read_items(connection, [item_id])
    if item_id not in found:
        raise NotFoundError(f"there is no item {item_id}", mend="name a stored item")
    return found[item_id]


def move_places(transaction: Transaction, changes: Mapping[str, tuple[int, int]]) -> None:
    """Adds (answered, leased) to the counts of items, and says anew whether each is open.

    A place that becomes free goes first to an answer that came too late for one (surplus), the oldest first.
    """
    _recount(transaction, {key: change for key, change in changes.items() if change != (0, 0)})
    _fill_places(transaction, [key for key, change in changes.items() if sum(change) < 0])


def refresh_open(transaction: Transaction, ids: Sequence[str]) -> None:
    """Says anew whether each item is open, after it was closed or opened."""
    _recount(transaction, dict.fromkeys(ids, (0, 0)))
    _fill_places(transaction, ids)


def _recount(transaction: Transaction, changes: Mapping[str, tuple[int, int]]) -> None:
    ids, rows = sorted(changes), []
    for start in range(0, len(ids), BATCH_TEXTS):
        for row in transaction.execute(_ITEMS, {"ids": ids[start : start + BATCH_TEXTS]}).all():
            answered, leased = row.answered + changes[row.id][0], row.leased + changes[row.id][1]
            is_open = not row.closed and answered + leased < row.overlap
            rows.append({"id": row.id, "answered": answered, "leased": leased, "is_open": is_open})
    transaction.update(items, rows)


def _fill_places(transaction: Transaction, ids: Sequence[str]) -> None:
    """Counts surplus answers of those items that have places left, as many as there are places."""
    for start in range(0, len(ids), BATCH_TEXTS):
        rows = transaction.execute(_LATE_ANSWERS, {"ids": ids[start : start + BATCH_TEXTS]}).all()
        filled: Counter[str] = Counter()
        for row in rows:
            if filled[row.item_id] < row.places:
                filled[row.item_id] += 1
                transaction.update(leases, [{"id": row.id, "surplus": False}])
        if filled:
            _recount(transaction, {item_id: (number, 0) for item_id, number in filled.items()})


_Texts = tuple[Prompt, tuple[Completion, ...]]
_texts: OrderedDict[str, _Texts] = (
    OrderedDict()
)  # the last ones read; an item's id is a hash of them, so they never change
_texts_guard = threading.Lock()

_ITEMS = select(items).where(items.c.id.in_(bindparam("ids", expanding=True)))
_LATE_ANSWERS = (
    select(leases.c.id, leases.c.item_id, (items.c.overlap - items.c.answered - items.c.leased).label("places"))
    .join(items, items.c.id == leases.c.item_id)
    .join(schema.votes, schema.votes.c.id == leases.c.vote_id)
    .where(
        leases.c.item_id.in_(bindparam("ids", expanding=True)),
        leases.c.status == "answered",
        leases.c.surplus,
        items.c.is_open,
    )
    .order_by(schema.votes.c.created_at, leases.c.id)
)
_PROMPTS = (
    select(items.c.id, schema.prompts.c.body)
    .join(schema.prompts, schema.prompts.c.id == items.c.prompt_id)
    .where(items.c.id.in_(bindparam("ids", expanding=True)))
)
_COMPLETIONS = (
    select(
        item_completions.c.item_id,
        item_completions.c.origin,
        schema.completions.c.body,
        schema.completions.c.finished,
    )
    .join(schema.completions, schema.completions.c.id == item_completions.c.completion_id)
    .where(item_completions.c.item_id.in_(bindparam("ids", expanding=True)))
    .order_by(item_completions.c.item_id, item_completions.c.position)
)


def _read_texts(connection: Connection, ids: Sequence[str]) -> dict[str, _Texts]:
    """The texts of stored items, from memory where they were read lately."""
    with _texts_guard:
        found = {item_id: _texts[item_id] for item_id in ids if item_id in _texts}
    if missing := [item_id for item_id in ids if item_id not in found]:
        shown: dict[str, list[Completion]] = {}
        for row in connection.execute(_COMPLETIONS, {"ids": missing}):
            answer = Completion(messages_from_json(row.body), row.finished, row.origin)
            shown.setdefault(row.item_id, []).append(answer)
        prompts = connection.execute(_PROMPTS, {"ids": missing})
        read = {row.id: (prompt_from_json(row.body), tuple(shown[row.id])) for row in prompts}
        with _texts_guard:
            _texts.update(read)
            while len(_texts) > REMEMBERED_ITEMS:
                _texts.popitem(last=False)
        found |= read
    return found


def _find_items(transaction: Transaction, ids: Iterable[str]) -> set[str]:
    wanted, stored = sorted(set(ids)), set[str]()
    for start in range(0, len(wanted), BATCH_TEXTS):
        query = select(items.c.id).where(items.c.id.in_(wanted[start : start + BATCH_TEXTS]))
        stored.update(transaction.execute(query).scalars())
    return stored


def _build_row(key: str, item: NewItem, overlap: int, position: int, round: int, at: str) -> dict[str, Any]:
    return {
        "id": key,
        "kind": item.kind,
        "round": round,
        "prompt_id": item.prompt.id,
        "position": position,
        "overlap": overlap,
        "answered": 0,
        "leased": 0,
        "closed": False,
        "is_open": True,
        "arm": require_text(item.arm, "the arm"),
        "propensity": item.propensity,
        "gold": None if item.gold is None else json.dumps(dict(item.gold), sort_keys=True),
        "repeat_of": item.repeat_of,
        "source": require_text(item.source, "the source"),
        "created_at": at,
        "pair": compute_pair_id(item),
    }


def _draw(seed: int, use: str, key: str) -> str:
    return hashlib.sha256(f"{seed}:{use}:{key}".encode()).hexdigest()


def _check_gold(kind: ItemKind, gold: Mapping[str, Any], count: int) -> None:
    """Raises DataError unless `gold` is one answer to an item of `kind`."""
    fine = {
        "comparison": set(gold) == {"choice"} and gold.get("choice") in ("a", "b", "tie", "both_bad"),
        "ranking": set(gold) == {"ranks"}
        and isinstance(gold.get("ranks"), list)
        and len(gold["ranks"]) == count
        and all(type(rank) is int and 1 <= rank <= count for rank in gold["ranks"]),
        "rating": set(gold) == {"rating"}
        and isinstance(gold.get("rating"), int | float)
        and 0.0 <= gold["rating"] <= 1.0,
    }
    if not fine[kind]:
        raise DataError(f"{dict(gold)} is no answer to a {kind}", mend="give choice, ranks or rating")
