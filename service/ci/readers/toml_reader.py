"""Read TOML into nodes. The standard library tells values and no positions: those are found by trying.

A token is the one looked for if a marker in its place shows up under the key, and nowhere else: `tomllib` itself says
so, whatever tables, dotted keys and inline tables the file is made of.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from service.ci.readers.errors import FormatError
from service.ci.tree import NOWHERE, Document, Entry, MappingNode, Node, Path, ScalarNode, SequenceNode, Style

#: A number that no config holds.
_MARKER = "1.7976931348623e-300"
#: Every place where a value may begin: looked at, not taken, as what seems to be one may end within another.
_VALUE = re.compile(r"""(?<=[=,\[\s])(?=("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^\s,\[\]{}#="']+))""")
_LINE = re.compile(r"at line (\d+)")


def read_toml(text: str) -> tuple[Document, ...]:
    r"""Read a TOML file; positions are left out, see `place_toml`.

    Args:
        text: without a byte order mark.

    Returns:
        Its one document.

    Raises:
        FormatError: if the text is not TOML.

    Example:
        >>> (document,) = read_toml("[training]\nmax_norm = 1.0")
        >>> document.root.entries[0].value.entries[0].value.text
        '1.0'
    """
    try:
        return (Document(_node(tomllib.loads(text))),)
    except tomllib.TOMLDecodeError as error:
        line = _LINE.search(str(error))
        raise FormatError(str(error), int(line[1]) if line else None) from None
    except RecursionError:
        raise FormatError("nested too deeply", None) from None


def place_toml(text: str, path: Path) -> ScalarNode | None:
    r"""Where the value under a path stands.

    Args:
        text: valid TOML.
        path: keys that lead to a number or a string.

    Returns:
        The value with its position; None if no single token is it.

    Example:
        >>> place_toml("a.b = 1.0\nb = 1.0 # b", ("b",))
        ScalarNode(start=14, end=17, text='1.0', style='plain', tag='', anchor='')
    """
    document = tomllib.loads(text)
    value = _at(document, path)
    expected = _with_marker(document, path)
    likely = [match for match in _VALUE.finditer(text) if _reads_as(match[1], value)]
    # Where the key stands just before is tried first: each trial reads the whole file.
    likely.sort(
        key=lambda match: path[-1] not in text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    )
    for match in likely:
        start, end = match.span(1)
        try:
            tried = tomllib.loads(text[:start] + _MARKER + text[end:])
        except tomllib.TOMLDecodeError:
            continue
        if repr(tried) == expected:
            style: Style = {'"': "double", "'": "single"}.get(match[1][0], "plain")  # type: ignore[assignment]
            return ScalarNode(start, end, match[1].strip("\"'"), style)
    return None


def _node(value: Any) -> Node:
    if isinstance(value, dict):
        entries = (Entry(key, NOWHERE, _node(inner)) for key, inner in value.items())
        return MappingNode(NOWHERE, tuple(entries))
    if isinstance(value, list):
        return SequenceNode(NOWHERE, tuple(_node(inner) for inner in value))
    style: Style = "double" if isinstance(value, str) else "plain"
    return ScalarNode(NOWHERE, NOWHERE, str(value).lower() if isinstance(value, bool) else str(value), style)


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def _with_marker(document: dict[str, Any], path: Path) -> str:
    """How the document prints with the marker under the path; ``repr`` so that NaN equals NaN."""
    changed: Any = _copied(document)
    inner = _at(changed, path[:-1])
    inner[int(path[-1]) if isinstance(inner, list) else path[-1]] = float(_MARKER)
    return repr(changed)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _reads_as(token: str, value: Any) -> bool:
    try:
        return repr(tomllib.loads(f"value = {token}")["value"]) == repr(value)
    except tomllib.TOMLDecodeError:
        return False
