"""The training side of a study whose worker has slots: a `service.worker.side.TrainingSide`.

A probe, and a cohort that trains in one piece, take one slot; every other cohort is split over as many as are the
study's share. Slots are given back after each request, so that studies which share a worker take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from service.launchers.protocol import Message, Ready
from service.settings import Settings
from service.worker import checkpoints
from service.worker.cohort_run import CohortRun, Patience
from service.worker.pool import SlotPool
from service.worker.side import CohortTask, Count
from service.worker.slot import Slot
from service.worker.training import TICK_SECONDS, Signals, StartError, Training, require_belonging
from tuner.training.parts import Grid, choose_grid

#: What a process says that stands for a cluster, until one of its nodes speaks.
CLUSTER = "ray"


class SlotTraining:
    """Trains for one study on the slots of its worker.

    Args:
        pool: the slots; the study has entered it.
        study_id: which.
        settings: times, and where checkpoints are.
        signals: looked at between messages.
        on_ready: called once for each process that trains for the study, with the name of its slot.

    Attributes:
        ready: what the newest process said of itself; None before the first.
    """

    def __init__(
        self,
        pool: SlotPool,
        study_id: str,
        *,
        settings: Settings,
        signals: Signals,
        on_ready: Callable[[str, Ready], None],
    ) -> None:
        self.ready: Ready | None = None
        self._pool = pool
        self._study_id = study_id
        self._settings = settings
        self._signals = signals
        self._on_ready = on_ready
        self._known: set[Ready] = set()
        self._seconds = 0.0
        self._limit = len(pool)
        self._held_since: float | None = None
        self._run: CohortRun | None = None

    @property
    def device_seconds(self) -> float:
        """How long slots were held so far, over all of them."""
        alone = time.monotonic() - self._held_since if self._held_since is not None else 0.0
        return self._seconds + alone + (self._run.held_seconds if self._run is not None else 0.0)

    def measure(self, request: Mapping[str, Any]) -> Iterator[Sequence[Message]]:
        """Probe on one slot; see `service.worker.side.TrainingSide`."""
        return self._alone(request)

    def train(self, task: CohortTask, count: Count) -> Iterator[Sequence[Message]]:
        """Train a cohort; see `service.worker.side.TrainingSide`."""
        if task.is_whole:
            for batch in self._alone(
                {"kind": "cohort", "cohort": task.cohort.to_json(), "checkpoints": None}
            ):
                require_belonging(task.cohort, batch)
                yield batch
            return
        grid = self._grid(task)
        run = self._run = CohortRun(
            task,
            grid,
            study_id=self._study_id,
            pool=self._pool,
            train_on=self._train_on,
            folder=lambda part: checkpoints.part_folder(
                self._settings.checkpoint_root, self._study_id, task.number, grid, part
            ),
            count=count,
            signals=self._signals,
        )
        try:
            yield from run.events()
        finally:
            run.end()
            self._seconds, self._run = self._seconds + run.held_seconds, None
            self._learn(grid, run.num_starved)

    def stop(self) -> None:
        """End the study's processes, if there are any; safe from any thread, twice too."""
        self._pool.stop_processes(self._study_id)

    def drop(self) -> None:
        """End them; the next request starts others."""
        self.stop()

    def _grid(self, task: CohortTask) -> Grid:
        """How a cohort is split: as it was before, so that it finds its checkpoints, or over the study's share."""
        num_trials, num_seeds = len(task.whole), len(task.cohort.seeds)
        found = checkpoints.find_grid(self._settings.checkpoint_root, self._study_id, task.number)
        if found and found.num_seed_groups <= num_seeds and found.num_trial_groups <= num_trials:
            return found
        share = self._pool.share(self._study_id, num_trials * num_seeds)
        return choose_grid(num_trials, num_seeds, max(1, min(share, self._limit)))

    def _learn(self, grid: Grid, num_starved: int) -> None:
        """Split the next cohort no further than a cluster had devices for this one; twice as far if it had enough.

        Parts beyond its devices take turns with the others at every rung, which costs a process each time.
        """
        had = grid.num_parts - num_starved
        self._limit = max(1, had) if num_starved else min(2 * self._limit, len(self._pool))

    def _alone(self, request: Mapping[str, Any]) -> Iterator[Sequence[Message]]:
        """Answer a request on one slot; on another, if that one can't be made ready.

        Yields:
            At least one message.

        Raises:
            TrainingError: if the training broke.
        """
        while True:
            with self._held() as slot:
                try:
                    yield from self._train_on(slot).answers(request)
                    return
                except StartError as error:
                    self._signals.check()
                    self._pool.set_aside(slot, self._study_id, str(error))

    @contextmanager
    def _held(self) -> Iterator[Slot]:
        """Hold a slot as soon as it is this study's turn."""
        patience = Patience(self._pool)
        self._pool.want(self._study_id, 1)
        while (slot := self._pool.take(self._study_id)) is None:
            self._signals.check()
            patience.check(is_idle=True)
            time.sleep(TICK_SECONDS)
        self._held_since, is_whole = time.monotonic(), False
        try:
            yield slot
            is_whole = True
        finally:
            self._seconds, self._held_since = self.device_seconds, None
            if not is_whole:
                # In the middle of a request: what it would tell next is nobody's any more.
                self._pool.drop(slot, self._study_id)
            self._pool.give_back(slot, self._study_id)

    def _train_on(self, slot: Slot) -> Training:
        return Training(
            lambda: self._pool.process(slot),
            stall_seconds=self._settings.stall_seconds,
            signals=self._signals,
            on_ready=lambda ready: self._welcome(slot, ready),
        )

    def _welcome(self, slot: Slot, ready: Ready) -> None:
        """A process is ready, on the device that it should have.

        Raises:
            StartError: if it is another.
        """
        if objection := slot.objection(ready):
            raise StartError(objection, cause="device_lost")
        if ready.device == CLUSTER or ready in self._known:
            return
        self._known.add(ready)
        self.ready = ready
        self._on_ready(slot.name, ready)
