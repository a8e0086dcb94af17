"""The report's plots as plain plotly figures (data and layout), with a sentence each for those who cannot see them.

Implements which series go where, from a report dictionary. A colour is the name of a CSS variable ("--c1"): the page
fills in the reader's theme. Leaves out drawing, which plotly's own JavaScript does in the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accord.evaluation.verdict import Report
from accord.evaluation.wording import say_number

Row = Mapping[str, Any]
Trace = dict[str, Any]

# title, y axis, series as (history key, name, colour), whether it takes the whole width
CURVES: tuple[tuple[str, str, tuple[tuple[str, str, str], ...], bool], ...] = (
    ("Score: what was optimised, and what only judges", "score",
     (("score", "proxy score", "--c1"), ("heldout_score", "held-out score", "--c2")), True),
    ("Distance from the reference", "nats a sequence", (("kl_nats", "KL(policy || reference)", "--c3"),), False),
    ("Strength of the KL penalty", "kl_coef", (("kl_coef", "kl_coef", "--c4"),), False),
    ("Entropy", "nats a token", (("entropy", "entropy", "--c5"),), False),
    ("Share of clipped tokens", "share",
     (("clip_fraction", "policy", "--c1"), ("value_clip_fraction", "value", "--c2")), False),
    ("Policy loss", "loss", (("policy_loss", "policy loss", "--c3"),), False),
    ("Value loss", "loss", (("value_loss", "value loss", "--c4"),), False),
    ("Length", "tokens", (("length_tokens", "length", "--c5"),), False),
    ("Finished by itself", "share", (("finished_share", "finished share", "--c6"),), False),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figure:
    """One plot: an anchor, its title, a sentence that tells what it shows, plotly's data and layout."""

    id: str
    title: str
    alt: str
    data: list[Trace]
    layout: dict[str, Any]
    wide: bool = False


def build_curves(report: Report) -> list[Figure]:
    """Training curves by update; only those whose metric the method logged at least once."""
    policy: Row = report.get("policy") or {}
    history: Sequence[Row] = policy.get("history") or ()
    figures = []
    for title, axis, series, wide in CURVES:
        shown = [(key, name, colour) for key, name, colour in series if _points(history, key)[1]]
        if not shown:
            continue
        layout = _layout("update", axis, legend=len(shown) > 1) | {"hovermode": "x unified"}
        spike = {"spikecolor": "--muted", "spikethickness": 1, "spikedash": "dot"}
        layout["xaxis"] |= spike | {"unifiedhovertitle": {"text": "update %{x}"}}
        layout["shapes"], layout["annotations"] = _mark_best(policy.get("best_update"))
        if shown[0][0] == "kl_nats" and policy.get("max_kl_nats") is not None:
            _add_level(layout, float(policy["max_kl_nats"]), "budget")
        data = [_line(history, key, name, colour) for key, name, colour in shown]
        alt = f"{title}. " + " ".join(_tell(history, key, name) for key, name, _ in shown)
        figures.append(Figure(f"curve-{shown[0][0].replace('_', '-')}", title, alt, data, layout, wide))
    return figures


def build_distance_figures(report: Report) -> list[Figure]:
    """Proxy, held-out judge and hidden utility against sqrt(KL), one point an update; no figure for one line alone.

    The axes of Gao et al. 2022 (figure 1): a proxy that rises on while the others turn down has been gamed. The hidden
    utility has a scale of its own, on the right.
    """
    policy: Row = report.get("policy") or {}
    rows = [row for row in policy.get("history") or () if row.get("kl_nats") is not None]
    series = (("score", "proxy", "--c1", "y"), ("rollout_heldout", "held-out judge", "--c2", "y"),
              ("rollout_gold", "hidden utility (right)", "--c4", "y2"))  # fmt: skip
    shown = [one for one in series if any(row.get(one[0]) is not None for row in rows)]
    if len(shown) < 2:
        return []
    layout = _layout("square root of KL, nats a sequence", "score", legend=True)
    if any(axis == "y2" for *_, axis in shown):
        layout["yaxis2"] = {"overlaying": "y", "side": "right", "showgrid": False, "automargin": True}
    data = []
    for key, name, colour, axis in shown:
        points = [row for row in rows if row.get(key) is not None]
        data.append(
            {
                "x": [max(0.0, row["kl_nats"]) ** 0.5 for row in points],
                "y": [row[key] for row in points],
                "customdata": [row.get("update") for row in points],
                "yaxis": axis,
                "name": name,
                "mode": "lines+markers",
                "line": {"color": colour, "width": 2},
                "marker": {"size": 6},
                "hovertemplate": f"update %{{customdata}}: %{{y:.4g}}<extra>{name}</extra>",
            }
        )
    title = "Score against distance: is the gain real?"
    alt = f"{title} " + " ".join(_tell(rows, key, name) for key, name, *_ in shown)
    return [Figure("distance", title, alt, data, layout, wide=True)]


