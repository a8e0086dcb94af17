"""The evaluation in a few plain lines for a terminal of 60 columns.

Implements the choice and the wording; leaves out colour and printing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from accord.evaluation.defence import judge_promotion, list_alarms
from accord.evaluation.verdict import judge_headline, list_cards, list_checks

COLUMNS = 60


def summarise_report(report: Mapping[str, Any]) -> list[str]:
    """Lines of at most 60 columns: the headline, the key numbers with their intervals, and every warning."""
    lines = textwrap.wrap(judge_headline(report).title, COLUMNS)
    lines += textwrap.wrap(f"{judge_promotion(report).title}.", COLUMNS) if report.get("gate") else []
    lines.append("")
    for card in list_cards(report):
        interval = f" ({card.interval})" if card.interval else ""
        lines += _align(card.label, f"{card.value}{interval}")
    rang = [finding for finding in list_alarms(report) if finding.tone == "bad"]
    for finding in (*rang, *list_checks(report)):
        if finding.tone in ("bad", "unclear"):
            lines += textwrap.wrap(
                f"{finding.title}. {finding.detail}", COLUMNS, initial_indent="! ", subsequent_indent="  "
            )
    return lines


def _align(label: str, value: str) -> list[str]:
    """Label left and value right on one line, or on two where they do not fit."""
    room = COLUMNS - len(label) - len(value)
    return [label + " " * room + value] if room >= 2 else [label, value.rjust(COLUMNS)]
