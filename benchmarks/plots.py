"""Curves as one HTML file that needs nothing else, drawn with plotly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#8f5d9e", "#7a7a2f")

Curve = tuple[str, Sequence[float], Sequence[float]]
"""A name, the x and the y. Curves of one name share a colour and a line in the legend."""


def write_curves(
    path: Path, curves: Sequence[Curve], x_title: str, y_title: str, *, level: float | None = None
) -> None:
    """Draw all curves in one plot; `level` is a dashed line across it."""
    figure = go.Figure()
    names = list(dict.fromkeys(name for name, _, _ in curves))
    shown: set[str] = set()
    for name, x, y in curves:
        colour = COLOURS[names.index(name) % len(COLOURS)]
        figure.add_scatter(
            x=list(x), y=list(y), name=name, mode="lines+markers", line={"color": colour},
            legendgroup=name, showlegend=name not in shown,
        )  # fmt: skip
        shown.add(name)
    if level is not None:
        figure.add_hline(y=level, line_dash="dash", annotation_text=f"target {level:.3g}")
    figure.update_layout(template="plotly_white", xaxis_title=x_title, yaxis_title=y_title)
    figure.write_html(path, include_plotlyjs=True)


def write_panels(path: Path, panels: Sequence[tuple[str, Sequence[Curve]]], y_title: str) -> None:
    """One small plot for each (x title, curves), side by side; the y axes start at 0."""
    figure = make_subplots(cols=len(panels), rows=1, y_title=y_title)
    names = list(dict.fromkeys(name for _, curves in panels for name, _, _ in curves))
    for column, (x_title, curves) in enumerate(panels, start=1):
        for name, x, y in curves:
            colour = COLOURS[names.index(name) % len(COLOURS)]
            figure.add_scatter(
                x=list(x), y=list(y), name=name, mode="lines+markers", line={"color": colour},
                legendgroup=name, showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
        figure.update_xaxes(title_text=x_title, row=1, col=column)
        figure.update_yaxes(rangemode="tozero", row=1, col=column)
    figure.update_layout(template="plotly_white")
    figure.write_html(path, include_plotlyjs=True)
