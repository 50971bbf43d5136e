"""One question for drift: find what is recommended, probe each training once, judge configs or the studies alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from service.ci.gather import Value, gather
from service.ci.judgement import CheckVerdict, Drift, Judgement, Severity
from service.ci.judging import checked, judge_value
from service.ci.locked import LockFile, open_lock
from service.ci.look import Look, NormsNotKeptError, Probing, WorkloadNotHereError, look
from service.ci.outage import Outage, outage
from service.ci.recommended import Recommended
from service.ci.report import Report, report
from service.ci.session import Question
from service.ci.target import (
    Answer,
    Target,
    WorkloadNotNamedError,
    answer_from_lock,
    answer_of_service,
    answers_of_service,
    fingerprint_with,
    require_target,
)
from service.errors import ServiceError

if TYPE_CHECKING:
    from service.client import Client
    from service.launchers.probing import Prober

Found = TypeVar("Found")
#: Why one of several recommendations can't be held against the code.
Unseen = NormsNotKeptError | WorkloadNotHereError
#: What to do where a lock does not know what is asked for.
_REMEDY = "ask the service without --offline, or keep its answer: cliptune check --write-lock"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a probe says of a recommendation, without a config.

    Attributes:
        workload: what was probed, or asked about.
        look: the probes; None if nothing is recommended.
        severity: what it does to a pipeline.
        reason: why there is nothing, as the end of a sentence; empty with probes.
        code: the same in a word.
    """

    workload: str
    look: Look | None
    severity: Severity
    reason: str = ""
    code: str = CheckVerdict.NO_RECOMMENDATION


@dataclass(frozen=True)
class Findings:
    """What was found without configs.

    Attributes:
        findings: the worst first.
        outage: why the service gave nothing; None if it answered, or was not asked.
    """

    findings: tuple[Finding, ...]
    outage: Outage | None = None


@dataclass
class Looks:
    """Looks at recommendations: each training is probed once, however many configs it is for.

    Attributes:
        probing: how to probe.
        prober: measures.
    """

    probing: Probing
    prober: Prober
    _known: dict[str, Look | Unseen] = field(default_factory=dict)

    def at(self, recommendation: Recommended) -> Look | Unseen:
        """The look at a recommendation.

        Args:
            recommendation: of a study.

        Returns:
            The look, or why there is none.
        """
        name = recommendation.recommendation_id
        if name not in self._known:
            try:
                self._known[name] = look(recommendation, self.probing, self.prober)
            except (NormsNotKeptError, WorkloadNotHereError) as error:
                self._known[name] = error
        return self._known[name]

    def require_any(self) -> None:
        """Refuse an answer that rests on no look, where there was something to look at.

        Raises:
            NormsNotKeptError: if no study has norms to compare with.
            WorkloadNotHereError: if none has its code here.
        """
        unseen = [each for each in self._known.values() if not isinstance(each, Look)]
        if unseen and len(unseen) == len(self._known):
            raise unseen[0]


def drift_of_configs(
    question: Question, looks: Looks, *, root: Path, now: datetime, connect: Callable[[], Client]
) -> Report:
    """Judge clip values of configs as a check does, by recommendations that are held against the code as it is now.

    Args:
        question: as for `service.ci.session.run_check`.
        looks: probes.
        root: of the repository.
        now: aware.
        connect: gives a client of the service; called only if the service has to be asked.

    Returns:
        The report.
    """
    lock = open_lock(question.lock_path, root, is_needed=question.is_offline)
    found = gather(question.paths, root=root, lock=lock, hints=question.hints)
    require_target(question.target, lock, found.values)
    answers, fault = _answers_for(found.values, question, lock, connect)
    judged = [
        _judged(value, answer, question, now, looks)
        for value, answer in zip(found.values, answers, strict=False)
    ]
    looks.require_any()
    return report(
        judged,
        refusals=found.refusals,
        outage=fault,
        on_service_error=question.on_service_error,
        exit_zero=question.exit_zero,
    )


def _answers_for(
    values: tuple[Value, ...], question: Question, lock: LockFile, connect: Callable[[], Client]
) -> tuple[tuple[Answer, ...], Outage | None]:
    if question.is_offline:
        return tuple(answer_from_lock(value, question.target, lock) for value in values), None
    if not values:
        return (), None
    return _asked(
        connect, lambda client: answers_of_service(client, values, _known(client, question.target), lock)
    )


