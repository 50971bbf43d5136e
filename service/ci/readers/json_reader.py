"""Read JSON into nodes: the standard library judges the text, a second pass over its tokens finds positions."""

from __future__ import annotations

import json
import re

from service.ci.readers.errors import FormatError
from service.ci.tree import Document, Entry, MappingNode, Node, ScalarNode, SequenceNode

#: Strings first: what looks like a token within one is none. The text is known to be valid, so the rest is simple.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]|[^\s{}\[\],:"]+')


def read_json(text: str) -> tuple[Document, ...]:
    """Read a JSON file; keys that stand twice are both kept.

    Args:
        text: without a byte order mark.

    Returns:
        Its one document.

    Raises:
        FormatError: if the text is not JSON, as Python's `json` reads it, or is nested too deeply.

    Example:
        >>> (document,) = read_json('{"gradient_clipping": 1.0}')
        >>> document.root.entries[0].value
        ScalarNode(start=22, end=25, text='1.0', style='plain', tag='', anchor='')
    """
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise FormatError(error.msg, error.lineno) from None
    except RecursionError:
        raise FormatError("nested too deeply", None) from None
    return (Document(_root(text)),)


def _root(text: str) -> Node:
    """The tree of valid JSON, without recursion."""
    root: list[Node] = []
    open_nodes: list[tuple[int, list[Node]]] = [(0, root)]
    for match in _TOKEN.finditer(text):
        token, start = match[0], match.start()
        if token in "{[":
            open_nodes.append((start, []))
        elif token in "}]":
            opened, children = open_nodes.pop()
            node = _mapping(opened, children) if token == "}" else SequenceNode(opened, tuple(children))
            open_nodes[-1][1].append(node)
        else:
            open_nodes[-1][1].append(_scalar(token, start, match.end()))
    return root[0]


def _scalar(token: str, start: int, end: int) -> ScalarNode:
    if token.startswith('"'):
        return ScalarNode(start, end, json.loads(token), "double")
    return ScalarNode(start, end, token)


def _mapping(start: int, children: list[Node]) -> MappingNode:
    pairs = zip(children[::2], children[1::2], strict=True)
    entries = [Entry(key.text, key.start, value) for key, value in pairs if isinstance(key, ScalarNode)]
    return MappingNode(start, tuple(entries), is_flow=True)
