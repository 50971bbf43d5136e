"""A workload's own parameters: typed, bounded, described; readable without torch.

`WorkloadDescription` is what a worker publishes of a workload; the API shows it as JSON Schema and checks a
study's ``parameters`` against it with `resolve_parameters`, as a library call does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.errors import SpecError

ParameterValue = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class ParameterField:
    """One parameter of a workload: its type, default and bounds.

    Attributes:
        name: as in a spec's ``parameters``.
        type: ``integer``, ``number``, ``string`` or ``boolean`` (JSON Schema's words).
        default: the value when the spec leaves it out.
        description: a sentence with the unit.
        low: smallest allowed number, or None.
        high: largest allowed number, or None.
        choices: allowed strings, or None.
    """

    name: str
    type: str
    default: ParameterValue
    description: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None

    def check(self, value: Any) -> ParameterValue:
        """The value, if it has this field's type and lies within its bounds.

        Args:
            value: what the caller gave.

        Returns:
            The value; an integer given for a ``number`` becomes a float.

        Raises:
            SpecError: if the type differs or a bound is passed.
        """
        at = f"parameters.{self.name}"
        types: dict[str, tuple[type, ...]] = {
            "integer": (int,),
            "number": (int, float),
            "string": (str,),
            "boolean": (bool,),
        }
        has_type = isinstance(value, types[self.type])
        if not has_type or (isinstance(value, bool) and self.type != "boolean"):
            raise SpecError(at, f"must be of type {self.type}, got {value!r}")
        if self.choices is not None and value not in self.choices:
            raise SpecError(at, f"must be one of {', '.join(self.choices)}, got {value!r}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise SpecError(at, f"must be finite, got {value}")
            if self.low is not None and value < self.low:
                raise SpecError(at, f"must be >= {self.low:g}, got {value:g}")
            if self.high is not None and value > self.high:
                raise SpecError(at, f"must be <= {self.high:g}, got {value:g}")
        checked: ParameterValue = float(value) if self.type == "number" else value
        return checked

    def to_schema(self) -> dict[str, Any]:
        """This field as a JSON Schema property."""
        schema: dict[str, Any] = {"type": self.type, "default": self.default, "description": self.description}
        optional = {"minimum": self.low, "maximum": self.high, "enum": self.choices}
        return schema | {key: value for key, value in optional.items() if value is not None}


def resolve_parameters(
    fields: Sequence[ParameterField], given: Mapping[str, Any]
) -> dict[str, ParameterValue]:
    """All parameters of a workload: the given ones checked, the others at their defaults.

    Args:
        fields: the workload's parameters.
        given: a subset of them by name.

    Returns:
        One value per field, in the fields' order.

    Raises:
        SpecError: if a name is unknown, a type differs or a bound is passed.
    """
    known = {each.name: each for each in fields}
    for name in given:
        if name not in known:
            names = ", ".join(known) or "none"
            raise SpecError(
                f"parameters.{name}", f"is no parameter of this workload; its parameters are: {names}"
            )
    return {name: each.check(given[name]) if name in given else each.default for name, each in known.items()}


@dataclass(frozen=True, kw_only=True)
class WorkloadDescription:
    """What is known of a workload without running it.

    Attributes:
        name: as in a study's ``workload``.
        description: one sentence.
        objective: name of the number that is minimized.
        parameters: its parameters.
        is_function: whether people's own loop trains it, one lane after the other.
    """

    name: str
    description: str
    objective: str
    parameters: tuple[ParameterField, ...]
    is_function: bool = False

    def to_schema(self) -> dict[str, Any]:
        """The parameters as a JSON Schema object."""
        return {
            "type": "object",
            "additionalProperties": False,
            "properties": {field.name: field.to_schema() for field in self.parameters},
        }
