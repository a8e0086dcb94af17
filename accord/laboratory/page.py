"""The laboratory's page: both laws with their points, and each run with its alarm and its peak, in one HTML file.

Implements the summary of an experiment's runs (`summarise_lab`, what lab.json holds) and its page, locked like a
report: no request to any network, and only the scripts in it run. Leaves out the runs (`experiment`) and the fits
(`evaluation.overoptimization`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from accord.evaluation.figures import Figure, Trace, build_layout
from accord.evaluation.overoptimization import Law, LawFit, compute_law, fit_law
from accord.evaluation.wording import say_number

COLOURS = ("--c1", "--c2", "--c3", "--c4", "--c5", "--c6")
CURVE_POINTS = 60
Row = Mapping[str, Any]
CSS = (
    "main{max-width:1100px;margin:0 auto;padding:1rem}.plots{display:grid;gap:1rem;"
    "grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}figure{margin:0}"
    "td,th{padding:.2rem .6rem;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
)


def summarise_lab(runs: Sequence[Row]) -> dict[str, Any]:
    """Laws by arm, and what the alarm did: on arms of votes and on the truth. docs/lab.md explains the keys."""
    arms = list(dict.fromkeys(run["name"] for run in runs))
    laws = {}
    for arm in arms:
        own = [run for run in runs if run["name"] == arm]
        laws[arm] = {law: _fit(law, own) for law in ("best_of_n", "rl")}
    return {
        "arms": arms,
        "laws": {
            arm: {law: None if fit is None else fit.to_dict() for law, fit in found.items()}
            for arm, found in laws.items()
        },
        "alarms": {arm: _count_alarms([run for run in runs if run["name"] == arm]) for arm in arms},
        "runs": list(runs),
    }


def render_lab(summary: Row) -> str:
    """The page of a summary, one self-contained HTML file; the same summary, the same bytes."""
    figures = [*_build_law_figures(summary), *_build_run_figures(summary)]
    plots = {figure.id: {"data": figure.data, "layout": figure.layout} for figure in figures}
    own, plotly = _read_asset("report.js"), get_plotlyjs().replace("\r\n", "\n").replace("</script", "<\\/script")
    hashes = " ".join(f"'sha256-{_hash(text)}'" for text in (plotly, own))
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {hashes}"
    drawn = "\n".join(
        f'<figure class="card"><figcaption>{escape(f.title)}</figcaption><div class="plot" id="{f.id}" role="img" '
        f'aria-label="{escape(f.alt)}"></div></figure>'
        for f in figures
    )
    data = json.dumps(plots, sort_keys=True).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Over-optimisation laboratory</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_read_asset('report.css')}{CSS}</style></head><body><main>\n"
        "<h1>Over-optimisation laboratory</h1>\n"
        "<p>Rewards learnt from noisy votes, optimised until the truth suffers. Distance is the square root of the KL "
        "divergence from the reference, in nats. Laws: Gao, Schulman and Hilton 2022.</p>\n"
        f"{_build_alarm_table(summary)}\n{_build_law_table(summary)}\n"
        f'<section class="plots">{drawn}</section>\n</main>\n'
        f'<script type="application/json" id="figures">{data}</script>\n'
        f"<script>{plotly}</script>\n<script>{own}</script></body></html>\n"
    )


def _fit(law: Law, runs: Sequence[Row]) -> LawFit | None:
    """The law of an arm's points, gold gained since the start of the same run; None where there are too few."""
    points = [
        (point["distance"], point["gold"] - rows[0]["gold"], run["seed"])
        for run in runs
        for rows in [run["looks" if law == "rl" else "best_of_n"]]
        for point in rows
    ]
    if len({distance for distance, _, _ in points}) < 3:
        return None
    distance, gained, seeds = zip(*points, strict=True)
    return fit_law(law, distance, gained, groups=seeds)


def _count_alarms(runs: Sequence[Row]) -> dict[str, Any]:
    rang = [run for run in runs if run["alarm"] is not None]
    return {
        "runs": len(runs),
        "rang": len(rang),
        "kept_share": float(np.mean([run["kept_share"] for run in runs])),
        "end_share": float(np.mean([run["end_share"] for run in runs])),
    }


