"""The slots of a worker: each trains one thing at a time, and several studies share them.

A `SlotPool` hands slots to studies by `service.worker.shares`, keeps the training process of a slot for the study that
used it last, and sets a slot aside whose process can't be made ready, with the reason, until one can: `revive` tries.
What a process does once it is ready says nothing about its device, so nothing that a workload does sets a slot aside.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from service.errors import TrainingError
from service.launchers.process import TrainingProcess
from service.worker.shares import Claim, fair_shares, next_study, num_excess
from service.worker.slot import Slot

log = structlog.get_logger(__name__)

#: How long a slot is set aside the first time, doubled up to the second figure while it goes on, in seconds.
_ASIDE_SECONDS = (5.0, 300.0)
#: How long a process may take to be ready on a slot that is tried again, in seconds.
_START_SECONDS = 120.0
#: Longest reason that is kept of a slot, in characters.
_REASON_LENGTH = 500


class SlotPool:
    """Gives a worker's slots to its studies; safe from all of its threads.

    Args:
        slots: at least one.
        keeps_warm: whether a free slot has a process that waits for the next study.
        clock: monotonic seconds.
    """

    def __init__(
        self, slots: Sequence[Slot], *, keeps_warm: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._slots = tuple(slots)
        self._keeps_warm = keeps_warm
        self._clock = clock
        self._claims: dict[str, Claim] = {}
        self._arrivals = 0
        self._changed = 0
        self._closed = False
        self._lock = threading.RLock()
        self._left = threading.Condition(self._lock)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def version(self) -> int:
        """Grows with every change of what `to_json` says."""
        return self._changed

    @property
    def num_usable(self) -> int:
        """Slots that are not set aside."""
        with self._lock:
            return sum(each.reason is None for each in self._slots)

    @property
    def num_free(self) -> int:
        """Usable slots that no study holds."""
        with self._lock:
            return sum(each.reason is None and each.study_id is None for each in self._slots)

    def to_json(self) -> list[dict[str, Any]]:
        """The slots as ``GET /v1/workers`` shows them."""
        with self._lock:
            return [each.to_json() for each in self._slots]

    def reasons(self) -> dict[str, str]:
        """Why slots are set aside, by their name."""
        with self._lock:
            return {each.name: each.reason for each in self._slots if each.reason is not None}

    def enter(self, study_id: str, *, tenant_id: str, priority: int = 0) -> None:
        """Make a study known; it holds and wants nothing yet.

        Who comes with another lease of a study waits until the one before has left: both would use its slots.

        Args:
            study_id: which.
            tenant_id: whose.
            priority: higher goes first.
        """
        with self._lock:
            self._left.wait_for(lambda: study_id not in self._claims)
            self._arrivals += 1
            self._claims[study_id] = Claim(
                study_id=study_id, tenant_id=tenant_id, priority=priority, arrived=self._arrivals
            )

    def leave(self, study_id: str) -> None:
        """Forget a study: its slots are free, its processes end, and fresh ones take their place if that is wanted."""
        with self._lock:
            if self._claims.pop(study_id, None) is None:
                return
            left = [each for each in self._slots if study_id in (each.study_id, each.process_of)]
            ending = [each.process for each in left if each.process is not None]
            for each in left:
                each.process = each.process_of = None
                # Its process may wait in a slot that another study has taken already.
                if each.study_id == study_id:
                    each.study_id = None
            self._changed += 1
            self._left.notify_all()
        stop_all(ending)
        if self._keeps_warm:
            self.warm()

    def warm(self) -> None:
        """Start a process in every slot that is free, can be used and has none."""
        with self._lock:
            for each in self._slots:
                if (
                    each.process is None
                    and each.study_id is None
                    and each.reason is None
                    and not self._closed
                ):
                    # The next study that takes the slot says what is wrong with it.
                    with suppress(OSError):
                        each.process = each.launch()

    def adopt(self, name: str, process: TrainingProcess) -> None:
        """Keep a process that was started for a slot before there was a pool."""
        with self._lock:
            slot = next(each for each in self._slots if each.name == name)
            slot.process, slot.process_of = process, None

    def want(self, study_id: str, num_wanted: int) -> int:
        """Say how many slots a study could use beside those that it holds.

        Args:
            study_id: which.
            num_wanted: further slots, 0 if it needs none.

        Returns:
            How many of the free ones would be its own now.
        """
        with self._lock:
            self._claims[study_id] = replace(self._claims[study_id], num_wanted=num_wanted)
            claims, granted = dict(self._claims), 0
            for _ in range(self.num_free):
                chosen = next_study(claims.values())
                if chosen is None:
                    break
                granted += chosen == study_id
                claim = claims[chosen]
                claims[chosen] = replace(claim, num_held=claim.num_held + 1, num_wanted=claim.num_wanted - 1)
            return granted

    def take(self, study_id: str) -> Slot | None:
        """Take one of the slots that a study wants, if it is its turn; the one that it had last, if that is free.

        Args:
            study_id: which.

        Returns:
            A slot of its own until it is given back.
        """
        with self._lock:
            claim = self._claims[study_id]
            if not claim.num_wanted or not self.want(study_id, claim.num_wanted):
                return None
            free = [each for each in self._slots if each.reason is None and each.study_id is None]
            slot = min(
                free, key=lambda each: (each.process_of not in (study_id, None), each.process_of is None)
            )
            slot.study_id = study_id
            self._claims[study_id] = replace(
                claim, num_held=claim.num_held + 1, num_wanted=claim.num_wanted - 1
            )
            self._changed += 1
            return slot

    def give_back(self, slot: Slot, study_id: str) -> None:
        """Free a slot; its process stays for its study.

        Args:
            slot: taken before.
            study_id: by whom; nothing happens if it is no longer theirs.
        """
        with self._lock:
            if slot.study_id != study_id:
                return
            claim = self._claims.get(study_id)
            if claim is not None:
                self._claims[study_id] = replace(claim, num_held=claim.num_held - 1)
            slot.study_id = None
            self._changed += 1

    def process(self, slot: Slot) -> TrainingProcess:
        """The training process of a slot for the study that holds it: its own of before, an unused one, or a new one.

        Args:
            slot: held.

        Returns:
            A process that no other study has used.

        Raises:
            OSError: if none can be started.
        """
        with self._lock:
            found, of = slot.process, slot.process_of
            slot.process = None
        if found is not None and (of not in (slot.study_id, None) or not found.is_alive):
            found.stop()
            found = None
        process = found or slot.launch()
        with self._lock:
            if self._closed or slot.study_id is None:
                process.stop()
            slot.process, slot.process_of = process, slot.study_id
        return process

    def drop(self, slot: Slot, study_id: str) -> None:
        """End the process of a slot; the next one is new.

        Args:
            slot: taken before.
            study_id: by whom; nothing happens if it is no longer theirs.
        """
        with self._lock:
            if slot.study_id != study_id:
                return
            process, slot.process, slot.process_of = slot.process, None, None
        if process is not None:
            process.stop()

    def set_aside(self, slot: Slot, study_id: str, reason: str) -> None:
        """Give back a slot that can't be used, and leave it alone for a while.

        Args:
            slot: held; its process ends.
            study_id: by whom.
            reason: what was wrong; its first line and its last are kept.
        """
        self.drop(slot, study_id)
        with self._lock:
            self._refuse(slot, reason)
            self.give_back(slot, study_id)

    def tend(self) -> None:
        """Look after the slots that no study holds; call it a few times a second.

        A slot that is set aside is tried again when its time has come, and one whose unused process ends, or has
        another device than it should, is set aside before a study finds out.
        """
        with self._lock:
            for slot in self._slots:
                if slot.study_id is not None or self._closed:
                    continue
                try:
                    self._look_after(slot)
                except (OSError, TrainingError) as error:
                    self._forget_process(slot)
                    self._refuse(slot, str(error))

    def _look_after(self, slot: Slot) -> None:
        """Start a process on a slot that is set aside, or look at the one that waits there.

        Raises:
            OSError: if none can be started.
            TrainingError: if it ended, took too long, or has another device.
        """
        process = slot.process
        if process is None:
            if slot.reason is not None and self._clock() >= slot.again_at:
                slot.process, slot.again_at = slot.launch(), self._clock() + _START_SECONDS
            return
        if slot.process_of is not None and not process.is_alive:
            # What its study did with it says nothing about the device.
            return self._forget_process(slot)
        if process.ready is None or not process.is_alive:
            process.receive(0)
        if process.ready is not None:
            if objection := slot.objection(process.ready):
                raise TrainingError(objection, cause="device_lost")
            self._confirm(slot)
        elif slot.reason is not None and self._clock() >= slot.again_at:
            raise TrainingError(
                f"no training process was ready within {_START_SECONDS:g} s", cause="device_lost"
            )

    def _forget_process(self, slot: Slot) -> None:
        process, slot.process, slot.process_of = slot.process, None, None
        if process is not None:
            threading.Thread(target=process.stop).start()

    def _refuse(self, slot: Slot, reason: str) -> None:
        first, longest = _ASIDE_SECONDS
        # A device may be away for months: no power of two that a float can't hold.
        pause = min(first * 2 ** min(slot.num_failures, 30), longest)
        slot.num_failures += 1
        slot.again_at = self._clock() + pause
        # What happened, and the last that the process had to say.
        first_line, *rest = reason.strip().splitlines() or ["no reason was given"]
        slot.reason = ": ".join([first_line, *rest[-1:]])[:_REASON_LENGTH]
        self._changed += 1
        log.warning("slot set aside", action="slot_aside", slot=slot.name, reason=slot.reason, seconds=pause)

    def _confirm(self, slot: Slot) -> None:
        if slot.reason is not None:
            log.info("slot is back", action="slot_back", slot=slot.name)
            self._changed += 1
        slot.reason, slot.num_failures = None, 0

    def share(self, study_id: str, num_wanted: int) -> int:
        """How many slots would be a study's if it could use so many.

        Args:
            study_id: which.
            num_wanted: all that it could use, those included that it holds.

        Returns:
            0 if others go first and leave none.
        """
        with self._lock:
            mine = replace(self._claims[study_id], num_held=0, num_wanted=num_wanted)
            claims = self._claims | {study_id: mine}
            return fair_shares(tuple(claims.values()), self.num_usable)[study_id]

    def num_excess(self, study_id: str) -> int:
        """How many of its slots a study should let others have, at its next rung."""
        with self._lock:
            return num_excess(tuple(self._claims.values()), self.num_usable, study_id)

    def stop_processes(self, study_id: str) -> None:
        """End the processes of a study at once; its slots stay its own."""
        with self._lock:
            ending = [each.process for each in self._slots if each.process_of == study_id and each.process]
        stop_all(ending)

    def close(self) -> None:
        """End every process; nothing is started any more."""
        with self._lock:
            self._closed = True
            ending = [each.process for each in self._slots if each.process is not None]
        stop_all(ending)


def stop_all(processes: Iterable[TrainingProcess]) -> None:
    """End processes side by side: each may take its whole grace.

    Args:
        processes: any number.
    """
    stopping = [threading.Thread(target=each.stop) for each in processes]
    for thread in stopping:
        thread.start()
    for thread in stopping:
        thread.join()
