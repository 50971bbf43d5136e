"""`cliptune report`: a study as one page for people."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from service.cli.study import StudyArgument, UrlOption


def report(
    study: StudyArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write; one that exists is replaced.")
    ] = Path("report.html"),
    url: UrlOption = "",
) -> None:
    """Write a study as one self-contained page: verdict, charts, tables; a running one as far as it is known."""
    from importlib.metadata import version

    from plotly.offline import get_plotlyjs

    from service.cli.connection import connect
    from service.report.page import report_page

    require_writable(output)
    with connect(url) as client:
        found = client.find_study(study)
        trials = client.list_trials(found.id)
    page = report_page(
        found,
        trials,
        made_at=datetime.now(UTC),
        version=version("cliptune"),
        plotly_script=get_plotlyjs(),
    )
    write_whole(output, page)
    typer.echo(f"wrote {output} ({len(page.encode()) / 1e6:.1f} MB): open it in a browser")


def require_writable(file: Path) -> None:
    """Refuse a place that can't take the file, before anything is fetched.

    Args:
        file: where it is to be.

    Raises:
        BadParameter: if it is a folder, or its folder does not exist.
    """
    if file.is_dir():
        raise typer.BadParameter(
            f"--output {file} is a folder: name a file, for example {file / 'report.html'}"
        )
    if not file.parent.is_dir():
        raise typer.BadParameter(f"--output {file}: there is no folder {file.parent}; make it first")


def write_whole(file: Path, text: str) -> None:
    """Write a file, or leave the one that is there as it was.

    Args:
        file: where it is to be; its folder exists.
        text: the content.

    Raises:
        BadParameter: if it can't be written.
    """
    beside = file.with_name(f".{file.name}.new")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(file)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise typer.BadParameter(
            f"--output {file} can't be written: {error.strerror}; name another place"
        ) from None
