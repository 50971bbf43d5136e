"""Train one lane: start the command, tell the service what it logs, and end it when nobody wants more of it."""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from service.agent.child import Child, Ending
from service.agent.command import fill, lane_values
from service.agent.memory import num_memory_kills
from service.agent.metrics import Measurement, MetricKeys, Metrics, Report
from service.agent.outcome import Outcome, failed, judge, stalled
from service.agent.sources import MetricsPlace, Source
from service.errors import ConflictError, InvalidRequestError
from tuner.errors import TrialPruned

if TYPE_CHECKING:
    from service.client import LeasedTrial

#: How often the command is looked at, in seconds.
_LOOK_SECONDS = 0.1
#: How often files are looked at, in seconds.
_READ_SECONDS = 1.0
#: Least time between two reports, in seconds, and how long norms wait for a measurement that they go along with. Both
#: grow with the age of a lane, so that one of a day makes some thousand reports: a lane has room for 10,000.
_REPORT_SECONDS, _NORMS_SECONDS = 0.5, 5.0
_REPORT_SHARE, _NORMS_SHARE = 1 / 400, 1 / 200
#: How often people are told how far a lane is, in seconds.
_PROGRESS_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How every lane is trained.

    Attributes:
        command: with placeholders, as typed.
        study_id: of the study.
        metrics: where objective and norms are read from.
        objective_key: name of the objective there; None takes the study's.
        norm_key: name of the gradient norm before clipping.
        step_key: name of the step in JSON lines.
        off: text for the threshold of *off*.
        output: folder in which each lane gets one of its own, which is kept; None gives it one that is removed.
        grace_seconds: between SIGTERM and SIGKILL.
        stall_seconds: silence after which a lane is given up, 0 for never.
        environment: of the command.
        outlets: where its output is passed on to.
    """

    command: tuple[str, ...]
    study_id: str
    metrics: MetricsPlace = field(default_factory=lambda: MetricsPlace("stdout"))
    objective_key: str | None = None
    norm_key: str = "grad_norm"
    step_key: str = "step"
    off: str = "0"
    output: Path | None = None
    grace_seconds: float = 10.0
    stall_seconds: float = 600.0
    environment: Mapping[str, str]
    outlets: tuple[BinaryIO | None, BinaryIO | None] = (None, None)


def train(
    trial: LeasedTrial, plan: Plan, on_progress: Callable[[Measurement], None], on_note: Callable[[str], None]
) -> Outcome:
    """Run the command for one lane, to its end or to the first sign that no more is wanted.

    Whatever happens, nothing that the command started in its process group is left afterwards.

    Args:
        trial: the lane; reports are made on it, but it is not ended.
        plan: how to train.
        on_progress: told the newest measurement now and then.
        on_note: told what people should know.

    Returns:
        What became of it.
    """
    number = None if trial.stage == "probe" else trial.number
    name = "probe" if number is None else f"trial-{number}"
    with _output_folder(plan.output, f"{name}-seed-{trial.seed}") as output:
        values = lane_values(
            trial.setting,
            seed=trial.seed,
            num_steps=trial.num_steps,
            trial=number,
            study=plan.study_id,
            output=str(output),
            parameters=trial.parameters,
            off=plan.off,
        )
        source = plan.metrics.open(fill(plan.metrics.path, values))
        keys = MetricKeys(
            objective=plan.objective_key or trial.objective, norm=plan.norm_key, step=plan.step_key
        )
        metrics = Metrics(keys, tuple(trial.rung_steps), trial.num_steps)
        num_kills = num_memory_kills()
        try:
            child = Child(
                [fill(argument, values) for argument in plan.command],
                environment=plan.environment,
                grace_seconds=plan.grace_seconds,
                on_line=metrics.read_line if source is None else _ignore,
                outlets=plan.outlets,
            )
        except (OSError, ValueError) as error:
            return failed("bug", f"the command can't be started: {error}")
        with child:
            watch = _Watch(trial, plan, child, metrics, source, num_kills, on_progress, on_note)
            try:
                return watch.until_end()
            except BaseException:
                child.stop()
                raise


class _Watch:
    """Looks at one running command until it has ended."""

    def __init__(
        self,
        trial: LeasedTrial,
        plan: Plan,
        child: Child,
        metrics: Metrics,
        source: Source | None,
        num_kills: int | None,
        on_progress: Callable[[Measurement], None],
        on_note: Callable[[str], None],
    ) -> None:
        self._trial = trial
        self._plan = plan
        self._child = child
        self._metrics = metrics
        self._source = source
        self._num_kills = num_kills
        self._on_progress = on_progress
        self._on_note = on_note
        self._has_noted = False
        now = time.monotonic()
        self._began_at = self._read_at = self._told_at = self._norms_at = self._shown_at = now

    def until_end(self) -> Outcome:
        """Wait for the end, or bring it about."""
        while (ending := self._child.wait(_LOOK_SECONDS)) is None:
            if (outcome := self._look(time.monotonic())) is not None:
                self._child.stop()
                return outcome
        return self._ended(ending)

    def _look(self, now: float) -> Outcome | None:
        """Take over and tell what is new; an outcome if the command is to be ended."""
        if (reason := _stop_reason(self._trial)) is not None:
            return Outcome(kind="stopped", detail=reason)
        if self._source is not None and now - self._read_at >= _READ_SECONDS:
            self._read_at = now
            self._source.read(self._metrics)
        age = now - self._began_at
        if now - self._told_at >= max(_REPORT_SECONDS, age * _REPORT_SHARE):
            self._told_at = now
            norms_alone = now - self._norms_at >= max(_NORMS_SECONDS, age * _NORMS_SHARE)
            if (outcome := self._tell(self._metrics.take(norms_alone=norms_alone))) is not None:
                return outcome
        if self._metrics.last is not None and now - self._shown_at >= _PROGRESS_SECONDS:
            self._shown_at = now
            self._on_progress(self._metrics.last)
        stall = self._plan.stall_seconds
        # A report may have waited for the service, while the command went on: hence the clock is read again.
        if stall and time.monotonic() - self._metrics.seen_at >= stall:
            return stalled(stall, self._child.tail)
        return None

    def _tell(self, reports: list[Report]) -> Outcome | None:
        for report in reports:
            self._norms_at = time.monotonic()
            try:
                self._trial.report(report.step, report.value, report.norms)
            except TrialPruned as pruned:
                is_diverged = report.value is not None and not math.isfinite(report.value)
                return Outcome(kind="diverged" if is_diverged else "stopped", detail=pruned.reason)
            except (ConflictError, InvalidRequestError) as refusal:
                # One report less; the last value is told with the end.
                if not self._has_noted:
                    self._has_noted = True
                    self._on_note(f"a report was refused: {refusal} [{refusal.code}]")
        return None

    def _ended(self, ending: Ending) -> Outcome:
        """The command ended by itself: take over and tell the rest."""
        self._child.close()
        if self._source is not None:
            self._source.read(self._metrics, is_final=True)
        if (outcome := self._tell(self._metrics.take(is_final=True))) is not None:
            return outcome
        num_kills = num_memory_kills()
        return judge(
            ending,
            last=self._metrics.last,
            keys=self._metrics.keys,
            seen_keys=self._metrics.seen_keys,
            num_beyond=self._metrics.num_beyond,
            num_steps=self._trial.num_steps,
            tail=self._child.tail,
            was_memory_short=None not in (num_kills, self._num_kills) and num_kills != self._num_kills,
        )


def _stop_reason(trial: LeasedTrial) -> str | None:
    """What a heartbeat was answered; a command that logs nothing yet is to be stopped too."""
    return trial.stop_reason


@contextlib.contextmanager
def _output_folder(parent: Path | None, name: str) -> Iterator[Path]:
    """A fresh folder: one that is removed afterwards, or one within ``parent`` that is kept."""
    if parent is None:
        # What the command leaves there may be unreadable or still be written to.
        with tempfile.TemporaryDirectory(prefix="cliptune-lane-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    for attempt in itertools.count(1):
        folder_kept = parent / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder_kept.mkdir(parents=True)
        except FileExistsError:
            continue
        yield folder_kept.absolute()
        return


def _ignore(line: bytes) -> None:
    del line