def _judged(value: Value, answer: Answer, question: Question, now: datetime, looks: Looks) -> Judgement:
    if answer.recommendation is None:
        return judge_value(value, answer, question.rules, now)
    seen = looks.at(answer.recommendation)
    is_other = isinstance(seen, Look) and bool(seen.first)
    drift = (
        seen.drift(checked(value, answer.recommendation).setting)
        if isinstance(seen, Look)
        else Drift(has_drifted=False, reason=str(seen), is_settled=False)
    )
    judgement = judge_value(value, answer, question.rules, now, drift)
    if judgement.severity is Severity.OK and (is_other or not drift.is_settled):
        return replace(judgement, severity=Severity.WARNING)
    return judgement


def drift_of_studies(
    question: Question, looks: Looks, *, root: Path, connect: Callable[[], Client]
) -> Findings:
    """Hold recommendations against the code as it is now, without a config.

    Args:
        question: its target, or else everything that the lock holds; its paths do not count.
        looks: probes.
        root: of the repository.
        connect: gives a client of the service; called only if the service has to be asked.

    Returns:
        A finding for each.

    Raises:
        WorkloadNotNamedError: if there is neither a target nor a lock.
    """
    lock = open_lock(question.lock_path, root, is_needed=question.is_offline)
    if not question.target.is_named and not lock.lock.entries:
        raise WorkloadNotNamedError(
            "what to probe is not known: give --workload NAME (`cliptune workloads` lists them), --fingerprint, or "
            "config files"
        )
    if question.is_offline:
        answers, fault = _kept(question.target, lock), None
    else:
        answers, fault = _asked(connect, lambda client: _answers_of(client, question.target, lock))
    found = [_finding(wanted, answer, question, looks) for wanted, answer in answers]
    looks.require_any()
    return Findings(tuple(sorted(found, key=lambda each: (each.severity.rank, each.workload))), fault)


def _kept(target: Target, lock: LockFile) -> tuple[tuple[Target, Answer], ...]:
    """What a lock has for a target, or all of it; each recommendation once."""
    entries = {each.recommendation_id: each for each in lock.lock.entries.values()}
    fitting = [
        (target, Answer(each))
        for each in entries.values()
        if target.workload in ("", each.workload) and target.fingerprint in ("", each.fingerprint)
    ]
    wanted = target.workload or target.fingerprint
    nothing = Answer(None, f"{lock.path.name} has no recommendation for {wanted}: {_REMEDY}")
    return tuple(fitting) or ((target, nothing),)


def _answers_of(client: Client, target: Target, lock: LockFile) -> tuple[tuple[Target, Answer], ...]:
    kept = (
        Target(workload=each.workload, fingerprint=each.fingerprint) for each in lock.lock.entries.values()
    )
    wanted = (_known(client, target),) if target.is_named else tuple(dict.fromkeys(kept))
    return tuple((each, answer_of_service(client, each)) for each in wanted)


def _known(client: Client, target: Target) -> Target:
    """The target without parameters that no study was run with: those are the code's as it is now."""
    if target.parameters and fingerprint_with(client, target) is None:
        return replace(target, parameters={})
    return target


def _asked(
    connect: Callable[[], Client], ask: Callable[[Client], tuple[Found, ...]]
) -> tuple[tuple[Found, ...], Outage | None]:
    """What the service answers; nothing, and why, if it is away or refuses the key.

    Raises:
        ServiceError: if the question itself is refused.
    """
    try:
        with connect() as client:
            return ask(client), None
    except ServiceError as error:
        fault = outage(error)
        if fault is None:
            raise
        return (), fault


def _finding(wanted: Target, answer: Answer, question: Question, looks: Looks) -> Finding:
    if answer.recommendation is None:
        name = wanted.workload or wanted.fingerprint
        return Finding(workload=name, look=None, severity=Severity.WARNING, reason=answer.reason)
    name, seen = answer.recommendation.workload, looks.at(answer.recommendation)
    if not isinstance(seen, Look):
        return Finding(workload=name, look=None, severity=Severity.WARNING, reason=str(seen), code=seen.code)
    drift = seen.drift()
    severity = Severity.WARNING if seen.first or not drift.is_settled else Severity.OK
    if drift.has_drifted:
        fails = question.rules.fail_on == "outside" and not question.exit_zero
        severity = Severity.FAILURE if fails else Severity.WARNING
    return Finding(workload=name, look=seen, severity=severity)
