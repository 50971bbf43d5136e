"""`cliptune tune`: a study for this commit, waited for, and the configs judged by its answer."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.ci_options import (
    ExitZeroOption,
    FailOnOption,
    FollowOption,
    FormatOption,
    FrameworkOption,
    KeyOption,
    LockOption,
    ReportOption,
    ServiceErrorOption,
    ToleranceOption,
    WriteLockOption,
)
from service.cli.ci_reports import outlets, publish
from service.cli.study import UrlOption
from service.cli.study_options import (
    ConfirmSeedsOption,
    CurrentOption,
    EffectOption,
    HighOption,
    LowOption,
    MethodOption,
    NameOption,
    SeedsOption,
    SpecOption,
    StepsOption,
    StudyParameterOption,
    StudyWorkloadOption,
    TimeoutOption,
    TrialsOption,
    question_of,
)
from service.errors import ServiceError

if TYPE_CHECKING:
    from service.ci.origin import Origin
    from service.ci.tuning import Wait
    from service.client import Client
    from service.client.studies import Submission

#: Minutes that a pipeline waits unless it is told otherwise.
_TIMEOUT_MINUTES = 20.0


def tune(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Configs to judge by the study. Default: none, the study's answer alone."),
    ] = None,
    spec: SpecOption = None,
    workload: StudyWorkloadOption = "",
    parameter: StudyParameterOption = None,
    method: MethodOption = None,
    current: CurrentOption = None,
    trials: TrialsOption = None,
    seeds: SeedsOption = None,
    steps: StepsOption = None,
    confirm_seeds: ConfirmSeedsOption = None,
    low: LowOption = None,
    high: HighOption = None,
    effect: EffectOption = None,
    name: NameOption = None,
    framework: FrameworkOption = None,
    key: KeyOption = None,
    follow: FollowOption = False,
    format_name: FormatOption = "",
    also: ReportOption = None,
    fail_on: FailOnOption = "outside",
    tolerance: ToleranceOption = None,
    exit_zero: ExitZeroOption = False,
    lock: LockOption = None,
    write_lock: WriteLockOption = False,
    timeout_minutes: TimeoutOption = _TIMEOUT_MINUTES,
    repository: Annotated[
        str, typer.Option(help="What the repository is called. Default: told by the platform, or by git.")
    ] = "",
    commit: Annotated[
        str, typer.Option(help="Which commit this is. Default: told by the platform, or by git.")
    ] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Submit anew what was submitted for this commit already.")
    ] = False,
    on_service_error: ServiceErrorOption = "fail",
    url: UrlOption = "",
) -> None:
    """Submit a study once per commit, wait for it, report its answer, and judge configs by it."""  # noqa: DOC501
    from service.ci.gather import Hints
    from service.ci.judging import Rules
    from service.ci.repository import find_root
    from service.ci.session import Question
    from service.ci.target import Target
    from service.ci.tuning import Tuning, run_tuning
    from service.cli.following import say

    paths = tuple(files or ())
    places = outlets(format_name, also or ())
    question = question_of(
        spec,
        workload=workload or None,
        parameters=parameter,
        methods=method or None,
        current=current,
        num_trials=trials,
        num_seeds=seeds,
        num_confirm_seeds=confirm_seeds,
        num_steps=steps,
        threshold_low=low,
        threshold_high=high,
        effect=effect,
        name=name,
    )
    _require_consistent(paths, question, key=key, is_kept=write_lock, is_anew=again)
    root = find_root(Path())
    check = Question(
        paths=paths,
        target=Target(),
        hints=Hints(framework=framework, key=key, is_followed=follow),
        rules=Rules(fail_on=fail_on, tolerance=tolerance),
        lock_path=lock,
        is_kept=write_lock,
        on_service_error=on_service_error,
        exit_zero=exit_zero,
    )
    tuning = Tuning(
        question=question,
        origin=_origin(root, repository, commit),
        check=check,
        nonce=uuid.uuid4().hex if again else "",
    )
    try:
        outcome = run_tuning(tuning, root=root, connect=lambda: _connect(url), wait=_waiting(timeout_minutes))
    except ServiceError as error:
        if not exit_zero:
            raise
        say(f"cliptune: nothing was tuned: {error} [{error.code}]")
        return
    publish(outcome.report, places, outcome.notes)


def _require_consistent(
    paths: tuple[Path, ...], question: Mapping[str, Any], *, key: str | None, is_kept: bool, is_anew: bool
) -> None:
    """Refuse options that have nothing to work on, or that contradict one another.

    Raises:
        BadParameter: if they do.
    """
    name = question.get("name")
    if is_anew and name is not None:
        raise typer.BadParameter(
            f"--again asks for another study, and the name {name!r} belongs to one: leave the name out"
        )
    if is_kept and not paths:
        raise typer.BadParameter("--write-lock keeps what configs are judged by: name the configs")
    if key is not None and not paths:
        raise typer.BadParameter("--key is for configs that are named: name them")


def _origin(root: Path, repository: str, commit: str) -> Origin:
    """Repository and commit, with a warning of what the commit does not hold."""
    from service.ci.origin import find_origin
    from service.cli.following import say

    origin = find_origin(os.environ, root, repository=repository, commit=commit)
    if origin.is_dirty:
        say(
            f"cliptune: warning: uncommitted changes are no part of what is asked: a study that was submitted for "
            f"{origin.commit[:8]} before answers"
        )
    return origin


def _connect(url: str) -> Client:
    """The service, whose client is loaded only when it is asked."""
    from service.cli.connection import connect

    return connect(url)


def _waiting(limit_minutes: float | None) -> Wait:
    """What waits for a study, with lines for whoever reads the log."""
    from service.cli.following import say, wait_for_study

    def wait(client: Client, submission: Submission) -> None:
        study = submission.study
        known = "" if submission.is_new else f"   submitted before, {study.state}"
        say(f"study {study.id}   {client.url}/v1/studies/{study.id}{known}")
        if not study.done:
            wait_for_study(client, study, limit_minutes=limit_minutes)

    return wait
