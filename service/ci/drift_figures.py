"""What two probes measured, side by side: quantiles and shares of gradients then and now, with what is chance. Pure.

Gradients of one seed share their initial weights, so they are no independent samples. What a probe is worth is told by
how far its seeds lie apart: a quantile's ratio gets Student's interval from the spread of the seeds' own quantiles, a
share of gradients the number of independent gradients that this spread leaves.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from functools import cached_property

from service.report.intervals import t_bound
from tuner.evidence import NormSketch
from tuner.search.prior import share_above

#: A median or 90 % quantile that changed by less is no drift: equally good thresholds span more than that.
FACTOR = 1.5
#: Of each interval; there are three: of the median, of the 90 % quantile and of the share above the threshold.
CONFIDENCE = 0.997
#: Beyond e to this there is no number.
_MOST_LOG = 700.0
#: A share that changed by so much has changed; a smaller one only if it is halved or doubled by at least the second.
LARGE_CHANGE, _LEAST_CHANGE = 0.2, 0.04


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A quantile of the gradients then and now.

    Attributes:
        name: ``median`` or ``q90``.
        then: when the study probed.
        now: in the code as it is now.
        low: lower end of the interval of now / then; 0 if the seeds do not tell.
        high: upper end; infinite likewise.
    """

    name: str
    then: float
    now: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """Now / then; infinite if it was 0."""
        if self.then > 0:
            return self.now / self.then
        return math.inf if self.now > 0 else 1.0

    @property
    def matters(self) -> bool:
        """Whether it is as large as would count."""
        return not 1 / FACTOR < self.value < FACTOR

    @property
    def is_settled(self) -> bool:
        """Whether chance is ruled out."""
        return not self.low <= 1 <= self.high

    @property
    def is_within(self) -> bool:
        """Whether a change that would count is ruled out."""
        return self.low > 1 / FACTOR and self.high < FACTOR


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The share of gradients above a threshold then and now.

    Attributes:
        threshold: in units of the gradients' own quantity.
        then: when the study probed, in [0, 1].
        now: in the code as it is now.
        margin: half the width of the interval of now - then.
    """

    threshold: float
    then: float
    now: float
    margin: float

    @property
    def matters(self) -> bool:
        """Whether it changed by as much as would count."""
        least, most = sorted((self.then, self.now))
        return most - least >= LARGE_CHANGE or (most - least >= _LEAST_CHANGE and most >= 2 * least)

    @property
    def is_settled(self) -> bool:
        """Whether chance is ruled out."""
        return abs(self.now - self.then) > self.margin


@dataclass(frozen=True)
class Spreads:
    """What the seeds of now tell about chance; those of then are taken to lie as far apart.

    Attributes:
        seeds: the sketch of each.
        num_then: how many seeds there were then, at least 1.
    """

    seeds: tuple[NormSketch, ...]
    num_then: int

    @cached_property
    def reach(self) -> float:
        """Half the width of an interval, in standard deviations of seeds; infinite if the seeds do not tell."""
        number = len(self.seeds)
        if number < 2:
            return math.inf
        return t_bound(number - 1, CONFIDENCE) * math.sqrt(1 / self.num_then + 1 / number)

    def independent(self, batches: tuple[int, int]) -> tuple[float, float]:
        """How many independent gradients those of then and now are worth: at least one a seed.

        It is all variance of the norms' logarithms / that of the seeds' means of them.
        """
        moments = [
            (each.log_mean, each.log_std)
            for each in self.seeds
            if each.log_mean is not None and each.log_std is not None
        ]
        a_seed = 1.0
        if len(moments) > 1:
            between = statistics.variance(mean for mean, _ in moments)
            within = statistics.fmean(spread**2 for _, spread in moments)
            a_seed = (within + between) / between if between > 0 else math.inf
        then, now = batches
        return min(self.num_then * a_seed, then), min(max(len(self.seeds), 1) * a_seed, now)


def compare_quantiles(name: str, before: NormSketch, after: NormSketch, spreads: Spreads) -> Ratio:
    """A quantile then and now, its interval on a logarithmic scale.

    Args:
        name: of the quantile.
        before: all gradients of then.
        after: all gradients of now.
        spreads: of the seeds of now.

    Returns:
        The ratio, open to both sides if a seed has none of it; its interval holds at least every seed of now.
    """
    then, now = getattr(before, name), getattr(after, name)
    values = [getattr(each, name) for each in spreads.seeds]
    found = Ratio(name=name, then=then, now=now, low=0.0, high=math.inf)
    if len(values) < 2 or then <= 0 or now <= 0 or min(values) <= 0:
        return found
    half = math.exp(min(spreads.reach * statistics.stdev(map(math.log, values)), _MOST_LOG))
    # Where norms come in two sizes a median jumps from one to the other, which no bound for a mean allows for.
    low, high = min(found.value / half, min(values) / then), max(found.value * half, max(values) / then)
    return replace(found, low=low, high=high)


def compare_shares(
    threshold: float,
    before: NormSketch,
    after: NormSketch,
    spreads: Spreads,
    independent: tuple[float, float],
) -> Shares:
    """Shares above a threshold.

    Their margin is the largest of three: the seeds', that of so many independent gradients, and the distance to the
    furthest seed on the side of then. Seeds that agree, none of whose gradients passes the threshold, say nothing about
    a share that was there before.

    Args:
        threshold: > 0, in units of the gradients' own quantity.
        before: all gradients of then.
        after: all gradients of now.
        spreads: of the seeds of now.
        independent: what the gradients of then and now are worth.

    Returns:
        The shares.
    """
    then, now = _share(before, threshold), _share(after, threshold)
    margin = 1.0
    if len(spreads.seeds) > 1:
        one, other = independent
        pooled = (then * one + now * other) / (one + other)
        error = math.sqrt(pooled * (1 - pooled) * (1 / one + 1 / other))
        counted = t_bound(len(spreads.seeds) - 1, CONFIDENCE) * error
        seeds = [_share(each, threshold) for each in spreads.seeds]
        furthest = max(seeds) - now if then > now else now - min(seeds)
        margin = min(max(counted, spreads.reach * statistics.stdev(seeds), furthest), 1.0)
    return Shares(threshold=threshold, then=then, now=now, margin=margin)


def _share(norms: NormSketch, threshold: float) -> float:
    """As `share_above`, also of gradients that are all 0, which have no quantile to read it off."""
    return 0.0 if norms.max <= threshold else share_above(norms, threshold)
