"""The exact signed-rank test against scipy, and against counting every change of signs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tuner.search.statistics import signed_rank

INF = math.inf


def by_counting(differences: Sequence[float]) -> float:
    """The two-sided p-value over all 2**n signs, ranks by scipy."""
    known = [each for each in differences if each != 0]
    if not known:
        return 1.0
    ranks = scipy.stats.rankdata([abs(each) for each in known])
    centre = sum(ranks) / 2
    seen = abs(sum(rank for rank, each in zip(ranks, known, strict=True) if each > 0) - centre)
    sums = [sum(itertools.compress(ranks, signs)) for signs in itertools.product((0, 1), repeat=len(known))]
    return sum(abs(each - centre) >= seen - 1e-9 for each in sums) / len(sums)


@given(
    st.lists(
        st.floats(-100, 100, allow_subnormal=False).filter(bool),
        min_size=1,
        max_size=25,
        unique_by=abs,
    )
)
def test_without_ties_it_is_scipys_exact_test(differences: list[float]) -> None:
    expected = scipy.stats.wilcoxon(differences, method="exact").pvalue
    assert signed_rank(differences) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.sampled_from([-INF, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, INF]), max_size=9))
def test_with_ties_failures_and_zeros_it_counts_every_change_of_signs(differences: list[float]) -> None:
    assert signed_rank(differences) == pytest.approx(by_counting(differences), rel=1e-12)


@given(st.lists(st.sampled_from([-INF, -2.5, -1.0, 0.0, 1.0, 4.0, INF]), max_size=40))
def test_sides_order_and_unit_do_not_matter(differences: list[float]) -> None:
    found = signed_rank(differences)
    assert 0 < found <= 1
    assert signed_rank([-each for each in differences]) == found
    assert signed_rank(sorted(differences)) == found
    assert signed_rank([8 * each for each in differences]) == found


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([], 1.0),
        ([0.0, 0.0], 1.0),
        ([-1.0], 1.0),  # 2 / 2
        ([-INF] * 5, 0.0625),  # 2 / 2**5
        ([-INF] * 6, 0.03125),  # 2 / 2**6: the first that is below 0.05
        ([-INF] * 6 + [0.0] * 10, 0.03125),  # seeds in which both failed say nothing
        # Ranks 1 to 7, only the smallest positive: sums 0 and 1 on either side, 4 / 2**7.
        ([0.1, -1.0, -2.0, -3.0, -4.0, -5.0, -INF], 0.03125),
        # The failure is on the other side: sums of at most 7 are 1, 1, 1, 2, 2, 3, 4 and 5 of 128, twice.
        ([-0.1, -1.0, -2.0, -3.0, -4.0, -5.0, INF], 38 / 128),
    ],
)
def test_known_values(differences: list[float], expected: float) -> None:
    assert signed_rank(differences) == expected


def test_several_hundred_seeds_are_still_exact() -> None:
    assert signed_rank([-INF] * 200) == 2.0**-199
    balanced = [(-1.0) ** number * (number // 2 + 1) for number in range(200)]
    assert signed_rank(balanced) == 1.0
