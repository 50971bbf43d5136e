"""A config file as bytes and as nodes: which format it is in, how it is decoded, which reader reads it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.ci.errors import ConfigSyntaxError, ConfigUnreadableError, UnsupportedFormatError
from service.ci.framework import Format
from service.ci.readers.errors import FormatError
from service.ci.tree import Document

#: Largest file that is read: configs are far smaller, data files that end alike are not.
MAX_BYTES = 4_000_000

_BOM = b"\xef\xbb\xbf"
_SUFFIXES: dict[str, Format] = {
    ".yaml": "yaml",
    ".yml": "yaml",
    ".json": "json",
    ".toml": "toml",
    ".py": "python",
    **dict.fromkeys((".sh", ".bash", ".zsh", ".ksh", ".sbatch", ".slurm"), "script"),
}
#: Endings of the files that can be read.
SUFFIXES = frozenset(_SUFFIXES)


@dataclass(frozen=True)
class Source:
    """A config file, decoded and read.

    Attributes:
        path: of the file, as given.
        content: its bytes.
        text: decoded, without the byte order mark; line ends as they are.
        file_format: how it was read.
        documents: its documents; more than one only in YAML.
    """

    path: Path
    content: bytes
    text: str
    file_format: Format
    documents: tuple[Document, ...]

    def line_of(self, position: int) -> int:
        """The line of a character, from 1."""
        return self.text.count("\n", 0, max(position, 0)) + 1

    def column_of(self, position: int) -> int:
        """The column of a character, from 1, in characters."""
        return position - (self.text.rfind("\n", 0, position) + 1) + 1

    def offset_of(self, position: int) -> int:
        """Where a character begins in the file's bytes."""
        mark = len(_BOM) if self.content.startswith(_BOM) else 0
        return mark + len(self.text[:position].encode())

    def position_of(self, offset: int) -> int:
        """The character that begins at an offset of the file's bytes."""
        return len(self.content[self.offset_of(0) : offset].decode())


def read_content(path: Path) -> bytes:
    """Read a config file's bytes.

    Args:
        path: of the file; a symbolic link is followed.

    Returns:
        Its content.

    Raises:
        ConfigUnreadableError: if there is no regular file, or it is larger than `MAX_BYTES`.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigUnreadableError(path, "is no regular file: name a config file")
        if status.st_size > MAX_BYTES:
            raise ConfigUnreadableError(
                path, f"has {status.st_size} bytes, but a config may have at most {MAX_BYTES}"
            )
        return path.read_bytes()
    except OSError as error:
        raise ConfigUnreadableError(path, f"can't be read: {error.strerror}") from None


def read_source(path: Path, content: bytes) -> Source:
    """Decode and read a config.

    Args:
        path: tells the format by its ending; nothing is read from it.
        content: the file's bytes.

    Returns:
        The source.

    Raises:
        UnsupportedFormatError: if neither the ending nor a first line of a shell script tells a format.
        ConfigUnreadableError: if the bytes are not UTF-8.
        ConfigSyntaxError: if the text is not in its format.
    """
    file_format = _SUFFIXES.get(path.suffix.lower()) or _by_first_line(content)
    if file_format is None:
        raise UnsupportedFormatError(
            path, f"{path.suffix or 'no ending'} is no known format: use one of {', '.join(sorted(SUFFIXES))}"
        )
    try:
        text = content.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise ConfigUnreadableError(path, f"is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    try:
        documents = _reader(file_format)(text)
    except FormatError as error:
        raise ConfigSyntaxError(path, f"is not valid {file_format}: {error}", line=error.line) from None
    return Source(path, content, text, file_format, documents)


def _by_first_line(content: bytes) -> Format | None:
    first = content.partition(b"\n")[0]
    return "script" if first.startswith(b"#!") and first.rstrip().endswith(b"sh") else None


def _reader(file_format: Format) -> Callable[[str], tuple[Document, ...]]:
    """The reader of a format; only this one's parser is loaded."""
    match file_format:
        case "yaml":
            from service.ci.readers.yaml_reader import read_yaml

            return read_yaml
        case "json":
            from service.ci.readers.json_reader import read_json

            return read_json
        case "toml":
            from service.ci.readers.toml_reader import read_toml

            return read_toml
        case "python":
            from service.ci.readers.python_reader import read_python

            return read_python
        case "script":
            from service.ci.readers.script_reader import read_script

            return read_script
