"""What the lanes of a cohort that people train elsewhere amount to, as the events of a training: pure.

Lanes end in any order. The events keep the order of a training in one program all the same: a rung when every lane has
passed it or has ended, then the trials that ended there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.lanes import LaneState, LaneStatus
from tuner.evidence import LaneResult
from tuner.records import LaneRecord, NormSketch, tail_index
from tuner.search.settling import COMPARED_WITH_L2_NORM
from tuner.spec import ClipSetting
from tuner.training.cohort import Cohort, Event, LaneValue, Progressed, RungReached, TrialEnded

#: Lanes that will not change any more and have something to show.
_RESULTS = (LaneStatus.COMPLETE, LaneStatus.DIVERGED, LaneStatus.PRUNED)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What has been told of a cohort.

    Attributes:
        num_rungs: rungs, from the first.
        trials: ids of the trials that ended.
    """

    num_rungs: int = 0
    trials: frozenset[str] = frozenset()


def news(cohort: Cohort, lanes: Sequence[LaneState], told: Told) -> tuple[list[Event], Told]:
    """What can be told now.

    Args:
        cohort: its trials, seeds and rungs.
        lanes: all lanes of these trials.
        told: what was told before.

    Returns:
        Events in order, `Progressed` first; and what has been told with them.
    """
    by_trial = {
        trial.id: tuple(lane for lane in lanes if lane.trial_id == trial.id) for trial in cohort.trials
    }
    events: list[Event] = [_progress(cohort, lanes)]
    num_rungs, ended = told.num_rungs, set(told.trials)
    while num_rungs < len(cohort.rung_steps):
        step, is_last = cohort.rung_steps[num_rungs], num_rungs + 1 == len(cohort.rung_steps)
        live = {trial: mine for trial, mine in by_trial.items() if trial not in ended}
        if not all(_has_passed(lane, step, is_last=is_last) for mine in live.values() for lane in mine):
            break
        ending = tuple(
            trial for trial, mine in live.items() if is_last or _is_pruned_before(cohort, mine, num_rungs)
        )
        values = tuple(
            LaneValue(trial_id=trial, seed=lane.seed, value=_value_at(lane, step, is_last=is_last))
            for trial, mine in live.items()
            for lane in mine
            if _has_value_at(lane, step)
        )
        pruned = tuple(trial for trial in ending if _is_pruned(by_trial[trial]))
        if values:
            events.append(RungReached(index=num_rungs, step=step, values=values, pruned=pruned))
        events += [_ended(cohort, trial, by_trial[trial]) for trial in ending]
        ended |= set(ending)
        num_rungs += 1
    return events, Told(num_rungs=num_rungs, trials=frozenset(ended))


def lane_result(lane: LaneState, setting: ClipSetting, num_steps: int) -> LaneResult:
    """What is known of a lane that somebody else trained.

    Args:
        lane: one that has ended with a result.
        setting: its trial's.
        num_steps: of a full run.

    Returns:
        The result. Clipping is told by whoever trained, or follows from the norms that were reported; where neither
        says anything it is unknown.
    """
    record = lane.record or {}
    sketch = NormSketch.of(lane.norms)
    steps = int(
        record.get("num_steps") or lane.step or (num_steps if lane.state is LaneStatus.COMPLETE else 0)
    )
    fraction, factor = _clipping(lane.norms, setting, steps)
    has_diverged = lane.state is LaneStatus.DIVERGED
    return LaneResult.of(
        LaneRecord(
            num_steps=steps,
            divergence_step=None,
            clip_fraction=record.get("clip_fraction", fraction),
            mean_scale=record.get("mean_scale", factor),
            norms=sketch,
            num_non_finite=int(has_diverged),
            spike_ratio=sketch.max / sketch.median if sketch is not None and sketch.median > 0 else None,
            tail_index=tail_index(lane.norms),
        ),
        seed=lane.seed,
        value=None if has_diverged else lane.value,
        divergence_step=steps if has_diverged else None,
        seconds=_seconds(lane),
        initial=lane.initial,
    )


