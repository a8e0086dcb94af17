"""A curve as SVG, drawn on the server: no library, readable in the dark and by a screen reader.

Implements scaling and the marks of one line, as HTML for a page and as plain strings for live.js, which puts them in
place while it trains. Leaves out which curves there are (`rounds`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from markupsafe import Markup, escape

from accord.web.pages import say_number
from accord.web.rounds import Curve

WIDTH, HEIGHT = 400.0, 120.0


@dataclass(frozen=True)
class Drawing:
    """A curve to scale, in WIDTH by HEIGHT units. line: the points of the polyline; dot: the path of its end; last: the
    newest value; steps, span: the ends of both axes; words: all of it for who cannot see."""

    line: str
    dot: str
    last: str
    steps: str
    span: str
    words: str

    def to_dict(self) -> dict[str, str]:
        """Keys as the fields: what live.js puts in place of a figure's parts of those names."""
        return asdict(self)


def name_curve(curve: Curve) -> str:
    """`stage/metric`: by this a page finds the figure again."""
    return f"{curve.stage}/{curve.metric}"


def scale_curve(curve: Curve) -> Drawing:
    """The curve from its lowest to its highest value, over its first to its last step."""
    steps, values = zip(*curve.points, strict=True)
    low, high = min(values), max(values)
    span_x, span_y = (steps[-1] - steps[0]) or 1.0, (high - low) or 1.0
    places = [
        (WIDTH * (step - steps[0]) / span_x, HEIGHT * (1.0 - (value - low) / span_y) if high > low else HEIGHT / 2)
        for step, value in curve.points
    ]
    x, y = places[-1]
    first, last = say_significant(values[0]), say_significant(values[-1])
    return Drawing(
        line=" ".join(f"{x:.1f},{y:.1f}" for x, y in places),
        dot=f"M{x:.1f} {y:.1f}h0",
        last=last,
        steps=f"{curve.step} {steps[0]:.0f} to {steps[-1]:.0f}",
        span=f"{say_significant(low)} to {say_significant(high)}",
        words=f"{curve.metric.replace('_', ' ')}: from {first} to {last} over {len(values)} points",
    )


def draw_curve(curve: Curve) -> Markup:
    """A figure with the metric's name, its last value, the line, and the ends of both axes."""
    drawing = scale_curve(curve)
    title = (
        f'{escape(curve.metric.replace("_", " "))} <span class="muted">{escape(curve.stage.replace("_", " "))}</span>'
    )
    box = f'viewBox="-6 -6 {WIDTH + 12:.0f} {HEIGHT + 12:.0f}" preserveAspectRatio="none"'
    return Markup(
        f'<figure class="curve" data-curve="{escape(name_curve(curve))}">'
        f'<figcaption><span>{title}</span><span data-part="last">{drawing.last}</span></figcaption>'
        f'<svg {box} role="img" aria-label="{escape(drawing.words)}">'
        f'<path class="grid-line" d="M0 0H{WIDTH:.0f}M0 {HEIGHT:.0f}H{WIDTH:.0f}"/>'
        f'<polyline class="line" points="{drawing.line}"/>'
        f'<path class="line dot" d="{drawing.dot}"/></svg>'
        f'<div class="ticks"><span data-part="steps">{drawing.steps}</span>'
        f'<span data-part="span">{drawing.span}</span></div></figure>'
    )


def say_significant(value: float) -> str:
    """Three significant digits with a true minus."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}") if abs(value) < 1e5 else say_number(value, 0)
