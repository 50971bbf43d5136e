"""Does a scalar spell one literal number, or null? Each way not to has its own refusal."""

from __future__ import annotations

from service.ci.errors import AutoValueError, NotANumberError
from service.ci.framework import Format
from service.ci.located import Token
from service.ci.source import Source
from service.ci.spelling import is_yaml_number, parse_number
from service.ci.tree import NOWHERE, Found, MappingNode, ScalarNode, spell_key
from service.ci.tree import Path as KeyPath

_NULLS: dict[Format, tuple[str, ...]] = {
    "yaml": ("", "~", "null", "Null", "NULL"),
    "json": ("null",),
    "python": ("None",),
    # In a Hydra override.
    "script": ("null",),
}
_AUTO = "auto"
_FLOAT_TAG = "tag:yaml.org,2002:float"


def scalar_of(source: Source, found: Found) -> ScalarNode:
    """The node, with its position, if it may hold a number.

    Args:
        source: the file.
        found: what stands under the key.

    Returns:
        The scalar.

    Raises:
        NotANumberError: if it is a list, a block of lines, an expression, or tagged as something else.
    """
    node, key = found.node, spell(source, found.path)
    if not isinstance(node, ScalarNode):
        what = "a mapping" if isinstance(node, MappingNode) else "a list"
        raise NotANumberError(
            source.path, f"{key} is {what}: name the number in it with --key", line=line_of(source, node)
        )
    if node.style == "block":
        raise NotANumberError(
            source.path,
            f"{key} is a block of lines: write the number on the key's own line",
            line=line_of(source, node),
        )
    if node.style == "expression" and parse_number(node.text) is None:
        raise NotANumberError(
            source.path,
            f"{key} is the expression {node.text}: write a literal number",
            line=line_of(source, node),
        )
    if node.tag not in ("", _FLOAT_TAG):
        raise NotANumberError(
            source.path, f"{key} is tagged {node.tag}: remove the tag", line=line_of(source, node)
        )
    if node.start == NOWHERE:
        from service.ci.readers.toml_reader import place_toml

        placed = place_toml(source.text, found.path)
        if placed is None:
            raise NotANumberError(source.path, f"{key} is no single token: write a plain number")
        return placed
    return node


def number_of(source: Source, node: ScalarNode, key: str) -> float | None:
    """The number that a scalar spells.

    Args:
        source: the file.
        node: the scalar.
        key: its key, for messages.

    Returns:
        The number, which may be infinite; None for null.

    Raises:
        AutoValueError: if it is ``auto``.
        NotANumberError: if it is any other text.
    """
    if is_null(source, node):
        return None
    if node.text == _AUTO:
        raise AutoValueError(
            source.path,
            f"{key} is auto: the integration fills in max_grad_norm of the training arguments; check that file",
            line=line_of(source, node),
        )
    value = parse_number(node.text)
    if value is None:
        shown = node.text[:40] or "empty"
        remedy = "write null" if shown in ("None", "none") else "write a number"
        raise NotANumberError(
            source.path, f"{key} is {shown!r}, no number: {remedy}", line=line_of(source, node)
        )
    return value


def is_null(source: Source, node: object) -> bool:
    """Whether a node is null, in its format's spelling.

    Args:
        source: the file.
        node: any node.

    Returns:
        True for a bare null; False for a text that says so.
    """
    return (
        isinstance(node, ScalarNode)
        and node.style == "plain"
        and node.text in _NULLS.get(source.file_format, ())
        and not node.tag
    )


def is_read_as_text(source: Source, node: ScalarNode, value: float | None) -> bool:
    """Whether a YAML 1.1 reader takes a number for a text.

    Args:
        source: the file.
        node: the scalar.
        value: what it is meant to be.

    Returns:
        True for a bare ``1e-3`` in YAML.
    """
    return (
        source.file_format == "yaml"
        and node.style == "plain"
        and not node.tag
        and value is not None
        and not is_yaml_number(node.text)
    )


def removal_of(source: Source, path: KeyPath, node: ScalarNode) -> Token | None:
    """A flag with its value and the blank before it.

    Args:
        source: the file.
        path: of the flag.
        node: its value.

    Returns:
        The bytes to leave out for *off*; None outside of scripts, or if that would not be one run of one line.
    """
    if source.file_format != "script":
        return None
    start = source.text.rfind(path[0], 0, node.start)
    if start < 0 or not set("\n\"'").isdisjoint(source.text[start : node.end]):
        return None
    line = source.text[source.text.rfind("\n", 0, start) + 1 : start]
    # The blanks before it go along, unless they are the line's indentation.
    start -= len(line) - len(line.rstrip()) if line.strip() else 0
    return Token(source.offset_of(start), source.offset_of(node.end), source.text[start : node.end])


def spell(source: Source, path: KeyPath) -> str:
    """A key path for people: a flag by its name.

    Args:
        source: the file.
        path: keys.

    Returns:
        The form that ``--key`` takes.
    """
    return path[0] if source.file_format == "script" else spell_key(path)


def line_of(source: Source, node: object) -> int | None:
    """The line of a node whose position is known.

    Args:
        source: the file.
        node: any node.

    Returns:
        The line, from 1; None in TOML.
    """
    start = getattr(node, "start", NOWHERE)
    return None if start == NOWHERE else source.line_of(start)
