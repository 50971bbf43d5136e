"""Fields of a JSON document that people may have changed: each is read with its type, and a wrong one is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from tuner.errors import TunerError
from tuner.spec import ClipSetting

Value = TypeVar("Value")
Choice = TypeVar("Choice", bound=StrEnum)


class LockFieldError(ValueError):
    """A field is missing or wrong; the text begins with its JSON Pointer."""


class Fields:
    """A JSON object whose fields are read one by one.

    Args:
        document: what should be an object.
        pointer: where it stands, as a JSON Pointer.

    Raises:
        LockFieldError: if it is no object.
    """

    def __init__(self, document: Any, pointer: str = "") -> None:
        if not isinstance(document, dict):
            raise LockFieldError(f"{pointer or '/'} must be an object, got {_kind(document)}")
        self._document = document
        self._pointer = pointer

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that are there."""
        return tuple(self._document)

    def at(self, name: str) -> str:
        """The JSON Pointer of a field."""
        return f"{self._pointer}/{name.replace('~', '~0').replace('/', '~1')}"

    def items(self) -> Iterator[tuple[str, Fields]]:
        """The fields that are there, each an object itself."""
        return ((name, self.fields(name)) for name in self.names)

    def fields(self, name: str) -> Fields:
        """An object in a field."""
        return Fields(self._get(name), self.at(name))

    def optional(self, name: str, read: Callable[[str], Value]) -> Value | None:
        """A field that must be there and may be null."""
        return None if self._get(name) is None else read(name)

    def scalars(self) -> dict[str, str | int | float | bool]:
        """The fields that are there, each a text, a finite number, true or false."""
        return {name: self._scalar(name) for name in self.names}

    def text(self, name: str) -> str:
        """A text."""
        return self._typed(name, str, "a text")

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        found = self._typed(name, list, "a list of texts")
        if not all(isinstance(each, str) for each in found):
            raise self._wrong(name, "a list of texts")
        return tuple(found)

    def flag(self, name: str) -> bool:
        """True or false."""
        return self._typed(name, bool, "true or false")

    def integer(self, name: str, low: int = 0, high: int | None = None) -> int:
        """A whole number that is not less than ``low``, and not more than ``high``."""
        found = self._get(name)
        most = math.inf if high is None else high
        if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= most:
            bounds = f">= {low}" if high is None else f"from {low} to {high}"
            raise self._wrong(name, f"a whole number {bounds}")
        return found

    def number(self, name: str) -> float:
        """A finite number."""
        found = self._get(name)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
            raise self._wrong(name, "a finite number")
        return float(found)

    def interval(self, name: str) -> tuple[float, float] | None:
        """Two finite numbers in ascending order, or null."""
        found = self._get(name)
        if found is None:
            return None
        if not isinstance(found, list) or len(found) != 2:
            raise self._wrong(name, "null or two numbers")
        ends = Fields({"0": found[0], "1": found[1]}, self.at(name))
        low, high = ends.number("0"), ends.number("1")
        if low > high:
            raise self._wrong(name, "two numbers in ascending order")
        return low, high

    def choice(self, name: str, choices: type[Choice]) -> Choice:
        """One of a closed list of words."""
        try:
            return choices(self.text(name))
        except ValueError:
            raise self._wrong(name, f"one of {', '.join(choices)}") from None

    def moment(self, name: str) -> datetime:
        """A time with its zone, in ISO 8601."""
        try:
            found = datetime.fromisoformat(self.text(name))
        except ValueError:
            found = None
        if found is None or found.tzinfo is None:
            raise self._wrong(name, "a time with its zone, such as 2026-01-02T03:04:05+00:00")
        return found

    def setting(self, name: str) -> ClipSetting:
        """A clip setting, as it is written on the command line."""
        return self._setting(self.text(name), self.at(name))

    def settings(self) -> list[tuple[ClipSetting, Fields]]:
        """The fields that are there: each name is a clip setting, each value an object."""
        return [(self._setting(name, self.at(name)), each) for name, each in self.items()]

    def _setting(self, text: str, pointer: str) -> ClipSetting:
        try:
            return ClipSetting.parse(text)
        except TunerError as error:
            raise LockFieldError(f"{pointer} is no clip setting ({error})") from None

    def _scalar(self, name: str) -> str | int | float | bool:
        found = self._get(name)
        if isinstance(found, (str, int)) or (isinstance(found, float) and math.isfinite(found)):
            return found
        raise self._wrong(name, "a text, a finite number, true or false")

    def _typed(self, name: str, kind: type[Value], words: str) -> Value:
        found = self._get(name)
        if not isinstance(found, kind):
            raise self._wrong(name, words)
        return found

    def _get(self, name: str) -> Any:
        if name not in self._document:
            raise LockFieldError(f"{self.at(name)} is missing")
        return self._document[name]

    def _wrong(self, name: str, words: str) -> LockFieldError:
        return LockFieldError(f"{self.at(name)} must be {words}, got {_kind(self._document[name])}")


def _kind(value: Any) -> str:
    """A value for an error: short, and never a whole document."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
