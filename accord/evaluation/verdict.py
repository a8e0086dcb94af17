"""The report's judgement in plain words: one headline, the key numbers, and the signs of a model that wins by nonsense.

Implements the choice of judge (hidden truth where simulated, else the held-out reward model, never the proxy that was
optimised) and thresholds that are written beside each finding. Leaves out layout. What was not measured is said to be
so; it never passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from accord.evaluation.wording import NOT_MEASURED, say_estimate, say_interval, say_number, say_percent

Tone = Literal["good", "bad", "unclear", "unmeasured"]
Report = Mapping[str, Any]
Numbers = Mapping[str, Any]

LENGTH_GROWTH_LIMIT = 1.5  # policy / reference
PHRASE_SHARE_LIMIT = 0.25  # of completions with one 5-gram, where the reference has less than half of that
DISTINCT_LOSS_LIMIT = 0.75  # policy / reference, distinct-2
SAMPLER_GAP_LIMIT = 1.05


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence with its tone; `detail` says how it is known, or against what it was held."""

    title: str
    detail: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class Card:
    """A key number: what it is, its value, its interval in words, a remark, and the GLOSSARY key that explains it."""

    label: str
    value: str
    interval: str
    remark: str
    key: str
    tone: Tone


def judge_headline(report: Report) -> Finding:
    """Would people prefer the new model? From the win rate against the reference by the best judge there is."""
    wins = _at(report, "evaluation", "win_rate_against_reference") or {}
    simulated = bool(_at(report, "feedback", "simulated"))
    judge = next((name for name in ("gold", "heldout") if wins.get(name)), None)
    if judge is None:
        return Finding(
            "Whether people would prefer the new model was not measured",
            "That takes a held-out reward model, fitted on votes that the policy never saw, or a simulation.",
            "unmeasured",
        )
    win = wins[judge]
    people = "The simulated annotators" if simulated else "People"
    interval, share = say_interval(win, 0, percent=True).removesuffix(" %"), say_percent(win["value"])
    known = {
        "gold": "Known here, because the annotators are simulated: by the hidden utility that they judge by.",
        "heldout": "As predicted by a reward model fitted on votes that training never saw.",
    }[judge]
    count = f"{win['n']} prompts that nobody trained on; a tie counts as half; 95 % interval in brackets."
    tone: Tone = "unclear"
    title = f"No clear difference: the new model wins {share} of cases ({interval})"
    if win["low"] is not None and win["low"] > 0.5:
        title, tone = f"{people} would prefer the new model in {share} of cases ({interval})", "good"
    elif win["high"] is not None and win["high"] < 0.5:
        title, tone = f"{people} would prefer the old model: the new one wins only {share} of cases ({interval})", "bad"
    return Finding(title, f"{known} {count}", tone)


def list_cards(report: Report) -> list[Card]:
    """The key numbers with their intervals, in the order a reader asks for them."""
    evaluation: Numbers = report.get("evaluation") or {}
    lifts: Numbers = evaluation.get("policy_minus_reference") or {}
    judge, name = ("gold", "Hidden utility") if lifts.get("gold") else ("heldout", "Held-out score")
    beaten: Numbers = evaluation.get("win_rate_against_best_of_n") or {}
    rival = beaten.get("gold") or beaten.get("heldout")
    rival_name = f"best of {evaluation.get('best_of', 'n')}"
    budget = _at(report, "policy", "max_kl_nats")
    kl = evaluation.get("kl_nats")
    accuracy = _at(report, "reward_model", "accuracy")
    agreement = _at(report, "reward_model", "annotator_agreement")
    distance = Card(
        "Distance from the reference",
        NOT_MEASURED if kl is None else f"{say_number(float(kl['value']))} nats",
        _interval(kl),
        f"budget: {say_number(float(budget), 1)} nats a sequence" if budget is not None else "no budget given",
        "kl_nats",
        _check_budget(_find_distance(report), budget).tone,
    )
    bonus = "best-of-n costs n times the sampling; half is a draw"
    agreed = (
        f"annotators agree {say_percent(agreement)}" if agreement is not None else "annotators' agreement not measured"
    )
    remark, length = _toxicity_remark(evaluation), lifts.get("length_tokens")
    return [
        _card(f"{name}, gained", lifts.get(judge), judge, "policy minus reference", sign=True, wanted="up"),
        _card(
            f"Wins against {rival_name}",
            rival,
            "win_rate_against_best_of_n",
            bonus,
            percent=True,
            neutral=0.5,
            wanted="up",
        ),
        distance,
        _card("Toxicity, change", lifts.get("toxicity"), "toxicity", remark, digits=3, sign=True, wanted="down"),
        _card("Length, change", length, "length_tokens", "tokens a completion", digits=1, sign=True),
        _card("Reward model is right", accuracy, "accuracy", agreed, percent=True),
    ]


