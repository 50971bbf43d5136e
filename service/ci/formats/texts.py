"""Texts from configs and from the service, made harmless for a report: one line, printable, of bounded length."""

from __future__ import annotations

#: Longest text that a report takes over from somewhere else, in characters.
LONGEST = 2000
#: What a runner of GitHub takes for a command anywhere in a line, and what it is broken into.
_OLD_COMMAND, _BROKEN_COMMAND = "##[", "## ["


def visible(text: str, limit: int = LONGEST) -> str:
    r"""A text without anything that a terminal, a log viewer or an XML parser acts on.

    Control characters, line ends, characters without a shape (bidirectional overrides among them) and undecodable bytes
    of file names become escapes.

    Args:
        text: any.
        limit: longest result, in characters, >= 5.

    Returns:
        The text in one printable line; its middle is left out if it is too long.

    Example:
        >>> visible("a\nb\x1b[31m"), visible("0123456789", 7)
        ('a\\nb\\x1b[31m', '01...89')
    """
    if not text.isprintable():
        text = "".join(each if each.isprintable() else _escaped(each) for each in text)
    text = text.replace(_OLD_COMMAND, _BROKEN_COMMAND)
    if len(text) <= limit:
        return text
    kept = limit - 3
    return f"{text[: kept // 2]}...{text[len(text) - kept // 2 :]}"


def place(file: str, line: int, *, is_implicit: bool = False) -> str:
    """A file with its line, as editors and log viewers link it.

    Args:
        file: its path.
        line: from 1.
        is_implicit: whether the key is not in the file, so that no line is meant.

    Returns:
        ``FILE:LINE``, or the file alone.
    """
    return file if is_implicit else f"{file}:{line}"


def _escaped(character: str) -> str:
    r"""As Python writes it: ``\n``, ``\x1b``, ``\u202e``; an undecodable byte as ``\xff``."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
