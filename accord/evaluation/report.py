"""report.html: one self-contained page that a person enjoys, from the dictionary that report.json holds.

Implements gathering what the template shows, and locking the page: no request to any network, and a content security
policy that lets run exactly the scripts that are in here, by their hash, so that text of a model stays inert even if
every other lock failed. Leaves out the numbers (`comparison`, `reward_card`), the judgement (`verdict`) and the plots
(`figures`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib import resources
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader, Undefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from accord.evaluation import wording
from accord.evaluation.comparison import SIDES
from accord.evaluation.defence import (
    judge_drift,
    judge_promotion,
    judge_tournament,
    list_alarms,
    list_challenges,
    list_checkpoints,
    list_guards,
    list_suspects,
    say_power,
    tabulate_rounds,
)
from accord.evaluation.differences import judge_differences, list_differences
from accord.evaluation.figures import build_curves, build_distance_figures, build_reward_figures
from accord.evaluation.glossary import GLOSSARY
from accord.evaluation.lineage import draw_lineage, read_lineage
from accord.evaluation.verdict import Report, judge_headline, list_agreement, list_cards, list_checks

SIDE_NAMES = {"reference": "Reference (before)", "best_of_n": "Best of n", "policy": "Policy (after)"}

CONSENSUS_NAMES = {
    "fraction": "the plain fraction of votes",
    "dawid_skene": "Dawid-Skene, which weighs annotators",
    "bradley_terry": "Bradley-Terry with each annotator's skill and side bias",
}

# report key, label, digits, percent; every one an Estimate
COMPARED = (
    ("gold", "Hidden utility", 3, False),
    ("heldout", "Held-out score", 2, False),
    ("proxy", "Proxy score (optimised)", 2, False),
    ("toxicity", "Toxicity", 3, False),
    ("length_tokens", "Length, tokens", 1, False),
    ("finished_share", "Finished by itself", 0, True),
    ("entropy_nats", "Entropy, nats a token", 2, False),
)
COLUMNS = (
    ("cells", "reference"),
    ("cells", "policy"),
    ("changes", "reference"),
    ("cells", "best_of_n"),
    ("changes", "best_of_n"),
)
DIVERSITY = (
    ("distinct_1", "Distinct words", False),
    ("distinct_2", "Distinct 2-grams", False),
    ("distinct_3", "Distinct 3-grams", False),
    ("common_phrase_share", "Share with the most common phrase", True),
    ("repetition", "Repetition within an answer", True),
    ("unique_share", "Different answers", True),
)
CARD_ESTIMATES = (
    ("accuracy", "Accuracy", True),
    ("length_accuracy", "Longer answer wins (baseline)", True),
    ("accuracy_minus_length", "Accuracy less baseline", True),
)
CARD_NUMBERS = (
    ("calibration_error", "Calibration error", 3),
    ("log_loss_nats", "Log loss, nats", 3),
    ("label_entropy_nats", "Least possible log loss", 3),
    ("brier", "Brier score", 3),
    ("margin_length_correlation", "Correlation with length", 2),
    ("decided_pairs", "Decided pairs", 0),
    ("prompts", "Prompts", 0),
    ("train_pairs", "Pairs fitted on", 0),
)


def render_report(report: Report) -> str:
    """The page of `report` (docs/report.md) as HTML; missing parts read 'not measured'. Same report, same bytes."""
    evaluation: Report = report.get("evaluation") or {}
    feedback: Report = report.get("feedback") or {}
    curves, reward_figures = [*build_distance_figures(report), *build_curves(report)], build_reward_figures(report)
    names = SIDE_NAMES | {"best_of_n": f"Best of {evaluation.get('best_of', 'n')}"}
    figures = {figure.id: {"data": figure.data, "layout": figure.layout} for figure in (*curves, *reward_figures)}
    plotly, own = (_plotly() if figures else ""), _read_asset("report.js")
    return _environment().get_template("report.html.j2").render(
        project=report.get("project") or {},
        policy=report.get("policy") or {},
        evaluation=evaluation,
        feedback=feedback,
        headline=judge_headline(report),
        cards=list_cards(report),
        checks=list_checks(report),
        promotion=judge_promotion(report),
        power=say_power(report),
        contest=judge_tournament(report),
        checkpoints=list_checkpoints(report),
        guards=list_guards(report),
        alarms=list_alarms(report),
        challenges=list_challenges(report),
        suspects=list_suspects(report),
        disputed=(report.get("alarm") or {}).get("disputed") or (),
        rounds=tabulate_rounds(report),
        drift=judge_drift(report),
        curves=curves,
        reward_figures=reward_figures,
        agreement=list_agreement(feedback),
        consensus=CONSENSUS_NAMES.get(feedback.get("consensus", ""), feedback.get("consensus") or "a rule not named"),
        history=_tabulate_history(report),
        sides=[(key, names[key]) for key in SIDES],
        names=names,
        columns=COLUMNS,
        compared=_compare_sides(evaluation),
        diversity=DIVERSITY,
        reward_cards=_list_reward_cards(report),
        differing=judge_differences(report),
        differences=list_differences(report),
        card_estimates=CARD_ESTIMATES,
        card_numbers=CARD_NUMBERS,
        nodes=read_lineage(report.get("lineage") or ()),
        drawing=draw_lineage(read_lineage(report.get("lineage") or ())),
        seconds=report.get("timings_seconds") or {},
        peak=wording.say_bytes(report.get("peak_rss_bytes")),
        glossary=sorted(GLOSSARY.items()),
        figures=figures,
        style=Markup(_read_asset("report.css")),
        plotly=Markup(plotly),
        script=Markup(own),
        script_hashes=" ".join(f"'sha256-{_hash_script(text)}'" for text in (plotly, own) if text),
    )  # fmt: skip


def _compare_sides(evaluation: Report) -> list[dict[str, Any]]:
    """Rows of the table of policy, best-of-n and reference; None where not measured."""
    rows = []
    for key, label, digits, percent in COMPARED:
        cells = {side: (evaluation.get(side) or {}).get(key) for side in SIDES}
        changes = {
            other: (evaluation.get(f"policy_minus_{other}") or {}).get(key) for other in ("reference", "best_of_n")
        }
        rows.append(
            {"key": key, "label": label, "digits": digits, "percent": percent, "cells": cells, "changes": changes}
        )
    return rows


def _list_reward_cards(report: Report) -> list[tuple[str, Report]]:
    """(name, card) of both reward models, an empty card where one was not fitted."""
    return [
        ("Proxy (optimised)", report.get("reward_model") or {}),
        ("Held-out (only judges)", report.get("heldout_reward_model") or {}),
    ]


def _tabulate_history(report: Report) -> tuple[list[str], list[list[str]]]:
    """Column names and cells of the training history, every metric that was logged in any row."""
    rows: Sequence[Report] = (report.get("policy") or {}).get("history") or ()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[_say_cell(row.get(name)) for name in columns] for row in rows]


def _say_cell(value: Any) -> str:
    """One cell of the history: four significant digits, a dash where nothing was logged."""
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", wording.MINUS)
    return "\N{EN DASH}" if value is None else str(value)


@cache
def _environment() -> Environment:
    """Jinja with escaping on and the words of `wording` as filters; what a report lacks reads as None."""
    environment = Environment(
        loader=PackageLoader("accord.evaluation"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _or_none(wording.say_number),
        "percent": _or_none(wording.say_percent),
        "estimate": _or_none(wording.say_estimate),
        "interval": _or_none(wording.say_interval),
        "seconds": _or_none(wording.say_seconds),
        "markdown": wording.clean_markdown,
    }
    environment.globals["explain"] = GLOSSARY
    return environment


def _or_none(say: Callable[..., str]) -> Callable[..., str]:
    """`say` with None in place of a value that the report does not have."""

    @wraps(say)
    def filtered(value: Any, *args: Any, **options: Any) -> str:
        return say(None if isinstance(value, Undefined) else value, *args, **options)

    return filtered


@cache
def _plotly() -> str:
    """Plotly's bundled JavaScript, safe inside a script element."""
    return get_plotlyjs().replace("\r\n", "\n").replace("</script", "<\\/script")


@cache
def _read_asset(name: str) -> str:
    return resources.files("accord.evaluation").joinpath("templates", name).read_text(encoding="utf-8")


def _hash_script(text: str) -> str:
    """SHA-256 in base64, as a content security policy wants it."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
