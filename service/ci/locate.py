"""Find the one clip value of a config file, or say why it can't be told.

Nothing is run and nothing is guessed: the framework is told by its keys (`detect`), a value by its key path, and what
is no literal number of its own (an alias, ``auto``, ``${...}``, an expression) is refused with the line it stands in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.ci.detect import Candidate, Reading, candidates, preferred, values_of
from service.ci.errors import (
    AmbiguousFrameworkError,
    KeyPathError,
    PrivacyClipError,
    UnknownFrameworkError,
)
from service.ci.framework import Framework, Place
from service.ci.frameworks import FRAMEWORKS
from service.ci.literal import line_of, spell
from service.ci.located import Located
from service.ci.source import Source, read_content, read_source
from service.ci.tree import Found, MappingNode, find, parse_key, scalars, spell_key
from service.ci.tree import Path as KeyPath
from service.ci.values import absent, present


@dataclass(frozen=True)
class Choice:
    """What a file is read as.

    Attributes:
        framework: the row; None for a key that no row knows.
        values: the values found, each with its place and the index of its document.
    """

    framework: Framework | None
    values: tuple[tuple[int, Place | None, Found], ...]


def locate(
    path: Path, content: bytes, *, framework: str | None = None, key: str | None = None, follow: bool = False
) -> Located:
    r"""Find the clip value of a config.

    A file without the key gives the framework's default, marked implicit.

    Args:
        path: tells the format, and helps to tell the framework; nothing is read from it.
        content: the file's bytes.
        framework: a name in `FRAMEWORKS`; None to tell it by the file's keys.
        key: dotted path to the value, or a flag's name, whatever the framework's own is; None for that.
        follow: whether to go on to the number that an alias, a merge key or a reference within the file leads to.

    Returns:
        The value and where it stands.

    Raises:
        ConfigError: if there is no such value, or more than one, or it is no literal number; see `service.ci.errors`.
        PrivacyClipError: if the number clips each sample's gradient.

    Example:
        >>> print(locate(Path("fit.yaml"), b"trainer:\n  gradient_clip_val: 0.5  # tuned by hand\n"))
        fit.yaml:2 trainer.gradient_clip_val: 0.5 (Lightning)
    """
    source = read_source(path, content)
    row = _framework(path, framework)
    choice = _by_key(source, key, row) if key is not None else _by_framework(source, row)
    if choice.framework and choice.framework.refusal:
        raise PrivacyClipError(
            path, choice.framework.refusal, line=_lines(source, choice)[0] if choice.values else None
        )
    if not choice.values:
        return absent(source, choice.framework)
    return present(source, choice.framework, choice.values, is_followed=follow)


def locate_file(
    path: Path, *, framework: str | None = None, key: str | None = None, follow: bool = False
) -> Located:
    """Find the clip value of a config file, see `locate`.

    Args:
        path: of the file.
        framework: as for `locate`.
        key: as for `locate`.
        follow: as for `locate`.

    Returns:
        The value and where it stands.

    Raises:
        ConfigError: as `locate`, or if the file can't be read.
    """
    return locate(path, read_content(path), framework=framework, key=key, follow=follow)


def _framework(path: Path, name: str | None) -> Framework | None:
    if name is None:
        return None
    if name not in FRAMEWORKS:
        raise UnknownFrameworkError(
            path, f"no framework is called {name!r}; known ones: {', '.join(sorted(FRAMEWORKS))}"
        )
    return FRAMEWORKS[name]


def _readings(source: Source) -> list[Reading]:
    return [
        Reading(document, source.text, source.path.name, source.file_format) for document in source.documents
    ]


def _by_framework(source: Source, row: Framework | None) -> Choice:
    """The values of a framework that is given, or told by the keys of each document.

    Raises:
        AmbiguousFrameworkError: if no framework is told.
        KeyPathError: if the given one has no place in this format.
    """
    readings = _readings(source)
    if row is not None:
        if not row.places_in(source.file_format):
            raise KeyPathError(
                source.path, f"{row.title} keeps no clip value in {source.file_format} files: use --key"
            )
        each = [(index, values_of(row, reading)) for index, reading in enumerate(readings)]
        return Choice(row, tuple((index, *value) for index, values in each for value in values))
    told = [(index, each) for index, reading in enumerate(readings) for each in _told(source, reading)]
    # A document that has the value before one that is only known by its other keys.
    told = [(index, each) for index, each in told if each.found] or told
    if not told:
        reason, line = _unrecognised(source)
        raise AmbiguousFrameworkError(source.path, reason, line=line)
    return Choice(
        told[0][1].framework, tuple((index, *value) for index, each in told for value in each.found)
    )


def _told(source: Source, reading: Reading) -> list[Candidate]:
    chosen = preferred(candidates(reading), source.file_format)
    if len(chosen) > 1:
        names = " or ".join(each.framework.name for each in chosen)
        raise AmbiguousFrameworkError(
            source.path,
            f"may be for {names}, which read it differently: "
            f"name one with --framework, or the key with --key a.b.c",
        )
    return chosen


def _unrecognised(source: Source) -> tuple[str, int | None]:
    """Why no framework is told by the keys, with the first key that looks like a clip value, and its line."""
    rows = [row for row in FRAMEWORKS.values() if row.places_in(source.file_format)]
    names = {row.name: {place.name for place in row.places_in(source.file_format)} for row in rows}
    known = frozenset[str]().union(*names.values())
    values = (value for document in source.documents for value in scalars(document))
    alike = next(((path, node) for path, node in values if path and path[-1] in known), None)
    if alike is None:
        return (
            "holds no clip value that is known, and no framework is recognised by its keys: "
            f"name it with --framework ({', '.join(names)}) or the key with --key a.b.c"
        ), None
    path, node = alike
    having = ", ".join(name for name, keys in names.items() if path[-1] in keys)
    return (
        f"no framework is recognised by the keys of this file: name it with --framework ({having}), "
        f"or the key with --key, for example {spell(source, path)}"
    ), line_of(source, node)


def _by_key(source: Source, key: str, row: Framework | None) -> Choice:
    """The values under a key that is given; what they mean is told by the framework, or by the key's name.

    Raises:
        KeyPathError: if there are none.
    """
    path: KeyPath = (key,) if source.file_format == "script" else parse_key(key)
    values = [
        (index, found) for index, document in enumerate(source.documents) for found in find(document, path)
    ]
    if not values:
        raise KeyPathError(source.path, f"has no value under {key}{_nearest(source, path)}")
    place = _place_of(source, path, row)
    if row is None and place is not None:
        row = _only_row(source, place)
    return Choice(row, tuple((index, place, found) for index, found in values))


def _nearest(source: Source, path: KeyPath) -> str:
    """How far a path leads, as a hint."""
    for length in range(len(path) - 1, 0, -1):
        held = [found for document in source.documents for found in find(document, path[:length])]
        if held:
            node = held[0].node
            names = sorted({entry.key for entry in node.entries}) if isinstance(node, MappingNode) else []
            return f"; under {spell_key(path[:length])} are: {', '.join(names[:10]) or 'no keys'}"
    return "; a dot within a key is written \\."


def _place_of(source: Source, path: KeyPath, row: Framework | None) -> Place | None:
    """The place that tells what a given key means: the framework's, else that of every framework with such a key."""
    rows = [row] if row else list(FRAMEWORKS.values())
    places = [place for each in rows for place in each.places_in(source.file_format)]
    named = [place for place in places if place.name == path[-1]]
    if not named and row is not None:
        return places[0] if places else None
    kinds = {(place.kind, place.kind_keys) for place in named}
    return named[0] if len(kinds) == 1 else None


def _only_row(source: Source, place: Place) -> Framework | None:
    """The framework that has such a key, if only one has."""
    rows = [
        row
        for row in FRAMEWORKS.values()
        if any(place.name == each.name for each in row.places_in(source.file_format))
    ]
    return rows[0] if len(rows) == 1 else None


def _lines(source: Source, choice: Choice) -> list[int]:
    return [source.line_of(found.node.start) for _, _, found in choice.values]
