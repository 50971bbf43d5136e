"""Find objective and gradient norms in what a training logs, and decide what of it is worth a report.

Programs may log far more often than a service wants to hear. Of the objective, the newest value is kept and, for each
rung, the first one at or after it, because that is where trials are compared; and the one at step 0, against which
divergence is judged. Norms are kept up to a bound, and go
along with the next measurement at or after their step.
"""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import dataclass
from typing import Any

#: Norms that wait for a report at most; further ones are passed over.
MAX_WAITING_NORMS = 100_000
#: Most norms of one report; of more, an even selection is told.
MAX_REPORTED_NORMS = 1000
#: Names of logged numbers that are remembered, to tell the user what there was.
_MAX_KEYS = 30


@dataclass(frozen=True, kw_only=True)
class MetricKeys:
    """Under which names a program logs.

    Attributes:
        objective: the number to report.
        norm: the gradient norm before clipping.
        step: optimizer steps taken; a line without it holds no metrics.
    """

    objective: str
    norm: str = "grad_norm"
    step: str = "step"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The objective at a step.

    Attributes:
        step: optimizer steps taken.
        value: NaN or infinite if the training diverged.
    """

    step: int
    value: float

    @property
    def is_diverged(self) -> bool:
        """Whether the value is not finite."""
        return not math.isfinite(self.value)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the service is told at once.

    Attributes:
        step: optimizer steps taken.
        value: the objective; None if only norms are told.
        norms: gradient norms before clipping since the report before, finite and >= 0, at most 1000.
    """

    step: int
    value: float | None
    norms: tuple[float, ...] = ()


class Metrics:
    """What one lane has logged; filled and emptied by different threads.

    Args:
        keys: under which names it logs.
        rung_steps: steps at which trials are compared, ascending.
        num_steps: of a full run; what is logged beyond is not part of the lane.

    Attributes:
        last: the newest measurement within the run; None before the first.
        num_beyond: measurements beyond the run, which were passed over.
        seen_at: when something was last measured, or the lane began, in seconds of `time.monotonic`.
    """

    def __init__(self, keys: MetricKeys, rung_steps: tuple[int, ...], num_steps: int) -> None:
        self.keys = keys
        self.last: Measurement | None = None
        self.num_beyond = 0
        self.seen_at = time.monotonic()
        self._rung_steps = rung_steps
        self._num_steps = num_steps
        self._lock = threading.Lock()
        self._told_step = -1
        self._waiting: list[Measurement] = []
        self._norms: list[tuple[int, float]] = []
        self._seen_keys: dict[str, None] = {}

    @property
    def seen_keys(self) -> tuple[str, ...]:
        """Names of the numbers that were logged, at most 30."""
        return tuple(self._seen_keys)

    def read_line(self, line: bytes) -> None:
        """Take a line of a program; one that is no JSON object with a step is just output.

        Args:
            line: any bytes.
        """
        document = _json_object(line)
        step = None if document is None else _step(document.get(self.keys.step))
        if document is None or step is None:
            return
        for key, value in document.items():
            if key != self.keys.step and isinstance(value, int | float) and not isinstance(value, bool):
                self.add(key, step, _float(value))

    def add(self, key: str, step: int, value: float) -> None:
        """Take one logged number.

        Args:
            key: its name.
            step: optimizer steps taken, at least 0.
            value: may be NaN or infinite.
        """
        with self._lock:
            if len(self._seen_keys) < _MAX_KEYS:
                self._seen_keys[key] = None
            if key == self.keys.objective:
                self._measure(Measurement(step=step, value=value))
            elif key == self.keys.norm:
                self.seen_at = time.monotonic()
                if math.isfinite(value) and value >= 0 and len(self._norms) < MAX_WAITING_NORMS:
                    self._norms.append((step, value))

    def take(self, *, norms_alone: bool = False, is_final: bool = False) -> list[Report]:
        """What is worth a report now; nothing is given twice.

        Args:
            norms_alone: whether norms that no measurement follows are worth a report of their own. Those of the newest
                step still wait: its objective may be on its way, and a step is reported once.
            is_final: whether the training has ended, so that nothing is on its way.

        Returns:
            The reports, their steps rising.
        """
        with self._lock:
            reports = [
                Report(step=each.step, value=each.value, norms=self._norms_up_to(each.step))
                for each in self._waiting
            ]
            self._waiting = []
            if reports:
                self._told_step = reports[-1].step
            if norms_alone or is_final:
                reports += self._report_of_norms(is_final=is_final)
            return reports

    def _norms_up_to(self, step: int) -> tuple[float, ...]:
        taken = [norm for at, norm in self._norms if at <= step]
        self._norms = [(at, norm) for at, norm in self._norms if at > step]
        return tuple(taken[:: -(-len(taken) // MAX_REPORTED_NORMS) or 1])

    def _report_of_norms(self, *, is_final: bool) -> list[Report]:
        newest = max((at for at, _ in self._norms), default=0)
        steps = [at for at, _ in self._norms if is_final or at < newest]
        step = min(max(steps, default=0), self._num_steps)
        if not steps or step <= self._told_step:
            return []
        self._told_step = step
        return [Report(step=step, value=None, norms=self._norms_up_to(max(steps)))]

    def _measure(self, measurement: Measurement) -> None:
        self.seen_at = time.monotonic()
        if measurement.step > self._num_steps:
            self.num_beyond += 1
            return
        # Steps only rise; what is logged again for a step that waits replaces it.
        if self._waiting and self._waiting[-1].step == measurement.step:
            self._waiting.pop()
        elif measurement.step <= max(self._told_step, self.last.step if self.last is not None else -1):
            return
        elif self._waiting and not self._must_be_told(self._waiting[-1]):
            self._waiting.pop()
        self._waiting.append(measurement)
        self.last = measurement

    def _must_be_told(self, newest: Measurement) -> bool:
        """Whether the newest waiting measurement is the first one at or after a rung, or says where training began."""
        before = self._waiting[-2].step if len(self._waiting) > 1 else self._told_step
        return (
            newest.is_diverged
            or newest.step == 0
            or any(before < rung <= newest.step for rung in self._rung_steps)
        )


def _json_object(line: bytes) -> dict[str, Any] | None:
    text = line.strip()
    # Most output is not JSON; the check spares the attempt.
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _step(value: Any) -> int | None:
    """A step as programs write it: a whole number, or a float without fraction."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