def build_reward_figures(report: Report) -> list[Figure]:
    """Reliability, accuracy by margin and by length, the proxy and the held-out reward model side by side."""
    cards = [
        (name, colour, report[key])
        for key, name, colour in (("reward_model", "proxy", "--c1"), ("heldout_reward_model", "held-out", "--c2"))
        if report.get(key)
    ]
    figures = []
    reliability = [
        _reliability(name, colour, card["reliability"]) for name, colour, card in cards if card.get("reliability")
    ]
    if reliability:
        diagonal = {"x": [0.5, 1], "y": [0.5, 1], "mode": "lines", "name": "perfect", "hoverinfo": "skip",
                    "line": {"color": "--muted", "dash": "dot", "width": 1.5}}  # fmt: skip
        layout = _layout("how sure the model is", "how often people agree", legend=True)
        alt = "Reliability diagram: points on the dotted diagonal mean that confidence is what it says."
        figures.append(Figure("reliability", "Does it know what it knows?", alt, [diagonal, *reliability], layout))
    for key, title, axis in (
        ("accuracy_by_margin", "Accuracy by margin", "difference of scores, in logits"),
        ("accuracy_by_length", "Accuracy by difference in length", "preferred minus other answer, tokens"),
    ):
        bars = [_bars(name, colour, card[key]) for name, colour, card in cards if card.get(key)]
        if not bars:
            continue
        layout = _layout(axis, "accuracy", legend=True) | {"barmode": "group"}
        layout["yaxis"] |= {"range": [0, 1.02], "tickformat": ".0%"}
        layout["xaxis"] |= {
            "type": "category",
            "showgrid": False,
            "categoryorder": "array",
            "categoryarray": _order(cards, key),
        }
        agreement = cards[0][2].get("annotator_agreement")
        if agreement is not None:
            _add_level(layout, float(agreement), "")
            bars.append(_name_level(f"annotators agree ({agreement:.0%})"))
        alt = f"{title}. " + " ".join(f"{name}: {_tell_bins(card[key])}." for name, _, card in cards if card.get(key))
        figures.append(Figure(key.replace("_", "-"), title, alt, bars, layout, wide=key == "accuracy_by_length"))
    return figures


def name_bin(low: float | None, high: float | None) -> str:
    """'0.5 to 1', 'below -8', '32 and more': a bin in words; half-token edges become whole numbers."""

    def short(edge: float) -> str:
        return f"{edge:g}".replace("-", "\N{MINUS SIGN}")

    if low is not None and high is not None and low % 1 == 0.5 and high % 1 == 0.5:
        return f"{short(low + 0.5)} to {short(high - 0.5)}"
    if low is None and high is not None:
        return f"{short(high - 0.5 if high % 1 == 0.5 else high)} or less"
    if high is None and low is not None:
        return f"{short(low + 0.5 if low % 1 == 0.5 else low)} or more"
    return f"{short(low or 0.0)} to {short(high or 0.0)}"


def _points(history: Sequence[Row], key: str) -> tuple[list[Any], list[Any]]:
    """Updates and values of one metric, rows without it left out."""
    rows = [(row.get("update", i), row[key]) for i, row in enumerate(history) if row.get(key) is not None]
    return [update for update, _ in rows], [value for _, value in rows]


def _line(history: Sequence[Row], key: str, name: str, colour: str) -> Trace:
    x, y = _points(history, key)
    mode = "lines+markers" if len(x) <= 40 else "lines"
    return {"x": x, "y": y, "name": name, "mode": mode, "line": {"color": colour, "width": 2.5}, "marker": {"size": 6},
            "hovertemplate": f"%{{y:.4g}}<extra>{name}</extra>"}  # fmt: skip


def _tell(history: Sequence[Row], key: str, name: str) -> str:
    _, y = _points(history, key)
    return f"{name} goes from {say_number(float(y[0]), 3)} to {say_number(float(y[-1]), 3)}."


