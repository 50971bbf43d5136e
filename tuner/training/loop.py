"""Train a cohort rung by rung and tell what happens. The loop decides nothing about a trial's worth itself.

At every rung: advance all live lanes, evaluate them, mark the diverged ones, ask the pure ``prune`` function
which trials end here, retire those, go on. Events are yielded as they happen, so that the caller can stream
them; on a CPU the same cohort gives the same results bit for bit, however its events are consumed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from tuner.evidence import LaneResult
from tuner.training.cohort import Cohort, Event, LaneValue, Progressed, RungReached, TrialEnded
from tuner.training.engine import Engine, Evaluation, LaneId
from tuner.training.solo import Clock, SoloEngine
from tuner.workloads.base import AnyWorkload

#: ``prune(values by trial, one per seed and inf = diverged; history at this rung; protected) -> trials that end``.
Prune = Callable[[Mapping[str, Sequence[float]], Sequence[float], Collection[str]], Collection[str]]

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
    engine: Engine | None = None,
    device: torch.device | str = "cpu",
    clock: Clock = time.monotonic,
) -> Iterator[Event]:
    """Train all trials of a cohort under all its seeds.

    A lane diverges at its first non-finite loss or gradient, or at a rung where its validation loss is non-finite
    or passes ``divergence_factor`` times the (positive) validation loss before the first step. Diverged lanes are
    data: their trial goes on in its other seeds. At the last rung nothing is pruned.

    Args:
        cohort: what to train.
        workload: the cohort's workload with the cohort's parameters.
        prune: decides at each rung but the last; a pure function, for example
            `tuner.search.pruning.median_prune`.
        engine: trains the lanes; by default one at a time, on ``device``.
        device: where the default engine trains.
        clock: monotonic seconds, for progress and wall time only.

    Yields:
        `Progressed` at most about once a second, `RungReached` once per rung, `TrialEnded` once per trial.

    Raises:
        LaneError: if the workload's code raised while a lane trained; it names the trial.
    """
    run = _CohortRun(cohort, engine or SoloEngine(cohort, workload, device=device, clock=clock), prune, clock)
    return run.events()


@dataclass
class _CohortRun:
    """The state of one cohort between rungs."""

    cohort: Cohort
    engine: Engine
    prune: Prune
    clock: Clock
    live_trials: list[str] = field(init=False)
    divergence: dict[LaneId, int] = field(default_factory=dict)
    values: dict[LaneId, float] = field(default_factory=dict)
    lane_steps: int = 0
    ended_steps: int = 0
    last_told: float = 0.0

    def __post_init__(self) -> None:
        self.live_trials = [trial.id for trial in self.cohort.trials]

    def events(self) -> Iterator[Event]:
        bounds = self._divergence_bounds()
        self.last_told = self.clock()
        for index, step in enumerate(self.cohort.rung_steps):
            yield from self._advance(step)
            self._evaluate(step, bounds)
            is_last = index == len(self.cohort.rung_steps) - 1
            pruned = () if is_last else self._choose_pruned(step)
            yield RungReached(index=index, step=step, values=self._lane_values(), pruned=pruned)
            ended = tuple(self.live_trials) if is_last else pruned
            for trial_id in ended:
                yield self._end(trial_id, "complete" if is_last else "pruned")

    def _divergence_bounds(self) -> dict[int, float]:
        """Per seed, the validation loss beyond which a lane counts as diverged."""
        first = self.cohort.trials[0].id
        before = self.engine.evaluate([LaneId(first, seed) for seed in self.cohort.seeds])
        return {
            lane.seed: value.loss * self.cohort.divergence_factor if value.loss > 0 else math.inf
            for lane, value in before.items()
        }

    def _lanes(self, trial_id: str) -> list[LaneId]:
        return [LaneId(trial_id, seed) for seed in self.cohort.seeds]

    def _live_lanes(self) -> list[LaneId]:
        return [
            lane
            for trial_id in self.live_trials
            for lane in self._lanes(trial_id)
            if lane not in self.divergence
        ]

    def _advance(self, step: int) -> Iterator[Progressed]:
        for advance in self.engine.advance(self._live_lanes(), step):
            self.lane_steps += advance.lane_steps
            now = self.clock()
            if now - self.last_told >= PROGRESS_SECONDS:
                self.last_told = now
                yield Progressed(
                    lane_steps=self.lane_steps,
                    total_lane_steps=max(self.lane_steps, self._total_lane_steps()),
                    step=advance.step,
                )

    def _total_lane_steps(self) -> int:
        return self.ended_steps + len(self._live_lanes()) * self.cohort.rung_steps[-1]

    def _evaluate(self, step: int, bounds: Mapping[int, float]) -> None:
        """Find the lanes that diverged on the way, then those that are beyond the bound now."""
        lanes = self._live_lanes()
        for lane, record in self.engine.read(lanes).items():
            if record.divergence_step is not None:
                self._mark_diverged(lane, record.divergence_step, record.num_steps)
        for lane, value in self.engine.evaluate(
            [lane for lane in lanes if lane not in self.divergence]
        ).items():
            if _is_beyond(value, bounds[lane.seed]):
                self._mark_diverged(lane, step, step)
            else:
                self.values[lane] = value.objective

    def _mark_diverged(self, lane: LaneId, divergence_step: int, num_steps: int) -> None:
        self.divergence[lane] = divergence_step
        self.values.pop(lane, None)
        self.ended_steps += num_steps

    def _choose_pruned(self, step: int) -> tuple[str, ...]:
        values = {
            trial_id: tuple(self.values.get(lane, math.inf) for lane in self._lanes(trial_id))
            for trial_id in self.live_trials
        }
        protected = {trial.id for trial in self.cohort.trials if trial.protected}
        chosen = set(self.prune(values, self.cohort.history.get(step, ()), protected))
        return tuple(trial_id for trial_id in self.live_trials if trial_id in chosen)

    def _lane_values(self) -> tuple[LaneValue, ...]:
        return tuple(
            LaneValue(trial_id=lane.trial_id, seed=lane.seed, value=self.values.get(lane))
            for trial_id in self.live_trials
            for lane in self._lanes(trial_id)
        )

    def _end(self, trial_id: str, state: Literal["complete", "pruned"]) -> TrialEnded:
        lanes = self._lanes(trial_id)
        records = self.engine.read(lanes)
        results = tuple(
            LaneResult(
                seed=lane.seed,
                num_steps=records[lane].num_steps,
                value=self.values.get(lane),
                divergence_step=self.divergence.get(lane),
                clip_fraction=records[lane].clip_fraction,
                mean_scale=records[lane].mean_scale,
                norms=records[lane].norms,
                num_non_finite=records[lane].num_non_finite,
                seconds=self.engine.seconds(lane),
            )
            for lane in lanes
        )
        self.ended_steps += sum(records[lane].num_steps for lane in lanes if lane not in self.divergence)
        self.live_trials.remove(trial_id)
        self.engine.retire(lanes)
        return TrialEnded(trial_id=trial_id, state=state, lanes=results)


def _is_beyond(value: Evaluation, bound: float) -> bool:
    """Whether a lane's held-out result means that it diverged."""
    return not (math.isfinite(value.loss) and math.isfinite(value.objective)) or value.loss > bound
