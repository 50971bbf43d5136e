"""Why a clip value in a config file can't be found or rewritten, drawn as a tree; nothing has been written then.

ConfigError(ServiceError)
|-- ConfigUnreadableError     no regular file, not UTF-8, too large, or not writable
|-- ConfigSyntaxError         the file is not valid in its own format
|-- UnsupportedFormatError    no format that values are looked for in
|-- UnknownFrameworkError     --framework names none of the table
|-- AmbiguousFrameworkError   the file is none's, or several frameworks' that read it differently
|-- KeyPathError              the key is not in the file
|-- AmbiguousValueError       several values answer to the key
|-- DuplicateKeyError         the key stands twice in one mapping
|-- AutoValueError            `auto`: another file holds the number
|-- InterpolatedValueError    `${...}`, a variable or a reference tag
|-- AliasedValueError         an alias, a merge key, or a value that other keys share
|-- NotANumberError           a text, a list, an expression or a block scalar
|-- PrivacyClipError          clips each sample's gradient: another quantity
|-- ConflictingValuesError    two values of which one is ignored or raises
|-- KindMismatchError         norm, value and ratio are different scales
|-- OffSpellingError          the framework has no spelling of *off* that one token can hold
|-- FlagOnlyError             the value is read from the command line only
|-- RewriteRefusedError       the edit would not be one exact line
`-- ConfigChangedError        somebody else wrote the file in the meantime

Each carries the file and, where there is one, the line; the sentence ends with what to do.
"""

from __future__ import annotations

from pathlib import Path

from service.errors import ServiceError


class ConfigError(ServiceError):
    """Base: a config file and why its clip value can't be used.

    Attributes:
        path: of the file.
        line: where, from 1; None if it is about the whole file.
        reason: what is wrong and what to do, as one sentence.
    """

    code = "config_error"
    exit_code = 2

    def __init__(self, path: Path, reason: str, *, line: int | None = None) -> None:
        self.path = path
        self.line = line
        self.reason = reason
        super().__init__(f"{path}:{line}: {reason}" if line else f"{path}: {reason}")


class ConfigUnreadableError(ConfigError):
    """The file can't be read as UTF-8 text of at most the allowed size, or can't be written."""

    code = "config_unreadable"


class ConfigSyntaxError(ConfigError):
    """The file does not parse, so that the framework could not read it either."""

    code = "config_syntax"


class UnsupportedFormatError(ConfigError):
    """The file's ending is none of YAML, JSON, TOML, Python and shell script."""

    code = "unsupported_format"


class UnknownFrameworkError(ConfigError):
    """No framework of the table has this name."""

    code = "unknown_framework"


class AmbiguousFrameworkError(ConfigError):
    """Nothing, or too much, tells whose config this is: the meaning of an absent key and of *off* depends on it."""

    code = "ambiguous_framework"


class KeyPathError(ConfigError):
    """The key is not in the file, and no framework's default stands for it."""

    code = "missing_key"


class AmbiguousValueError(ConfigError):
    """Several documents, sections, calls or flags hold a value."""

    code = "ambiguous_value"


class DuplicateKeyError(ConfigError):
    """One mapping has the key twice: readers disagree on which one counts."""

    code = "duplicate_key"


class AutoValueError(ConfigError):
    """The value is `auto`: the integration fills in a number from somewhere else."""

    code = "auto_value"


class InterpolatedValueError(ConfigError):
    """The value is computed when the file is loaded: `${...}`, a shell variable, a reference tag."""

    code = "interpolated_value"


class AliasedValueError(ConfigError):
    """The number stands elsewhere in the file, or other keys take theirs from it."""

    code = "aliased_value"


class NotANumberError(ConfigError):
    """The value is no literal number."""

    code = "not_a_number"


class PrivacyClipError(ConfigError):
    """Differentially private training clips the gradient of each sample: no clip setting of ours is that."""

    code = "per_sample_clip"


class ConflictingValuesError(ConfigError):
    """Two values are set of which only one can apply."""

    code = "conflicting_values"


class KindMismatchError(ConfigError):
    """A recommendation for one kind of clipping is no number for another."""

    code = "kind_mismatch"


class OffSpellingError(ConfigError):
    """*Off* can't be spelled in the place of the number."""

    code = "off_spelling"


class FlagOnlyError(ConfigError):
    """The value is to be given on the command line; the message says how."""

    code = "flag_only"


class RewriteRefusedError(ConfigError):
    """The edit would touch more than the one value, or more than one line."""

    code = "rewrite_refused"


class ConfigChangedError(ConfigError):
    """The file is no longer what was looked at."""

    code = "config_changed"
