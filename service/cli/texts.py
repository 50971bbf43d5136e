"""Text from files and from the service on whatever stream there is."""

from __future__ import annotations

import sys

import typer


def print_text(text: str) -> None:
    """Print a text as it is; what the stream's encoding lacks is escaped, where Python would raise.

    Args:
        text: with its line ends.
    """
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False)
