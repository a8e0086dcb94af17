"""A curve as SVG, drawn on the server: no script, no library, readable in the dark and by a screen reader.

Implements scaling and the marks of one line. Leaves out which curves there are (`rounds`).
"""

from __future__ import annotations

from markupsafe import Markup, escape

from accord.web.pages import say_number
from accord.web.rounds import Curve

WIDTH, HEIGHT = 400.0, 120.0


def draw_curve(curve: Curve) -> Markup:
    """A figure with the metric's name, its last value, the line, and the ends of both axes."""
    steps, values = zip(*curve.points, strict=True)
    low, high = min(values), max(values)
    span_x, span_y = (steps[-1] - steps[0]) or 1.0, (high - low) or 1.0
    places = [
        (WIDTH * (step - steps[0]) / span_x, HEIGHT * (1.0 - (value - low) / span_y) if high > low else HEIGHT / 2)
        for step, value in curve.points
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    x, y = places[-1]
    name, last = curve.metric.replace("_", " "), say_significant(values[-1])
    words = f"{name}: from {say_significant(values[0])} to {last} over {len(values)} points"
    title = f'{escape(name)} <span class="muted">{escape(curve.stage)}</span>'
    box = f'viewBox="-6 -6 {WIDTH + 12:.0f} {HEIGHT + 12:.0f}" preserveAspectRatio="none"'
    return Markup(
        f'<figure class="curve"><figcaption><span>{title}</span><span>{last}</span></figcaption>'
        f'<svg {box} role="img" aria-label="{escape(words)}">'
        f'<path class="grid-line" d="M0 0H{WIDTH:.0f}M0 {HEIGHT:.0f}H{WIDTH:.0f}"/>'
        f'<polyline class="line" points="{line}"/>'
        f'<path class="line dot" d="M{x:.1f} {y:.1f}h0"/></svg>'
        f'<div class="ticks"><span>{curve.step} {steps[0]:.0f} to {steps[-1]:.0f}</span>'
        f"<span>{say_significant(low)} to {say_significant(high)}</span></div></figure>"
    )


def say_significant(value: float) -> str:
    """Three significant digits with a true minus."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}") if abs(value) < 1e5 else say_number(value, 0)