def _reliability(name: str, colour: str, bins: Sequence[Row]) -> Trace:
    largest = max(row["n"] for row in bins)
    return {
        "x": [row["confidence"] for row in bins],
        "y": [row["frequency"] for row in bins],
        "customdata": [row["n"] for row in bins],
        "name": name,
        "mode": "lines+markers",
        "line": {"color": colour, "width": 1.5},
        "marker": {"size": [7 + 11 * (row["n"] / largest) ** 0.5 for row in bins]},
        "hovertemplate": f"sure %{{x:.0%}}, right %{{y:.0%}}, %{{customdata}} pairs<extra>{name}</extra>",
    }


def _bars(name: str, colour: str, bins: Sequence[Row]) -> Trace:
    values = [row["accuracy"]["value"] for row in bins]
    above, below = (
        [
            abs((row["accuracy"][end] if row["accuracy"][end] is not None else v) - v)
            for row, v in zip(bins, values, strict=True)
        ]
        for end in ("high", "low")
    )
    return {
        "type": "bar",
        "x": [name_bin(row["low"], row["high"]) for row in bins],
        "y": values,
        "customdata": [row["n"] for row in bins],
        "name": name,
        "marker": {"color": colour},
        "error_y": {
            "type": "data",
            "array": above,
            "arrayminus": below,
            "color": "--ink",
            "thickness": 1.2,
            "width": 3,
        },
        "hovertemplate": f"%{{x}}: %{{y:.0%}} of %{{customdata}} pairs<extra>{name}</extra>",
    }


def _order(cards: Sequence[tuple[str, str, Row]], key: str) -> list[str]:
    """Names of all bins that any card fills, from low to high."""
    edges = {(row["low"], row["high"]) for _, _, card in cards for row in card.get(key) or ()}
    return [name_bin(low, high) for low, high in sorted(edges, key=lambda e: float("-inf") if e[0] is None else e[0])]


def _tell_bins(bins: Sequence[Row]) -> str:
    return ", ".join(f"{name_bin(b['low'], b['high'])}: {b['accuracy']['value']:.0%} of {b['n']}" for b in bins)


def build_layout(x: str, y: str, *, legend: bool) -> dict[str, Any]:
    """The frame of a plot with these axis titles, for figures that are made elsewhere."""
    return _layout(x, y, legend=legend)


def _layout(x: str, y: str, *, legend: bool) -> dict[str, Any]:
    """A quiet frame: thin grid, transparent ground, the legend above."""
    axis = {"gridcolor": "--grid", "zerolinecolor": "--grid", "linecolor": "--grid", "automargin": True}
    return {
        "xaxis": axis | {"title": {"text": x, "standoff": 8, "font": {"size": 13}}},
        "yaxis": axis | {"title": {"text": y, "standoff": 8, "font": {"size": 13}}},
        "margin": {"l": 56, "r": 16, "t": 34 if legend else 22, "b": 48},
        "height": 280,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "size": 13, "color": "--ink"},
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"font": {"size": 13}},
        "shapes": [],
        "annotations": [],
    }


def _mark_best(update: int | None) -> tuple[list[Trace], list[Trace]]:
    """A dotted vertical line at the update that was kept."""
    if update is None:
        return [], []
    line = {"type": "line", "xref": "x", "yref": "paper", "x0": update, "x1": update, "y0": 0, "y1": 1,
            "line": {"color": "--muted", "dash": "dot", "width": 1.5}}  # fmt: skip
    text = {"x": update, "y": 1, "xref": "x", "yref": "paper", "text": "kept", "showarrow": False, "yanchor": "bottom",
            "font": {"size": 11, "color": "--muted"}}  # fmt: skip
    return [line], [text]


def _name_level(name: str) -> Trace:
    """The legend's entry for a dashed line."""
    line = {"color": "--bad", "dash": "dash", "width": 1.5}
    return {"x": [None], "y": [None], "mode": "lines", "name": name, "line": line}


def _add_level(layout: dict[str, Any], level: float, name: str) -> None:
    """A dashed horizontal line with its name at the right end."""
    line = {"type": "line", "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": level, "y1": level,
            "line": {"color": "--bad", "dash": "dash", "width": 1.5}}  # fmt: skip
    text = {"x": 1, "y": level, "xref": "paper", "yref": "y", "text": name, "showarrow": False, "xanchor": "right",
            "yanchor": "bottom", "font": {"size": 11, "color": "--bad"}}  # fmt: skip
    layout["shapes"], layout["annotations"] = [*layout["shapes"], line], [*layout["annotations"], text]
