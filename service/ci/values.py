"""Is what was found one literal number? Each obstacle has its own refusal; what passes becomes a `Located`."""

from __future__ import annotations

from collections.abc import Sequence

from service.ci.errors import (
    AmbiguousValueError,
    AutoValueError,
    ConflictingValuesError,
    DuplicateKeyError,
    KeyPathError,
    NotANumberError,
)
from service.ci.framework import Framework, Kind, Place
from service.ci.literal import is_null, is_read_as_text, line_of, number_of, removal_of, scalar_of, spell
from service.ci.located import Located, Token
from service.ci.references import follow_references, refuse_shared
from service.ci.source import Source
from service.ci.tree import ANY, NOWHERE, Found, MappingNode, ScalarNode, find, scalars, spell_key
from service.ci.tree import Path as KeyPath

#: A value: index of its document, its place, what was found.
Value = tuple[int, Place | None, Found]

_FALSE = ("false", "no", "off")


def present(
    source: Source, framework: Framework | None, values: Sequence[Value], *, is_followed: bool
) -> Located:
    """Judge what stands under the keys.

    Args:
        source: the file.
        framework: the row it is read by.
        values: what was found, at least one.
        is_followed: whether aliases, merge keys and references within the file may be followed.

    Returns:
        The value.

    Raises:
        ConfigError: if it is not one literal number, or null.
    """
    document, place, found = _only(source, framework, values)
    origin = source.line_of(_first_position(source, found))
    refuse_shared(source, found, is_followed=is_followed)
    target, hops = follow_references(source, document, found, is_followed=is_followed)
    node = scalar_of(source, target)
    value = number_of(source, node, spell(source, found.path))
    start, end = source.offset_of(node.start), source.offset_of(node.end)
    switch, is_switched_off = _switch(source, document, place, found.path)
    return Located(
        path=source.path,
        file_format=source.file_format,
        framework=framework,
        place=place,
        keys=target.path,
        document=document,
        key=spell(source, found.path),
        kind=_kind(source, document, place, found.path),
        line=source.line_of(node.start),
        column=source.column_of(node.start),
        token=Token(start, end, source.text[node.start : node.end]),
        value=value,
        is_tagged=bool(node.tag),
        is_read_as_text=is_read_as_text(source, node, value),
        switch=switch,
        is_switched_off=is_switched_off,
        removal=removal_of(source, found.path, node),
        followed=origin if hops or found.indirect else None,
    )


def absent(source: Source, framework: Framework | None) -> Located:
    """Judge a file without the key: the framework's default holds.

    Args:
        source: the file.
        framework: the row it is read by.

    Returns:
        The default, marked implicit.

    Raises:
        KeyPathError: if no default is known.
        AutoValueError: if another file decides then.
    """
    place = _empty_place(source, framework)
    if framework is None or place is None:
        raise KeyPathError(
            source.path, "has no clip value, and no framework's default is known: use --key a.b.c"
        )
    _refuse_elsewhere(source, framework)
    for document in source.documents:
        for held in find(document, place.sibling(place.path, place.file_key)) if place.file_key else []:
            if isinstance(held.node, ScalarNode) and held.node.text:
                raise AutoValueError(
                    source.path,
                    f"{spell(source, held.path)} names the file that holds the number: check {held.node.text}",
                    line=source.line_of(held.node.start),
                )
    value = place.default(source.path.name)
    if isinstance(value, str):
        raise AutoValueError(
            source.path,
            f"{spell_key(place.path)} is not set, so that {framework.title} fills in auto: "
            "check the file with max_grad_norm, or set a number",
        )
    keys, index = _absent_keys(source, place)
    switch, is_switched_off = _switch(source, index, place, keys)
    return Located(
        path=source.path,
        file_format=source.file_format,
        framework=framework,
        place=place,
        keys=keys,
        document=index,
        key=spell(source, keys),
        kind=_kind(source, index, place, keys),
        line=1,
        column=1,
        token=Token(0, 0, ""),
        value=value,
        is_implicit=True,
        switch=switch,
        is_switched_off=is_switched_off,
    )


def _refuse_elsewhere(source: Source, framework: Framework) -> None:
    """Refuse to claim a default where the key stands under another path.

    Raises:
        KeyPathError: with that path.
    """
    names = {place.name for place in framework.places_in(source.file_format) if not place.name.isdecimal()}
    for document in source.documents:
        for path, node in scalars(document):
            if path and path[-1] in names:
                raise KeyPathError(
                    source.path,
                    f"{framework.title} does not read {spell_key(path)}: if that is the value, name it with --key",
                    line=line_of(source, node),
                )


