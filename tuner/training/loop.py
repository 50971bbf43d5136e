"""Train a cohort rung by rung and tell what happens. The loop decides nothing about a trial's worth itself.

At every rung: advance all live lanes, evaluate them, mark the diverged ones, ask the pure ``prune`` function
which trials end here, retire those, go on. A part of a cohort asks ``decide`` instead, which may wait for the other
parts. Events are yielded as they happen, so that the caller can stream them; on a CPU the same cohort on the same
engine gives the same results bit for bit, however its events are consumed.
Which engine `auto` takes rests on measured speed, and two engines agree up to rounding; the parts of a cohort ask
``ask_path``, so that one of them measures for all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from tuner.errors import ProbeError
from tuner.evidence import LaneResult
from tuner.training.auto import AskPath, AutoEngine
from tuner.training.checkpoint import Checkpoints
from tuner.training.cohort import (
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
from tuner.training.engine import Engine, EngineState, Evaluation, LaneId
from tuner.training.rehearsals import Rehearsals
from tuner.training.resumption import CohortCheckpoints, CohortState
from tuner.training.solo import Clock
from tuner.workloads.base import AnyWorkload

#: ``prune(values by trial, one per seed and inf = diverged; history at this rung; protected) -> trials that end``.
Prune = Callable[[Mapping[str, Sequence[float]], Sequence[float], Collection[str]], Collection[str]]

#: ``decide(index of a rung) -> trials that end there``; may wait.
Decide = Callable[[int], Collection[str]]

#: Least time between two `Progressed` events.
PROGRESS_SECONDS = 1.0


def never_prune(
    values: Mapping[str, Sequence[float]], history: Sequence[float], protected: Collection[str]
) -> tuple[str, ...]:
    """Keep every trial to the last rung.

    Args:
        values: unused.
        history: unused.
        protected: unused.

    Returns:
        No trial.
    """
    del values, history, protected
    return ()


def train_cohort(
    cohort: Cohort,
    workload: AnyWorkload,
    *,
    prune: Prune = never_prune,
    decide: Decide | None = None,
    ask_path: AskPath | None = None,
    engine: Engine | None = None,
    checkpoints: Checkpoints | None = None,
    device: torch.device | str = "cpu",
    compiles: bool = False,
    rehearsals: Rehearsals | None = None,
    clock: Clock = time.monotonic,
) -> Iterator[Event]:
    """Train all trials of a cohort under all its seeds.

    A lane diverges at its first non-finite loss or gradient, or at a rung where its validation loss is non-finite
    or passes ``divergence_factor`` times the (positive) validation loss before the first step. Diverged lanes are
    data: their trial goes on in its other seeds. At the last rung nothing is pruned.

    With checkpoints the cohort goes on from the newest one that fits, and on a CPU it ends bit for bit as an
    undisturbed one. One is written at every rung but the last, once the caller has come back for the event behind
    the rung's last `TrialEnded`: whatever ended before a checkpoint has been told. A checkpoint that can't be
    written or used is told, and training goes on without it. An engine that can't write down its state (an
    optimizer given as a function) has none.

    With ``decide`` this is a part of a cohort: at every rung but the last it writes its checkpoint, tells what it
    measured, and asks once the caller comes back. One that goes on from such a checkpoint tells and asks again, so a
    part that waits may be ended and started anew. A trial goes on in a part where all its lanes have diverged:
    whether it has in the others too is not known here.

    Args:
        cohort: what to train, or what is left of it.
        workload: the cohort's workload with the cohort's parameters.
        prune: decides at each rung but the last; a pure function, for example
            what `tuner.search.halving.halving` gives.
        decide: makes this a part: given a rung's index, which trials end there; what it names beside the live ones
            is ignored. Not together with ``prune``.
        ask_path: see `AutoEngine`; not asked by one that goes on from a checkpoint behind the first step, which keeps
            its path.
        engine: trains the lanes; by default an `AutoEngine` on ``device``.
        checkpoints: the cohort's; None keeps none. Not together with an engine.
        device: where the default engine trains.
        compiles: whether the default engine compiles batched programs with torch.compile.
        rehearsals: what the default engines of earlier cohorts found out; see `AutoEngine`.
        clock: monotonic seconds, for progress and wall time only.

    Yields:
        `CheckpointFailed` for each one that was passed over, `EngineChosen` before the first step and whenever the
        way of training changes, `Resumed` if the cohort goes on from a checkpoint, `Progressed` at most about once a
        second, `RungReached` once per rung (a part `PartReached`), `TrialEnded` once per trial, `CheckpointSaved` or
        `CheckpointFailed` at rungs.

    Raises:
        ValueError: if both an engine and checkpoints, or both ``prune`` and ``decide`` are given.
        LaneError: if the workload's code raised while a lane trained; it names the trial.
        ProbeError: if the validation loss of a seed is not finite before the first step.
    """
    if decide is not None and prune is not never_prune:
        raise ValueError("a part's rungs are decided by decide: leave out prune")
    judge = _Judge(prune, decide)
    if engine is not None and checkpoints is not None:
        raise ValueError("checkpoints need the default engine: leave out engine")
    started, device = clock(), torch.device(device)

    def make(whole: Cohort, state: EngineState | None) -> Engine:
        return AutoEngine(
            whole,
            workload,
            device=device,
            compiles=compiles,
            clock=clock,
            rehearsals=rehearsals,
            ask_path=ask_path,
            state=state,
        )

    if checkpoints is None:
        return _CohortRun(cohort, engine or make(cohort, None), judge, clock).events()
    kept = CohortCheckpoints(checkpoints, workload, device)
    found, failed = kept.find(cohort, make)
    if found is None:
        return _CohortRun(cohort, make(cohort, None), judge, clock, kept).events(failed)
    told = frozenset(trial.id for trial in cohort.trials)
    run = _CohortRun(found.cohort, found.engine, judge, clock, kept, found.state, told)
    return run.events(failed, seconds=clock() - started)


class _Judge(NamedTuple):
    """Who says which trials end at a rung: ``decide`` if there is one, ``prune`` otherwise."""

    prune: Prune
    decide: Decide | None


class _CohortRun:
    """One training of a cohort.

    Args:
        cohort: all its trials.
        engine: trains them.
        judge: decides at rungs.
        clock: monotonic seconds.
        kept: where its checkpoints go, if anywhere.
        state: where it is; None is the beginning.
        told: the trials whose results the caller wants; None is all.
    """

    def __init__(
        self,
        cohort: Cohort,
        engine: Engine,
        judge: _Judge,
        clock: Clock,
        kept: CohortCheckpoints | None = None,
        state: CohortState | None = None,
        told: frozenset[str] | None = None,
    ) -> None:
        trials = [trial.id for trial in cohort.trials]
        self.cohort = cohort
        self.engine = engine
        self.judge = judge
        self.clock = clock
        self.kept = kept
        self.state = state or CohortState(trials)
        self.told = frozenset(trials) if told is None else told
        self.last_told = 0.0
        self.told_choice: EngineChosen | None = None

    def events(self, failed: Sequence[Event] = (), *, seconds: float = 0.0) -> Iterator[Event]:
        yield from failed
        if not self.state.next_rung:
            self._begin()
        self.last_told = self.clock()
        yield from self._choice()
        first = self.state.next_rung
        if first:
            yield Resumed(
                index=first - 1,
                step=self.cohort.rung_steps[first - 1],
                lane_steps=self.state.lane_steps,
                seconds=seconds,
            )
            if self.state.is_undecided:
                yield from self._compare(first - 1)
        else:
            yield from self._save()
        for index, step in list(enumerate(self.cohort.rung_steps))[first:]:
            if not self.state.live_trials:
                return
            yield from self._advance(step)
            self._evaluate(step)
            yield from self._choice()
            self.state.next_rung = index + 1
            yield from self._compare(index)

    def _save(self) -> Iterator[Event]:
        """Write a checkpoint, if there is a rung left to train to."""
        if self.kept is not None and self.state.next_rung < len(self.cohort.rung_steps):
            saved = self.kept.save(self.cohort, self.engine, self.state)
            yield from () if saved is None else (saved,)

    def _compare(self, index: int) -> Iterator[Event]:
        """Tell a rung that all live lanes have reached, end what ends there, and write a checkpoint.

        A part writes it before it waits, so that it can be ended while it does.
        """
        step, is_last = self.cohort.rung_steps[index], index == len(self.cohort.rung_steps) - 1
        if self.judge.decide is not None:
            yield from self._part_reached(index, step, self.judge.decide, is_last=is_last)
            return
        pruned = () if is_last else self._choose_pruned(step)
        told = tuple(trial_id for trial_id in pruned if trial_id in self.told)
        yield RungReached(index=index, step=step, values=self._lane_values(), pruned=told)
        yield from self._end_all(pruned, is_last=is_last)
        if self.state.live_trials:
            yield from self._save()

    def _part_reached(self, index: int, step: int, decide: Decide, *, is_last: bool) -> Iterator[Event]:
        if not is_last and not self.state.is_undecided:
            self.state.is_undecided = True
            yield from self._save()
        yield PartReached(index=index, step=step, values=self._lane_values())
        chosen = set() if is_last else set(decide(index))
        self.state.is_undecided = False
        pruned = tuple(trial_id for trial_id in self.state.live_trials if trial_id in chosen)
        yield from self._end_all(pruned, is_last=is_last)

    def _end_all(self, pruned: Sequence[str], *, is_last: bool) -> Iterator[Event]:
        """End the trials that end at a rung: the pruned ones, and all at the last."""
        for trial_id in tuple(self.state.live_trials) if is_last else pruned:
            ended = self._end(trial_id, "complete" if is_last else "pruned")
            if trial_id in self.told:
                yield ended

    def _choice(self) -> Iterator[EngineChosen]:
        """How lanes train, if that is news."""
        if self.engine.choice != self.told_choice:
            self.told_choice = self.engine.choice
            yield self.engine.choice

    def _begin(self) -> None:
        """Learn what the held-out data say of every seed before the first step, where all its lanes are alike.

        Raises:
            ProbeError: if a validation loss is not finite, or a metric NaN: nothing could be told from what follows.
        """
        first = self.cohort.trials[0].id
        for lane, value in self.engine.evaluate(self._lanes(first)).items():
            if not math.isfinite(value.loss):
                raise ProbeError(
                    f"the validation loss before the first step is {value.loss} with seed {lane.seed}",
                    "check the initial weights and the held-out batches",
                )
            if math.isnan(value.objective):
                raise ProbeError(
                    f"the metric before the first step is nan with seed {lane.seed}",
                    "check metric() and the held-out batches: every run would count as diverged",
                )
            factor = self.cohort.divergence_factor
            self.state.bounds[lane.seed] = value.loss * factor if value.loss > 0 else math.inf
            if math.isfinite(value.objective):
                self.state.initial[lane.seed] = value.objective

    def _lanes(self, trial_id: str) -> list[LaneId]:
        return [LaneId(trial_id, seed) for seed in self.cohort.seeds]

    def _live_lanes(self) -> list[LaneId]:
        return [
            lane
            for trial_id in self.state.live_trials
            for lane in self._lanes(trial_id)
            if lane not in self.state.divergence
        ]

    def _advance(self, step: int) -> Iterator[Progressed]:
        for advance in self.engine.advance(self._live_lanes(), step):
            self.state.lane_steps += advance.lane_steps
            now = self.clock()
            if now - self.last_told >= PROGRESS_SECONDS:
                self.last_told = now
                yield Progressed(
                    lane_steps=self.state.lane_steps,
                    total_lane_steps=max(self.state.lane_steps, self._total_lane_steps()),
                    step=advance.step,
                )

    def _total_lane_steps(self) -> int:
        return self.state.ended_steps + len(self._live_lanes()) * self.cohort.rung_steps[-1]

    def _evaluate(self, step: int) -> None:
        """Find the lanes that diverged on the way, then those that are beyond the bound now."""
        lanes = self._live_lanes()
        for lane, record in self.engine.read(lanes).items():
            if record.divergence_step is not None:
                self._mark_diverged(lane, record.divergence_step, record.num_steps)
        for lane, value in self.engine.evaluate(
            [lane for lane in lanes if lane not in self.state.divergence]
        ).items():
            if _is_beyond(value, self.state.bounds[lane.seed]):
                self._mark_diverged(lane, step, step)
            else:
                self.state.values[lane] = value.objective

    def _mark_diverged(self, lane: LaneId, divergence_step: int, num_steps: int) -> None:
        self.state.divergence[lane] = divergence_step
        self.state.values.pop(lane, None)
        self.state.ended_steps += num_steps

    def _choose_pruned(self, step: int) -> tuple[str, ...]:
        values = {
            trial_id: tuple(self.state.values.get(lane, math.inf) for lane in self._lanes(trial_id))
            for trial_id in self.state.live_trials
        }
        protected = {trial.id for trial in self.cohort.trials if trial.protected}
        chosen = set(self.judge.prune(values, self.cohort.history.get(step, ()), protected))
        return tuple(trial_id for trial_id in self.state.live_trials if trial_id in chosen)

    def _lane_values(self) -> tuple[LaneValue, ...]:
        return tuple(
            LaneValue(trial_id=lane.trial_id, seed=lane.seed, value=self.state.values.get(lane))
            for trial_id in self.state.live_trials
            if trial_id in self.told
            for lane in self._lanes(trial_id)
        )

    def _end(self, trial_id: str, state: Literal["complete", "pruned"]) -> TrialEnded:
        lanes = self._lanes(trial_id)
        records = self.engine.read(lanes)
        results = tuple(
            LaneResult.of(
                records[lane],
                seed=lane.seed,
                value=self.state.values.get(lane),
                divergence_step=self.state.divergence.get(lane),
                seconds=self.engine.seconds(lane),
                num_shared_steps=self.engine.num_shared_steps(lane),
                initial=self.state.initial.get(lane.seed),
            )
            for lane in lanes
        )
        self.state.ended_steps += sum(
            records[lane].num_steps for lane in lanes if lane not in self.state.divergence
        )
        self.state.live_trials.remove(trial_id)
        self.engine.retire(lanes)
        return TrialEnded(trial_id=trial_id, state=state, lanes=results)


def _is_beyond(value: Evaluation, bound: float) -> bool:
    """Whether a lane's held-out result means that it diverged."""
    return not (math.isfinite(value.loss) and math.isfinite(value.objective)) or value.loss > bound