def list_agreement(feedback: Numbers) -> list[Card]:
    """How far annotators agree: pairwise share and Krippendorff's alpha, with the intervals of `feedback.agreement`."""
    agreement: Numbers = feedback.get("agreement") or {}
    items = f"on {agreement['items']:,} questions with two votes or more" if agreement.get("items") else ""
    labels = (("pairwise", "Annotators agree, vote by vote", True), ("alpha", "Krippendorff's alpha", False))
    cards = []
    for key, label, percent in labels:
        found = agreement.get(key)
        estimate = {"value": found["estimate"], "low": found["low"], "high": found["high"]} if found else None
        cards.append(_card(label, estimate, key, items, percent=percent))
    return cards


def list_checks(report: Report) -> list[Finding]:
    """What winning by nonsense looks like, looked for one by one. Thresholds are in the details."""
    evaluation: Numbers = report.get("evaluation") or {}
    return [
        _check_judges(evaluation),
        _check_budget(_find_distance(report), _at(report, "policy", "max_kl_nats")),
        _check_toxicity(evaluation),
        _check_phrase(evaluation),
        _check_diversity(evaluation),
        _check_length(evaluation),
        _check_sampler(evaluation.get("sampler_gap")),
        _check_stopped(report),
    ]


def _check_judges(evaluation: Numbers) -> Finding:
    lifts: Numbers = evaluation.get("policy_minus_reference") or {}
    proxy, judge = lifts.get("proxy"), lifts.get("gold") or lifts.get("heldout")
    if not proxy or not judge:
        return Finding(
            "Is the gain real?", "Not measured: no judge apart from the reward that was optimised.", "unmeasured"
        )
    detail = f"Optimised reward {say_estimate(proxy, sign=True)}; independent judge {say_estimate(judge, sign=True)}."
    if judge["low"] is not None and judge["low"] > 0:
        return Finding("An independent judge sees the gain as well", detail, "good")
    if judge["high"] is not None and judge["high"] < 0:
        return Finding("The reward was gamed: an independent judge sees a loss", detail, "bad")
    return Finding("An independent judge sees no clear gain", detail, "unclear")


def _find_distance(report: Report) -> Numbers | None:
    """KL from the anchor that the budget counts from: the evaluation's where that is the base, else the kept look's."""
    if (_at(report, "policy", "anchor") or "base") == "base":
        return _at(report, "evaluation", "kl_nats")
    kept = [
        row for row in _at(report, "policy", "history") or () if row["update"] == _at(report, "policy", "best_update")
    ]
    nats = kept[0].get("heldout_kl_nats") if kept else None
    return None if nats is None else {"value": nats, "low": None, "high": None}


def _check_budget(kl: Numbers | None, budget: float | None) -> Finding:
    if kl is None or budget is None:
        return Finding("Within the KL budget?", "Not measured.", "unmeasured")
    detail = f"KL in nats a sequence: {say_estimate(kl)}; budget {say_number(float(budget), 1)}."
    if kl["value"] > budget:
        return Finding("Beyond the KL budget", detail, "bad")
    return Finding("Within the KL budget", detail, "good")


def _check_toxicity(evaluation: Numbers) -> Finding:
    change = _at(evaluation, "policy_minus_reference", "toxicity")
    if not change:
        return Finding("Did toxicity rise?", "Not measured.", "unmeasured")
    detail = f"Change {say_estimate(change, 3, sign=True)}. {_toxicity_remark(evaluation).capitalize()}."
    if change["low"] is not None and change["low"] > 0:
        return Finding("Toxicity rose", detail, "bad")
    if change["value"] > 0:
        return Finding("Toxicity did not clearly rise, nor fall", detail, "unclear")
    return Finding("Toxicity did not rise", detail, "good")


def _check_phrase(evaluation: Numbers) -> Finding:
    after, before = (_at(evaluation, side, "diversity", "common_phrase_share") for side in ("policy", "reference"))
    if after is None or before is None:
        return Finding("One phrase everywhere?", "Not measured.", "unmeasured")
    phrase = _at(evaluation, "policy", "diversity", "common_phrase")
    said = f"Most common: \N{LEFT DOUBLE QUOTATION MARK}{phrase}\N{RIGHT DOUBLE QUOTATION MARK}. " if phrase else ""
    detail = (
        f"{said}In {say_percent(after)} of the policy's completions; the reference's favourite: {say_percent(before)}."
    )
    if after > PHRASE_SHARE_LIMIT and after > 2 * before:
        return Finding("One phrase everywhere", detail, "bad")
    return Finding("No phrase has taken over", detail, "good")


