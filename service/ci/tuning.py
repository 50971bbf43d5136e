"""One tuning from its question to its report: submit once per commit, wait, judge the configs by that very study."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.ci.gather import Gathered, gather
from service.ci.judging import judge_value
from service.ci.lock import LockUnreadableError
from service.ci.locked import open_lock
from service.ci.origin import Origin
from service.ci.outage import Outage, outage
from service.ci.report import report
from service.ci.session import Outcome, Question, run_check
from service.ci.submission import idempotency_key, with_current
from service.ci.target import Answer, Target, answer_of_study
from service.ci.tuned import Ending, Tuned
from service.errors import ServiceError
from service.states import JobState
from tuner.spec import ClipSetting

if TYPE_CHECKING:
    from service.client import Client
    from service.client.studies import Submission
    from service.schemas import StudyOut

#: Waits for a study to end, or for the time to be over.
Wait = Callable[["Client", "Submission"], None]

_ENDINGS: Mapping[JobState, Ending] = {
    JobState.FAILED: Ending.FAILED,
    JobState.CANCELLED: Ending.CANCELLED,
}


class NoClipValueError(ServiceError, LookupError):
    """The files and folders that were named hold no clip value that a study could be compared with."""

    code = "no_clip_value"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a tuning is asked.

    Attributes:
        question: fields of a study, for the service to check.
        origin: what it is submitted for.
        nonce: makes a submission of its own of a repeated one.
        check: what is done with the answer; its paths may be none, and its target is the study.
    """

    question: Mapping[str, Any]
    origin: Origin
    check: Question
    nonce: str = ""


def run_tuning(tuning: Tuning, *, root: Path, connect: Callable[[], Client], wait: Wait) -> Outcome:
    """Find out what to clip at, and judge configs by it.

    Args:
        tuning: what is asked.
        root: of the repository.
        connect: gives a client of the service.
        wait: waits for the study.

    Returns:
        The report; whatever happened to the study or the service is told there.

    Raises:
        NoClipValueError: if there are paths, and no value in them.
        ConfigError: if a path can't be searched.
        CheckRuleError: if a rule is out of bounds.
        LockError: if the lock can't be read, or is to be written and can't be.
        ServiceError: if the service refuses the question itself.
    """
    found = _gather(tuning.check, root)
    if found.refusals:
        # Before the submission: a study of an hour is no way to find out about a typing error.
        return Outcome(
            report((), refusals=found.refusals, exit_zero=tuning.check.exit_zero), ("nothing was submitted",)
        )
    if tuning.check.paths and not found.values:
        names = ", ".join(map(str, tuning.check.paths))
        raise NoClipValueError(
            f"{names}: no clip value is found there, and nothing was submitted; name a config, with --key if need be"
        )
    for value in found.values:
        # Without an answer yet: a rule that is out of bounds is found out now.
        judge_value(value, Answer(None), tuning.check.rules, datetime.now(UTC))
    tuned, fault = None, None
    try:
        with connect() as client:
            tuned, fault = _tuned(client, tuning, with_current(tuning.question, found.values), wait)
    except ServiceError as error:
        fault = outage(error)
        if fault is None:
            raise
    if tuned is not None and tuned.ending is Ending.SUCCEEDED and tuning.check.paths:
        target = Target(study_id=tuned.study_id)
        checked = run_check(
            replace(tuning.check, target=target), root=root, now=datetime.now(UTC), connect=connect
        )
        return Outcome(replace(checked.report, study=tuned), checked.notes)
    return Outcome(
        report(
            (),
            outage=fault,
            on_service_error=tuning.check.on_service_error,
            exit_zero=tuning.check.exit_zero,
            study=tuned,
        ),
        (),
    )


def _gather(check: Question, root: Path) -> Gathered:
    """The values as they are before the study.

    Raises:
        LockUnreadableError: if the lock is to be written, in a folder that is not there or takes no file.
    """
    lock = open_lock(check.lock_path, root, is_needed=False)
    if check.is_kept and not os.access(lock.path.parent, os.W_OK):
        raise LockUnreadableError(lock.path, "can't be written: its folder is not there, or takes no file")
    return gather(check.paths, root=root, lock=lock, hints=check.hints)


def _tuned(
    client: Client, tuning: Tuning, question: Mapping[str, Any], wait: Wait
) -> tuple[Tuned, Outage | None]:
    """Submit and wait; the study as it ended, and the outage that ended the waiting, if one did.

    Raises:
        ServiceError: if the question is refused, or nothing could be submitted.
    """
    key = idempotency_key(tuning.origin, question, client.version().version, tuning.nonce)
    submission = client.submit_study(question, idempotency_key=key)
    try:
        wait(client, submission)
        study = client.get_study(submission.study.id)
        if study.state is JobState.SUCCEEDED:
            answer = answer_of_study(client, study.id)
            ended = _told(client, submission, study, Ending.SUCCEEDED)
            return replace(ended, recommendation=answer.recommendation), None
    except KeyboardInterrupt:
        return _told(client, submission, submission.study, Ending.INTERRUPTED), None
    except ServiceError as error:
        fault = outage(error)
        if fault is None:
            raise
        return _told(client, submission, submission.study, Ending.LOST), fault
    return _told(client, submission, study, _ENDINGS.get(study.state, Ending.TIMED_OUT)), None


def _told(client: Client, submission: Submission, study: StudyOut, ending: Ending) -> Tuned:
    current = study.spec.get("current")
    return Tuned(
        study_id=study.id,
        url=f"{client.url}/v1/studies/{study.id}",
        workload=study.workload,
        state=str(study.state),
        ending=ending,
        is_replayed=not submission.is_new,
        current=ClipSetting(**current) if current else None,
        cause=study.error.detail.strip() if study.error else "",
        code=study.error.code if study.error else "",
        resume=f"cliptune watch {study.id[:8]}",
    )
