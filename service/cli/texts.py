"""Text from files and from the service on whatever stream there is."""

from __future__ import annotations

import sys

import typer

from service.ci.formats.texts import visible


def print_text(text: str) -> None:
    """Print a text as it is; what the stream's encoding lacks is escaped, where Python would raise.

    Args:
        text: with its line ends.
    """
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False)


def harmless(line: str) -> str:
    r"""A line that no terminal, log viewer or runner acts on.

    Args:
        line: any text.

    Returns:
        The text in one line, in which line ends and control characters are escaped and a runner's command is broken.

    Example:
        >>> harmless("::error::x"), harmless("   ::set-output name=a::b"), harmless("a\n##[error]b")
        ('| ::error::x', '|    ::set-output name=a::b', 'a\\n## [error]b')
    """
    text = visible(line)
    return f"| {text}" if text.lstrip().startswith("::") else text
