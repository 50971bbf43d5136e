"""Means, standard errors and paired intervals over training seeds: pure."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence

from tuner.evidence import Estimate, PairedDifference

CONFIDENCE = 0.95


def estimate(values: Iterable[float | None]) -> Estimate:
    """Mean and standard error over the seeds that did not diverge.

    Args:
        values: one per seed; None = diverged.

    Returns:
        The estimate; its mean is None without a value, its standard error with fewer than two.

    Example:
        The standard deviation of 1, 2, 3 is 1; divided by the root of 3 it is 0.577.

        >>> estimate([1.0, 2.0, 3.0, None])
        Estimate(mean=2.0, standard_error=0.577..., num_seeds=3, num_diverged=1)
    """
    lanes = list(values)
    finite = [value for value in lanes if value is not None]
    return Estimate(
        mean=statistics.fmean(finite) if finite else None,
        standard_error=statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else None,
        num_seeds=len(finite),
        num_diverged=len(lanes) - len(finite),
    )


def mean_value(values: Iterable[float | None]) -> float:
    """Mean objective over seeds, where a diverged seed counts.

    Args:
        values: one per seed; None = diverged.

    Returns:
        The mean; inf if a seed diverged or there is no value.

    Example:
        >>> mean_value([1.0, 2.0]), mean_value([1.0, None])
        (1.5, inf)
    """
    lanes = [math.inf if value is None else value for value in values]
    return statistics.fmean(lanes) if lanes else math.inf


def paired_difference(
    one: Mapping[int, float | None],
    other: Mapping[int, float | None],
    *,
    num_candidates: int = 1,
    num_looks: int = 1,
) -> PairedDifference | None:
    """Mean of ``one - other`` over common seeds, with a 95 % t interval.

    Args:
        one: objective by seed; None = diverged.
        other: the same of what it is compared with.
        num_candidates: settings among which ``one`` was chosen by these same values, >= 1. With more than one the
            interval is simultaneous: in 95 % of studies it would hold for every one of them.
        num_looks: how often the same question was judged, this time included, >= 1: a study that was extended because
            it was not settled has looked more than once, and its interval allows for that in the same way.

    Returns:
        The difference; None with fewer than two seeds in which both have a value.

    Source:
        Student (1908), https://doi.org/10.1093/biomet/6.1.1: a one-sample t interval on paired differences.
        Dunn (1961), https://doi.org/10.1080/01621459.1961.10482090: with the quantile at 1 - 0.025 / N
        (Bonferroni) N such intervals hold together, whatever the dependence between them.

    Example:
        >>> paired_difference({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0})
        PairedDifference(mean=-1.0, low=-1.0, high=-1.0, num_pairs=2, test='paired t', p_value=None)
    """
    differences = paired_values(one, other)
    if len(differences) < 2:
        return None
    mean = statistics.fmean(differences)
    half = _half_width(statistics.stdev(differences), len(differences), num_candidates * num_looks)
    allowed = [f"{num_candidates} settings"] if num_candidates > 1 else []
    allowed += [f"{num_looks} looks"] if num_looks > 1 else []
    test = f"paired t, Bonferroni over {' and '.join(allowed)}" if allowed else "paired t"
    return PairedDifference(
        mean=mean, low=mean - half, high=mean + half, num_pairs=len(differences), test=test
    )


def seeds_to_settle(
    one: Mapping[int, float | None],
    other: Mapping[int, float | None],
    half_width: float,
    *,
    num_intervals: int = 1,
    limit: int = 1000,
) -> int | None:
    """About how many paired seeds give an interval of a wanted half width, if the spread stays as it is.

    Args:
        one: objective by seed.
        other: the same of what it is compared with; at least two seeds in common.
        half_width: wanted, > 0, in the objective's unit.
        num_intervals: intervals that are to hold together, >= 1 (settings x looks of `paired_difference`).
        limit: largest number to consider.

    Returns:
        The smallest sufficient number of seeds, at least 2; None beyond the limit.
    """
    deviation = statistics.stdev(paired_values(one, other))
    return next(
        (
            count
            for count in range(2, limit + 1)
            if _half_width(deviation, count, num_intervals) <= half_width
        ),
        None,
    )


def signed_rank(differences: Iterable[float]) -> float:
    """Whether paired differences lean to one side, by their ranks alone.

    Args:
        differences: one per seed, at most a few hundred; inf and -inf stand for a failure of one side, larger than
            any number; 0 is left out.

    Returns:
        The exact two-sided p-value; 1.0 without a difference.

    Source:
        Wilcoxon (1945), https://doi.org/10.2307/3001968; ties get the mean of their ranks, and the distribution is
        that of these ranks under all changes of sign (Pratt and Gibbons, 1981, section 3.7), so it is exact with ties.

    Example:
        Six seeds are the fewest with which a test by ranks can be significant: 2 / 2**6.

        >>> signed_rank([-1.0, -2.0, -0.5, -0.1, -3.0, float("-inf")])
        0.03125
    """
    ranks = signed_ranks(differences)
    positive = sum(rank for rank in ranks if rank > 0)
    ranks = [abs(rank) for rank in ranks]
    ways = [1]
    for rank in ranks:
        longer = [*ways, *[0] * rank]
        for total, count in enumerate(ways):
            longer[total + rank] += count
        ways = longer
    smaller = min(positive, sum(ranks) - positive)
    return min(1.0, 2 * float(sum(ways[: smaller + 1])) / float(2 ** len(ranks)))


def signed_ranks(differences: Iterable[float]) -> list[int]:
    """Ranks of the magnitudes, doubled so that a tie's mean rank is whole, with the signs of the differences.

    Args:
        differences: as for `signed_rank`.

    Returns:
        One per difference that is not 0, in their order.

    Example:
        >>> signed_ranks([-1.0, 0.0, 3.0, 1.0])
        [-3, 6, 3]
    """
    known = [each for each in differences if each != 0]
    magnitudes = sorted(abs(each) for each in known)
    doubled = (bisect_left(magnitudes, abs(each)) + 1 + bisect_right(magnitudes, abs(each)) for each in known)
    return [rank if each > 0 else -rank for rank, each in zip(doubled, known, strict=True)]


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution.

    Args:
        probability: in (0, 1).
        degrees: of freedom, >= 1.

    Returns:
        The quantile.

    Example:
        >>> round(t_quantile(0.975, 2), 4)
        4.3027
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def paired_values(one: Mapping[int, float | None], other: Mapping[int, float | None]) -> Sequence[float]:
    """Differences ``one - other``, one per seed in which both have a value, by seed.

    Args:
        one: objective by seed; None = diverged.
        other: the same of what it is compared with.

    Returns:
        The differences.
    """
    pairs = ((one[seed], other[seed]) for seed in sorted(one) if seed in other)
    return [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]


def _half_width(deviation: float, count: int, num_intervals: int) -> float:
    tail = (1 - CONFIDENCE) / 2 / num_intervals
    return t_quantile(1 - tail, count - 1) * deviation / math.sqrt(count)
