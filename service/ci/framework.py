"""What has to be known of a training framework to read and write its clip value; the table is in `frameworks`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from service.ci.tree import Path, parse_pattern

#: How a file is read.
Format = Literal["yaml", "json", "toml", "python", "script"]

#: What a number in a config limits. A number of one kind says nothing about another: ``norm`` is the L2 norm of all
#: gradients, ``inf_norm`` their largest element (scaling the whole), ``value`` each element (clamping it), ``agc`` a
#: ratio of gradient to weight norm, ``per_tensor`` the L2 norm of each tensor on its own.
Kind = Literal["norm", "inf_norm", "value", "agc", "per_tensor"]

#: How *off* is spelled in the place of the number: ``0.0``, ``null`` or ``None`` (a flag is left out), infinity, the
#: sibling switch set to false, or not at all.
Off = Literal["zero", "null", "inf", "switch", "none"]

#: What holds without the key: a number, None for *off*, or ``auto`` where another file decides.
Absent = float | Literal["auto"] | None

#: The clipping method whose threshold a kind holds; none of ours limits each tensor to one number.
METHODS: Mapping[Kind, str | None] = MappingProxyType(
    {"norm": "global_norm", "inf_norm": "global_norm_inf", "value": "value", "agc": "agc", "per_tensor": None}
)

#: Formats of plain values.
PLAIN: tuple[Format, ...] = ("yaml", "json", "toml")

#: A file name that is a framework's own says as much as a key that is.
STRONG, WEAK = 2, 1


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a framework keeps the number, in some formats.

    Attributes:
        formats: the formats.
        path: keys, with `ANY` for any; a flag or a call is one key.
        kind: what the number limits, unless a sibling says otherwise.
        kind_keys: sibling keys, of which the first that is there chooses the kind.
        kinds: their values.
        absent: what holds without the key.
        absent_by_name: likewise, by file name pattern.
        is_telling: whether the key alone tells the framework.
        switch_key: a sibling key that must be true for the number to count.
        file_key: a sibling key that names another file, which then holds the number.
        flag: what to give on the command line instead: the place is read, and never written.
    """

    formats: tuple[Format, ...]
    path: Path
    kind: Kind = "norm"
    kind_keys: tuple[str, ...] = ()
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    absent: Absent = None
    absent_by_name: Mapping[str, Absent] = field(default_factory=dict)
    is_telling: bool = False
    switch_key: str = ""
    file_key: str = ""
    flag: str = ""

    @property
    def name(self) -> str:
        """The last key: what the number is called."""
        return self.path[-1]

    def sibling(self, path: Path, key: str) -> Path:
        """The path of a key beside the number.

        Args:
            path: of the number, as found.
            key: the sibling's name.

        Returns:
            Its path.
        """
        return (*path[:-1], key)

    def default(self, file_name: str) -> Absent:
        """What holds without the key.

        Args:
            file_name: of the config, without its folder.

        Returns:
            The framework's default.
        """
        named = (value for pattern, value in self.absent_by_name.items() if fnmatch(file_name, pattern))
        return next(named, self.absent)


@dataclass(frozen=True, kw_only=True)
class Framework:
    """One row of the table.

    Attributes:
        name: what ``--framework`` takes.
        title: what people call it.
        places: where the number may be, the usual one first.
        signs: keys that hardly any other framework has.
        marks: keys that are common in its configs and in others'.
        file_names: patterns of file names that are its own.
        off: how *off* is spelled.
        is_zero_off: whether zero, and less, is *off* too; otherwise it would stop the training.
        is_exclusive: whether only one of its places may hold a number.
        refusal: why its number is not ours to judge; empty if it is.
        note: what a reader of the number has to know.
    """

    name: str
    title: str
    places: tuple[Place, ...]
    signs: tuple[Path, ...] = ()
    marks: tuple[Path, ...] = ()
    file_names: tuple[str, ...] = ()
    off: Off = "null"
    is_zero_off: bool = False
    is_exclusive: bool = False
    refusal: str = ""
    note: str = ""

    def places_in(self, file_format: Format) -> tuple[Place, ...]:
        """Its places in files of one format.

        Args:
            file_format: of the file.

        Returns:
            The places, the usual one first.
        """
        return self._by_format.get(file_format, ())

    @cached_property
    def _by_format(self) -> dict[Format, tuple[Place, ...]]:
        """A sweep asks this of every row for every file."""
        formats = {each for place in self.places for each in place.formats}
        return {each: tuple(place for place in self.places if each in place.formats) for each in formats}

    def reads_like(self, other: Framework, file_format: Format) -> bool:
        """Whether it does not matter which of the two a file is for.

        Args:
            other: another row.
            file_format: of the file.

        Returns:
            True if both have the same places, defaults and spelling of *off* there.
        """
        mine, theirs = ((row.places_in(file_format), row.off, row.is_zero_off) for row in (self, other))
        return mine == theirs


def keys(text: str) -> tuple[Path, ...]:
    """Key paths, written as words.

    Args:
        text: dotted paths between blanks.

    Returns:
        The paths.

    Example:
        >>> keys("seed_everything trainer.max_epochs")
        (('seed_everything',), ('trainer', 'max_epochs'))
    """
    return tuple(parse_pattern(word) for word in text.split())


def flags(text: str) -> tuple[Path, ...]:
    """Flags, written as words: dots in them are no path.

    Args:
        text: flags between blanks.

    Returns:
        One path of one key each.

    Example:
        >>> flags("--training.max_norm")
        (('--training.max_norm',),)
    """
    return tuple((word,) for word in text.split())
