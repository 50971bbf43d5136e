"""What a check prints and writes: the formats asked for, and the report in each of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from service.cli.texts import print_text

if TYPE_CHECKING:
    from service.ci.report import Report

#: Formats whose files on GitHub's runners hold what other commands of the step wrote.
_APPENDED = ("github-output", "summary")


@dataclass(frozen=True)
class Outlets:
    """Where a report goes.

    Attributes:
        printed: the format on standard output.
        written: files with their formats.
    """

    printed: str
    written: tuple[tuple[Path, str], ...]


def outlets(printed: str, also: Sequence[str]) -> Outlets:
    """Read ``--format`` and each ``--report``.

    Args:
        printed: a format's name; empty for the one that suits who reads.
        also: each as ``FORMAT=PATH``.

    Returns:
        The outlets.

    Raises:
        BadParameter: if a report has no format or no file.
        UnknownFormatError: if there is no such format.
    """
    from service.ci.formats.registry import FORMATS, UnknownFormatError, default_format

    name = printed or default_format(
        is_terminal=sys.stdout.isatty(), is_github=os.environ.get("GITHUB_ACTIONS") == "true"
    )
    written = []
    for each in also:
        format_of, equals, path = each.partition("=")
        if not equals or not path:
            raise typer.BadParameter(
                f"--report must be FORMAT=PATH, for example junit=report.xml, got {each!r}"
            )
        written.append((Path(path), format_of))
    for each in (name, *(format_of for _, format_of in written)):
        if each not in FORMATS:
            raise UnknownFormatError(each)
    return Outlets(name, tuple(written))


def publish(report: Report, places: Outlets, notes: Sequence[str] = ()) -> None:
    """Write a report to its files, print it, and end the command with its exit code.

    Args:
        report: what was found.
        places: where it goes.
        notes: what else a person should know, a line each.

    Raises:
        Exit: with the report's exit code, unless that is 0.
        BadParameter: if a file can't be written; the others are.
    """
    from service.ci.formats.registry import render

    failures = [
        failure for path, name in places.written if (failure := write_text(render(report, name), name, path))
    ]
    print_text(render(report, places.printed))
    for note in notes:
        typer.echo(f"cliptune: {note}", err=True)
    if failures:
        raise typer.BadParameter("; ".join(failures))
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def write_text(text: str, format_name: str, path: Path) -> str:
    """Write a report to a file.

    Args:
        text: the report.
        format_name: its format.
        path: of the file; its folder is made.

    Returns:
        Why it can't be written; empty if it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if format_name in _APPENDED else "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        return f"--report {format_name}={path} can't be written: {error.strerror}; name another place"
    return ""
