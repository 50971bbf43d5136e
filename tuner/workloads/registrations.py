"""Which workloads are registered, and by whom: names and ``module:attribute``, nothing imported, no torch.

A registration comes from this package, from the entry points of an installed one, or from the operator's allow-list;
never from a request. The processes that read it (settings, workers, the command line) hand it to a training process,
where `tuner.workloads.registry` imports what is used.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from tuner.errors import SpecError

#: Entry point group of installed packages.
ENTRY_POINT_GROUP = "cliptune.workloads"
#: Where registrations may come from besides an allow-list.
SOURCES = ("built_in", "entry_points")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A name that a study may give, and the code behind it.

    Attributes:
        name: 1 to 100 letters, digits, dots, dashes and underscores, beginning with neither a dot nor a dash.
        target: ``module:attribute``.
        source: who registered it, in words.
    """

    name: str
    target: str
    source: str

    @property
    def fault(self) -> str | None:
        """What is wrong with its form, as a sentence; None if nothing is."""
        if not _NAME.fullmatch(self.name):
            return (
                "a workload's name has letters, digits, '.', '-' and '_' only, at most 100, got "
                f"{self.name!r} ({self.source})"
            )
        if not _TARGET.fullmatch(self.target):
            return (
                f"workload {self.name!r} must name MODULE:ATTRIBUTE, for example my_package.model:MyModel, got "
                f"{self.target!r} ({self.source})"
            )
        return None

    def __str__(self) -> str:
        return f"{self.target} ({self.source})"


@dataclass(frozen=True, kw_only=True)
class RefusedWorkload:
    """A registration that can't be used.

    Attributes:
        name: as registered.
        target: its ``module:attribute``.
        reason: why, as one sentence.
    """

    name: str
    target: str
    reason: str


class Registrations:
    """All registrations of an installation, by name; never changed once made.

    Args:
        registrations: in any order.

    Raises:
        SpecError: if two of them have one name; it names both.

    Example:
        >>> mine = Registrations(parse_registrations("mine=my_package.model:MyModel", source="the example"))
        >>> [str(each) for each in mine]
        ['my_package.model:MyModel (the example)']
    """

    def __init__(self, registrations: Iterable[Registration]) -> None:
        self._known: dict[str, Registration] = {}
        for each in registrations:
            if (other := self._known.get(each.name)) is not None:
                raise SpecError(
                    "workloads",
                    f"register {each.name!r} twice: {other} and {each}; give one of them another name",
                )
            self._known[each.name] = each

    def __iter__(self) -> Iterator[Registration]:
        return (self._known[name] for name in sorted(self._known))

    def __len__(self) -> int:
        return len(self._known)

    def find(self, name: str) -> Registration | None:
        """The registration of a name, if there is one."""
        return self._known.get(name)

    def to_json(self) -> list[dict[str, str]]:
        """Plain JSON values, for a training process."""
        return [dataclasses.asdict(each) for each in self]

    @classmethod
    def from_json(cls, document: Sequence[Mapping[str, str]]) -> Registrations:
        """Read what `to_json` wrote.

        Args:
            document: one object per registration.

        Returns:
            The registrations.

        Raises:
            SpecError: if two of them have one name.
        """
        return cls(Registration(**each) for each in document)


def parse_registrations(text: str, *, source: str) -> tuple[Registration, ...]:
    """Read an allow-list.

    Args:
        text: ``name=module:attribute``, several separated by commas; empty is none.
        source: who says so, in words.

    Returns:
        The registrations, in order.

    Raises:
        SpecError: if an entry has another form.

    Example:
        >>> parse_registrations("a=m:A, b=pkg.n:train", source="me")[1].target
        'pkg.n:train'
    """
    found = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, target = entry.partition("=")
        if not equals:
            raise SpecError("workloads", f"must be NAME=MODULE:ATTRIBUTE, separated by commas, got {entry!r}")
        found.append(Registration(name=name.strip(), target=target.strip(), source=source))
        if (fault := found[-1].fault) is not None:
            raise SpecError("workloads", f"must be NAME=MODULE:ATTRIBUTE: {fault}")
    return tuple(found)


def parse_sources(text: str) -> tuple[str, ...]:
    """Read where registrations may come from.

    Args:
        text: names of `SOURCES` separated by commas, or ``none``.

    Returns:
        The sources.

    Raises:
        SpecError: if one is unknown.

    Example:
        >>> parse_sources("built_in,entry_points"), parse_sources("none")
        (('built_in', 'entry_points'), ())
    """
    if text.strip() == "none":
        return ()
    found = tuple(filter(None, (part.strip() for part in text.split(","))))
    for each in found:
        if each not in SOURCES:
            raise SpecError(
                "workload_sources",
                f"must be none or some of {', '.join(SOURCES)}, separated by commas, got {each!r}",
            )
    return found


def installed(sources: Iterable[str], allowed: Iterable[Registration] = ()) -> Registrations:
    """What an installation registers.

    Args:
        sources: names of `SOURCES`.
        allowed: the operator's allow-list.

    Returns:
        The registrations.

    Raises:
        SpecError: if two of them have one name.
    """
    chosen = set(sources)
    found: list[Registration] = []
    if "built_in" in chosen:
        found += BUILT_IN
    if "entry_points" in chosen:
        found += _entry_points()
    return Registrations([*found, *allowed])


def _entry_points() -> list[Registration]:
    """What installed packages register; one distribution that is found twice on the path counts once."""
    found = {
        (each.name, each.value): Registration(
            name=each.name,
            target=each.value.replace(" ", ""),
            source=f"entry point of {each.dist.name if each.dist is not None else 'an installed package'}",
        )
        for each in metadata.entry_points(group=ENTRY_POINT_GROUP)
    }
    return [found[key] for key in sorted(found)]


#: What comes with this package.
BUILT_IN = Registrations(
    (
        Registration(name="charlm-rnn", target="tuner.workloads.charlm_rnn:CharlmRnn", source="built in"),
        Registration(name="digits-mlp", target="tuner.workloads.digits_mlp:DigitsMlp", source="built in"),
    )
)
