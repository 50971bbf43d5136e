"""Thresholds that can't be told from the best one: pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tuner.evidence import Trial, TrialState
from tuner.methods import get_method
from tuner.search.statistics import paired_difference
from tuner.spec import ClipSetting

#: A stretch of thresholds as wide as this, between settings that hurt and those that do nothing, leaves it open.
WIDE_GAP = 2.0


def values_by_seed(trial: Trial) -> dict[int, float | None]:
    """A trial's objective for each seed.

    Args:
        trial: an ended trial.

    Returns:
        Value by seed; None = diverged.
    """
    return {lane.seed: lane.value for lane in trial.lanes}


def equally_good(best: Trial, trials: Iterable[Trial], margin: float) -> tuple[float, float]:
    """The stretch of tried thresholds around the best that can't be told from it.

    Walks from the best to either side, in threshold order, over the trials of its method and learning rate that were
    trained to the end. A trial that is worse (its 95 % interval entirely above 0 and the mean difference at least the
    margin) or has a diverged seed ends the stretch; a trial that was pruned without diverging is passed over. These
    intervals are one per trial, not corrected for their number: they are about a stretch, not about the verdict.

    Args:
        best: a complete trial with a threshold.
        trials: all ended trials, ``best`` among them.
        margin: the difference that matters, in the objective's unit.

    Returns:
        Lowest and highest threshold of the stretch, both tried.
    """
    row = sorted(
        (
            (trial.setting.threshold, trial)
            for trial in trials
            if trial.setting.method == best.setting.method and trial.setting.threshold is not None
            if trial.setting.learning_rate_scale == best.setting.learning_rate_scale
            if trial.state is TrialState.COMPLETE or trial.num_diverged > 0
        ),
        key=lambda pair: pair[0],
    )
    at = next(number for number, (_, trial) in enumerate(row) if trial is best)
    below, above = row[:at][::-1], row[at + 1 :]
    return (
        _last_as_good(best, below, margin, row[at][0]),
        _last_as_good(best, above, margin, row[at][0]),
    )


def untried(setting: ClipSetting, trials: Iterable[Trial]) -> tuple[float, float] | None:
    """The stretch of thresholds below one that was never exceeded in which nothing was tried.

    Args:
        setting: a clip setting; what lies below it does not count.
        trials: all ended trials.

    Returns:
        Both ends, if they are further apart than a factor of 2 on the method's axis; else None.
    """
    axis = get_method(setting.method)
    above = {
        trial.setting.threshold or 0.0: trial
        for trial in trials
        if trial.setting.method == setting.method
        and trial.setting.learning_rate_scale == setting.learning_rate_scale
        and (trial.setting.threshold or 0.0) > (setting.threshold or 0.0)
    }
    inert = [
        threshold
        for threshold, trial in above.items()
        if trial.state is TrialState.COMPLETE and not any(lane.may_have_clipped for lane in trial.lanes)
    ]
    if not inert:
        return None
    high = min(inert)
    low = max(each for each in (*above, setting.threshold or 0.0) if each < high)
    return (low, high) if axis.coordinate(high) > WIDE_GAP * axis.coordinate(low) else None


def _last_as_good(best: Trial, side: Sequence[tuple[float, Trial]], margin: float, start: float) -> float:
    """The threshold before the first trial that is worse."""
    last = start
    for threshold, trial in side:
        difference = None
        if not trial.num_diverged:
            difference = paired_difference(values_by_seed(trial), values_by_seed(best))
        if difference is None or (difference.low > 0 and difference.mean >= margin):
            break
        last = threshold
    return last
