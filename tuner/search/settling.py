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
        Their results: those of *off* under the same seeds and learning rate, with every step shared. Only for methods
        whose threshold is compared with the L2 norm, which is what a result records.
    """
    known = tuple(trials)
    baselines = [each for each in known if each.setting.is_off and each.state is TrialState.COMPLETE]
    found = []
    for trial in (each for each in known if each.state.is_open):
        off = next((each for each in baselines if _would_be_same(trial, each)), None)
        if off is not None:
            lanes = tuple(replace(lane, num_shared_steps=lane.num_steps, seconds=0.0) for lane in off.lanes)
            found.append(TrialEnded(trial_id=trial.id, state="complete", lanes=lanes))
    return tuple(found)


def _would_be_same(trial: Trial, off: Trial) -> bool:
    """Whether a trial would be this *off* run, step by step."""
    setting = trial.setting
    if (trial.stage, trial.seeds) != (off.stage, off.seeds):
        return False
    if setting.learning_rate_scale != off.setting.learning_rate_scale:
        return False
    if setting.method not in COMPARED_WITH_L2_NORM or any(lane.norms is None for lane in off.lanes):
        return False
    largest = max(lane.norms.max for lane in off.lanes if lane.norms is not None)
    # The margin covers torch's 1e-6 in the denominator and the rounding of a threshold to the gradients' type.
    return setting.threshold is not None and setting.threshold > largest * (1 + 1e-5) + 1e-5
