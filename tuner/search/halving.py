"""Which trials end at a rung: synchronous successive halving, a pure function run inside the training process.

No optuna, no scipy: the training process imports this.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence

#: Fewer values than this say too little about what is usual.
MIN_VALUES = 4

Halve = Callable[[Mapping[str, Sequence[float]], Sequence[float], Collection[str]], tuple[str, ...]]


def halving(rung_steps: Sequence[int]) -> Halve:
    """The rule for a cohort: at each rung the best of all known trials go on, one in as many as the rungs grow by.

    Args:
        rung_steps: the cohort's rungs, ascending.

    Returns:
        `halve` with the ratio between the last two rungs as the reduction factor; with one rung nothing ever ends.

    Example:
        >>> halving((3, 9))({"a": [1.0], "b": [2.0], "c": [3.0], "d": [4.0]}, [], [])
        ('c', 'd')
    """
    factor = rung_steps[-1] / rung_steps[-2] if len(rung_steps) > 1 else 1.0

    def prune(
        values: Mapping[str, Sequence[float]], history: Sequence[float], protected: Collection[str]
    ) -> tuple[str, ...]:
        return halve(values, history, protected, reduction_factor=factor)

    return prune


def halve(
    values: Mapping[str, Sequence[float]],
    history: Sequence[float],
    protected: Collection[str],
    *,
    reduction_factor: float,
) -> tuple[str, ...]:
    """The trials that are not among the best 1 / reduction_factor of all that are known at this rung.

    A diverged seed makes a mean infinite. A trial that diverged in every seed ends in any case: nothing of it is left
    to train. With fewer than 4 known values nothing else ends. Equal means are those of thresholds that were never
    exceeded, which train like *off*: they are kept or ended together, and count once, or a handful of them would end
    every setting that clips.

    Args:
        values: per trial, its objective for each seed (at least one); inf = diverged.
        history: means of earlier trials at this rung; inf = diverged.
        protected: trials that never end early; they are among those known.
        reduction_factor: >= 1.

    Returns:
        Their ids, in the order of ``values``.

    Source:
        Jamieson and Talwalkar (2016), algorithm 1, https://proceedings.mlr.press/v51/jamieson16.html; differs in
        ranking a later cohort among all earlier trials of the study, as Li et al. (2020) do asynchronously
        (https://arxiv.org/abs/1810.05934), and in means over paired seeds.

    Example:
        >>> halve({"a": [1.0], "b": [3.0]}, [2.0, 4.0], [], reduction_factor=2)
        ('b',)
    """
    means = {trial: statistics.fmean(lanes) for trial, lanes in values.items()}
    known = [*means.values(), *history]
    finite = sorted({mean for mean in known if mean != math.inf})
    ranked = [*finite, *(mean for mean in known if mean == math.inf)]
    bound = math.inf
    if len(known) >= MIN_VALUES:
        bound = ranked[math.ceil(len(ranked) / reduction_factor) - 1]
    return tuple(
        trial
        for trial, mean in means.items()
        if trial not in protected and (mean > bound or min(values[trial]) == math.inf)
    )
