"""Trials whose result is known before they are trained: pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tuner.evidence import Trial, TrialState
from tuner.training.cohort import TrialEnded

#: Methods that compare their threshold with the L2 norm of the whole gradient and nothing else.
COMPARED_WITH_L2_NORM = frozenset({"global_norm"})


def settled(trials: Iterable[Trial]) -> tuple[TrialEnded, ...]:
    """Open trials that need no training, because *off* has been trained and never came near their thresholds.

    Args:
        trials: all trials of a study.

    Returns:
        Their results: off's, with every step shared. Only for methods whose threshold is compared with the L2 norm,
        which is what a result records.
    """
    known = tuple(trials)
    off = next((each for each in known if each.setting.is_off and each.state is TrialState.COMPLETE), None)
    if off is None or any(lane.norms is None for lane in off.lanes):
        return ()
    largest = max(lane.norms.max for lane in off.lanes if lane.norms is not None)
    # The margin covers torch's 1e-6 in the denominator and the rounding of a threshold to the gradients' type.
    bound = largest * (1 + 1e-5) + 1e-5
    lanes = tuple(replace(lane, num_shared_steps=lane.num_steps, seconds=0.0) for lane in off.lanes)
    return tuple(
        TrialEnded(trial_id=each.id, state="complete", lanes=lanes)
        for each in known
        if each.state.is_open
        and each.setting.method in COMPARED_WITH_L2_NORM
        and each.setting.threshold is not None
        and each.setting.threshold > bound
    )
