"""A clip value found in a config: what it says, what it limits, and the bytes it stands in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from service.ci.framework import METHODS, Format, Framework, Kind, Place
from service.ci.tree import Path as KeyPath
from tuner.methods import OFF
from tuner.spec import ClipSetting


@dataclass(frozen=True)
class Token:
    """A run of bytes.

    Attributes:
        start: offset of the first byte, a byte order mark counted.
        end: after the last one.
        text: what stands there, quotes included.
    """

    start: int
    end: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Located:
    """Where a config's clip value is, or would be.

    Attributes:
        path: of the file.
        file_format: how it was read.
        framework: the row it was read by; None for a key that no row knows.
        place: the row's place; None likewise.
        keys: keys that lead to the value, as `tree.find` takes them.
        document: index of the YAML document.
        key: the same for people, as ``--key`` takes it; a flag by its name.
        kind: what the number limits; None if only the user knows.
        line: of the value, from 1; 1 for an absent key.
        column: likewise.
        token: the value's bytes; empty for an absent key, or a key without a value.
        value: the number, which may be infinite; None for null, and for a default of *off*.
        is_implicit: whether the key is absent and `value` the framework's default.
        is_tagged: whether an explicit YAML tag says that it is a number.
        is_read_as_text: whether a YAML 1.1 reader takes the number for a text.
        switch: the token that must be true for the number to count.
        is_switched_off: whether it is not true.
        removal: for a flag, the bytes of flag and value together.
        followed: line of the alias, merge key or reference that led here; None if there was none.
    """

    path: Path
    file_format: Format
    framework: Framework | None
    place: Place | None
    keys: KeyPath
    document: int
    key: str
    kind: Kind | None
    line: int
    column: int
    token: Token
    value: float | None
    is_implicit: bool = False
    is_tagged: bool = False
    is_read_as_text: bool = False
    switch: Token | None = None
    is_switched_off: bool = False
    removal: Token | None = None
    followed: int | None = None

    @property
    def is_off(self) -> bool:
        """Whether this means *no clipping*: by null, by an infinite threshold, by a switch, by the framework's zero."""
        if self.value is None or self.value == math.inf or self.is_switched_off:
            return True
        return self.framework is not None and self.framework.is_zero_off and self.value <= 0

    @property
    def setting(self) -> ClipSetting | None:
        """The same as a setting of a study.

        Returns:
            The setting; None for a kind that no method is, for an unknown kind, and for a threshold that is not > 0.
        """
        if self.is_off:
            return ClipSetting(method=OFF)
        method = METHODS[self.kind] if self.kind else None
        if method is None or self.value is None or self.value <= 0:
            return None
        return ClipSetting(method=method, threshold=self.value)

    @property
    def spelled(self) -> str:
        """The value as it stands in the file; as the framework has it for an absent key."""
        if not self.is_implicit:
            return self.token.text
        return "off" if self.is_off or self.value is None else f"{self.value:g}"

    def __str__(self) -> str:
        """``train.yaml:12 trainer.gradient_clip_val: 1.0 (Lightning)``."""
        title = f" ({self.framework.title})" if self.framework else ""
        if self.is_implicit:
            return f"{self.path} {self.key}: {self.spelled}, implicit: the key is not set{title}"
        return f"{self.path}:{self.line} {self.key}: {self.spelled or 'empty'}{title}"
