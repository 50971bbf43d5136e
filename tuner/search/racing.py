"""Which lane of a user's own loop need not go on: halving for lanes that reach a rung one after the other. Pure.

A cohort that trains as one program compares all its trials at a rung at the same moment. Lanes that train by
themselves come by when they come, so each is compared with those that were there before it, under the same seeds.
No optuna, no torch: the API decides with this.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tuner.search.halving import MIN_VALUES, halve


def is_hopeless(
    trial_id: str,
    rung: Mapping[str, Mapping[int, float]],
    *,
    clips: Collection[str],
    protected: Collection[str],
    reduction_factor: float,
) -> bool:
    """Whether a trial that has just reported at a rung ends here.

    It is compared with the trials that have a value for each of its seeds there, as `tuner.search.halving.halve` would
    compare them: with fewer than 4 of them nothing ends, and the best trial that clips always goes on. Where few have
    come by with its newest seed, the seeds that more of them have decide.

    Args:
        trial_id: which.
        rung: per trial of the cohort its objective at this rung by seed, inf = diverged; the trial's own included.
        clips: trials with a threshold.
        protected: trials that never end early.
        reduction_factor: ratio between two neighbouring rungs, >= 1.

    Returns:
        True if nothing more of it is worth training.

    Raises:
        KeyError: if the trial has no value at this rung.

    Source:
        Li et al. (2020), algorithm 2, https://arxiv.org/abs/1810.05934, in its stopping form: a trial goes on unless it
        is known to be outside the best ``1 / reduction_factor``. Differs in comparing means over the same seeds.

    Example:
        The fourth to come by is the worst of four; its first seed is enough to tell, now or when its second comes by.

        >>> rung = {"a": {0: 1.0, 1: 1.1}, "b": {0: 1.2, 1: 1.0}, "c": {0: 1.5}, "d": {0: 9.0}}
        >>> is_hopeless("d", rung, clips="bcd", protected="a", reduction_factor=2)
        True
        >>> is_hopeless("b", rung, clips="bcd", protected="a", reduction_factor=2)
        False
    """
    seeds = sorted(rung[trial_id], key=lambda seed: -sum(seed in values for values in rung.values()))
    alike = _alike(rung, seeds)
    while len(alike) < MIN_VALUES and len(seeds) > 1:
        seeds.pop()
        alike = _alike(rung, seeds)
    return trial_id in halve(alike, (), protected, clips=clips, reduction_factor=reduction_factor)


def _alike(rung: Mapping[str, Mapping[int, float]], seeds: Sequence[int]) -> dict[str, list[float]]:
    """The objectives of the trials that have them for all these seeds."""
    return {
        trial: [values[seed] for seed in seeds]
        for trial, values in rung.items()
        if all(seed in values for seed in seeds)
    }
