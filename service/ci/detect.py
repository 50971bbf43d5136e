"""Whose config is it? By the keys that are there, and by the file's name. Pure.

A key that only one framework has, or a file name of its own, counts twice as much as one that others have as well. Two
frameworks that read the file alike are no ambiguity; two that don't are one, and are never decided by a guess.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property

from service.ci.framework import STRONG, WEAK, Format, Framework, Place
from service.ci.frameworks import FRAMEWORKS
from service.ci.tree import ANY, Document, Found, MappingNode, Path, find, has

#: Points that a framework needs if its key is in the file, and if it is not: an implicit default needs better reasons,
#: and one that is the framework's own.
ENOUGH, ENOUGH_IMPLICIT = 2, 3


@dataclass(frozen=True)
class Candidate:
    """A framework that a document may be for.

    Attributes:
        framework: the row.
        score: points of the keys that speak for it.
        num_signs: how many keys and file names that hardly any other framework has.
        found: its values in the document, each with the place it answers to.
    """

    framework: Framework
    score: int
    num_signs: int
    found: tuple[tuple[Place, Found], ...]


@dataclass(frozen=True)
class Reading:
    """A document as it was read.

    Attributes:
        document: its nodes.
        text: of the whole file.
        file_name: without the folder.
        file_format: how it was read.
    """

    document: Document
    text: str
    file_name: str
    file_format: Format

    @cached_property
    def first_keys(self) -> frozenset[str]:
        """The keys of the root; none if it has others by a merge key, or is no mapping."""
        root = self.document.root
        if not isinstance(root, MappingNode) or root.merges:
            return frozenset()
        return frozenset(entry.key for entry in root.entries)

    def may_have(self, pattern: Path) -> bool:
        """Whether a pattern is worth following: most are ruled out by the root's keys, or by the text alone."""
        if pattern[0] == ANY:
            return pattern[-1] in self.text
        return not self.first_keys or pattern[0] in self.first_keys

    def has(self, pattern: Path) -> bool:
        """Whether a pattern leads anywhere."""
        return self.may_have(pattern) and has(self.document, pattern)


def values_of(framework: Framework, reading: Reading) -> tuple[tuple[Place, Found], ...]:
    """The values that stand in a framework's places.

    Args:
        framework: the row.
        reading: the document.

    Returns:
        Each value with its place.
    """
    return tuple(
        (place, found)
        for place in framework.places_in(reading.file_format)
        if reading.may_have(place.path)
        for found in find(reading.document, place.path)
    )


def candidates(reading: Reading) -> list[Candidate]:
    """The frameworks that a document may be for.

    Args:
        reading: the document.

    Returns:
        Those with enough points, in the table's order; if any has its value there, only those that have.
    """
    values = {row.name: values_of(row, reading) for row in FRAMEWORKS.values()}
    are_there = any(values.values())
    rows = [row for row in FRAMEWORKS.values() if row.places_in(reading.file_format)]
    scored = [_scored(row, reading, values[row.name]) for row in rows if values[row.name] or not are_there]
    enough = ENOUGH if are_there else ENOUGH_IMPLICIT
    return [each for each in scored if each.score >= enough and (are_there or each.num_signs)]


def preferred(possible: Collection[Candidate], file_format: Format) -> list[Candidate]:
    """Decide among candidates.

    Args:
        possible: as `candidates` gives them.
        file_format: of the file.

    Returns:
        One candidate; several if they read the file differently and nothing speaks for one of them; none of none.
    """
    refused = [each for each in possible if each.framework.refusal]
    if refused or not possible:
        return refused[:1]
    best = max(each.score for each in possible)
    leader = next(each for each in possible if each.score == best)
    rivals = [
        each
        for each in possible
        if each.score == best and not each.framework.reads_like(leader.framework, file_format)
    ]
    if rivals:
        return [leader, *rivals]
    alike = [each for each in possible if each.framework.reads_like(leader.framework, file_format)]
    # The special case before the general one, if any key is the special one's own.
    return [
        next((each for each in alike if each.num_signs), max(reversed(alike), key=lambda each: each.score))
    ]


def _scored(framework: Framework, reading: Reading, values: tuple[tuple[Place, Found], ...]) -> Candidate:
    is_named = any(fnmatch(reading.file_name, pattern) for pattern in framework.file_names)
    num_signs = sum(reading.has(sign) for sign in framework.signs) + is_named
    num_marks = sum(reading.has(mark) for mark in framework.marks)
    is_told = any(place.is_telling for place, _ in values)
    score = STRONG * (num_signs + is_told) + WEAK * num_marks
    return Candidate(framework, score, num_signs, values)
