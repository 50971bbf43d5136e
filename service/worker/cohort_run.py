"""A cohort trained in parts on the slots of a worker, and told as if it had been trained in one.

`CohortRun.events` places every part that may train on a slot, listens to all of them, and passes decisions on once what
they rest on has been written down. A part whose training breaks goes on from its own checkpoint, on whichever slot is
free, while the others train. A part that waits at a rung may be stopped and go on later: so a cohort may have more
parts than there are slots, other studies get what is theirs at every rung, and a lost device blocks nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import structlog

from service.errors import TrainingError
from service.launchers.protocol import Message, PathWanted
from service.worker.endings import NoDeviceError
from service.worker.part import Part
from service.worker.pool import SlotPool, stop_all
from service.worker.shared_path import SharedPath
from service.worker.side import CohortTask, Count
from service.worker.slot import Slot
from service.worker.training import Signals, StartError, Training, require_belonging
from tuner.search.joining import JoinedCohort
from tuner.training.cohort import (
    AS_OTHERS,
    CheckpointSaved,
    EngineChosen,
    Event,
    PartReached,
    Progressed,
    Resumed,
)
from tuner.training.parts import Grid, split

log = structlog.get_logger(__name__)

#: How long all parts together are listened to before their slots and decisions are looked at again, in seconds.
_PAUSE_SECONDS = 0.02
#: How long a process that has told everything may take to be ready for the study's next request, in seconds.
_END_SECONDS = 5.0


class ReplanError(Exception):
    """A trial of the cohort has failed for good: what is left to train is another cohort."""


class CohortRun:
    """One training of a cohort.

    Args:
        task: the cohort and what is known of it.
        grid: how it is split.
        study_id: holds the slots.
        pool: gives them.
        train_on: makes the training side of a slot.
        folder: where a part's checkpoints are, by its index.
        count: writes down what broke.
        signals: looked at between messages.
    """

    def __init__(
        self,
        task: CohortTask,
        grid: Grid,
        *,
        study_id: str,
        pool: SlotPool,
        train_on: Callable[[Slot], Training],
        folder: Callable[[int], str],
        count: Count,
        signals: Signals,
    ) -> None:
        self._cohorts = split(task.cohort, task.whole, grid)
        self._joined = JoinedCohort(task.cohort, self._cohorts, known=task.known, ended_at=task.ended_at)
        self._parts = [Part(index) for index in self._cohorts]
        self._study_id = study_id
        self._pool = pool
        self._train_on = train_on
        self._folder = folder
        self._count = count
        self._signals = signals
        self._path = SharedPath(task.path)
        self._patience = Patience(pool)
        self._num_starved = 0
        #: Where parts that were stopped wait: the rung, by the part's index.
        self._parked: dict[int, int] = {}
        #: Parts that were stopped and begun again, and have not said from where.
        self._unparked: set[int] = set()
        self._told_all_at: float | None = None
        #: Parts that have taken steps in this run, or gone on from those of an earlier one.
        self._begun: set[int] = set()

    @property
    def held_seconds(self) -> float:
        """How long devices were held, over all of them."""
        return sum(each.held_seconds for each in self._parts)

    @property
    def num_starved(self) -> int:
        """The most parts that waited in vain for a device of a cluster at a time."""
        return self._num_starved

    def events(self) -> Iterator[Sequence[Event]]:
        """Train; what was yielded is written when the next is asked for.

        Yields:
            Events of the whole cohort, at least one.

        Raises:
            ReplanError: if a trial failed for good.
            NoDeviceError: if every slot has been set aside for a while.
            TrainingError: if a part ended without its results.
        """
        while not self._joined.has_all or self._is_ending():
            self._signals.check()
            self._place()
            events, broken = self._listen()
            if events:
                yield events
            for part, error in broken:
                self._recover(part, error)
            self._answer_paths()
            self._decide()

    def end(self) -> None:
        """Let go of all slots; what still trains ends."""
        held = [each for each in self._parts if each.slot is not None]
        stop_all(each.slot.process for each in held if each.slot and each.slot.process and not each.has_ended)
        for each in held:
            self._release(each, ends=not each.has_ended)
        self._pool.want(self._study_id, 0)

    def _is_ending(self) -> bool:
        """Whether a process that has told everything is about to say so: one that is cut off can't be used again."""
        self._told_all_at = self._told_all_at or time.monotonic()
        is_in_time = time.monotonic() - self._told_all_at < _END_SECONDS
        return is_in_time and any(each.slot is not None for each in self._parts)

    def _place(self) -> None:
        """Give a slot to every part that may train, as far as there are any for this study.

        Raises:
            NoDeviceError: if there is none to be had for too long.
        """
        needing = [each for each in self._parts if self._needs_slot(each)]
        self._pool.want(self._study_id, len(needing))
        while needing and (slot := self._pool.take(self._study_id)) is not None:
            self._begin(needing.pop(0), slot)
        num_pending = sum(each.is_pending for each in self._parts)
        self._num_starved = max(self._num_starved, num_pending)
        if needing or num_pending:
            self._make_room()
        self._patience.check(is_idle=all(each.slot is None for each in self._parts))

    def _needs_slot(self, part: Part) -> bool:
        if part.slot is not None or self._joined.is_done(part.index) or time.monotonic() < part.not_before:
            return False
        rung = self._parked.get(part.index)
        return rung is None or self._joined.decision(rung, part.index) is not None

    def _begin(self, part: Part, slot: Slot) -> None:
        if self._parked.pop(part.index, None) is not None:
            self._unparked.add(part.index)
        request = {
            "kind": "cohort",
            "cohort": self._joined.left(part.index).to_json(),
            "checkpoints": self._folder(part.index),
            "is_part": True,
        }
        try:
            part.begin(slot, self._train_on(slot), request)
        except StartError as error:
            self._set_aside(part, error)

    def _make_room(self) -> None:
        """Stop one part that only waits for others, so that one of those can have its slot, or its device."""
        for part in self._parts:
            rung = self._joined.waits_at(part.index)
            if part.slot is not None and rung is not None and self._joined.decision(rung, part.index) is None:
                return self._park(part, rung)

    def _park(self, part: Part, rung: int) -> None:
        """Stop a part at a rung; it goes on from the checkpoint that it wrote there."""
        self._parked[part.index] = rung
        self._release(part, ends=True)

    def _release(self, part: Part, *, ends: bool) -> None:
        """Give a part's slot back; its process ends, or is kept for the study's next part."""
        self._path.lost(part.index)
        slot = part.let_go()
        if slot is None:
            return
        if ends:
            self._joined.lost(part.index)
            self._pool.drop(slot, self._study_id)
        self._pool.give_back(slot, self._study_id)

    def _set_aside(self, part: Part, error: StartError) -> None:
        """A slot could not be made ready: that costs no trial anything."""
        self._signals.check()
        self._path.lost(part.index)
        if (slot := part.let_go()) is not None:
            self._joined.lost(part.index)
            self._pool.set_aside(slot, self._study_id, str(error))

    def _listen(self) -> tuple[list[Event], list[tuple[Part, TrainingError]]]:
        """What the parts told, as events of the cohort; and which of them broke."""
        events: list[Event] = []
        broken: list[tuple[Part, TrainingError]] = []
        placed = [each for each in self._parts if each.slot is not None]
        if not placed:
            time.sleep(_PAUSE_SECONDS)
        for part in placed:
            if self._joined.waits_at(part.index) is not None or self._path.is_waiting(part.index):
                part.rest()
            # Never without waiting: that a dead process is silent is noticed by the time that it is listened to.
            told, error = part.poll(_PAUSE_SECONDS / len(placed))
            try:
                events += self._join(part, told)
            except TrainingError as odd:
                error = odd
            if error is None and part.has_ended:
                error = self._finish(part)
            if isinstance(error, StartError):
                self._set_aside(part, error)
            elif error is not None:
                broken.append((part, error))
        return events, broken

    def _join(self, part: Part, told: Sequence[Message]) -> list[Event]:
        """Events of the cohort that follow from a part's.

        Raises:
            TrainingError: ``bad_output`` for what a part can't tell.
        """
        cohort = self._cohorts[part.index]
        require_belonging(cohort, told)
        try:
            news = filter(None, (self._once(part, each) for each in told))
            return [event for each in news for event in self._joined.take(part.index, each)]  # type: ignore[arg-type]
        except ValueError as error:
            raise TrainingError(
                f"the training process told what no part of a cohort tells: {error}", cause="bad_output"
            ) from None

    def _once(self, part: Part, message: Message) -> Message | None:
        """A message that says whether its steps were taken before this run; None if it is no news.

        Raises:
            ValueError: if it tells a rung before how it trains, for which others wait, or asks that without end.
        """
        if isinstance(message, PathWanted):
            self._path.want(part.index)
            return None
        if isinstance(message, EngineChosen):
            self._path.told(part.index, message)
            # The part that measured has told why.
            return None if message.reason == AS_OTHERS else message
        if isinstance(message, PartReached) and self._path.is_owing(part.index):
            raise ValueError(f"part {part.index} reached a rung before it told how its lanes train")
        if isinstance(message, Resumed) and part.index in self._unparked:
            self._unparked.remove(part.index)
            return None
        if isinstance(message, Resumed):
            message = replace(message, is_again=part.index in self._begun)
        if isinstance(message, Progressed | Resumed | PartReached | CheckpointSaved):
            self._begun.add(part.index)
        return message

    def _finish(self, part: Part) -> TrainingError | None:
        """A part's process has answered to the end: with everything, one hopes."""
        if not self._joined.is_done(part.index):
            return TrainingError(
                "the training process ended a cohort without all its results", cause="bad_output"
            )
        self._release(part, ends=False)
        return None

    def _recover(self, part: Part, error: TrainingError) -> None:
        """Count what broke; the part goes on later from its checkpoint.

        Raises:
            ReplanError: if a trial has used up its tries.
        """
        # A process that ended because this worker stops, or lost its lease, did not break: no trial pays for it.
        self._signals.check()
        log.warning(
            "training broke",
            action="training_failed",
            study_id=self._study_id,
            part=part.index,
            slot=part.slot.name if part.slot else None,
            cause=error.cause,
            error=str(error),
        )
        self._release(part, ends=True)
        left = (
            []
            if self._joined.is_done(part.index)
            else [each.id for each in self._joined.left(part.index).trials]
        )
        if not left:
            return
        counted = self._count(error, [error.trial_id] if error.trial_id in left else left)
        part.not_before = time.monotonic() + counted.delay_seconds
        if counted.num_failed:
            raise ReplanError

    def _answer_paths(self) -> None:
        """Tell parts how to train: as the first of them measured."""
        parts = {each.index: each for each in self._parts}
        for index, path in self._path.answers():
            parts[index].tell({"kind": "path", "path": path})

    def _decide(self) -> None:
        """Pass decisions on; whoever holds more slots than its share gives the rest away here."""
        excess = self._pool.num_excess(self._study_id)
        for part in self._parts:
            rung = None if part.slot is None else self._joined.waits_at(part.index)
            pruned = None if rung is None else self._joined.decision(rung, part.index)
            if rung is None or pruned is None:
                continue
            if excess > 0:
                excess -= 1
                self._park(part, rung)
                continue
            part.tell({"kind": "decision", "index": rung, "pruned": list(pruned)})
            self._joined.sent(part.index)


class Patience:
    """Waits for a slot that can be used, but not for ever.

    Args:
        pool: the worker's slots.
    """

    #: How long all slots may be set aside before the study is handed back, in seconds.
    SECONDS = 30.0

    def __init__(self, pool: SlotPool) -> None:
        self._pool = pool
        self._since: float | None = None

    def check(self, *, is_idle: bool) -> None:
        """Look whether there is something to wait for.

        Args:
            is_idle: whether the study trains nothing now.

        Raises:
            NoDeviceError: if every slot has been set aside for too long; it says why.
        """
        if not is_idle or self._pool.num_usable:
            self._since = None
            return
        self._since = self._since or time.monotonic()
        if time.monotonic() - self._since >= self.SECONDS:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self._pool.reasons().items())
            raise NoDeviceError(f"no device of this worker can be used: {reasons}")
