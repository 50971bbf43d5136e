"""`LeasedTrial`: one lane under a lease, as the code that trains it sees it."""

from __future__ import annotations

import logging
import math
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from service.client.delivery import LOST, Delivery
from service.errors import ProblemError, ServiceError, UnavailableError
from service.schemas import MAX_ERROR, MAX_NORMS, LeaseOut
from tuner.errors import TrialPruned
from tuner.evidence import Stage
from tuner.parameters import ParameterValue
from tuner.records import LaneRecord
from tuner.spec import ClipSetting

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from tuner.inline import Clipper

#: Names of the exceptions that say that memory ended; by name, because torch may not be loaded.
_OUT_OF_MEMORY = frozenset({"MemoryError", "OutOfMemoryError"})

log = logging.getLogger(__name__)


class LeasedTrial:
    """A trial handle: one trial under one seed, leased from the service and kept alive by a thread.

    Use it as a context manager. Leaving the block completes the lane with the last value reported; an exception gives
    it back with its cause, and is raised on; `TrialPruned` ends the block quietly. A process that dies loses the lane,
    which somebody else gets when the lease has run out.

    Args:
        call: `service.client.connection.Connection._call` of a connection that outlives the trial.
        lease: the lane.

    Attributes:
        trial_id: id of the trial.
        study_id: id of its study.
        number: of the trial, in the order of asking; -1 for a lane that only measures norms.
        stage: ``search``, ``confirm``, or ``probe`` for a lane that only measures norms.
        seed: to train under.
        setting: how to clip, and a factor on the learning rate.
        workload: what is trained, in the study's words.
        parameters: of it, likewise.
        objective: name of the number to report, minimized.
        num_steps: optimizer steps of a full run.
        rung_steps: steps at which to report at least, ascending; the last one is ``num_steps``.
    """

    def __init__(self, call: Callable[..., Any], lease: LeaseOut) -> None:
        self.trial_id = lease.trial_id
        self.study_id = lease.study_id
        self.number = -1 if lease.number is None else lease.number
        self.stage: Stage | Literal["probe"] = lease.stage
        self.seed = lease.seed
        self.setting: ClipSetting = lease.setting
        self.workload = lease.workload
        self.parameters: Mapping[str, ParameterValue] = lease.parameters
        self.objective = lease.objective
        self.num_steps = lease.num_steps
        self.rung_steps = lease.rung_steps
        self._reference_norm = lease.reference_norm
        self._began = time.monotonic()
        self._is_over = False
        self._delivery = Delivery(call, lease)
        self._delivery.start()
        # The thread does not know this object: forgotten without an end, it stops and the lease runs out.
        weakref.finalize(self, self._delivery.close)

    def __repr__(self) -> str:
        return f"LeasedTrial({self.trial_id}, seed={self.seed}, setting={self.setting})"

    @property
    def stop_reason(self) -> str | None:
        """Why nothing more is to be trained; None to go on."""
        return self._delivery.stop_reason

    @cached_property
    def clipper(self) -> Clipper:
        """The setting, ready to use; loads torch the first time."""
        from tuner.inline import Clipper

        return Clipper.from_setting(
            self.setting, reference_norm=self._reference_norm, run_steps=self.num_steps
        )

    def clip(
        self, parameters: Module | Tensor | Iterable[Tensor], *, loss: Tensor | float | None = None
    ) -> Tensor:
        """Clip gradients in place, once per optimizer step, where ``clip_grad_norm_`` would stand.

        Args:
            parameters: whose gradients.
            loss: of the step, for methods that look at it.

        Returns:
            The total L2 norm before clipping, on the device.
        """
        return self.clipper(parameters, loss=loss)

    def report(self, step: int, value: float | None, norms: Sequence[float] = ()) -> None:
        """Tell the objective on held-out data, and the gradient norms since the last report.

        While the service is away the report is kept and the training goes on.

        Args:
            step: optimizer steps taken, 0 before the first, rising; the last report of a full run is at ``num_steps``.
            value: the objective, minimized; NaN or infinite if the training diverged. None tells norms alone.
            norms: gradient norms before clipping since the last report; those of `clip` are added by themselves.

        Raises:
            TrialPruned: if nothing more is to be trained: pruned, diverged, cancelled, or the lease is lost.
            ProblemError: if the service refuses the report, for example a step above ``num_steps``.
        """
        if (reason := self._delivery.stop_reason) is not None:
            raise TrialPruned(reason)
        if self._is_over:
            raise TrialPruned("this lane was completed already")
        body: dict[str, Any] = {"step": int(step), "norms": _thinned([*self._drained(), *norms])}
        number = None if value is None else float(value)
        if number is not None:
            body["value"] = number if math.isfinite(number) else None
        self._delivery.report(body)
        if number is not None and not math.isfinite(number):
            self._delivery.stop(f"the training diverged at step {step}")
        if (reason := self._delivery.stop_reason) is not None:
            raise TrialPruned(reason)

    def complete(self, value: float | None = None, record: LaneRecord | None = None) -> None:
        """End the lane well; the second time nothing happens. A service that is away is waited for.

        Args:
            value: the objective at the end; None takes the last one reported.
            record: what the run recorded; None takes what `clip` recorded, if it was used.

        Raises:
            TrialPruned: if the lease is lost; nothing was written.
            InvalidRequestError: ``value_missing`` if no objective was ever told.
            UnavailableError: if the service stays away for the time of a lease.
        """
        if self._is_over:
            return
        if value is not None and not math.isfinite(value):
            self._end({"outcome": "complete"}, last={"step": self.num_steps, "value": None})
            return
        body: dict[str, Any] = {"outcome": "complete"} | ({} if value is None else {"value": float(value)})
        figures = self._figures(record)
        if self._end(body if figures is None else body | {"record": figures}) is None:
            raise TrialPruned(LOST)

    def fail(self, cause: str, error: str) -> None:
        """Give the lane back: its training broke. It is tried again, by the rules for the cause.

        Args:
            cause: ``bug``, ``oom`` (not tried again), ``stall``, ``device_lost`` (the process was killed),
                ``bad_output`` or ``preempted`` (given back on purpose: counted on nothing).
            error: what happened; the end is kept.

        Raises:
            UnavailableError: if the service stays away for the time of a lease.
        """
        if not self._is_over:
            self._end({"outcome": "failed", "cause": cause, "error": _readable(error)})

    def close(self) -> None:
        """Forget the lane without a word, as it was told to stop: signs of life end, and reports that were kept."""
        self._is_over = True
        self._delivery.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Complete the lane, or give it back; see the class.

        Raises:
            ProblemError: if the completion is refused.
            UnavailableError: if the service stays away for the time of a lease.
        """
        if error is None:
            try:
                self.complete()
            except TrialPruned as stopped:
                log.warning("the result of %r was not taken: %s", self, stopped.reason)
            except UnavailableError:
                raise
            except ProblemError as problem:
                self._settle({"outcome": "failed", "cause": "bad_output", "error": problem.detail})
                raise
            return False
        if isinstance(error, TrialPruned):
            self._settle({"outcome": "complete"})
            return True
        cause = "bug" if isinstance(error, Exception) else "device_lost"
        if isinstance(error, KeyboardInterrupt):
            cause = "preempted"
        if kind is not None and any(base.__name__ in _OUT_OF_MEMORY for base in kind.__mro__):
            cause = "oom"
        text = "".join(traceback.format_exception(error))
        self._settle({"outcome": "failed", "cause": cause, "error": _readable(text)})
        return False

    def _settle(self, body: Mapping[str, Any]) -> None:
        """End the lane on the way out of an exception, which no other may hide."""
        if self._is_over:
            return
        figures = self._figures(None)
        try:
            self._end(body if figures is None else {**body, "record": figures})
        except ServiceError as problem:
            log.warning("the end of %r could not be told: %s", self, problem)

    def _end(self, body: Mapping[str, Any], last: Mapping[str, Any] | None = None) -> str | None:
        if last is not None:
            self._delivery.report(last)
        state = self._delivery.complete(body)
        self._is_over = True
        return state

    def _figures(self, record: LaneRecord | None) -> dict[str, Any] | None:
        """What a completion tells of the whole run; None if nothing was recorded."""
        if record is None and "clipper" in vars(self) and self.clipper.num_steps > 0:
            record = self.clipper.record()
        if record is None:
            return None
        return {
            "clip_fraction": record.clip_fraction,
            "mean_scale": record.mean_scale,
            "num_steps": record.num_steps,
            "seconds": time.monotonic() - self._began,
        }

    def _drained(self) -> list[float]:
        return self.clipper.drain_norms() if "clipper" in vars(self) else []


def _thinned(norms: Sequence[float]) -> list[float]:
    """The finite norms, evenly thinned to as many as a report takes.

    Example:
        >>> len(_thinned([1.0] * 2500)), _thinned([1, float("nan")])
        (1000, [1.0])
    """
    finite = [float(norm) for norm in norms if math.isfinite(norm) and norm >= 0]
    if len(finite) <= MAX_NORMS:
        return finite
    return [finite[index * len(finite) // MAX_NORMS] for index in range(MAX_NORMS)]


def _readable(error: str) -> str:
    """The end of an error text, where a traceback names the exception, as JSON takes it."""
    return error[-MAX_ERROR:].encode("utf-8", "backslashreplace").decode("utf-8")[-MAX_ERROR:]
