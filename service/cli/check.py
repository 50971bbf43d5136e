"""`cliptune check`: the clip values of configs against what studies recommend, as a report and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.ci_options import (
    FingerprintOption,
    FollowOption,
    FrameworkOption,
    KeyOption,
    LockOption,
    OfflineOption,
    ParameterOption,
    WorkloadOption,
    target_of,
)
from service.cli.study import UrlOption
from service.cli.texts import print_text
from service.errors import ServiceError

if TYPE_CHECKING:
    from service.ci.report import Report
    from service.client import Client

#: Formats whose files on GitHub's runners hold what other commands of the step wrote.
_APPENDED = ("github-output", "summary")


def check(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Configs, or folders to search for some. Default: the current folder."),
    ] = None,
    workload: WorkloadOption = "",
    parameter: ParameterOption = None,
    fingerprint: FingerprintOption = "",
    framework: FrameworkOption = None,
    key: KeyOption = None,
    follow: FollowOption = False,
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help="Of what is printed: table, plain, json, markdown, junit, github, gitlab-codequality and more. "
            "Default: table on a terminal, github on its runners, else plain.",
        ),
    ] = "",
    also: Annotated[
        list[str] | None, typer.Option("--report", help="A further report, as FORMAT=PATH; repeat it.")
    ] = None,
    fail_on: Annotated[
        Literal["outside", "regression", "never"], typer.Option(help="The mildest verdict that fails.")
    ] = "outside",
    tolerance: Annotated[
        float | None, typer.Option(help="Share by which the recommended range is widened, such as 0.1.")
    ] = None,
    stale_after: Annotated[
        int | None,
        typer.Option(help="Days after which a recommendation is stale, which is a warning. Default: never."),
    ] = None,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit with 0 whatever is found; failures become warnings.")
    ] = False,
    on_service_error: Annotated[
        Literal["fail", "warn"],
        typer.Option(help="What a service that is down, or refuses the key, makes of the check."),
    ] = "warn",
    offline: OfflineOption = False,
    lock: LockOption = None,
    write_lock: Annotated[
        bool, typer.Option("--write-lock", help="Keep what the service answers in the lock file.")
    ] = False,
    only_locked: Annotated[
        bool, typer.Option("--only-locked", help="Pass over files that the lock file does not name.")
    ] = False,
    url: UrlOption = "",
) -> None:
    """Compare the clip values of configs with what studies recommend; exit 1 if one should be changed."""  # noqa: DOC501
    from service.ci.formats.registry import render
    from service.ci.gather import Hints
    from service.ci.judging import Rules
    from service.ci.repository import find_root
    from service.ci.session import Question, run_check

    paths = tuple(files or [Path()])
    _require_consistent(paths, key=key, is_offline=offline, is_kept=write_lock)
    printed, written = _formats(format_name, also or ())
    question = Question(
        paths=paths,
        target=target_of(workload, parameter, fingerprint, is_offline=offline),
        hints=Hints(framework=framework, key=key, is_followed=follow),
        rules=Rules(fail_on=fail_on, tolerance=tolerance, stale_after_days=stale_after),
        lock_path=lock,
        is_offline=offline,
        is_kept=write_lock,
        only_locked=only_locked,
        on_service_error=on_service_error,
        exit_zero=exit_zero,
    )
    try:
        outcome = run_check(
            question, root=find_root(Path()), now=datetime.now(UTC), connect=lambda: _connect(url)
        )
    except ServiceError as error:
        if not exit_zero:
            raise
        typer.echo(f"cliptune: nothing was checked: {error} [{error.code}]", err=True)
        return
    for path, format_of in written:
        _write(outcome.report, format_of, path)
    print_text(render(outcome.report, printed))
    for note in outcome.notes:
        typer.echo(f"cliptune: {note}", err=True)
    if outcome.report.exit_code:
        raise typer.Exit(outcome.report.exit_code)


def _connect(url: str) -> Client:
    """The service, whose client is loaded only by a check that asks it."""
    from service.cli.connection import connect

    return connect(url)


def _require_consistent(paths: Sequence[Path], *, key: str | None, is_offline: bool, is_kept: bool) -> None:
    """Refuse options that contradict one another.

    Raises:
        BadParameter: if they do.
    """
    if is_offline and is_kept:
        raise typer.BadParameter("--write-lock keeps what the service answers: leave out --offline")
    folder = next((path for path in paths if path.is_dir()), None)
    if key is not None and folder is not None:
        raise typer.BadParameter(
            f"--key is for files that are named, and {folder} is a folder: name the files"
        )


def _formats(printed: str, also: Sequence[str]) -> tuple[str, list[tuple[Path, str]]]:
    """The format to print, and further ones with the files that they are written to.

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
    return name, written


def _write(report: Report, format_name: str, path: Path) -> None:
    """Write a report to a file.

    Raises:
        BadParameter: if it can't be written.
    """
    from service.ci.formats.registry import render

    text = render(report, format_name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if format_name in _APPENDED else "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise typer.BadParameter(
            f"--report {format_name}={path} can't be written: {error.strerror}; name another place"
        ) from None
