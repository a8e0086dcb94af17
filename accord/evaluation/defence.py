"""Gate, tournament and alarm in plain words, and the table of rounds, for the page and the terminal.

Implements sentences from the numbers of report.json. Leaves out the decisions themselves (`gate`, `alarm`) and layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accord.evaluation.verdict import Finding, Report, Tone
from accord.evaluation.wording import NOT_MEASURED, say_estimate, say_number, say_percent, say_seconds

MEASURE_NAMES = {"toxicity": "Toxicity", "refusal": "Share of answers that refuse", "length_tokens": "Length, tokens"}
ALARM_TITLES = {
    "reversal": "The reward was gamed: the judge fell while the reward rose",
    "shortfall": "The reward was gamed: the judge does not confirm the gain",
    "disagreement": "The reward models no longer agree",
    "votes": "The reward was gamed: annotators prefer an earlier policy",
    "kl": "The policy left its KL budget",
    "repetition": "Answers repeat themselves",
    "phrase": "One phrase everywhere",
    "word": "One word everywhere",
    "length": "Length has run away",
    "vocabulary": "The vocabulary collapsed",
    "script": "The script changed",
    "language": "The language changed",
}
RESULT_TONES: dict[str, Tone] = {
    "kept": "good", "better": "good", "broken": "bad", "worse": "bad", "unclear": "unclear", "unmeasured": "unmeasured"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GuardRow:
    """One guarded measure on the page: what it is, its change and margin in words, and how it went."""

    label: str
    change: str
    margin: str
    result: str
    tone: Tone


def judge_promotion(report: Report) -> Finding:
    """Promoted or not, and why: each reason that stood in the way, or what was shown."""
    gate = report.get("gate")
    if not gate:
        return Finding("Whether to promote the policy was not decided", "There was no gate.", "unmeasured")
    rival = "the reference" if gate["against"] == "reference" else "the policy before"
    gain = f"The held-out judge scores it {say_estimate(gate['gain'], sign=True)} against {rival}"
    if gate["promoted"]:
        return Finding(f"Promoted: it takes the place of {rival}", f"{gain}; every guard was kept.", "good")
    reasons = {
        "worse": f"{gain}: worse.",
        "unclear": f"{gain}: no clear gain.",
        "unmeasured": "The held-out judge's gain was not measured.",
    }
    told = [reasons[gate["result"]]] if gate["result"] in reasons else []
    told += [_say_guard(guard) for guard in gate["guards"] if guard["result"] != "kept"]
    bad = gate["result"] == "worse" or any(guard["result"] == "broken" for guard in gate["guards"])
    return Finding(f"Not promoted: {rival} stays", " ".join(told), "bad" if bad else "unclear")


def say_power(report: Report) -> str:
    """How large a gain the evaluation could have seen, and what would show the one found; '' without a gate."""
    gate = report.get("gate") or {}
    power = gate.get("power")
    if not power:
        return ""
    words = (
        f"With {power['prompts']} prompts a true gain of {say_number(power['smallest_gain'])} or more is seen "
        f"{round(10 * power['probability'])} times in 10; a smaller one is often missed."
    )
    needed = power["prompts_needed"]
    if gate["result"] == "unclear" and needed:
        words += f" The gain that was found would take about {needed:,} prompts to show."
    return words


def list_guards(report: Report) -> list[GuardRow]:
    """Every guarded measure with its margin."""
    return [
        GuardRow(
            MEASURE_NAMES.get(guard["name"], guard["name"]),
            say_estimate(guard["change"], 3, sign=True),
            say_number(float(guard["margin"]), 3),
            guard["result"],
            RESULT_TONES[guard["result"]],
        )
        for guard in (report.get("gate") or {}).get("guards") or ()
    ]


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """One checkpoint of a tournament on the page: its update, its share of the duels, and the judge's mean score."""

    update: int
    share: str
    judge: str
    kept: bool


def judge_tournament(report: Report) -> Finding | None:
    """Which checkpoint annotators kept, and which one the judge would have; None where there was no tournament."""
    contest = report.get("tournament")
    if not contest:
        return None
    update, judged = contest["update"], contest["judged_update"]
    voters = "Simulated annotators" if (report.get("feedback") or {}).get("simulated") else "People"
    rival = "their votes at each look" if (report.get("alarm") or {}).get("challenges") else "the held-out judge"
    also = f"as {rival} would have" if update == judged else f"where {rival} would keep {judged}"
    detail = (
        f"By {contest['votes']:,} votes on pairs of answers of {len(contest['standings'])} checkpoints. What an alarm "
        "spoke of, or is beyond the KL budget, took no part."
    )
    return Finding(f"{voters} kept update {update}, {also}", detail, "good" if contest["votes"] else "unmeasured")


