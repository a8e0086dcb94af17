"""Where annotators differ, in plain words, for the page.

Implements sentences and rows from the part `people` of report.json. Leaves out how differences are found
(`training.personal`) and layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accord.evaluation.verdict import Finding, Report
from accord.evaluation.wording import say_percent

SERVED = {
    "common": "The policy serves everybody's common reward.",
    "average": "The policy serves the average over annotators.",
    "worst_off": "The policy serves whoever is worst off with an answer.",
}
TRAIT_NAMES = {
    "length_words": "long answers",
    "sentiment": "warm words",
    "finished": "answers that come to an end",
    "plain_words": "plain words",
    "no_repetition": "answers without repetition",
    "on_topic": "answers that keep to the topic",
    "toxicity": "rude words",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One annotator on the page: how many test votes, how well each model predicts them, and what is liked."""

    name: str
    test_votes: int
    common: str
    personal: str
    likes: str


def judge_differences(report: Report) -> Finding | None:
    """Whether annotators differ, and what knowing it is worth; None where it was not asked."""
    people = report.get("people")
    if not people:
        return None
    rows = people["annotators"]
    apart = [row["name"] for row in rows if row["apart"]]
    served = SERVED.get(people["serve"], f"The policy serves {people['serve']}.")
    if not apart:
        return Finding(
            "Annotators do not differ in what they prefer",
            f"No difference between them held up on votes held back; one reward fits all. {served}",
            "good",
        )
    shares = [say_percent(people[key]) for key in ("personal_accuracy", "common_accuracy")]
    return Finding(
        f"{len(apart)} of {len(rows)} annotators prefer differently from the common reward: {', '.join(apart)}",
        f"Knowing it predicts {shares[0]} of votes that nothing was fitted on, the common model {shares[1]}. {served}",
        "unclear",
    )


def list_differences(report: Report) -> list[Difference]:
    """A row an annotator, those apart first."""
    rows = (report.get("people") or {}).get("annotators", ())
    return [
        Difference(
            row["name"],
            row["test_votes"],
            say_percent(row["common_accuracy"]),
            say_percent(row["personal_accuracy"]),
            say_likes(row),
        )
        for row in sorted(rows, key=lambda row: not row["apart"])
    ]


def say_likes(row: Mapping[str, Any]) -> str:
    """What an annotator likes more or less than others do."""
    if not row["apart"]:
        return "as the others"
    if row["trait"] is None:
        return "differs"
    return f"{'more' if row['correlation'] > 0 else 'less'} fond of {TRAIT_NAMES[row['trait']]}"
