"""Where annotators differ, in words that a reader can act on."""

from __future__ import annotations

from typing import Any

from evaluation.example_report import make_report

from accord.evaluation.differences import judge_differences, list_differences
from accord.evaluation.report import render_report


def test_who_differs_is_named_first_and_said_how() -> None:
    report = make_report()
    finding = judge_differences(report)
    assert finding is not None
    assert finding.title == "1 of 3 annotators prefer differently from the common reward: eli"
    assert "71 %" in finding.detail and "66 %" in finding.detail and finding.detail.endswith("The policy serves eli.")
    rows = list_differences(report)
    assert [row.name for row in rows] == ["eli", "ada", "bo"]
    assert [row.likes for row in rows] == ["less fond of long answers", "as the others", "as the others"]
    assert finding.title in render_report(report)


def test_nobody_differs_and_nobody_asked() -> None:
    report: dict[str, Any] = make_report()
    for row in report["people"]["annotators"]:
        row["apart"] = False
    report["people"]["serve"] = "worst_off"
    finding = judge_differences(report)
    assert finding is not None and finding.tone == "good"
    assert finding.detail.endswith("The policy serves whoever is worst off with an answer.")
    report["people"] = None
    assert judge_differences(report) is None
    assert list_differences(report) == []
    assert "Do annotators want the same?" not in render_report(report)
