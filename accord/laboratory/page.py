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
KEPT_ENOUGH = 0.9
"""Of the best gold gained, what a guard should keep of a run."""
SERIES = (
    ("proxy", "proxy", "--c1"),
    ("heldout", "judge", "--c2"),
    ("gold", "gold (the truth)", "--c3"),
)
"""What a run's figure draws: key of a look, name, colour."""
Row = Mapping[str, Any]
CSS = (
    "main{max-width:1100px;margin:0 auto;padding:1rem}.plots{display:grid;gap:1rem;margin-top:1rem;"
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
    figures = [*_build_law_figures(summary), *_build_mean_figures(summary), *_build_run_figures(summary)]
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
        (point["distance"], point["gold"] - rows[0]["gold"], run["world"])
        for run in runs
        for rows in [run["looks" if law == "rl" else "best_of_n"]]
        for point in rows
    ]
    if len({distance for distance, _, _ in points}) < 3:
        return None
    distance, gained, worlds = zip(*points, strict=True)
    return fit_law(law, distance, gained, groups=worlds)


def _count_alarms(runs: Sequence[Row]) -> dict[str, Any]:
    """How many runs rose, were gamed, rang; what was kept of the best gold, over the runs whose gold rose clearly."""
    gamed, others, rose = (
        [run for run in runs if run["gamed"]],
        [run for run in runs if not run["gamed"]],
        [run for run in runs if run["rose"]],
    )

    def count(guarded: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
        kept = [guard["kept_share"] for run, guard in guarded if run["rose"]]
        rang = [run["gamed"] for run, guard in guarded if guard["alarm"] is not None]
        return {
            "rang_gamed": sum(rang),
            "rang_other": len(rang) - sum(rang),
            "kept_share": float(np.mean(kept)) if kept else None,
            "kept_least": min(kept, default=None),
            "kept_enough": sum(share >= KEPT_ENOUGH for share in kept),
        }

    return {
        "runs": len(runs),
        "rose": len(rose),
        "gamed": len(gamed),
        "others": len(others),
        "fall": float(np.mean([run["fall"] for run in runs])),
        "end_share": float(np.mean([run["end_share"] for run in rose])) if rose else None,
        **count([(run, run) for run in runs]),
        "judge_alone": count([(run, run["judge_alone"]) for run in runs]),
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


def _build_mean_figures(summary: Row) -> list[Figure]:
    """What proxy, judge and gold gained since the start, against updates, the mean over worlds; units of their own."""
    figures = []
    for arm in summary["arms"]:
        runs = [run for run in summary["runs"] if run["name"] == arm]
        data: list[Trace] = []
        for key, name, colour in SERIES:
            gained = np.array([[look[key] - run["looks"][0][key] for look in run["looks"]] for run in runs])
            mean = gained.mean(axis=0)
            data.append(_build_line([look["update"] for look in runs[0]["looks"]], mean.tolist(), name, colour))
        title = f"PPO on {arm}, mean of {len(runs)} worlds"
        ends = {name: (max(trace["y"]), trace["y"][-1]) for (_, name, _), trace in zip(SERIES, data, strict=True)}
        alt = f"{title}: " + ", ".join(
            f"{name} gains {say_number(most, 2)} at most and {say_number(end, 2)} at the end"
            for name, (most, end) in ends.items()
        )
        figures.append(Figure(f"mean-{arm}", title, f"{alt}.", data, _frame("gained since the start", "updates")))
    return figures


def _build_run_figures(summary: Row) -> list[Figure]:
    """For the first world's runs: proxy, judge and gold against distance, with the alarm and the peak of the truth."""
    figures = []
    for run in summary["runs"]:
        if run["world"] != summary["runs"][0]["world"]:
            continue
        looks = run["looks"]
        data: list[Trace] = [
            _build_line([k["distance"] for k in looks], [k[key] - looks[0][key] for k in looks], name, colour)
            for key, name, colour in SERIES
        ]
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
        title = f"PPO on {run['name']}, world {run['world']}"
        proxy, gold = (say_number(data[i]["y"][-1], 2) for i in (0, -1))
        alt = f"{title}: proxy goes from 0 to {proxy}, gold to {gold}."
        figures.append(Figure(f"run-{run['name']}", title, alt, data, layout))
    return figures


def _build_alarm_table(summary: Row) -> str:
    def say(share: float | None) -> str:
        return "not measured" if share is None else f"{share:.0%}"

    def cells(row: Row, guard: Row) -> list[str]:
        rang = [f"{guard['rang_gamed']} of {row['gamed']}", f"{guard['rang_other']} of {row['others']}"]
        enough = f"{guard['kept_enough']} of {row['rose']}"
        return [*rang, say(guard["kept_share"]), say(guard["kept_least"]), enough]

    rows = [
        [escape(arm), str(row["rose"]), str(row["gamed"]), say(row["end_share"]), *cells(row, row), *cells(row, alone)]
        for arm, row in summary["alarms"].items()
        for alone in [row["judge_alone"]]
    ]
    heads = ["alarm rang on gamed", "on others", "best gold kept, mean", "least", f"at least {KEPT_ENOUGH:.0%} in"]
    head = ["reward", "gold rose", "gamed", "left unguarded", *heads, *heads]
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    worlds = len({run["world"] for run in summary["runs"]})
    return (
        f"<h2>The alarm, in {worlds} worlds</h2><p>Gamed: at the end gold is below its best by at least half a "
        "standard deviation of the reference&rsquo;s answers, and by a test, while the proxy is above. Shares are of "
        "the best gold gained, over the runs whose gold rose as clearly; below 0: worse than the reference. Of the "
        "looks before the alarm people choose the one that is kept, in a tournament. In the last five columns nobody "
        "is asked on the way, and the alarm rests on the judge alone.</p>"
        '<table><tr><th colspan="4"></th><th colspan="5">people asked at each look</th>'
        '<th colspan="5">the judge alone</th></tr>'
        f"<tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{body}</table>"
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


def _build_line(x: Sequence[float], y: Sequence[float], name: str, colour: str) -> Trace:
    line, marker = {"color": colour, "width": 2.5}, {"size": 5}
    return {"x": x, "y": y, "name": name, "mode": "lines+markers", "line": line, "marker": marker}


def _frame(y: str, x: str = "distance, square root of KL in nats") -> dict[str, Any]:
    return build_layout(x, y, legend=True)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _read_asset(name: str) -> str:
    return resources.files("accord.evaluation").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
