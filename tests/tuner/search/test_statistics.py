"""Known answers for means, standard errors and paired intervals."""

from __future__ import annotations

import math

import pytest
import scipy.stats

from tuner.search.statistics import (
    estimate,
    mean_value,
    paired_difference,
    paired_values,
    seeds_to_settle,
    t_quantile,
)


def test_estimate_of_known_numbers() -> None:
    # Mean 5; squared deviations 9, 1, 1, 1, 0, 0, 4, 16 sum to 32; 32 / 7 under the root is 2.138; / root 8.
    found = estimate([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert found.mean == 5
    assert found.standard_error == pytest.approx(math.sqrt(32 / 7) / math.sqrt(8))
    assert (found.num_seeds, found.num_diverged) == (8, 0)


def test_estimate_without_enough_values() -> None:
    assert estimate([None, None]).mean is None
    assert estimate([None, None]).num_diverged == 2
    assert estimate([1.0, None]).standard_error is None
    assert estimate([]).num_seeds == 0


def test_mean_counts_a_diverged_seed() -> None:
    assert mean_value([1.0, 3.0]) == 2.0
    assert mean_value([1.0, None]) == math.inf
    assert mean_value([]) == math.inf


def test_paired_interval_of_known_numbers() -> None:
    # Differences -1, -2, -3: mean -2, deviation 1, half width 4.3027 / root 3 = 2.4842.
    found = paired_difference({0: 1.0, 1: 1.0, 2: 1.0}, {0: 2.0, 1: 3.0, 2: 4.0})
    assert found is not None
    assert found.mean == -2
    assert (found.low, found.high) == (pytest.approx(-4.48414, abs=1e-4), pytest.approx(0.48414, abs=1e-4))
    assert found.num_pairs == 3


def test_paired_interval_equals_scipys_t_test() -> None:
    one, other = [0.31, 0.27, 0.35, 0.30, 0.29], [0.33, 0.33, 0.34, 0.36, 0.30]
    found = paired_difference(dict(enumerate(one)), dict(enumerate(other)))
    expected = scipy.stats.ttest_rel(one, other).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_interval_of_the_best_of_several_is_simultaneous() -> None:
    # As above, chosen among 3: the quantile at 1 - 0.025 / 3 with 2 degrees of freedom. In closed form, with
    # a = 1 - 0.05 / 3 = 0.98333, it is a * root(2 / (1 - a * a)) = 7.6488, and the half width 7.6488 / root 3 = 4.4160.
    found = paired_difference({0: 1.0, 1: 1.0, 2: 1.0}, {0: 2.0, 1: 3.0, 2: 4.0}, num_candidates=3)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(-6.4160, abs=1e-4), pytest.approx(2.4160, abs=1e-4))
    assert found.test == "paired t, Bonferroni over 3 settings"


def test_further_looks_widen_the_interval_as_further_settings_do() -> None:
    one, other = {0: 1.0, 1: 1.0, 2: 1.0}, {0: 2.0, 1: 3.0, 2: 4.0}
    looks = paired_difference(one, other, num_looks=3)
    settings = paired_difference(one, other, num_candidates=3)
    both = paired_difference(one, other, num_candidates=2, num_looks=3)
    six = paired_difference(one, other, num_candidates=6)
    assert looks is not None and settings is not None and both is not None and six is not None
    assert (looks.low, looks.high) == (settings.low, settings.high)
    assert (both.low, both.high) == (six.low, six.high)
    assert looks.test == "paired t, Bonferroni over 3 looks"
    assert both.test == "paired t, Bonferroni over 2 settings and 3 looks"


def test_paired_values_are_in_the_order_of_their_seeds() -> None:
    assert paired_values({2: 5.0, 0: 1.0, 1: None, 3: 0.0}, {0: 2.0, 2: 2.0, 1: 1.0}) == [-1.0, 3.0]


def test_only_seeds_with_both_values_are_paired() -> None:
    one, other = {0: 1.0, 1: None, 2: 1.0, 3: 5.0}, {0: 2.0, 1: 2.0, 2: 2.0, 4: 9.0}
    found = paired_difference(one, other)
    assert found is not None
    assert (found.num_pairs, found.mean) == (2, -1.0)
    assert paired_difference({0: 1.0, 1: None}, {0: 2.0, 1: 2.0}) is None


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (7, 2.3646), (30, 2.0423)])
def test_t_quantiles_are_those_of_the_tables(degrees: int, expected: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(expected, abs=5e-5)


def test_seeds_to_settle_is_the_smallest_that_is_narrow_enough() -> None:
    # Differences 0, 1, 2 have deviation 1. Half width at n: t(n-1) / root n = 1.0494 at 6, 0.9248 at 7.
    one, other = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.0, 1: 1.0, 2: 1.0}
    assert seeds_to_settle(one, other, 1.0) == 7
    assert seeds_to_settle(one, other, 1e-6) is None
    assert (seeds_to_settle(one, other, 1.0, limit=6), seeds_to_settle(one, other, 1.0, limit=7)) == (None, 7)
    assert seeds_to_settle(one, one, 0.1) == 2
    # Of 5 intervals the quantile is that at 0.995: 4.0321 / root 6 = 1.6461, 3.2498 / root 10 = 1.0277,
    # 3.1693 / root 11 = 0.9556.
    assert seeds_to_settle(one, other, 1.0, num_intervals=5) == 11
