"""A config file as a tree of nodes that know where they stand, whatever its format. Pure.

Positions count characters of the decoded text. Aliases stay nodes of their own: what an alias or a merge key leads to
is found, and so is the way it was found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

#: A key path, for example ``("trainer", "gradient_clip_val")``; in a pattern, `ANY` stands for any key.
Path = tuple[str, ...]
#: How a scalar is written: bare, quoted, as a block of lines, or as code that is no literal.
Style = Literal["plain", "single", "double", "block", "expression"]

#: Any key of a mapping or index of a sequence, in a pattern. No config has such a key, as one may have ``*``.
ANY = "\0any"
#: The position of a value whose library tells none.
NOWHERE = -1


class ScalarNode(NamedTuple):
    """One value.

    Attributes:
        start: first character of the token, its opening quote included.
        end: after the last one.
        text: what the token says, without quotes.
        style: how it is written.
        tag: an explicit YAML tag, else empty.
        anchor: name of its YAML anchor, else empty.
    """

    start: int
    end: int
    text: str
    style: Style = "plain"
    tag: str = ""
    anchor: str = ""


class Entry(NamedTuple):
    """A key of a mapping with its value."""

    key: str
    start: int
    value: Node


@dataclass(frozen=True, slots=True)
class MappingNode:
    """Keys with values, in order; a key may stand twice.

    Attributes:
        start: first character.
        entries: own entries, merge keys excluded.
        merges: what ``<<`` leads to; earlier ones win.
        is_flow: whether written in braces.
        anchor: name of its anchor, else empty.
        tag: an explicit tag; for a call in Python, the name of what is called.
    """

    start: int
    entries: tuple[Entry, ...]
    merges: tuple[Node, ...] = ()
    is_flow: bool = False
    anchor: str = ""
    tag: str = ""


@dataclass(frozen=True, slots=True)
class SequenceNode:
    """Values in order."""

    start: int
    items: tuple[Node, ...]
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class AliasNode:
    """A reference to an anchored node.

    Attributes:
        start: of the reference.
        name: of the anchor.
        target: the node; None if the anchor encloses its own alias.
    """

    start: int
    name: str
    target: Node | None


Node = ScalarNode | MappingNode | SequenceNode | AliasNode


@dataclass(frozen=True)
class Document:
    """One document of a file.

    Attributes:
        root: its value.
        aliases: every alias in it, in order.
    """

    root: Node
    aliases: tuple[AliasNode, ...] = ()


@dataclass(frozen=True)
class Found:
    """A node that a pattern leads to.

    Attributes:
        path: the keys that lead there.
        node: what is there; never an alias.
        indirect: the aliases and merge keys on the way, outermost first.
        shared: aliases that lead to the node, or to something that holds it, from elsewhere.
    """

    path: Path
    node: ScalarNode | MappingNode | SequenceNode
    indirect: tuple[AliasNode, ...] = ()
    shared: tuple[AliasNode, ...] = ()


def parse_key(text: str) -> Path:
    r"""A dotted path as keys; a backslash keeps a dot within a key.

    Args:
        text: for example ``a.0.b``.

    Returns:
        The keys.

    Example:
        >>> parse_key(r"optimizers.0.group\.name.max_norm")
        ('optimizers', '0', 'group.name', 'max_norm')
    """
    return tuple(part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", text))


def spell_key(path: Path) -> str:
    r"""The dotted form that `parse_key` reads.

    Args:
        path: keys.

    Returns:
        The dotted form.

    Example:
        >>> spell_key(("a.b", "c"))
        'a\\.b.c'
    """
    return ".".join("*" if key == ANY else key.replace(".", "\\.") for key in path)


def parse_pattern(text: str) -> Path:
    """A dotted pattern as keys, ``*`` for any key.

    Args:
        text: for example ``*.max_grad_norm``.

    Returns:
        The keys, `ANY` among them.

    Example:
        >>> parse_pattern("*.policy") == (ANY, "policy")
        True
    """
    return tuple(ANY if key == "*" else key for key in parse_key(text))


def find(document: Document, pattern: Path) -> list[Found]:
    """Everything a pattern leads to, through aliases and merge keys.

    Args:
        document: where to look.
        pattern: keys; a number is an index into a sequence, `ANY` any key or index.

    Returns:
        What is there, in order; several of the same path if a key on it stands twice.
    """
    found = list(_reach(document, document.root, Found((), MappingNode(0, ()))))
    for step in pattern:
        found = [after for before in found for after in _step(document, before, step)]
    return found


def has(document: Document, pattern: Path) -> bool:
    """Whether a pattern leads anywhere.

    Args:
        document: where to look.
        pattern: as in `find`.

    Returns:
        True if it does.
    """
    return bool(find(document, pattern))


def scalars(document: Document) -> list[tuple[Path, ScalarNode | AliasNode]]:
    """Every value with its path, aliases as such: what two texts are compared by.

    Args:
        document: any.

    Returns:
        Path and node of each scalar and alias, in order; merge keys under ``<<``.
    """
    result: list[tuple[Path, ScalarNode | AliasNode]] = []
    open_nodes: list[tuple[Path, Node]] = [((), document.root)]
    while open_nodes:
        path, node = open_nodes.pop()
        if isinstance(node, ScalarNode | AliasNode):
            result.append((path, node))
            continue
        inner: list[tuple[Path, Node]] = (
            [((*path, str(index)), item) for index, item in enumerate(node.items)]
            if isinstance(node, SequenceNode)
            else [
                *(((*path, "<<"), each) for each in node.merges),
                *(((*path, entry.key), entry.value) for entry in node.entries),
            ]
        )
        open_nodes += reversed(inner)
    return result


def _reach(document: Document, node: Node, before: Found, *keys: str) -> Iterator[Found]:
    """A node reached from what was found before; behind an alias, what it leads to."""
    indirect, shared = before.indirect, before.shared
    while isinstance(node, AliasNode):
        if node.target is None:
            return
        indirect, node = (*indirect, node), node.target
    shared += tuple(
        each
        for each in document.aliases
        if each.target is node and each not in indirect and each not in shared
    )
    yield Found((*before.path, *keys), node, indirect, shared)


def _step(document: Document, before: Found, step: str) -> Iterator[Found]:
    """What one key of a pattern leads to."""
    node = before.node
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.items):
            if step in (str(index), ANY):
                yield from _reach(document, item, before, str(index))
    elif isinstance(node, MappingNode):
        own = [entry for entry in node.entries if step in (entry.key, ANY)]
        for entry in own:
            yield from _reach(document, entry.value, before, entry.key)
        yield from _inherited(document, before, step, {entry.key for entry in own})


def _inherited(document: Document, before: Found, step: str, known: set[str]) -> Iterator[Found]:
    """What merge keys add: keys that the mapping does not have itself, the first of several."""
    assert isinstance(before.node, MappingNode)
    for merge in before.node.merges:
        for source in _reach(document, merge, before):
            # `<<: [*a, *b]`
            parts = source.node.items if isinstance(source.node, SequenceNode) else (source.node,)
            for part in parts:
                for held in _reach(document, part, source):
                    new = [each for each in _step(document, held, step) if each.path[-1] not in known]
                    yield from new
                    known |= {each.path[-1] for each in new}