def list_checkpoints(report: Report) -> list[CheckpointRow]:
    """Every checkpoint of the tournament, in the order of training."""
    contest = report.get("tournament") or {"standings": ()}
    judged = {row["update"]: row.get("heldout_score") for row in (report.get("policy") or {}).get("history") or ()}
    return [
        CheckpointRow(
            row["update"],
            say_estimate(row["share"], 0, percent=True),
            say_number(judged.get(row["update"])),
            row["update"] == contest["update"],
        )
        for row in contest["standings"]
    ]


def list_alarms(report: Report) -> list[Finding]:
    """What rang, one finding each; one that says so where nothing did, or where nobody listened."""
    alarm = report.get("alarm")
    if not alarm:
        return [Finding("Did the alarm ring?", "Not measured.", "unmeasured")]
    found = [
        Finding(f"Alarm at update {row['update']}: {ALARM_TITLES.get(row['kind'], row['kind'])}", row["reason"], "bad")
        for row in alarm["alarms"]
    ]
    asked = " Nor did annotators prefer an earlier policy." if alarm.get("challenges") else ""
    return found or [Finding("No alarm rang", f"At no look did the judge contradict the reward.{asked}", "good")]


@dataclass(frozen=True, slots=True)
class ChallengeRow:
    """One look on the page that annotators compared with the best one before: both updates, votes, share, outcome."""

    update: int
    rival: int
    votes: str
    share: str
    better: str


def list_challenges(report: Report) -> list[ChallengeRow]:
    """What annotators said of each look, in the order of training; empty where they were not asked."""
    return [
        ChallengeRow(
            row["update"],
            row["rival"],
            say_number(row["votes"]),
            say_estimate(row["share"], 0, percent=True),
            "yes" if row["better"] else "no",
        )
        for row in (report.get("alarm") or {}).get("challenges") or ()
    ]


def list_suspects(report: Report) -> list[str]:
    """A sentence for each token that bought the reward."""
    return [_say_suspect(suspect) for suspect in (report.get("alarm") or {}).get("suspects") or ()]


def tabulate_rounds(report: Report) -> list[list[str]]:
    """Cells of the table of rounds: number, votes, tokens, time, gain by the judge, by the truth, outcome, alarms."""
    rows: Sequence[Report] = report.get("rounds") or ()
    return [
        [
            str(row["round"]),
            say_number(row["votes"]),
            say_number(row["sampled_tokens"]),
            say_seconds(row["seconds"]),
            say_estimate(row["gain"], sign=True),
            say_estimate(row["gold_gain"], 3, sign=True),
            NOT_MEASURED if row["promoted"] is None else "promoted" if row["promoted"] else "rolled back",
            ", ".join(row["alarms"]) or "none",
        ]
        for row in rows
    ]


def judge_drift(report: Report) -> Finding | None:
    """Whether annotators judge the anchor pairs as in round 1; None without anchor pairs."""
    anchors = (report.get("feedback") or {}).get("anchors")
    if not anchors:
        return None
    across, within = (say_estimate(anchors[f"agreement_{side}"], 0, percent=True) for side in ("across", "within"))
    detail = (
        f"On {anchors['pairs']} anchor pairs votes agree with round 1's in {across}; those with each other in {within}."
    )
    if anchors["drifted"] is None:
        return Finding("Have the annotators drifted? Too few votes to tell", detail, "unmeasured")
    if anchors["drifted"]:
        return Finding("The annotators have drifted: they judge otherwise than in round 1", detail, "bad")
    return Finding("The annotators judge as they did in round 1", detail, "good")


def _say_guard(guard: Report) -> str:
    name, margin = MEASURE_NAMES.get(guard["name"], guard["name"]), say_number(float(guard["margin"]), 3)
    change = say_estimate(guard["change"], 3, sign=True)
    if guard["result"] == "unmeasured":
        return f"{name} was not measured."
    if guard["result"] == "broken":
        return f"{name} changed by {change}, beyond its margin of {margin}."
    return f"{name} changed by {change}: a change beyond its margin of {margin} is not ruled out."


def _say_suspect(suspect: Report) -> str:
    text = f"\N{LEFT DOUBLE QUOTATION MARK}{suspect['text']}\N{RIGHT DOUBLE QUOTATION MARK}"
    share = suspect["explained"]
    explained = "" if share is None else f" This explains {say_percent(min(share, 1.0))} of the reward's gain."
    return (
        f"The {suspect['kind']} {text} is in {say_percent(suspect['share_after'])} of the answers, "
        f"{say_percent(suspect['share_before'])} at the start. An answer with it scores "
        f"{say_number(suspect['proxy_price'], sign=True)} by the reward that was optimised and "
        f"{say_number(suspect['judge_price'], sign=True)} by the judge.{explained}"
    )