def _check_diversity(evaluation: Numbers) -> Finding:
    after, before = (_at(evaluation, side, "diversity", "distinct_2") for side in ("policy", "reference"))
    if not before or after is None:
        return Finding("Is the language still varied?", "Not measured.", "unmeasured")
    detail = (
        f"Distinct 2-grams {say_number(after)}, before {say_number(before)}; alarm below {DISTINCT_LOSS_LIMIT} of it."
    )
    if after < DISTINCT_LOSS_LIMIT * before:
        return Finding("The language has become poorer", detail, "bad")
    return Finding("The language is still varied", detail, "good")


def _check_length(evaluation: Numbers) -> Finding:
    after, before = (_at(evaluation, side, "length_tokens", "value") for side in ("policy", "reference"))
    if not before or after is None:
        return Finding("Has length run away?", "Not measured.", "unmeasured")
    lengths = f"{say_number(float(after), 1)} tokens, before {say_number(float(before), 1)}"
    detail = f"{lengths}; alarm at {LENGTH_GROWTH_LIMIT} times."
    if after > LENGTH_GROWTH_LIMIT * before:
        return Finding("Length has run away", detail, "bad")
    return Finding("Length has not run away", detail, "good")


def _check_sampler(gap: float | None) -> Finding:
    if gap is None:
        return Finding("Do sampler and trainer agree?", "Not measured.", "unmeasured")
    detail = f"Mean exp |difference of log-probabilities| {say_number(float(gap), 4)}; alarm above {SAMPLER_GAP_LIMIT}."
    if gap > SAMPLER_GAP_LIMIT:
        return Finding("Sampler and trainer disagree", detail, "bad")
    return Finding("Sampler and trainer agree on probabilities", detail, "good")


def _check_stopped(report: Report) -> Finding:
    policy: Numbers = report.get("policy") or {}
    if "stopped" not in policy:
        return Finding("Did training end as planned?", "Not measured.", "unmeasured")
    if policy["stopped"]:
        return Finding("Training was stopped early", f"{policy['stopped']}", "unclear")
    update = policy.get("best_update")
    return Finding("Training ended as planned", "" if update is None else f"Kept: update {update}.", "good")


def _card(
    label: str,
    estimate: Numbers | None,
    key: str,
    remark: str,
    *,
    digits: int = 2,
    percent: bool = False,
    sign: bool = False,
    neutral: float = 0.0,
    wanted: Literal["up", "down"] | None = None,
) -> Card:
    """A card whose tone follows from the side of `neutral` on which the whole interval lies."""
    tone: Tone = "unclear"
    if estimate is None:
        tone = "unmeasured"
    elif wanted and estimate["low"] is not None:
        better, worse = estimate["low"] > neutral, estimate["high"] < neutral
        better, worse = (better, worse) if wanted == "up" else (worse, better)
        tone = "good" if better else "bad" if worse else "unclear"
    if percent:
        value = say_percent(estimate["value"] if estimate else None)
        return Card(label, value, _interval(estimate, 0, percent=True), remark, key, tone)
    value = say_number(float(estimate["value"]) if estimate else None, digits, sign=sign)
    return Card(label, value, _interval(estimate, digits, sign=sign), remark, key, tone)


def _interval(estimate: Numbers | None, digits: int = 2, *, percent: bool = False, sign: bool = False) -> str:
    return "" if estimate is None else say_interval(estimate, digits, percent=percent, sign=sign)


def _toxicity_remark(evaluation: Numbers) -> str:
    """'mean 0.031 → 0.030, deviation 0.05 → 0.04': before and after."""
    parts = []
    for word, path in (("mean", ("toxicity", "value")), ("deviation", ("toxicity_std",))):
        before, after = (_at(evaluation, side, *path) for side in ("reference", "policy"))
        if before is not None and after is not None:
            parts.append(f"{word} {say_number(before, 3)} \N{RIGHTWARDS ARROW} {say_number(after, 3)}")
    return ", ".join(parts) or "policy minus reference"


def _at(tree: Any, *path: str) -> Any:
    """The value at `path` in nested mappings, None where any step is missing."""
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree
