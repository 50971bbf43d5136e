"""Read YAML into nodes by PyYAML's event stream.

Events, not values: they tell the exact span of each token, keep aliases and merge keys apart from what they lead to,
and need no constructor for a framework's own tags. PyYAML reads what Lightning, Transformers and OmegaConf read, by
PyYAML too; with its C parser a file takes well under a millisecond.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from service.ci.readers.errors import FormatError
from service.ci.tree import (
    NOWHERE,
    AliasNode,
    Document,
    Entry,
    MappingNode,
    Node,
    ScalarNode,
    SequenceNode,
    Style,
)

_STYLES: dict[str | None, Style] = {'"': "double", "'": "single", "|": "block", ">": "block"}
#: What stands before a token in its event: anchor and tag, in any order.
_PROPERTIES = re.compile(r"(?:[&!][^\s]*\s+)+")
_MERGE = "<<"


@dataclass(slots=True)
class _Open:
    """A mapping or sequence whose end has not come yet: its children so far, keys among them."""

    event: Any
    children: list[Node] = field(default_factory=list)


def read_yaml(text: str) -> tuple[Document, ...]:
    """Read every document of a file.

    Args:
        text: without a byte order mark.

    Returns:
        The documents; empty ones left out.

    Raises:
        FormatError: if PyYAML refuses the text.

    Example:
        >>> (document,) = read_yaml("trainer: {gradient_clip_val: 0.5}")
        >>> document.root.entries[0].value.entries[0].value
        ScalarNode(start=29, end=32, text='0.5', style='plain', tag='', anchor='')
    """
    import yaml  # type: ignore[import-untyped]

    parser = (yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)(text)
    builder = _Builder(text)
    try:
        while parser.check_event():
            event = parser.get_event()
            builder.take(type(event), event)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        # Characters that YAML has no place for are told by their position.
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise FormatError(str(reason), line + 1) from None
    finally:
        parser.dispose()
    return tuple(builder.documents)


class _Builder:
    """Puts nodes together as their events come."""

    def __init__(self, text: str) -> None:
        import yaml

        self.documents: list[Document] = []
        self._text = text
        self._open: list[_Open] = []
        self._root: list[Node] = []
        self._anchors: dict[str, Node] = {}
        self._aliases: list[AliasNode] = []
        self._actions: dict[type, Callable[[Any], None]] = {
            yaml.ScalarEvent: self._take_scalar,
            yaml.AliasEvent: self._take_alias,
            yaml.MappingStartEvent: self._take_start,
            yaml.MappingEndEvent: self._take_mapping_end,
            yaml.SequenceStartEvent: self._take_start,
            yaml.SequenceEndEvent: self._take_sequence_end,
            yaml.DocumentStartEvent: self._take_document_start,
            yaml.DocumentEndEvent: self._take_document_end,
        }

    def take(self, kind: type, event: Any) -> None:
        """Take the next event; the stream's own begin and end say nothing."""
        action = self._actions.get(kind)
        if action is not None:
            action(event)

    def _take_scalar(self, event: Any) -> None:
        start, end, anchor, tag = event.start_mark.index, event.end_mark.index, event.anchor, event.tag
        if (anchor or tag) and (properties := _PROPERTIES.match(self._text, start, end)):
            start = properties.end()
        style = _STYLES.get(event.style, "plain") if event.style else "plain"
        self._add(ScalarNode(start, end, event.value, style, tag or "", anchor or ""))

    def _take_alias(self, event: Any) -> None:
        alias = AliasNode(event.start_mark.index, event.anchor, self._anchors.get(event.anchor))
        self._aliases.append(alias)
        self._add(alias)

    def _take_start(self, event: Any) -> None:
        # An anchor that is set anew must not lead to the old node from within the new one.
        self._anchors.pop(event.anchor, None)
        self._open.append(_Open(event))

    def _take_mapping_end(self, event: Any) -> None:
        del event
        self._add(_mapping(self._open.pop()))

    def _take_sequence_end(self, event: Any) -> None:
        del event
        opened = self._open.pop()
        start = opened.event.start_mark.index
        self._add(SequenceNode(start, tuple(opened.children), opened.event.anchor or ""))

    def _take_document_start(self, event: Any) -> None:
        del event
        self._root, self._anchors, self._aliases = [], {}, []

    def _take_document_end(self, event: Any) -> None:
        del event
        self.documents.append(Document(self._root[0], tuple(self._aliases)))

    def _add(self, node: Node) -> None:
        if not isinstance(node, AliasNode) and node.anchor:
            self._anchors[node.anchor] = node
        (self._open[-1].children if self._open else self._root).append(node)


def _mapping(opened: _Open) -> MappingNode:
    entries: list[Entry] = []
    merges: list[Node] = []
    for key, value in zip(opened.children[::2], opened.children[1::2], strict=True):
        if isinstance(key, ScalarNode) and key.style == "plain" and key.text == _MERGE:
            merges.append(value)
        elif isinstance(key, ScalarNode):
            entries.append(Entry(key.text, key.start, value))
        else:
            # A mapping or an alias as a key: kept for comparing, out of reach of any path.
            entries += [Entry("", NOWHERE, key), Entry("", NOWHERE, value)]
    event = opened.event
    start = event.start_mark.index
    return MappingNode(
        start, tuple(entries), tuple(merges), bool(event.flow_style), event.anchor or "", event.tag or ""
    )
