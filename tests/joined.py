"""A cohort's parts driven in this process, in any order and with any faults: what a worker does, without processes.

Parts are generators of events. What `JoinedCohort.take` gives is recorded before a decision can be had; a driver that
dies goes on from its records, of which the newest may be missing.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Collection, Generator, Iterable
from random import Random

from tuner.search.joining import JoinedCohort
from tuner.training.cohort import Cohort, Event, RungReached, TrialEnded
from tuner.training.parts import Grid, split

#: Most deaths of each kind in a run: a cohort whose parts die faster than they train never ends.
MOST = 12

#: ``start(index of the part, what is left of it, decide) -> its events``.
Start = Callable[[int, Cohort, Callable[[int], Collection[str]]], Generator[Event, None, None]]


class Driver:
    """Drives the parts of one cohort to its end.

    Args:
        cohort: all of it.
        grid: how it is split.
        start: makes a part's training.

    Attributes:
        recorded: the cohort's events.
        num_kills: parts that were ended on the way.
        num_restarts: how often the driver itself died.
    """

    def __init__(self, cohort: Cohort, grid: Grid, start: Start) -> None:
        self.cohort = cohort
        self.grid = grid
        self.recorded: list[Event] = []
        self.num_kills = 0
        self.num_restarts = 0
        self._start = start

    def run(self, random: Random, *, kills: float = 0.0, restarts: float = 0.0) -> list[Event]:
        """Drive until all is recorded.

        Args:
            random: picks who goes on, and who dies.
            kills: chance per event that its part is ended and launched again.
            restarts: chance per event that the driver is.

        Returns:
            What was recorded.
        """
        while self._left().trials:
            self._live_once(random, kills, restarts)
        return self.recorded

    def _live_once(self, random: Random, kills: float, restarts: float) -> None:
        """From the records to the end, or to the driver's death."""
        left = self._left()
        parts = split(left, [trial.id for trial in self.cohort.trials], self.grid)
        joined = JoinedCohort(left, parts, known=self._known(left), ended_at=self._ended_at(left))
        running = {part: self._launch(joined, part) for part in parts}
        while not joined.has_all:
            part = random.choice([each for each in parts if self._can_go_on(joined, running, each)])
            if joined.waits_at(part) is not None:
                joined.sent(part)
            message = next(running[part], None)
            if message is None:
                assert joined.is_done(part)
                del running[part]
                continue
            events = joined.take(part, message)
            if self.num_restarts < MOST and random.random() < restarts:
                self.num_restarts += 1
                self.recorded += events[: random.randint(0, len(events))]
                for each in running.values():
                    each.close()
                return
            self.recorded += events
            if self.num_kills < MOST and random.random() < kills and not joined.is_done(part):
                self.num_kills += 1
                running[part].close()
                joined.lost(part)
                running[part] = self._launch(joined, part)

    def _launch(self, joined: JoinedCohort, part: int) -> Generator[Event, None, None]:
        def decide(index: int) -> Collection[str]:
            pruned = joined.decision(index, part)
            assert pruned is not None, "the part was to wait"
            return pruned

        return self._start(part, joined.left(part), decide)

    @staticmethod
    def _can_go_on(joined: JoinedCohort, running: Collection[int], part: int) -> bool:
        rung = joined.waits_at(part)
        return part in running and (rung is None or joined.decision(rung, part) is not None)

    def _rungs(self) -> dict[int, RungReached]:
        return {event.step: event for event in self.recorded if isinstance(event, RungReached)}

    def _left(self) -> Cohort:
        """The cohort as `tuner.search.planning.plan_cohort` makes it of the records."""
        ended = tuple(event.trial_id for event in self.recorded if isinstance(event, TrialEnded))
        history = {step: list(self.cohort.history.get(step, ())) for step in self.cohort.rung_steps}
        for step, rung in self._rungs().items():
            values = _by_trial(rung)
            history[step] += [statistics.fmean(values[trial].values()) for trial in ended if trial in values]
        return dataclasses.replace(
            self.cohort,
            trials=tuple(trial for trial in self.cohort.trials if trial.id not in ended),
            history={step: tuple(values) for step, values in history.items()},
            ended=ended,
        )

    def _known(self, left: Cohort) -> dict[int, dict[str, dict[int, float]]]:
        open_trials = {trial.id for trial in left.trials}
        return {
            step: {trial: values for trial, values in _by_trial(rung).items() if trial in open_trials}
            for step, rung in self._rungs().items()
        }

    def _ended_at(self, left: Cohort) -> dict[str, int]:
        return {
            trial: rung.index
            for rung in self._rungs().values()
            for trial in rung.pruned
            if trial in left.ended
        }


def results(events: Iterable[Event]) -> list[RungReached | TrialEnded]:
    """Rungs and ended trials in their order, without what depends on how lanes were shared among processes."""
    found: list[RungReached | TrialEnded] = []
    for event in events:
        if isinstance(event, RungReached):
            found.append(event)
        elif isinstance(event, TrialEnded):
            lanes = tuple(dataclasses.replace(lane, seconds=0.0, num_shared_steps=0) for lane in event.lanes)
            found.append(dataclasses.replace(event, lanes=lanes))
    return found


def _by_trial(rung: RungReached) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for each in rung.values:
        found.setdefault(each.trial_id, {})[each.seed] = math.inf if each.value is None else each.value
    return found
