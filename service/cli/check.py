"""`cliptune check`: the clip values of configs against what studies recommend, as a report and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.ci_options import (
    ExitZeroOption,
    FailOnOption,
    FingerprintOption,
    FollowOption,
    FormatOption,
    FrameworkOption,
    KeyOption,
    LockOption,
    OfflineOption,
    ParameterOption,
    ReportOption,
    ServiceErrorOption,
    ToleranceOption,
    WorkloadOption,
    WriteLockOption,
    target_of,
)
from service.cli.ci_reports import outlets, publish
from service.cli.study import UrlOption
from service.errors import ServiceError

if TYPE_CHECKING:
    from service.client import Client


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
    format_name: FormatOption = "",
    also: ReportOption = None,
    fail_on: FailOnOption = "outside",
    tolerance: ToleranceOption = None,
    stale_after: Annotated[
        int | None,
        typer.Option(help="Days after which a recommendation is stale, which is a warning. Default: never."),
    ] = None,
    exit_zero: ExitZeroOption = False,
    on_service_error: ServiceErrorOption = "warn",
    offline: OfflineOption = False,
    lock: LockOption = None,
    write_lock: WriteLockOption = False,
    only_locked: Annotated[
        bool, typer.Option("--only-locked", help="Pass over files that the lock file does not name.")
    ] = False,
    url: UrlOption = "",
) -> None:
    """Compare the clip values of configs with what studies recommend; exit 1 if one should be changed."""  # noqa: DOC501
    from service.ci.gather import Hints
    from service.ci.judging import Rules
    from service.ci.repository import find_root
    from service.ci.session import Question, run_check

    paths = tuple(files or [Path()])
    _require_consistent(paths, key=key, is_offline=offline, is_kept=write_lock)
    places = outlets(format_name, also or ())
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
    publish(outcome.report, places, outcome.notes)


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
