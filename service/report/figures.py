"""A chart as plain data, which the page's script hands to plotly.js; colours and parts that every chart shares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from service.report.markup import Markup, chart_text, element, embedded_json
from tuner.methods import Method

#: Colour by role: of one brightness, so that they stand out on white and on black.
COLOURS = {"best": "#0f9d76", "off": "#e0701a", "today's value": "#8b76e8"}
PLAIN, FAILED, FAINT = "#3f8fd6", "#dc4a4a", 0.4

Trace = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One chart with its heading.

    Attributes:
        id: unique in the page.
        title: what it shows, in a few words.
        caption: how to read it.
        data: plotly traces; texts from users are escaped.
        layout: plotly layout, without colours of text and lines, which follow the page's.
    """

    id: str
    title: str
    caption: str
    data: list[Trace]
    layout: dict[str, Any]

    def to_html(self) -> Markup:
        """The chart's place in the page, and its data."""
        return element(
            "figure",
            element("h3", self.title),
            element("div", class_="chart", data_figure=self.id, role="img", aria_label=self.title),
            element("figcaption", self.caption),
            embedded_json({"data": self.data, "layout": self.layout}, element_id=self.id),
        )


def axis(title: str, *, log: bool = False, **options: Any) -> dict[str, Any]:
    """An axis; its title is text."""
    kind = {"type": "log", "minor": {"ticks": "outside"}} if log else {}
    return {"title": {"text": chart_text(title)}, "automargin": True, "zeroline": False} | kind | options


def threshold_axis(method: Method, thresholds: list[float]) -> dict[str, Any]:
    """The axis of a method's thresholds: logarithmic unless the threshold is a share or a percentage."""
    words = f"{method.threshold_name}: {method.threshold_unit}"
    if method.axis == "logit":
        return axis(words)
    if not thresholds:
        return axis(f"{words} (log)", log=True)
    # Room at both ends, so that no mark is cut.
    return axis(
        f"{words} (log)",
        log=True,
        range=log_range(min(thresholds), max(thresholds), room=0.06),
    )


def log_range(low: float, high: float, *, room: float) -> list[float]:
    """Ends of a logarithmic axis, as powers of ten.

    Args:
        low: smallest value, > 0.
        high: largest value.
        room: share of the distance to leave free at either end.

    Returns:
        Both ends; half a decade on either side of a single value.
    """
    begin, end = math.log10(low), math.log10(high)
    margin = (end - begin) * room or 0.5
    return [begin - margin, end + margin]


def is_spread(values: list[float], factor: float) -> bool:
    """Whether a logarithmic axis shows these values better: all > 0, and far apart."""
    return bool(values) and min(values) > 0 and max(values) > factor * min(values)


def vertical_line(position: float, words: str, colour: str) -> dict[str, Any]:
    """A dashed line across a chart, explained in its legend."""
    return {
        "type": "line",
        "x0": position,
        "x1": position,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": colour, "width": 1.5, "dash": "dash"},
        "name": chart_text(words),
        "showlegend": True,
    }


def band(low: float, high: float, words: str, colour: str, *, across: Literal["x", "y"]) -> dict[str, Any]:
    """A shaded range of one axis, right across the other, explained in the legend.

    Args:
        low: lower end, in the axis' unit.
        high: upper end; a line if it is the lower one.
        words: what it is.
        colour: of the shade.
        across: the axis whose range it is.

    Returns:
        A plotly shape.
    """
    other = "y" if across == "x" else "x"
    return {
        "type": "rect",
        f"{across}0": low,
        f"{across}1": high,
        f"{other}0": 0,
        f"{other}1": 1,
        f"{other}ref": "paper",
        "layer": "below",
        "fillcolor": colour,
        "opacity": 0.18,
        "line": {"color": colour, "width": 2 if low == high else 0},
        "name": chart_text(words),
        "showlegend": True,
    }
