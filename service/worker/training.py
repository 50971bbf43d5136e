"""The training side of a study: one process, the requests it is given and the answers it tells.

`Training` starts the process when the first request comes, looks at the worker's `Signals` while it waits, and
turns every way in which a process can break into a `TrainingError`. What was told before a process broke is
yielded first: results that arrived are results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from service.errors import TrainingError
from service.launchers.process import TrainingProcess
from service.launchers.protocol import Broken, Done, Message, Ready
from tuner.training.cohort import CheckpointSaved, Cohort, LaneStarted, Resumed, RungReached, TrialEnded

#: How long a message is waited for before the signals are looked at again, in seconds.
TICK_SECONDS = 0.2


class Signals(Protocol):
    """What may end a runner's work early."""

    def check(self) -> None:
        """Return if the work may go on.

        Raises:
            LeaseLostError: the lease is gone.
            CancelRequestedError: the study was cancelled.
            ShutdownRequestedError: the worker is stopping.
        """
        ...


class Training:
    """A study's training process.

    Args:
        launch: gives a process that nobody else uses.
        stall_seconds: silence after which a process counts as stalled, in seconds, > 0.
        signals: looked at between messages.
        on_ready: called when a new process is ready.

    Attributes:
        ready: what the newest process said of itself; None before the first.
    """

    def __init__(
        self,
        launch: Callable[[], TrainingProcess],
        *,
        stall_seconds: float,
        signals: Signals,
        on_ready: Callable[[Ready], None],
    ) -> None:
        self.ready: Ready | None = None
        self._launch = launch
        self._stall_seconds = stall_seconds
        self._signals = signals
        self._on_ready = on_ready
        self._process: TrainingProcess | None = None
        self._trial_id: str | None = None

    def answers(self, request: Mapping[str, Any]) -> Iterator[list[Message]]:
        """Send a request and yield its messages, as many at a time as have arrived.

        Args:
            request: plain JSON values; see `service.launchers.trainer`.

        Yields:
            At least one message, without the closing `Done`.

        Raises:
            TrainingError: if the process broke or stalled, or said that the request did; it names the trial whose lane
                trained by itself then.
        """
        process = self._started()
        self._trial_id = None
        try:
            yield from self._told(process, request)
        except TrainingError as error:
            error.trial_id = error.trial_id or self._trial_id
            raise

    def _told(self, process: TrainingProcess, request: Mapping[str, Any]) -> Iterator[list[Message]]:
        """`answers`, without the blame.

        Raises:
            TrainingError: as there.
        """
        process.send(request)
        while True:
            batch, broken = self._next_batch(process)
            self._follow(batch)
            last = batch.pop() if isinstance(batch[-1], Done | Broken) else None
            if batch:
                yield batch
            if broken is not None:
                raise broken
            if isinstance(last, Done):
                return
            if isinstance(last, Broken):
                raise TrainingError(
                    f"{last.detail}\n{last.traceback}", cause=last.cause, trial_id=last.trial_id
                )

    def _follow(self, batch: Sequence[Message]) -> None:
        """Remember whose lane trains by itself: a process that breaks can't tell any more."""
        for message in batch:
            if isinstance(message, LaneStarted):
                self._trial_id = message.trial_id
            elif isinstance(message, TrialEnded):
                self._trial_id = None

    def stop(self) -> None:
        """End the process, if there is one; safe from any thread, twice too."""
        if (process := self._process) is not None:
            process.stop()

    def drop(self) -> None:
        """End the process; the next request starts another."""
        self.stop()
        self._process = None

    def _started(self) -> TrainingProcess:
        if self._process is None:
            self._process = self._launch()
            while (ready := self._process.ready) is None:
                self._next(self._process)
            self.ready = ready
            self._on_ready(ready)
        return self._process

    def _next_batch(self, process: TrainingProcess) -> tuple[list[Message], TrainingError | None]:
        """What has arrived, and the error behind it."""
        batch = [self._next(process)]
        try:
            while not isinstance(batch[-1], Done | Broken) and (more := process.receive(0)) is not None:
                batch.append(more)
        except TrainingError as error:
            return batch, error
        return batch, None

    def _next(self, process: TrainingProcess) -> Message:
        """The next message, looking at the signals while waiting.

        Raises:
            TrainingError: ``stall`` if nothing was said in time.
        """
        deadline = time.monotonic() + self._stall_seconds
        while time.monotonic() < deadline:
            self._signals.check()
            if (message := process.receive(TICK_SECONDS)) is not None:
                return message
        raise TrainingError(
            f"the training process said nothing for {self._stall_seconds:g} s (CLIPTUNE_STALL_SECONDS)",
            cause="stall",
        )


def require_belonging(cohort: Cohort, batch: Sequence[Message]) -> None:
    """Refuse events about trials, seeds or rungs that are not the cohort's: what a training process says is input.

    Args:
        cohort: what the process was asked to train.
        batch: what it told.

    Raises:
        TrainingError: ``bad_output`` for an event that is about something else.
    """
    trials = {trial.id for trial in cohort.trials}
    for message in batch:
        if isinstance(message, RungReached):
            told = {(lane.trial_id, lane.seed) for lane in message.values} | {
                (trial_id, cohort.seeds[0]) for trial_id in message.pruned
            }
            is_ours = message.step in cohort.rung_steps
        elif isinstance(message, TrialEnded):
            told = {(message.trial_id, lane.seed) for lane in message.lanes}
            seeds = [lane.seed for lane in message.lanes]
            # A training function's trial that was pruned has no lanes of the seeds that were left.
            is_whole = message.state == "complete" or not seeds
            is_ours = seeds == list(cohort.seeds if is_whole else cohort.seeds[: len(seeds)])
        elif isinstance(message, LaneStarted):
            told = {(message.trial_id, message.seed)}
            is_ours = True
        elif isinstance(message, Resumed | CheckpointSaved):
            told = set()
            is_ours = message.step in cohort.rung_steps[:-1]
        else:
            continue
        if not is_ours or not told <= {(trial_id, seed) for trial_id in trials for seed in cohort.seeds}:
            raise TrainingError(
                f"the training process told a {message.kind} event that is not of its cohort",
                cause="bad_output",
            )
