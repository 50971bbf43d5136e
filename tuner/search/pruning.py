"""Which trials end at a rung: a pure function, run inside the training process. No optuna, no scipy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

#: Fewer values than this say too little about what is usual.
MIN_VALUES = 4


def median_prune(
    values: Mapping[str, Sequence[float]], history: Sequence[float], protected: Collection[str]
) -> tuple[str, ...]:
    """The trials whose mean over seeds is worse than the median of all means known at this rung.

    A diverged seed makes the mean infinite. A trial that diverged in every seed ends in any case: nothing of it is
    left to train. With fewer than 4 known values nothing else ends. A trial exactly at the median goes on.

    Args:
        values: per trial, its objective for each seed (at least one); inf = diverged.
        history: means of earlier trials at this rung; inf = diverged.
        protected: trials that never end early.

    Returns:
        Their ids, in the order of ``values``.

    Source:
        Golovin et al. (2017), section 3.2.2 (median stopping rule), https://doi.org/10.1145/3097983.3098043;
        differs in comparing at fixed rungs, by the value there instead of the running average.

    Example:
        The median of 1, 2, 3, 9 is 2.5.

        >>> median_prune({"a": [1.0, 3.0], "b": [3.0, 3.0]}, [1.0, 9.0], ["b"])
        ()
        >>> median_prune({"a": [1.0, 3.0], "b": [3.0, 3.0]}, [1.0, 9.0], [])
        ('b',)
    """
    means = {trial: statistics.fmean(lanes) for trial, lanes in values.items()}
    known = [*means.values(), *history]
    median = statistics.median(known) if len(known) >= MIN_VALUES else math.inf
    return tuple(
        trial
        for trial, mean in means.items()
        if trial not in protected and (mean > median or min(values[trial]) == math.inf)
    )
