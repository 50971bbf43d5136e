"""How the rows of the table are written: places by format, and what a sibling key says about the kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypedDict, Unpack

from service.ci.framework import PLAIN, Absent, Format, Kind, Place
from service.ci.tree import parse_pattern

BY_NORM: dict[str, Kind] = {"norm": "norm", "value": "value"}
BY_CLIP_MODE: dict[str, Kind] = {**BY_NORM, "agc": "agc"}
#: By the order of a norm.
BY_ORDER: dict[str, Kind] = {
    **dict.fromkeys(("2", "2.0"), "norm"),
    **dict.fromkeys(("inf", ".inf", 'float("inf")', "float('inf')", "math.inf", "torch.inf"), "inf_norm"),
}


class Facts(TypedDict, total=False):
    """What a place may say beyond its format and path, see `Place`."""

    formats: tuple[Format, ...]
    kind: Kind
    kind_keys: tuple[str, ...]
    kinds: Mapping[str, Kind]
    absent: Absent
    absent_by_name: Mapping[str, Absent]
    is_telling: bool
    switch_key: str
    file_key: str
    flag: str


def plain(path: str, **facts: Unpack[Facts]) -> Place:
    """A key in a file of plain values.

    Args:
        path: dotted.
        facts: the rest.

    Returns:
        The place.
    """
    return replace(Place(formats=PLAIN, path=parse_pattern(path)), **facts)


def flag(name: str, **facts: Unpack[Facts]) -> Place:
    """A flag in a shell script.

    Args:
        name: with its dashes.
        facts: the rest.

    Returns:
        The place.
    """
    return replace(Place(formats=("script",), path=(name,)), **facts)


def assigned(path: str, **facts: Unpack[Facts]) -> Place:
    """A variable of a Python config, or a key in one.

    Args:
        path: dotted.
        facts: the rest.

    Returns:
        The place.
    """
    return replace(Place(formats=("python",), path=parse_pattern(path)), **facts)


def argument(calls: str, name: str, **facts: Unpack[Facts]) -> tuple[Place, ...]:
    """An argument of any of some calls in Python.

    Args:
        calls: names between blanks.
        name: of the argument; a number for a positional one.
        facts: the rest.

    Returns:
        A place per call.
    """
    place = Place(formats=("python",), path=("", name), is_telling=True)
    return tuple(replace(replace(place, path=(f"{call}()", name)), **facts) for call in calls.split())
