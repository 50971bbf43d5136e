"""Where an absent key goes, if that is one line: beside the keys that its mapping has already. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from service.ci.errors import RewriteRefusedError
from service.ci.located import Located
from service.ci.source import Source
from service.ci.tree import Entry, Found, MappingNode, ScalarNode, find

_HEADER = r"(?m)^[ \t]*\[[ \t]*{}[ \t]*\][^\r\n]*(?:\r\n|\n)"


@dataclass(frozen=True)
class Edit:
    """Replace the characters from ``start`` to ``end`` by ``text``."""

    start: int
    end: int
    text: str


def insertion(source: Source, located: Located, value: str) -> Edit:
    """The edit that sets an absent key.

    Args:
        source: the file.
        located: the absent key.
        value: its value, as spelled.

    Returns:
        One inserted line; in JSON of one line, one inserted pair.

    Raises:
        RewriteRefusedError: if the mapping is not there, is empty, or is not one that a line can be added to.
    """
    if source.file_format == "script":
        raise RewriteRefusedError(
            source.path, f"a flag is not added to a script: write {located.key} {value} into its command"
        )
    parents = [
        found
        for found in find(source.documents[located.document], located.keys[:-1])
        if isinstance(found.node, MappingNode) and not found.indirect and not found.shared
    ]
    edit = _beside(source, located, parents[0], value) if len(parents) == 1 else None
    if edit is None:
        raise RewriteRefusedError(
            source.path, f"has no place for one more line: write {located.key}: {value} by hand"
        )
    return edit


def _beside(source: Source, located: Located, parent: Found, value: str) -> Edit | None:
    assert isinstance(parent.node, MappingNode)
    name, entries = located.keys[-1], parent.node.entries
    if source.file_format == "toml":
        return _under_header(source.text, located.keys, value)
    if source.file_format == "python":
        return _after_line(source.text, entries, f"{name} = {value}")
    if source.file_format == "yaml" and not parent.node.is_flow:
        return _after_line(source.text, entries, f"{name}: {value}")
    return _before_first(source.text, entries, f'"{name}": {value}')


def _after_line(text: str, entries: Sequence[Entry], line: str) -> Edit | None:
    """A line of its own after one that holds a key with a plain value and nothing else."""
    for entry in reversed(entries):
        start, end = text.rfind("\n", 0, entry.start) + 1, text.find("\n", entry.start)
        indent = text[start : entry.start]
        is_alone = (
            isinstance(entry.value, ScalarNode)
            and entry.value.style == "plain"
            and bool(entry.value.text)
            and entry.value.end <= end
            # Spaces, or nothing: `- key: 1` and `? key` begin otherwise.
            and not indent.strip(" ")
        )
        if is_alone and end >= 0:
            return Edit(end + 1, end + 1, f"{indent}{line}{_line_end(text, end)}")
    return None


def _before_first(text: str, entries: Sequence[Entry], pair: str) -> Edit | None:
    """Before the first pair, in its line or, if that begins with it, in a line of its own."""
    if not entries:
        return None
    first = entries[0].start
    start = text.rfind("\n", 0, first) + 1
    indent = text[start:first]
    is_own_line = start > 0 and not indent.strip()
    after = f"{_line_end(text, start - 1)}{indent}" if is_own_line else " "
    return Edit(first, first, f"{pair},{after}")


def _under_header(text: str, keys: Sequence[str], value: str) -> Edit | None:
    """After the header of a TOML table; at the beginning for a key outside of tables."""
    line = f"{keys[-1]} = {value}"
    if len(keys) == 1:
        return Edit(0, 0, line + ("\r\n" if "\r\n" in text else "\n"))
    name = r"[ \t]*\.[ \t]*".join(rf"""["']?{re.escape(key)}["']?""" for key in keys[:-1])
    header = re.search(_HEADER.format(name), text)
    if header is None:
        return None
    return Edit(header.end(), header.end(), line + _line_end(text, header.end() - 1))


def _line_end(text: str, position: int) -> str:
    """How the line ends whose line feed is at a position."""
    return "\r\n" if text[max(position - 1, 0) : position] == "\r" else "\n"