def _build_law_figures(summary: Row) -> list[Figure]:
    """Gold gained against distance, points of all runs and the fitted law, an arm a colour; proxies dotted."""
    figures = []
    drawn: tuple[tuple[Law, str, str], ...] = (
        ("best_of_n", "best_of_n", "Best of n: d (alpha - beta d)"),
        ("rl", "looks", "PPO: d (alpha - beta log d)"),
    )
    for law, key, title in drawn:
        data: list[Trace] = []
        for arm, colour in zip(summary["arms"], _cycle(len(summary["arms"])), strict=True):
            rows = [run[key] for run in summary["runs"] if run["name"] == arm and run[key]]
            points = [(p["distance"], p["gold"] - run[0]["gold"]) for run in rows for p in run]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            data.append(
                {"x": x, "y": y, "mode": "markers", "name": arm, "marker": {"color": colour, "size": 4, "opacity": 0.5}}
            )
            fit = summary["laws"][arm][law]
            if fit is not None:
                grid = np.linspace(0, max(x), CURVE_POINTS)
                curve = compute_law(law, grid, fit["alpha"]["value"], fit["beta"]["value"])
                line = {"x": grid.tolist(), "y": curve.tolist(), "mode": "lines", "showlegend": False}
                data.append(line | {"name": f"{arm}, law", "line": {"color": colour, "width": 2.5}})
        alt = f"{title}: gold reward gained against distance, measured points and fitted curves."
        figures.append(Figure(f"law-{law.replace('_', '-')}", title, alt, data, _frame("gold reward gained")))
    return figures


def _build_run_figures(summary: Row) -> list[Figure]:
    """For the first seed's runs: proxy, judge and gold against distance, with the alarm and the peak of the truth."""
    figures = []
    for run in summary["runs"]:
        if run["seed"] != summary["runs"][0]["seed"]:
            continue
        looks = run["looks"]
        data: list[Trace] = [
            {
                "x": [look["distance"] for look in looks],
                "y": [look[key] - looks[0][key] for look in looks],
                "name": name, "mode": "lines+markers", "line": {"color": colour, "width": 2.5}, "marker": {"size": 5},
            }
            for key, name, colour in (
                ("proxy", "proxy", "--c1"), ("heldout", "held-out judge", "--c2"), ("gold", "gold (the truth)", "--c3")
            )
        ]  # fmt: skip
        layout = _frame("gained since the start")
        marks = [("peak", run["peak_look"], "--c3")]
        if run["alarm"] is not None:
            marks.append((f"alarm: {run['alarm']['kind']}", run["alarm"]["look"], "--bad"))
        for name, look, colour in marks:
            x = looks[look]["distance"]
            layout["shapes"] = [*layout["shapes"], {
                "type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1,
                "line": {"color": colour, "dash": "dot", "width": 1.5},
            }]  # fmt: skip
            layout["annotations"] = [*layout["annotations"], {
                "x": x, "y": 1 if name == "peak" else 0.9, "xref": "x", "yref": "paper", "text": name,
                "showarrow": False, "font": {"size": 11, "color": colour},
            }]  # fmt: skip
        title = f"PPO on {run['name']}, seed {run['seed']}"
        proxy, gold = (say_number(data[i]["y"][-1], 2) for i in (0, 2))
        alt = f"{title}: proxy goes from 0 to {proxy}, gold to {gold}."
        figures.append(Figure(f"run-{run['name']}", title, alt, data, layout))
    return figures


def _build_alarm_table(summary: Row) -> str:
    rows = "".join(
        f"<tr><td>{escape(arm)}</td><td>{row['rang']} of {row['runs']}</td><td>{row['kept_share']:.0%}</td>"
        f"<td>{row['end_share']:.0%}</td></tr>"
        for arm, row in summary["alarms"].items()
    )
    return (
        "<h2>The alarm</h2><table><tr><th>reward</th><th>alarm rang</th><th>best gold kept, guarded</th>"
        f"<th>unguarded</th></tr>{rows}</table>"
    )


def _build_law_table(summary: Row) -> str:
    def cells(fit: Row | None) -> str:
        if fit is None:
            return "<td>not measured</td><td></td><td></td>"
        said = [
            f"{say_number(fit[n]['value'], 2)} ({say_number(fit[n]['low'], 2)} to {say_number(fit[n]['high'], 2)})"
            for n in ("alpha", "beta")
        ]
        return "".join(f"<td>{text}</td>" for text in (*said, f"{fit['r_squared']:.2f}"))

    rows = "".join(
        f"<tr><td>{escape(arm)}, {name}</td>{cells(found[law])}</tr>"
        for arm, found in summary["laws"].items()
        for law, name in (("best_of_n", "best of n"), ("rl", "PPO"))
    )
    return (
        f"<h2>The laws</h2><table><tr><th>reward</th><th>alpha</th><th>beta</th><th>R squared</th></tr>{rows}</table>"
    )


def _frame(y: str) -> dict[str, Any]:
    return build_layout("distance, square root of KL in nats", y, legend=True)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _read_asset(name: str) -> str:
    return resources.files("accord.evaluation").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