def _seconds(lane: LaneState) -> float:
    """What the training took by its own word, or from the lease to the end."""
    told = (lane.record or {}).get("seconds")
    if told is not None:
        return float(told)
    return ((lane.finished_at or 0) - (lane.leased_at or 0)) / 1000 if lane.finished_at else 0.0


def _clipping(
    norms: Sequence[float], setting: ClipSetting, num_steps: int
) -> tuple[float | None, float | None]:
    """Clip fraction and mean scale as far as norms before clipping tell; some methods' scale they don't."""
    if setting.is_off:
        return 0.0, 1.0
    if not norms or setting.threshold is None or setting.method not in COMPARED_WITH_L2_NORM:
        return None, None
    above = sum(norm > setting.threshold for norm in norms) / len(norms)
    if above == 0 and len(norms) < num_steps:
        # Nobody saw the norms in between.
        return None, None
    if setting.method != "global_norm":
        return above, None
    return above, math.fsum(min(1.0, setting.threshold / norm) if norm > 0 else 1.0 for norm in norms) / len(
        norms
    )


def _progress(cohort: Cohort, lanes: Sequence[LaneState]) -> Progressed:
    steps = [lane.step or 0 for lane in lanes]
    full = cohort.rung_steps[-1]
    total = sum(
        step if lane.state in (*_RESULTS, LaneStatus.CLOSED) else max(step, full)
        for lane, step in zip(lanes, steps, strict=True)
    )
    at_work = [lane.step or 0 for lane in lanes if lane.state is LaneStatus.LEASED]
    return Progressed(lane_steps=sum(steps), total_lane_steps=total, step=max(at_work, default=0))


def _has_result(lane: LaneState) -> bool:
    """Whether it has something to show; a lane that was pruned for its trial's sake may not have measured anything."""
    return lane.state in _RESULTS and not (lane.state is LaneStatus.PRUNED and lane.step is None)


def _has_passed(lane: LaneState, step: int, *, is_last: bool) -> bool:
    if not lane.state.is_open:
        return True
    return not is_last and any(reported >= step for reported in lane.reports)


def _has_value_at(lane: LaneState, step: int) -> bool:
    """Whether it has something to show at a rung that it has passed or ended before; being pruned says nothing."""
    if lane.state is LaneStatus.PRUNED:
        return any(reported >= step for reported in lane.reports)
    return lane.state in _RESULTS or lane.state.is_open


def _value_at(lane: LaneState, step: int, *, is_last: bool) -> float | None:
    """The first value at or behind a rung; at the last rung, and behind an early end, the last."""
    behind = [reported for reported in lane.reports if reported >= step]
    if lane.state is LaneStatus.DIVERGED and (is_last or not behind):
        return None
    return lane.value if is_last or not behind else lane.reports[min(behind)]


def _is_pruned(lanes: Sequence[LaneState]) -> bool:
    return any(lane.state is LaneStatus.PRUNED for lane in lanes)


def _is_pruned_before(cohort: Cohort, lanes: Sequence[LaneState], rung: int) -> bool:
    """Whether a trial was pruned before the rung after this one."""
    return any(
        lane.state is LaneStatus.PRUNED and (lane.step or 0) < cohort.rung_steps[rung + 1] for lane in lanes
    )


def _ended(cohort: Cohort, trial_id: str, lanes: Sequence[LaneState]) -> TrialEnded:
    setting = next(trial.setting for trial in cohort.trials if trial.id == trial_id)
    ordered: Mapping[int, LaneState] = {lane.seed: lane for lane in lanes if _has_result(lane)}
    return TrialEnded(
        trial_id=trial_id,
        state="pruned" if _is_pruned(lanes) else "complete",
        lanes=tuple(
            lane_result(ordered[seed], setting, cohort.rung_steps[-1])
            for seed in cohort.seeds
            if seed in ordered
        ),
    )
