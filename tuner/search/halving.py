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


def halving(rung_steps: Sequence[int], clips: Collection[str] = ()) -> Halve:
    """The rule for a cohort: at each rung the best of all known trials go on, one in as many as the rungs grow by.

    Args:
        rung_steps: the cohort's rungs, ascending.
        clips: the cohort's trials that clip; one of them goes on in any case, see `halve`.

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
        return halve(values, history, protected, clips=clips, reduction_factor=factor)

    return prune


def halve(
    values: Mapping[str, Sequence[float]],
    history: Sequence[float],
    protected: Collection[str],
    *,
    clips: Collection[str] = (),
    reduction_factor: float,
) -> tuple[str, ...]:
    """The trials that are not among the best 1 / reduction_factor of all that are known at this rung.

    A diverged seed makes a mean infinite. A trial that diverged in every seed ends in any case: nothing of it is left
    to train. With fewer than 4 known values nothing else ends. Equal means are those of thresholds that were never
    exceeded, which train like *off*: they are kept or ended together, and count once. The best trial that clips and
    does not train like *off* always goes on: without it nothing could be said about clipping in the end.

    Args:
        values: per trial, its objective for each seed (at least one); inf = diverged.
        history: means of earlier trials at this rung; inf = diverged.
        protected: trials that never end early; they are among those known.
        clips: trials with a threshold, whether it was exceeded or not.
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
    if len(ranked) >= MIN_VALUES:
        bound = ranked[math.ceil(len(ranked) / reduction_factor) - 1]
    # By all known means, not by which trial is *off*: what is left of a cohort after a crash may lack it.
    alone = [mean for trial, mean in means.items() if trial in clips and known.count(mean) == 1]
    spared = min((mean for mean in alone if mean != math.inf), default=None)
    return tuple(
        trial
        for trial, mean in means.items()
        if trial not in protected and ((mean > bound and mean != spared) or min(values[trial]) == math.inf)
    )
