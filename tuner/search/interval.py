"""Thresholds that can't be told from the best one: pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tuner.evidence import PairedDifference, Trial, TrialState
from tuner.search.statistics import paired_difference


def values_by_seed(trial: Trial) -> dict[int, float | None]:
    """A trial's objective for each seed.

    Args:
        trial: an ended trial.

    Returns:
        Value by seed; None = diverged.
    """
    return {lane.seed: lane.value for lane in trial.lanes}


def paired(one: Trial | None, other: Trial | None, *, num_candidates: int = 1) -> PairedDifference | None:
    """Paired difference of two trials.

    Args:
        one: a trial, if there is one.
        other: what it is compared with, likewise.
        num_candidates: trials among which ``one`` was chosen by the same values, >= 1.

    Returns:
        Mean of ``one - other`` with its interval; None without both, or with fewer than two common seeds.
    """
    if one is None or other is None:
        return None
    return paired_difference(values_by_seed(one), values_by_seed(other), num_candidates=num_candidates)


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


def _last_as_good(best: Trial, side: Sequence[tuple[float, Trial]], margin: float, start: float) -> float:
    """The threshold before the first trial that is worse."""
    last = start
    for threshold, trial in side:
        difference = None if trial.num_diverged else paired(trial, best)
        if difference is None or (difference.low > 0 and difference.mean >= margin):
            break
        last = threshold
    return last
