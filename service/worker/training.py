"""The training side of a study: one process, the requests it is given and the answers it tells.

`Training` starts the process when the first request comes, looks at the worker's `Signals` while it waits, and
turns every way in which a process can break into a `TrainingError`. What was told before a process broke is
yielded first: results that arrived are results.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from service.errors import TrainingError
from service.launchers.process import TrainingProcess
from service.launchers.protocol import Broken, Done, Message, Pending, Ready
from tuner.training.cohort import (
    CheckpointSaved,
    Cohort,
    LaneStarted,
    PartReached,
    Resumed,
    RungReached,
    TrialEnded,
)

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


class StartError(TrainingError):
    """A training process never became ready: that is its device's fault, or its machine's, and no trial's."""


class Training:
    """One training process at a time, and the request that it works on.

    Args:
        launch: gives a process that nobody else uses.
        stall_seconds: silence after which a process counts as stalled, in seconds, > 0.
        signals: looked at between messages.
        on_ready: called when a process is ready, for each request that it is given, and when one on a cluster says on
            which device it trains.

    Attributes:
        ready: what the newest process said of itself; None before the first.
        is_pending: whether the request waits for a device of a cluster.
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
        self.is_pending = False
        self._launch = launch
        self._stall_seconds = stall_seconds
        self._signals = signals
        self._on_ready = on_ready
        self._process: TrainingProcess | None = None
        self._request: Mapping[str, Any] | None = None
        self._trial_id: str | None = None
        self._heard_at = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a request has been begun and has not ended."""
        return self._request is not None

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
        self.begin(request)
        while self.is_busy:
            self._signals.check()
            batch, broken = self.poll(TICK_SECONDS)
            if batch:
                yield batch
            if broken is not None:
                raise broken

    def begin(self, request: Mapping[str, Any]) -> None:
        """Send a request; `poll` gives its messages.

        Args:
            request: as for `answers`.

        Raises:
            StartError: if no process can be started.
        """
        self._trial_id, self.is_pending, self._request = None, False, request
        self._heard_at = time.monotonic()
        if self._process is None or not self._process.is_alive:
            try:
                self._process = self._launch()
            except OSError as error:
                self._request = None
                raise StartError(
                    f"no training process could be started: {error}", cause="device_lost"
                ) from error
        if self._process.greeting is not None:
            self._become_ready(self._process.greeting)
        self.tell(request)

    def tell(self, line: Mapping[str, Any]) -> None:
        """Say something about the request that is being worked on; a process that is gone is noticed by `poll`."""
        if self._process is not None:
            with contextlib.suppress(TrainingError):
                self._process.send(line)

    def rest(self) -> None:
        """The process waits for us: its silence is no stall."""
        self._heard_at = time.monotonic()

    def poll(self, timeout: float) -> tuple[list[Message], TrainingError | None]:
        """What has arrived, and the error behind it; the request has ended if it holds no more.

        Args:
            timeout: how long to wait for the first message, in seconds.

        Returns:
            Messages without the closing `Done`, any number; a `StartError` if the process never became ready.
        """
        batch: list[Message] = []
        try:
            self._collect(batch, timeout)
        except TrainingError as error:
            self._request = None
            started = self._process is not None and self._process.ready is not None
            if not started:
                return [], StartError(str(error), cause=error.cause)
            error.trial_id = error.trial_id or self._trial_id
            return batch, error
        return batch, None

    def _collect(self, batch: list[Message], timeout: float) -> None:
        """Add what has arrived to a batch.

        Raises:
            TrainingError: if the process broke or stalled, or said that the request did.
        """
        process = self._process
        assert process is not None
        message = process.receive(timeout)
        if message is None and time.monotonic() - self._heard_at >= self._stall_seconds:
            raise TrainingError(
                f"the training process said nothing for {self._stall_seconds:g} s (CLIPTUNE_STALL_SECONDS)",
                cause="stall",
            )
        while message is not None:
            self._heard_at = time.monotonic()
            self.is_pending = isinstance(message, Pending)
            match message:
                case Ready():
                    self._become_ready(message)
                case Pending():
                    pass
                case Done():
                    self._request = None
                    return
                case Broken():
                    raise TrainingError(
                        f"{message.detail}\n{message.traceback}",
                        cause=message.cause,
                        trial_id=message.trial_id,
                    )
                case _:
                    self._follow(message)
                    batch.append(message)
            message = process.receive(0)

    def _become_ready(self, ready: Ready) -> None:
        self.ready = ready
        self._on_ready(ready)

    def _follow(self, message: Message) -> None:
        """Remember whose lane trains by itself: a process that breaks can't tell any more."""
        if isinstance(message, LaneStarted):
            self._trial_id = message.trial_id
        elif isinstance(message, TrialEnded):
            self._trial_id = None


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
        elif isinstance(message, PartReached):
            told = {(lane.trial_id, lane.seed) for lane in message.values}
            is_ours = cohort.rung_steps[message.index : message.index + 1] == (message.step,)
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
