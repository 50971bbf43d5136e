"""`cliptune drift`: a short probe of the code as it is now against the one that a recommendation was found with.

The gradients are taken by a training process, as a worker's are, so that this process loads no torch.
"""

from __future__ import annotations

import os
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
    ReportOption,
    ServiceErrorOption,
    ToleranceOption,
    WorkloadOption,
    target_of,
)
from service.cli.ci_reports import Outlets, outlets, publish, write_text
from service.cli.study import UrlOption, parse_parameter
from service.cli.texts import print_text
from service.errors import ServiceError
from tuner.errors import TunerError
from tuner.spec import MAX_SEEDS

if TYPE_CHECKING:
    from service.ci.drift_session import Looks
    from service.ci.session import Question
    from service.client import Client


def drift(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Configs, or folders with some. Default: the recommendation itself, without a config."
        ),
    ] = None,
    workload: WorkloadOption = "",
    parameter: Annotated[
        list[str] | None,
        typer.Option("--param", help="NAME=VALUE to probe with. Default: the study's own; repeat it."),
    ] = None,
    fingerprint: FingerprintOption = "",
    seeds: Annotated[
        int,
        # As `service.ci.drift` has them, which --help does not load.
        typer.Option(help="Initial weights to measure where something has changed.", min=4, max=MAX_SEEDS),
    ] = 8,
    device_less: Annotated[
        bool, typer.Option("--device-less", help="Measure on the CPU even where there is a GPU.")
    ] = False,
    framework: FrameworkOption = None,
    key: KeyOption = None,
    follow: FollowOption = False,
    format_name: FormatOption = "",
    also: ReportOption = None,
    fail_on: FailOnOption = "outside",
    tolerance: ToleranceOption = None,
    exit_zero: ExitZeroOption = False,
    on_service_error: ServiceErrorOption = "warn",
    offline: OfflineOption = False,
    lock: LockOption = None,
    url: UrlOption = "",
) -> None:
    """Probe the code as it is now, and say whether the recommended threshold still engages as it did; exit 1 if not."""  # noqa: DOC501
    from service.ci.drift_session import Looks
    from service.ci.gather import Hints
    from service.ci.judging import Rules
    from service.ci.look import Probing
    from service.ci.session import Question
    from service.launchers.probing import Prober
    from service.settings import load_settings

    places = outlets(format_name, also or ()) if files else _outlets_without_files(format_name, also or [])
    # Offline the parameters are the probe's alone: a lock knows its studies by their fingerprint.
    question = Question(
        paths=tuple(files or ()),
        target=target_of(workload, None if offline else parameter, fingerprint, is_offline=offline),
        hints=Hints(framework=framework, key=key, is_followed=follow),
        rules=Rules(fail_on=fail_on, tolerance=tolerance),
        lock_path=lock,
        is_offline=offline,
        on_service_error=on_service_error,
        exit_zero=exit_zero,
    )
    probing = Probing(given=dict(map(parse_parameter, parameter or ())), num_seeds=seeds)
    if device_less:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        with Prober(load_settings()) as prober:
            _answer(question, Looks(probing, prober), places, url)
    except (ServiceError, TunerError) as error:
        if not exit_zero:
            raise
        typer.echo(f"cliptune: nothing was compared: {error} [{error.code}]", err=True)


def _answer(question: Question, looks: Looks, places: Outlets, url: str) -> None:
    """Probe, print, and end the command with its exit code.

    Raises:
        BadParameter: if a file can't be written.
        Exit: with the exit code.
    """
    from service.ci.drift_session import drift_of_configs, drift_of_studies
    from service.ci.repository import find_root

    root = find_root(Path())
    if question.paths:
        now = datetime.now(UTC)
        publish(drift_of_configs(question, looks, root=root, now=now, connect=lambda: _connect(url)), places)
        return
    from service.ci.drift_report import exit_code, render

    found = drift_of_studies(question, looks, root=root, connect=lambda: _connect(url))
    code = exit_code(found, on_service_error=question.on_service_error, exit_zero=question.exit_zero)
    failures = [
        failure
        for path, name in places.written
        if (failure := write_text(render(found, name, code), name, path))
    ]
    print_text(render(found, places.printed, code))
    if failures:
        raise typer.BadParameter("; ".join(failures))
    raise typer.Exit(code)


def _outlets_without_files(printed: str, also: list[str]) -> Outlets:
    """Formats in which something can be said of a recommendation alone.

    Raises:
        BadParameter: for one that is about files.
    """
    from service.ci.drift_report import FORMATS

    # A table has a row for each file, and a terminal is told in lines as well.
    places = outlets("plain" if printed in ("", "table") else printed, also)
    for name in (places.printed, *(name for _, name in places.written)):
        if name not in FORMATS:
            raise typer.BadParameter(
                f"format {name} is about config files: name some, or use {' or '.join(FORMATS)}"
            )
    return places


def _connect(url: str) -> Client:
    """The service, whose client is loaded only by a probe that asks it."""
    from service.cli.connection import connect

    return connect(url)
