"""What a report or a completion means for its lane: pure, from the locked row alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from service.errors import ConflictError, InvalidRequestError
from service.jobs.retry import COUNTED_ON, Action, Backoff, Cause, Counter, decide
from service.lanes.lane import Completion, Directive, Held, LaneStatus, Report
from service.states import JobState

#: Reports that a lane may have, over all its leases.
MAX_REPORTS = 10_000
#: Between two tries of a lane whose training broke.
_BACKOFF = Backoff(base_seconds=1.0, max_seconds=60.0)


def stop_reason(held: Held) -> str | None:
    """Why the holder of the newest lease is to stop; None to go on.

    Args:
        held: a lane whose token was right.

    Returns:
        The reason in words; None also for a lane that its holder gave back.
    """
    at = "" if held.step is None else f" at step {held.step}"
    match held.state:
        case LaneStatus.LEASED:
            return held.ended_study
        case LaneStatus.PRUNED:
            return f"the trial was pruned{at}: others are better there"
        case LaneStatus.DIVERGED:
            return f"the training diverged{at}"
        case LaneStatus.COMPLETE:
            return "the lane is complete"
        case LaneStatus.CLOSED:
            return held.ended_study or "the trial has ended"
        case LaneStatus.WAITING | LaneStatus.FAIL:
            return None


def ended(held: Held) -> Directive:
    """What the holder of a lane that has ended is told."""
    return Directive(go_on=False, reason=stop_reason(held) or "")


def waited_for(state: JobState) -> str:
    """What somebody who asks waits for, in words.

    Args:
        state: of the study, which has no lane for him now.

    Returns:
        A sentence.
    """
    if state is JobState.QUEUED:
        return "the study waits for a worker, which decides what is trained: start one with `cliptune worker`"
    return "every lane that is wanted now is being trained, or the next ones are being chosen: ask again"


def has_diverged(held: Held, value: float | None) -> bool:
    """Whether an objective is that of a diverged training.

    Args:
        held: the lane.
        value: the objective; None if it is not finite.

    Returns:
        True without a finite value, or above ``divergence_factor`` times the value at step 0, if that is known and > 0.
    """
    if value is None or not math.isfinite(value):
        return True
    if held.initial is None or held.initial <= 0:
        return False
    return value > held.spec.divergence_factor * held.initial


def require_step(held: Held, report: Report) -> None:
    """Refuse a step that the lane does not have.

    Raises:
        InvalidRequestError: ``step_out_of_range``.
    """
    if report.step > held.num_steps:
        sentence = f"must be at most {held.num_steps}, the steps of a full run, got {report.step}"
        raise InvalidRequestError(
            f"step {sentence}: count optimizer steps, 0 before the first",
            code="step_out_of_range",
            errors=[{"detail": sentence, "pointer": "/step"}],
        )


def require_room(held: Held) -> None:
    """Refuse one report too many.

    Raises:
        InvalidRequestError: ``too_many_reports``.
    """
    if held.num_reports >= MAX_REPORTS:
        raise InvalidRequestError(
            f"trial {held.trial_id} with seed {held.seed} has {held.num_reports} reports, and {MAX_REPORTS} is the "
            "most: report less often, every hundredth of the run is plenty",
            code="too_many_reports",
        )


def require_rising(held: Held, report: Report) -> None:
    """Refuse a new report behind the newest one.

    Raises:
        ConflictError: ``step_not_rising``.
    """
    if report.has_value and held.step is not None and report.step < held.step:
        raise ConflictError(
            f"step {report.step} was not reported before, and step {held.step} already was: report steps in rising "
            "order",
            code="step_not_rising",
        )


class ReportDiffersError(ConflictError):
    """A step was reported a second time, with another value."""

    code = "report_differs"

    def __init__(self, step: int, value: float | None, stored: float | None) -> None:
        before = "a value that is not finite" if stored is None else stored
        now = "one that is not finite" if value is None else value
        super().__init__(
            f"step {step} was reported with {before} before, and now with {now}: a step has one value; repeat a report "
            "as it was"
        )


def told(held: Held, report: Report) -> dict[str, Any]:
    """What a lane's row keeps of a report: the newest objective, and the first.

    Args:
        held: the lane, as it was before the report.
        report: what was told.

    Returns:
        Columns with their values.
    """
    is_newest = report.has_value and (held.step is None or report.step >= held.step)
    is_first = report.has_value and report.step == 0
    return {
        "step": report.step if is_newest else held.step,
        "value": report.value if is_newest else held.value,
        "initial": report.value if is_first else held.initial,
    }


def rungs_reached(held: Held, report: Report, *, is_repeated: bool) -> tuple[int, ...]:
    """The rungs at which this report may decide about its trial: it is the first one there.

    Args:
        held: the lane, as it was before the report.
        report: with an objective.
        is_repeated: whether it was stored before; its decision may be the one that got lost.

    Returns:
        Steps of rungs, ascending; never the last rung, where nothing is left to save.
    """
    if held.is_probe or not report.has_value:
        return ()
    rungs = held.spec.rung_steps[:-1]
    if is_repeated:
        return tuple(rung for rung in rungs if held.rungs.get(str(rung), (None,))[0] == report.step)
    before = -1 if held.step is None else held.step
    return tuple(rung for rung in rungs if before < rung <= report.step)


@dataclass(frozen=True)
class Failure:
    """What a failed training counts on, and what becomes of its lane.

    Attributes:
        state: ``waiting`` to be tried again, or ``fail``.
        attempt: executions that ended in an error, this one included if it is one.
        lost_count: processes lost, likewise.
        delay_seconds: before the next try.
    """

    state: LaneStatus
    attempt: int
    lost_count: int
    delay_seconds: float


def decide_failure(
    held: Held, completion: Completion, *, max_attempts: int, max_lost: int, jitter: float
) -> Failure:
    """What follows a training that its process gave up.

    Args:
        held: the lane.
        completion: with its ``cause``.
        max_attempts: the error that is the last.
        max_lost: the lost process that is the last.
        jitter: drawn by the caller, uniform in [0, 1].

    Returns:
        By the rules of `service.jobs.retry`.
    """
    cause = Cause(completion.cause or Cause.BUG)
    attempt = held.attempt + (COUNTED_ON[cause] is Counter.TRIAL_ATTEMPT)
    lost_count = held.lost_count + (COUNTED_ON[cause] is Counter.TRIAL_LOST)
    decision = decide(
        cause,
        attempt=max(1, attempt),
        max_attempts=max_attempts,
        lost_count=max(1, lost_count),
        max_lost=max_lost,
        backoff=_BACKOFF,
        jitter=jitter,
    )
    state = LaneStatus.FAIL if decision.action is Action.FAIL else LaneStatus.WAITING
    return Failure(state, attempt, lost_count, decision.delay_seconds)


def final_value(held: Held, completion: Completion) -> float | None:
    """The objective that a completed lane ends with; None only for a probe, which needs none.

    Raises:
        InvalidRequestError: ``value_missing``.
    """
    value = held.value if completion.value is None else completion.value
    if value is None and not held.is_probe:
        raise InvalidRequestError(
            f"trial {held.trial_id} with seed {held.seed} was completed without an objective: report it at the last "
            f"step, {held.num_steps}, or give value",
            code="value_missing",
            errors=[{"detail": "is missing, and nothing was reported before: give it", "pointer": "/value"}],
        )
    return value
