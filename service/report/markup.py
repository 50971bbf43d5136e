"""HTML that can't be broken by what it shows: text is escaped unless it was made here."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from typing import Any

#: Text outside ASCII, by name.
PLUS_MINUS, MINUS, TIMES, TO, NONE = "\u00b1", "\u2212", "\u00d7", "\u2013", "\u2013"


class Markup(str):
    """HTML that is already safe; everything else is text."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | bool) -> Markup:
    """An HTML element.

    Args:
        tag: its name.
        children: `Markup` is kept, other text escaped.
        attributes: by name; a trailing underscore is dropped and others become hyphens. True writes the name alone,
            False leaves it out.

    Returns:
        The element with its end tag.

    Example:
        >>> element("p", "1 < 2 ", element("b", "true"), class_="note")
        '<p class="note">1 &lt; 2 <b>true</b></p>'
    """
    written = "".join(
        f" {_attribute(name)}" if value is True else f' {_attribute(name)}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not False
    )
    return Markup(f"<{tag}{written}>{joined(children)}</{tag}>")


def joined(parts: Iterable[str], separator: str = "") -> Markup:
    """Several pieces one after the other; text is escaped."""
    return Markup(separator.join(each if isinstance(each, Markup) else html.escape(each) for each in parts))


def embedded_json(document: Mapping[str, Any], *, element_id: str) -> Markup:
    """Data for a script, which no text in it can end.

    Args:
        document: JSON values, without NaN.
        element_id: where the script finds it.

    Returns:
        A ``script`` element that the browser does not run.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{html.escape(element_id)}">{text}</script>')


def chart_text(text: str) -> str:
    """Text for a chart, whose library reads a subset of HTML and fills in ``%{...}``."""
    return html.escape(text, quote=False).replace("%{", "%\u200b{")


def _attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-")
