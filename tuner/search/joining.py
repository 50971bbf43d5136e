"""What the parts of a cohort tell, joined into what the cohort would have told as one. Pure, no torch.

Rungs are compared across all parts, in order; what a rung decides is known as soon as the rung has been passed on,
and stands. A part that was launched again tells things twice: nothing is passed on twice, and its decisions are
ready. Whoever drives the parts writes down what `JoinedCohort.take` gives before it sends a decision.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tuner.evidence import LaneResult
from tuner.search.halving import halving
from tuner.training.cohort import (
    CheckpointFailed,
    CheckpointSaved,
    Cohort,
    EngineChosen,
    Event,
    LaneValue,
    PartReached,
    Progressed,
    Resumed,
    RungReached,
    TrialEnded,
)

#: A trial and a seed.
_Lane = tuple[str, int]


@dataclass
class _Part:
    """Where one part is.

    Attributes:
        cohort: its trials and seeds.
        waits_at: the rung at which its process waits.
        sent_at: the last rung whose decision its process was sent; -1 before.
        progress: the newest it told.
        ended: trials of which it told the end.
    """

    cohort: Cohort
    waits_at: int | None = None
    sent_at: int = -1
    progress: Progressed | None = None
    ended: set[str] = field(default_factory=set)

    @property
    def num_steps(self) -> int:
        """Steps that all its lanes have in full runs."""
        return len(self.cohort.trials) * len(self.cohort.seeds) * self.cohort.rung_steps[-1]


class JoinedCohort:
    """A cohort that trains in parts.

    Args:
        cohort: all of what is left to train, with its history.
        parts: by index, as `tuner.training.parts.split` gives them.
        known: by rung step, trial and seed, the objectives that are recorded already of the cohort's open trials; inf
            is diverged. A rung that is known completely is decided at once, and not told again.
        ended_at: of the cohort's ended trials that were pruned, the index of the rung.
    """

    def __init__(
        self,
        cohort: Cohort,
        parts: Mapping[int, Cohort],
        *,
        known: Mapping[int, Mapping[str, Mapping[int, float]]],
        ended_at: Mapping[str, int],
    ) -> None:
        self._cohort = cohort
        self._parts = {index: _Part(part) for index, part in parts.items()}
        self._ended_at = dict(ended_at)
        self._halve = halving(cohort.rung_steps, cohort.clips)
        self._protected = {trial.id for trial in cohort.trials if trial.protected}
        #: What was measured, by rung; inf is diverged.
        self._values: list[dict[_Lane, float]] = [{} for _ in cohort.rung_steps]
        self._results: dict[_Lane, LaneResult] = {}
        self._saved: list[dict[int, CheckpointSaved]] = [{} for _ in cohort.rung_steps]
        #: Per rung that was decided, the trials that end there; and those live before it, of the next rung too.
        self._ending: list[set[str]] = []
        self._live: list[tuple[str, ...]] = [tuple(trial.id for trial in cohort.trials)]
        #: Trials whose end was decided and not passed on.
        self._to_end: deque[tuple[str, Literal["complete", "pruned"]]] = deque()
        self._told_saved: set[int] = set()
        self._told_engines: set[tuple[str, str]] = set()
        for index, step in enumerate(cohort.rung_steps):
            found = known.get(step, {})
            self._values[index] = {
                (trial, seed): value for trial, by_seed in found.items() for seed, value in by_seed.items()
            }
            if not self._is_next_complete():
                self._values[index].clear()
                break
            self._decide()

    def take(self, part: int, message: Event) -> list[Event]:
        """What follows for the whole cohort from what a part told.

        Args:
            part: its index.
            message: any event of a part.

        Returns:
            Events of the cohort, in the order in which one slot would have told them: a rung, then the trials that
            end there, then its checkpoint. Progress is summed over the parts; a checkpoint is told once all parts
            that live at its rung have theirs; how lanes train is told once per way and reason.

        Raises:
            ValueError: if the message can't be this part's: another trial, seed or rung, a value that lacks, a trial
                that should not have ended.
        """
        own = self._parts[part]
        match message:
            case PartReached():
                self._reach(own, message)
            case TrialEnded():
                self._end(own, message)
            case CheckpointSaved():
                self._require(message.index < len(self._saved), own, message)
                self._saved[message.index][part] = message
            case Progressed():
                own.progress = message
                return [self._progress(message.step)]
            case EngineChosen():
                if (way := (message.path, message.reason)) in self._told_engines:
                    return []
                self._told_engines.add(way)
                return [message]
            case Resumed() | CheckpointFailed():
                return [message]
            case _:
                self._require(False, own, message)
        return list(self._follow())

    def waits_at(self, part: int) -> int | None:
        """The rung at which a part waits for a decision.

        Args:
            part: its index.

        Returns:
            The rung's index; None while the part trains, and after `sent` or `lost`.
        """
        return self._parts[part].waits_at

    def decision(self, index: int, part: int) -> tuple[str, ...] | None:
        """Which trials of a part end at a rung.

        Args:
            index: number of the rung, from 0; not the last.
            part: the part's index.

        Returns:
            Their ids, with ended ones that the part may train again, untold; None if it is not known yet.
        """
        if index >= len(self._ending):
            return None
        own = self._parts[part].cohort
        ending = self._ending[index]
        again = tuple(trial for trial in own.ended if self._ended_at.get(trial) == index)
        return (*(trial.id for trial in own.trials if trial.id in ending), *again)

    def sent(self, part: int) -> None:
        """A part was sent the decision that it waited for.

        Args:
            part: its index.
        """
        own = self._parts[part]
        if own.waits_at is not None:
            own.sent_at, own.waits_at = own.waits_at, None

    def lost(self, part: int) -> None:
        """A part's process is gone: it waits nowhere until one that was launched again tells so.

        Args:
            part: its index.
        """
        own = self._parts[part]
        own.sent_at, own.waits_at = -1, None

    def left(self, part: int) -> Cohort:
        """What is left of a part, for another launch.

        Args:
            part: its index.

        Returns:
            The part's trials but those whose end it told; these are among its ended ones.
        """
        own = self._parts[part]
        return replace(
            own.cohort,
            trials=tuple(trial for trial in own.cohort.trials if trial.id not in own.ended),
            ended=(
                *own.cohort.ended,
                *(trial.id for trial in own.cohort.trials if trial.id in own.ended),
            ),
        )

    @property
    def has_all(self) -> bool:
        """Whether all results of the cohort were passed on."""
        return not self._live[-1] and not self._to_end

    def is_done(self, part: int) -> bool:
        """Whether a part has told all its results.

        Args:
            part: its index.

        Returns:
            True if nothing of it is left to train.
        """
        own = self._parts[part]
        return len(own.ended) == len(own.cohort.trials)

    def _reach(self, own: _Part, message: PartReached) -> None:
        """Note what a part measured at a rung, and that it waits there."""
        index, steps = message.index, self._cohort.rung_steps
        values = {
            (each.trial_id, each.seed): math.inf if each.value is None else each.value
            for each in message.values
        }
        is_rung = index <= min(len(self._ending), len(steps) - 1) and message.step == steps[index]
        # A process that had its answer has no reason to ask again; one that does so without end would not read it.
        is_new = index > own.sent_at
        self._require(is_rung and is_new and values.keys() <= set(_lanes(own.cohort)), own, message)
        # What was compared already stays, though a device may give other bits the second time.
        if index == len(self._ending):
            live = set(self._live[index]) - own.ended
            needed = {lane for lane in _lanes(own.cohort) if lane[0] in live}
            self._require(values.keys() >= needed, own, message)
            self._values[index] |= values
        own.waits_at = index if index < len(steps) - 1 else None

    def _end(self, own: _Part, message: TrialEnded) -> None:
        """Keep what a part says of a trial that ended, if it should have."""
        trial, last = message.trial_id, len(self._cohort.rung_steps) - 1
        is_ours = any(each.id == trial for each in own.cohort.trials)
        is_whole = tuple(lane.seed for lane in message.lanes) == own.cohort.seeds
        if message.state == "pruned":
            should_end = any(trial in ending for ending in self._ending[:last])
        else:
            should_end = all((trial, seed) in self._values[last] for seed in own.cohort.seeds)
        self._require(is_ours and is_whole and should_end, own, message)
        own.ended.add(trial)
        for lane in message.lanes:
            self._results.setdefault((trial, lane.seed), lane)

    def _follow(self) -> Iterator[Event]:
        """Everything that can be told now."""
        while True:
            while self._to_end:
                trial, state = self._to_end[0]
                lanes = tuple(map(self._results.get, self._lanes([trial])))
                if None in lanes:
                    return
                self._to_end.popleft()
                yield TrialEnded(trial_id=trial, state=state, lanes=tuple(filter(None, lanes)))
            yield from self._joined_checkpoints()
            if not self._is_next_complete():
                return
            yield self._decide()

    def _is_next_complete(self) -> bool:
        """Whether there is a next rung, and all its values."""
        index = len(self._ending)
        live = self._live[index]
        return bool(live) and all(lane in self._values[index] for lane in self._lanes(live))

    def _decide(self) -> RungReached:
        """Compare the next rung, all of whose values are there."""
        index = len(self._ending)
        step, live = self._cohort.rung_steps[index], self._live[index]
        values = {lane: self._values[index][lane] for lane in self._lanes(live)}
        pruned: tuple[str, ...] = ()
        if is_last := index == len(self._cohort.rung_steps) - 1:
            self._to_end.extend((trial, "complete") for trial in live)
        else:
            by_trial = {trial: tuple(map(values.__getitem__, self._lanes([trial]))) for trial in live}
            pruned = self._halve(by_trial, self._cohort.history.get(step, ()), self._protected)
            self._to_end.extend((trial, "pruned") for trial in pruned)
        ending = set(live if is_last else pruned)
        self._ending.append(ending)
        self._live.append(tuple(trial for trial in live if trial not in ending))
        told = tuple(
            LaneValue(trial_id=trial, seed=seed, value=None if value == math.inf else value)
            for (trial, seed), value in values.items()
        )
        return RungReached(index=index, step=step, values=told, pruned=pruned)

    def _joined_checkpoints(self) -> Iterator[CheckpointSaved]:
        """The rungs passed on at which every part that lived has a checkpoint now."""
        for index, saved in enumerate(self._saved[: len(self._ending)]):
            if not saved or index in self._told_saved:
                continue
            live = set(self._live[index])
            lives = (
                number
                for number, part in self._parts.items()
                if any(trial.id in live for trial in part.cohort.trials)
            )
            if all(number in saved for number in lives):
                self._told_saved.add(index)
                told = saved.values()
                num_bytes, seconds = sum(each.num_bytes for each in told), max(each.seconds for each in told)
                yield CheckpointSaved(
                    index=index, step=self._cohort.rung_steps[index], num_bytes=num_bytes, seconds=seconds
                )

    def _progress(self, step: int) -> Progressed:
        parts = self._parts.values()
        return Progressed(
            lane_steps=sum(part.progress.lane_steps for part in parts if part.progress),
            total_lane_steps=sum(
                part.progress.total_lane_steps if part.progress else part.num_steps for part in parts
            ),
            step=step,
        )

    def _lanes(self, trials: Sequence[str]) -> list[_Lane]:
        return [(trial, seed) for trial in trials for seed in self._cohort.seeds]

    def _require(self, holds: bool, own: _Part, message: Event) -> None:
        """Refuse a message.

        Raises:
            ValueError: if it does not hold that it may be told.
        """
        if not holds:
            number = next(index for index, part in self._parts.items() if part is own)
            raise ValueError(
                f"part {number} told a {message.kind} event that can't follow what was told before"
            )


def _lanes(part: Cohort) -> list[_Lane]:
    return [(trial.id, seed) for trial in part.trials for seed in part.seeds]
