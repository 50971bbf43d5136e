"""One check from its question to its report: read the configs, ask the service or the lock once, judge each value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from service.ci.gather import Hints, Value, gather
from service.ci.judging import Rules, judge_value
from service.ci.locked import LockFile, open_lock
from service.ci.outage import Outage, outage
from service.ci.recommended import Recommended
from service.ci.report import OnServiceError, Report, report
from service.ci.target import Answer, Target, answer_from_lock, answers_of_service, require_target
from service.errors import ServiceError

if TYPE_CHECKING:
    from service.client import Client


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a check is asked.

    Attributes:
        paths: files and folders.
        target: what they train.
        hints: what is known of the files.
        rules: what is made of a verdict.
        lock_path: of the lock; None for the one at the repository's root.
        is_offline: whether the lock answers instead of the service.
        is_kept: whether the lock is to hold what the service answered.
        only_locked: whether files that the lock does not name are passed over.
        on_service_error: whether an outage fails the check.
        exit_zero: whether nothing does.
    """

    paths: tuple[Path, ...]
    target: Target
    hints: Hints = field(default_factory=Hints)
    rules: Rules = field(default_factory=Rules)
    lock_path: Path | None = None
    is_offline: bool = False
    is_kept: bool = False
    only_locked: bool = False
    on_service_error: OnServiceError = "warn"
    exit_zero: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a check gave.

    Attributes:
        report: the findings.
        notes: what else a person should know, a line each.
    """

    report: Report
    notes: tuple[str, ...]


def run_check(question: Question, *, root: Path, now: datetime, connect: Callable[[], Client]) -> Outcome:
    """Check the clip values of a repository.

    Args:
        question: what is asked.
        root: of the repository.
        now: aware.
        connect: gives a client of the service; called only if the service has to be asked.

    Returns:
        The report; a service that gives nothing is told there.

    Raises:
        WorkloadNotNamedError: if nothing tells what the configs train.
        LockError: if the lock is needed and can't be used.
        CheckRuleError: if a rule is out of bounds.
        ServiceError: if the service refuses the question itself.
    """
    needs_lock = question.is_offline or question.only_locked
    lock = open_lock(question.lock_path, root, is_needed=needs_lock)
    found = gather(
        question.paths, root=root, lock=lock, hints=question.hints, only_locked=question.only_locked
    )
    require_target(question.target, lock, found.values)
    answers, fault = _answers(question, found.values, lock, connect)
    # Without an answer nothing is judged: an outage is no verdict on anybody's config.
    judged = [
        judge_value(value, answer, question.rules, now)
        for value, answer in zip(found.values, answers, strict=False)
    ]
    notes = []
    if found.num_passed_over:
        files = (
            "file names a clip key and is" if found.num_passed_over == 1 else "files name a clip key and are"
        )
        notes.append(f"{found.num_passed_over} {files} no training config that is known: name one to see why")
    if question.is_kept and fault is None:
        notes.append(_keep(lock, found.values, answers))
    return Outcome(
        report(
            judged,
            refusals=found.refusals,
            outage=fault,
            on_service_error=question.on_service_error,
            exit_zero=question.exit_zero,
        ),
        tuple(notes),
    )


def _answers(
    question: Question, values: tuple[Value, ...], lock: LockFile, connect: Callable[[], Client]
) -> tuple[tuple[Answer, ...], Outage | None]:
    """An answer for each value; none, and why, if the service is away or refuses the key.

    Raises:
        ServiceError: if the question itself is refused.
    """
    if question.is_offline:
        return tuple(answer_from_lock(value, question.target, lock) for value in values), None
    if not values:
        return (), None
    try:
        with connect() as client:
            return answers_of_service(client, values, question.target, lock), None
    except ServiceError as error:
        fault = outage(error)
        if fault is None:
            raise
        return (), fault


def _keep(lock: LockFile, values: tuple[Value, ...], answers: tuple[Answer, ...]) -> str:
    """Write the lock, and say so."""
    found: Mapping[tuple[Path, str], Recommended] = {
        (value.path, value.key): answer.recommendation
        for value, answer in zip(values, answers, strict=True)
        if answer.recommendation is not None
    }
    if not found:
        return f"nothing was recommended, and {lock.path.name} stays as it is"
    has_changed = lock.record(found)
    return f"{lock.path.name} {'was written' if has_changed else 'is up to date'}: {len(found)} of {len(values)} values"