def _only(source: Source, framework: Framework | None, values: Sequence[Value]) -> Value:
    """The one value among those found; nulls give way to numbers.

    Raises:
        AmbiguousValueError: if several documents, sections, calls or flags have one.
        DuplicateKeyError: if a mapping has the key twice.
        ConflictingValuesError: if the framework would refuse them.
    """
    numbers = _tokens([value for value in values if not is_null(source, value[2].node)]) or list(values[:1])
    if len(numbers) == 1:
        return numbers[0]
    lines = [source.line_of(_first_position(source, found)) for _, _, found in numbers]
    names = [spell(source, found.path) for _, _, found in numbers]
    where = ", ".join(
        f"{name} in line {line}" if source.file_format != "toml" else name
        for name, line in zip(names, lines, strict=True)
    )
    if len({document for document, _, _ in numbers}) > 1:
        raise AmbiguousValueError(
            source.path,
            f"several documents hold a value: {where}; keep them in files of their own",
            line=lines[0],
        )
    if len(set(names)) == 1 and source.file_format in ("yaml", "json"):
        raise DuplicateKeyError(
            source.path,
            f"one mapping has the key twice: {where}; readers disagree on which counts",
            line=lines[0],
        )
    if framework is not None and framework.is_exclusive and len(set(names)) > 1:
        raise ConflictingValuesError(
            source.path,
            f"{framework.title} lets only one of these be set: {where}; remove the others",
            line=lines[0],
        )
    raise AmbiguousValueError(
        source.path, f"several values answer: {where}; name one with --key", line=lines[0]
    )


def _tokens(values: Sequence[Value]) -> list[Value]:
    """One value per token: a key that inherits another's value is not a second number."""
    first: dict[tuple[int, int | KeyPath], Value] = {}
    for document, place, found in sorted(values, key=lambda value: len(value[2].indirect)):
        where = found.path if found.node.start == NOWHERE else found.node.start
        first.setdefault((document, where), (document, place, found))
    return list(first.values())


def _first_position(source: Source, found: Found) -> int:
    """Where the value seems to stand: the alias or merge key, if there is one on the way."""
    return found.indirect[0].start if found.indirect else found.node.start


def _kind(source: Source, document: int, place: Place | None, path: KeyPath) -> Kind | None:
    """What the number limits, by the sibling that chooses it if there is one.

    Raises:
        NotANumberError: if the sibling's value is none that is known.
    """
    if place is None:
        return None
    for name in place.kind_keys:
        for found in find(source.documents[document], place.sibling(path, name)):
            node = found.node
            text = node.text if isinstance(node, ScalarNode) else "no single value"
            if is_null(source, node):
                continue
            if text not in place.kinds:
                raise NotANumberError(
                    source.path,
                    f"{spell(source, found.path)} is {text}, so that the kind of the number is unknown: "
                    f"known are {', '.join(place.kinds)}",
                    line=line_of(source, node),
                )
            return place.kinds[text]
    return place.kind


def _switch(source: Source, document: int, place: Place | None, path: KeyPath) -> tuple[Token | None, bool]:
    """The token of the sibling that switches clipping on, and whether it is off."""
    if place is None or not place.switch_key:
        return None, False
    for found in find(source.documents[document], place.sibling(path, place.switch_key)):
        node = found.node
        if isinstance(node, ScalarNode) and node.start != NOWHERE:
            token = Token(
                source.offset_of(node.start), source.offset_of(node.end), source.text[node.start : node.end]
            )
            return token, node.text.lower() in _FALSE
    return None, True


def _empty_place(source: Source, framework: Framework | None) -> Place | None:
    """The place whose default holds: the first whose parent is there, else the first."""
    if framework is None:
        return None
    places = [place for place in framework.places_in(source.file_format) if not place.path[0].endswith("()")]
    there = [
        place
        for place in places
        if len(place.path) > 1 and any(find(document, place.path[:-1]) for document in source.documents)
    ]
    return next(iter([*there, *places]), None)


def _absent_keys(source: Source, place: Place) -> tuple[KeyPath, int]:
    """The path that the key would have, with the one parent that is there."""
    parents = [
        (index, found)
        for index, document in enumerate(source.documents)
        for found in find(document, place.path[:-1])
        if isinstance(found.node, MappingNode)
    ]
    if len(parents) == 1 and ANY in place.path:
        index, found = parents[0]
        return (*found.path, place.name), index
    return place.path, parents[0][0] if parents else 0
