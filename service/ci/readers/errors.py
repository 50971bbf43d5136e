"""What a reader raises for a text that is not in its format; the caller knows the file."""

from __future__ import annotations


class FormatError(ValueError):
    """The text does not parse.

    Attributes:
        line: where, from 1; None if the parser can't tell.
    """

    def __init__(self, reason: str, line: int | None) -> None:
        self.line = line
        super().__init__(reason)
