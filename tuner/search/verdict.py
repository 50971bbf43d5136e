"""The verdict on a leader and *off*, seed by seed: pure.

Without failures the interval of the mean paired difference decides (Student's t; the usual choice for few seeds whose
differences are roughly normal, and the one with the shortest honest interval there). Where a seed failed a mean says
nothing: then the exact signed-rank test decides, with a failure worse than any number.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tuner.evidence import PairedDifference, Verdict
from tuner.search.statistics import paired_difference, seeds_to_settle, signed_rank, signed_ranks

#: A verdict by ranks needs a p-value of at most this.
SIGNIFICANCE = 0.05
#: Seeds that one side failed in, all there are, for it to decide without a test. Were both sides to fail alike, that
#: would happen to one of them in at most 2 / 4**4 = 0.8 % of studies.
MIN_ALL_FAILED = 4
#: A verdict is not worth more seeds than this.
MAX_SEEDS = 200
#: Seeds up to which the exact distribution is worked out to say how many would do.
MAX_EXACT = 30


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two settings on the same seeds.

    Attributes:
        mine: objective by seed; None = failed.
        theirs: the same of what it is compared with.
        margin: the difference that matters, >= 0, in the objective's unit.
        num_candidates: settings among which ``mine`` was chosen on these very seeds, >= 1.
        num_looks: how often this was judged, this time included, >= 1.
    """

    mine: Mapping[int, float | None]
    theirs: Mapping[int, float | None]
    margin: float
    num_candidates: int = 1
    num_looks: int = 1

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Those that both have."""
        return tuple(sorted(self.mine.keys() & self.theirs.keys()))

    @cached_property
    def has_failures(self) -> bool:
        """Whether a seed failed under either setting."""
        return any(self.mine[seed] is None or self.theirs[seed] is None for seed in self.seeds)

    @cached_property
    def is_by_ranks(self) -> bool:
        """Whether a seed failed under one setting alone, or no two are left without a failure.

        A seed that fails under both says nothing about clipping.
        """
        if self.difference is None:
            return self.has_failures
        return any((self.mine[seed] is None) != (self.theirs[seed] is None) for seed in self.seeds)

    @cached_property
    def ranked(self) -> tuple[float, ...]:
        """Differences by seed, inf where only mine failed, -inf where only the other did.

        0 where both failed, and where the difference is smaller than the margin: beside a failure it says nothing.
        """
        found = (_ranked(self.mine[seed], self.theirs[seed]) for seed in self.seeds)
        return tuple(each if abs(each) >= self.margin else 0.0 for each in found)

    @cached_property
    def difference(self) -> PairedDifference | None:
        """Mean of mine - theirs over the seeds without a failure, with its interval; None with fewer than two."""
        found = paired_difference(
            self.mine, self.theirs, num_candidates=self.num_candidates, num_looks=self.num_looks
        )
        if found is None or not self.has_failures:
            return found
        return replace(found, test=f"{found.test}, seeds without failure", p_value=self.p_value)

    @cached_property
    def p_value(self) -> float:
        """Of the exact signed-rank test, two-sided, corrected as the interval is."""
        return min(1.0, signed_rank(self.ranked) * self.num_candidates * self.num_looks)

    def judge(self) -> Verdict:
        """What the seeds support.

        Returns:
            With failures: clip or do not clip if one side failed in every seed and the other in none, or if the test
            by ranks excludes chance; inconclusive otherwise. Without: see `judge_difference`.
        """
        if self.is_by_ranks:
            return self._judge_failures()
        if self.difference is None:
            return Verdict.INCONCLUSIVE
        return judge_difference(self.difference, self.margin)

    def _judge_failures(self) -> Verdict:
        favoured = Verdict.CLIP if sum(signed_ranks(self.ranked)) < 0 else Verdict.DO_NOT_CLIP
        is_total = (
            len(self.ranked) >= MIN_ALL_FAILED
            and self.num_candidates == 1
            and set(self.ranked) in ({math.inf}, {-math.inf})
        )
        if is_total or self.p_value <= SIGNIFICANCE:
            return favoured
        return Verdict.INCONCLUSIVE

    def seeds_to_settle(self, num_intervals: int) -> int | None:
        """About how many seeds would settle an inconclusive comparison, if things go on as they are.

        Args:
            num_intervals: what the next judgement is corrected for, >= 1: looks x settings chosen among.

        Returns:
            Seeds in all, at least one more than there are; None beyond 200, or without a difference.
        """
        least = len(self.seeds) + 1
        if self.is_by_ranks:
            found = self._seeds_by_ranks(num_intervals)
        elif self.difference is None:
            return None
        else:
            mean = abs(self.difference.mean)
            wanted = mean if mean >= self.margin else self.margin - mean
            if wanted == 0:
                return None
            found = seeds_to_settle(
                self.mine, self.theirs, wanted, num_intervals=num_intervals, limit=MAX_SEEDS
            )
        return None if found is None else max(found, least)

    def _seeds_by_ranks(self, num_intervals: int) -> int | None:
        """Repeats what was seen until the test by ranks excludes chance; beyond 30 by its normal approximation."""
        ranks, seen = signed_ranks(self.ranked), len(self.ranked)
        if sum(ranks) == 0:
            return None
        for count in range(seen + 1, MAX_EXACT + 1):
            repeated = [self.ranked[number % seen] for number in range(count)]
            if signed_rank(repeated) * num_intervals <= SIGNIFICANCE:
                return count
        deviations = abs(sum(ranks)) / math.sqrt(sum(rank * rank for rank in ranks))
        wanted = statistics.NormalDist().inv_cdf(1 - SIGNIFICANCE / 2 / num_intervals)
        found = max(MAX_EXACT + 1, math.ceil(seen * (wanted / deviations) ** 2))
        return found if found <= MAX_SEEDS else None


def judge_difference(difference: PairedDifference, margin: float) -> Verdict:
    """The verdict that a paired difference (clip - off) supports.

    Args:
        difference: with its 95 % interval.
        margin: the difference that matters, >= 0, in the same unit.

    Returns:
        No difference if the whole interval lies within the margin; clip or do not clip if it excludes 0 and the
        mean matters; inconclusive otherwise: the difference may be noise, or larger than what matters.

    Example:
        >>> judge_difference(PairedDifference(mean=-0.2, low=-0.3, high=-0.1, num_pairs=3), margin=0.02).value
        'clip'
    """
    if -margin <= difference.low and difference.high <= margin:
        return Verdict.NO_DIFFERENCE
    if difference.low <= 0 <= difference.high or abs(difference.mean) < margin:
        return Verdict.INCONCLUSIVE
    return Verdict.CLIP if difference.mean < 0 else Verdict.DO_NOT_CLIP


def values_without_failures(
    values: Mapping[int, float | None], failed: Sequence[int]
) -> dict[int, float | None]:
    """Objective by seed, with None where a seed failed.

    Args:
        values: objective by seed; None = diverged.
        failed: seeds that failed, diverged or not.

    Returns:
        What a `Comparison` takes.
    """
    return {seed: None if seed in failed else value for seed, value in values.items()}


def _ranked(mine: float | None, theirs: float | None) -> float:
    if mine is None and theirs is None:
        return 0.0
    if mine is None:
        return math.inf
    return -math.inf if theirs is None else mine - theirs
