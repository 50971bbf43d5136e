"""Values that stand elsewhere in the file: aliases, merge keys, references; refused, or followed if asked."""

from __future__ import annotations

import re

from service.ci.errors import AliasedValueError, InterpolatedValueError
from service.ci.literal import line_of, spell
from service.ci.source import Source
from service.ci.tree import Found, ScalarNode, find

_REFERENCE = re.compile(r"\$\{([\w.]+)\}|\$(\w+)")
_INTERPOLATION = re.compile(r"\$[\w{(]|`|\{\{|<[\w.]+>")
#: How many references are followed before they are taken for a circle.
_MAX_FOLLOWED = 10


def refuse_shared(source: Source, found: Found, *, is_followed: bool) -> None:
    """Refuse a value that stands elsewhere, or that other keys take theirs from, unless that is what was asked for.

    Args:
        source: the file.
        found: the value.
        is_followed: whether it was asked for.

    Raises:
        AliasedValueError: with the line of the number, or of the others.
    """
    if is_followed:
        return
    line = source.line_of(found.node.start)
    if found.indirect:
        name = found.indirect[0].name
        raise AliasedValueError(
            source.path,
            f"{spell(source, found.path)} is inherited from &{name}: "
            f"the number stands in line {line}; change it there, or use --follow",
            line=source.line_of(found.indirect[0].start),
        )
    if found.shared:
        users = ", ".join(str(source.line_of(each.start)) for each in found.shared)
        raise AliasedValueError(
            source.path,
            f"{spell(source, found.path)} is shared by &{found.shared[0].name} with line {users}: "
            "a new value would change those too; use --follow to do so",
            line=line,
        )


def follow_references(source: Source, document: int, found: Found, *, is_followed: bool) -> tuple[Found, int]:
    """Where references such as ``${training.clip}`` or ``$CLIP`` lead within the file.

    Args:
        source: the file.
        document: index of the value's document.
        found: the value.
        is_followed: whether references may be followed.

    Returns:
        The value that is none, and over how many references it was reached.

    Raises:
        InterpolatedValueError: if there is one that may not, or can't, be followed.
    """
    target = found
    for hops in range(_MAX_FOLLOWED):
        node = target.node
        if not isinstance(node, ScalarNode) or not _is_reference(source, node):
            return target, hops
        reference = _REFERENCE.fullmatch(node.text)
        if not is_followed or reference is None:
            remedy = "change it where it is set" + (
                "" if is_followed or reference is None else ", or use --follow"
            )
            raise InterpolatedValueError(
                source.path,
                f"{spell(source, target.path)} is {node.tag} {node.text}".replace("  ", " ")
                + f", which is filled in when the file is loaded: {remedy}",
                line=line_of(source, node),
            )
        name = reference[1] or reference[2]
        path = (name,) if source.file_format == "script" else tuple(name.split("."))
        held = find(source.documents[document], path)
        if len(held) != 1:
            raise InterpolatedValueError(
                source.path,
                f"{node.text} leads to {'several values' if held else 'nothing'} in this file: "
                "change the number where it is set",
                line=line_of(source, node),
            )
        target = held[0]
    raise InterpolatedValueError(
        source.path,
        f"{spell(source, found.path)} is a reference to itself",
        line=source.line_of(found.node.start),
    )


def _is_reference(source: Source, node: ScalarNode) -> bool:
    if node.tag.startswith("!"):
        return True
    if source.file_format == "python":
        return False
    return bool(_INTERPOLATION.search(node.text))
