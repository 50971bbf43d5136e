"""Bodies that a caller sends: dataclasses that check themselves, so that a library call is checked alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Strict

from tuner.errors import SpecError
from tuner.parameters import ParameterValue
from tuner.spec import MAX_CONFIRM_SEEDS, StudySpec

#: Longest name of a study, in characters.
MAX_NAME = 100
#: Largest priority of a study, and with a minus the smallest.
MAX_PRIORITY = 10


@dataclass(frozen=True, kw_only=True)
class StudyRequest(StudySpec):
    """The body of ``POST /v1/studies``: the question, and a name for people.

    Attributes:
        name: unique among your studies, up to 100 printable characters. The same name with the same question
            gives the same study; with another question it is refused.
        priority: -10 to 10; studies with a higher one go first, in the queue and on the devices of a worker. Above 0
            takes the scope ``admin``, because it goes before everybody else's.
    """

    name: str | None = None
    priority: Annotated[int, Strict()] = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _require_printable(field.name, getattr(self, field.name))
        if self.name is not None and not 1 <= len(self.name) <= MAX_NAME:
            raise SpecError("name", f"must have 1 to {MAX_NAME} characters, got {len(self.name)}")
        if isinstance(self.priority, bool) or abs(self.priority) > MAX_PRIORITY:
            raise SpecError("priority", f"must be a whole number between -10 and 10, got {self.priority}")
        super().__post_init__()

    def to_spec(self, parameters: Mapping[str, ParameterValue]) -> StudySpec:
        """The question alone, with all of the workload's parameters written out.

        Args:
            parameters: what `tuner.spec.resolve_parameters` gave.

        Returns:
            The spec to store.
        """
        names = [field.name for field in dataclasses.fields(StudySpec)]
        return StudySpec(**{name: getattr(self, name) for name in names} | {"parameters": dict(parameters)})


@dataclass(frozen=True, kw_only=True)
class ExtendRequest:
    """The body of ``POST /v1/studies/{study_id}/extend``.

    Attributes:
        num_seeds: further fresh seeds, 1 to 64; null takes as many as the newest recommendation says would about
            settle it, or goes on with an extension that was cancelled or failed.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    num_seeds: Annotated[int, Strict()] | None = None

    def __post_init__(self) -> None:
        count = self.num_seeds
        if count is not None and (isinstance(count, bool) or not 1 <= count <= MAX_CONFIRM_SEEDS):
            raise SpecError(
                "num_seeds", f"must be a whole number between 1 and {MAX_CONFIRM_SEEDS}, got {self.num_seeds}"
            )


def _require_printable(field: str, value: Any) -> None:
    """Refuse what no database column takes: control characters (NUL) and lone surrogates.

    Raises:
        SpecError: if a text in the value has any.
    """
    if isinstance(value, str) and not value.isprintable():
        raise SpecError(field, "must consist of printable characters; take out control characters")
    if isinstance(value, tuple):
        for each in value:
            _require_printable(field, each)
    if isinstance(value, Mapping):
        for key, each in value.items():
            _require_printable(field, key)
            _require_printable(f"{field}.{key}", each)
