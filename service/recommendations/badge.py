"""A badge that says what a study recommends: as an endpoint of shields.io, and as an SVG of our own.

A public badge service can't reach a private server; the SVG needs no service, no font and no script.

Source:
    https://shields.io/badges/endpoint-badge for the endpoint's fields.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tuner.evidence import Verdict
from tuner.methods import get_method
from tuner.spec import ClipSetting

#: How long a badge may be kept, in seconds.
CACHE_SECONDS = 300
LABEL = "gradient clipping"

#: Colours on which white is readable (contrast at least 4.5 to 1).
_GREEN, _BLUE, _AMBER, _GREY, _LABEL_GREY = "#1a7f37", "#0969da", "#9a6700", "#59636e", "#424a53"
_COLORS: Mapping[Verdict | None, str] = MappingProxyType(
    {
        Verdict.CLIP: _GREEN,
        Verdict.DO_NOT_CLIP: _GREEN,
        Verdict.NO_DIFFERENCE: _BLUE,
        Verdict.INCONCLUSIVE: _AMBER,
        None: _GREY,
    }
)
#: Longest text on a badge, in characters.
_LONGEST = 60
#: Widths in pixels of Verdana's characters at 11 px, by group; every other ASCII character is 7 wide.
_WIDTHS = ((" ijlIftr.,:;'|!()[]/-", 4.7), ("mwMW%@", 10.5), ("ABCDEGHKNOQRUVX_<>=+~#&0123456789", 7.6))
_USUAL, _WIDE = 7.0, 11.0
_HEIGHT, _PADDING = 20, 7


@dataclass(frozen=True)
class Badge:
    """What a badge says.

    Attributes:
        label: the left side; empty leaves it out.
        message: the right side, not empty.
        color: of the right side, ``#rrggbb``.
    """

    label: str
    message: str
    color: str

    def endpoint(self) -> dict[str, Any]:
        """The badge as the JSON values of a shields.io endpoint."""
        return {
            "schemaVersion": 1,
            "label": self.label,
            "message": self.message,
            "color": self.color,
            "labelColor": _LABEL_GREY,
            "cacheSeconds": CACHE_SECONDS,
        }

    def svg(self) -> str:
        """The badge as an SVG document.

        Returns:
            ASCII text; a screen reader reads label and message as one.
        """
        left, right = (_text_width(text) + 2 * _PADDING if text else 0 for text in (self.label, self.message))
        # Several badges may stand in one HTML page, where an id counts for all of them.
        clip = f"badge-{left}-{right}"
        title = _escaped(f"{self.label}: {self.message}" if self.label else self.message)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{_HEIGHT}" role="img" '
            f'aria-label="{title}"><title>{title}</title>'
            f'<clipPath id="{clip}"><rect width="{left + right}" height="{_HEIGHT}" rx="3"/></clipPath>'
            f'<g clip-path="url(#{clip})">'
            f'<rect width="{left}" height="{_HEIGHT}" fill="{_LABEL_GREY}"/>'
            f'<rect x="{left}" width="{right}" height="{_HEIGHT}" fill="{self.color}"/></g>'
            '<g fill="#fff" font-family="Verdana,DejaVu Sans,Geneva,sans-serif" font-size="11">'
            f"{_text(self.label, 0, left)}{_text(self.message, left, right)}</g></svg>\n"
        )


def badge(verdict: Verdict | None, setting: ClipSetting | None = None, *, label: str = LABEL) -> Badge:
    """What to show for a recommendation.

    Args:
        verdict: of the study; None without a recommendation.
        setting: what it recommends; needed for ``clip`` only.
        label: the left side; shortened if it is long, and without what can't be printed.

    Returns:
        The badge.

    Example:
        >>> badge(Verdict.CLIP, ClipSetting(method="global_norm", threshold=0.42)).message
        'max_norm 0.42'
    """
    return Badge(_shortened(label), _message(verdict, setting), _COLORS[verdict])


def no_access(*, label: str = LABEL) -> Badge:
    """What to show to somebody who may not see the recommendation, or where there is none: nobody can tell which.

    Args:
        label: the left side.

    Returns:
        A grey badge.

    Example:
        >>> no_access().message
        'no access'
    """
    return Badge(_shortened(label), "no access", _GREY)


def _message(verdict: Verdict | None, setting: ClipSetting | None) -> str:
    if verdict is Verdict.CLIP and setting is not None and setting.threshold is not None:
        name = get_method(setting.method).threshold_name
        rate = "" if setting.learning_rate_scale == 1 else f", rate x {setting.learning_rate_scale:.3g}"
        return f"{name} {setting.threshold:.3g}{rate}"
    words = {
        Verdict.CLIP: "on",
        Verdict.DO_NOT_CLIP: "off",
        Verdict.NO_DIFFERENCE: "no difference",
        Verdict.INCONCLUSIVE: "not settled",
    }
    return "unknown" if verdict is None else words[verdict]


def _shortened(text: str) -> str:
    shown = "".join(each if each.isprintable() else " " for each in text).strip()
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."


def _text(text: str, start: int, width: int) -> str:
    """One side's text, stretched to its measured width, so that another font does not overflow."""
    return (
        f'<text x="{start + _PADDING}" y="14" textLength="{width - 2 * _PADDING}" '
        f'lengthAdjust="spacingAndGlyphs">{_escaped(text)}</text>'
        if text
        else ""
    )


def _text_width(text: str) -> int:
    return round(sum(_character_width(each) for each in text))


def _character_width(character: str) -> float:
    if not character.isascii():
        return _WIDE
    return next((width for characters, width in _WIDTHS if character in characters), _USUAL)


def _escaped(text: str) -> str:
    """Text for XML, in ASCII."""
    return html.escape(text).encode("ascii", "xmlcharrefreplace").decode("ascii")
