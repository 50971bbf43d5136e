"""Verdicts on two settings, as tables with their arithmetic."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tuner.evidence import PairedDifference, Verdict
from tuner.search.statistics import paired_difference
from tuner.search.verdict import Comparison, judge_difference, values_without_failures

Values = tuple[float | None, ...]
CLIP, NOT, OPEN, SAME = (
    Verdict.CLIP,
    Verdict.DO_NOT_CLIP,
    Verdict.INCONCLUSIVE,
    Verdict.NO_DIFFERENCE,
)


def compared(mine: Values, theirs: Values, margin: float = 0.01, **corrections: int) -> Comparison:
    return Comparison(
        mine=dict(enumerate(mine)), theirs=dict(enumerate(theirs)), margin=margin, **corrections
    )


@pytest.mark.parametrize(
    ("mean", "low", "high", "expected"),
    [
        (-0.2, -0.3, -0.1, CLIP),
        (0.2, 0.1, 0.3, NOT),
        (0.0, -0.04, 0.05, SAME),  # inside the margin of 0.05, ends included
        (-0.04, -0.045, -0.02, SAME),  # real but too small to matter
        (-0.04, -0.06, -0.02, OPEN),  # real, and it may matter or not
        (0.04, 0.02, 0.06, OPEN),
        (-0.2, -0.5, 0.1, OPEN),
        (-0.05, -0.1, 0.0, OPEN),  # 0 is not excluded
        (-0.05, -0.09, -0.01, CLIP),  # exactly what matters
    ],
)
def test_judgement_of_an_interval(mean: float, low: float, high: float, expected: Verdict) -> None:
    difference = PairedDifference(mean=mean, low=low, high=high, num_pairs=3)
    assert judge_difference(difference, margin=0.05) is expected


@pytest.mark.parametrize(
    ("mine", "theirs", "expected", "p_value"),
    [
        # One side failed everywhere and the other nowhere: four seeds are enough, whatever the test says.
        ((1.0,) * 4, (None,) * 4, CLIP, 0.125),
        ((None,) * 4, (1.0,) * 4, NOT, 0.125),
        # Three are not, and neither is a seed less.
        ((1.0,) * 3, (None,) * 3, OPEN, 0.25),
        ((1.0, 1.0, 1.0), (None, None, 1.1), OPEN, 0.25),
        # Both failed everywhere: there is nothing to choose.
        ((None, None, None), (None, None, None), OPEN, 1.0),
        # Both failed in a seed: 5 others that all favour one side are 2 / 2**5.
        ((None, 1.0, 1.0, 1.0, 1.0, 1.0), (None,) * 6, OPEN, 0.0625),
        # 6 seeds, one failure, all on one side: 2 / 2**6.
        ((1.0, 1.1, 1.2, 1.3, 1.4, 1.5), (None, 1.2, 1.4, 1.6, 1.8, 2.0), CLIP, 0.03125),
        ((None, 1.2, 1.4, 1.6, 1.8, 2.0), (1.0, 1.1, 1.2, 1.3, 1.4, 1.5), NOT, 0.03125),
        # A failure against a failure is chance: the two infinite ranks are equal.
        ((None, 1.0, 1.0, 1.0), (1.0, None, 1.0, 1.0), OPEN, 1.0),
        # The one seed that is against it has the smallest rank: 4 / 2**7.
        ((1.01, *[1.0] * 6), (1.0, *[None] * 6), CLIP, 0.03125),
    ],
)
def test_failures_are_judged_by_ranks(
    mine: Values, theirs: Values, expected: Verdict, p_value: float
) -> None:
    found = compared(mine, theirs)
    assert found.has_failures
    assert found.p_value == p_value
    assert found.judge() is expected


def test_failing_everywhere_decides_nothing_for_the_best_of_several() -> None:
    assert compared((1.0,) * 5, (None,) * 5, num_candidates=3).judge() is OPEN


def test_seed_that_fails_under_both_leaves_the_others_to_decide() -> None:
    values = tuple(1.0 + 0.1 * seed for seed in range(5))
    shifted = tuple(value - 0.5 for value in values)
    assert compared((None, *values), (None, *values)).judge() is SAME
    assert compared((None, *shifted), (None, *values)).judge() is CLIP
    assert compared((None, *values), (*values, None)).judge() is OPEN


def test_ranks_are_corrected_for_the_choice_and_the_looks() -> None:
    mine, theirs = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5), (None, 1.2, 1.4, 1.6, 1.8, 2.0)
    assert compared(mine, theirs, num_looks=2).p_value == 0.0625
    assert compared(mine, theirs, num_looks=2).judge() is OPEN
    assert compared(mine, theirs, num_candidates=3).p_value == 0.09375
    assert compared(mine, theirs, num_candidates=8, num_looks=9).p_value == 1.0


def test_side_is_the_one_that_the_ranks_favour() -> None:
    # Off fails in 12 of 24 seeds and is better by a thousandth in the others. The 12 failures have the ranks 13 to 24,
    # together 222 of 300: p = 0.036, in favour of clipping.
    mine = (1.001,) * 24
    theirs = (None,) * 12 + tuple(1.0 + 1e-5 * seed for seed in range(12))
    found = compared(mine, theirs)
    assert found.p_value < 0.05
    assert found.judge() is CLIP


@pytest.mark.parametrize("failed", [(None, None), (None, 1.0)])
def test_differences_that_do_not_matter_decide_nothing_beside_a_failure(failed: Values) -> None:
    # Clipping never fails less often, and is better by a millionth elsewhere; a hundredth matters.
    mine = (failed[0], *(1.0 - 1e-6 * seed for seed in range(1, 20)))
    theirs = (failed[1], *[1.0] * 19)
    assert compared(mine, theirs).judge() is not CLIP


def test_only_common_seeds_count() -> None:
    found = Comparison(mine={0: 1.0, 1: 2.0, 5: None}, theirs={0: 1.5, 1: 2.5, 7: None}, margin=0.1)
    assert found.seeds == (0, 1)
    assert not found.has_failures
    assert found.ranked == (-0.5, -0.5)
    assert found.judge() is CLIP


def test_without_a_common_seed_nothing_is_said() -> None:
    found = Comparison(mine={0: 1.0}, theirs={1: 1.0}, margin=0.1)
    assert (found.seeds, found.difference, found.p_value) == ((), None, 1.0)
    assert found.judge() is OPEN
    assert found.seeds_to_settle(2) is None


def test_difference_beside_a_failure_says_what_it_rests_on() -> None:
    found = compared((1.0, 1.1, None), (2.0, 2.1, 2.2)).difference
    assert found is not None
    assert (found.mean, found.num_pairs) == (pytest.approx(-1.0), 2)
    assert found.test == "paired t, seeds without failure"
    assert found.p_value == 1.0  # ranks 1.5 and 1.5 against 3
    assert compared((1.0, None), (2.0, 2.1)).difference is None


def test_seeds_to_settle_allow_for_one_more_look() -> None:
    # Differences -0.2, -0.1, 0: deviation 0.1, mean -0.1. t(n-1) * 0.1 / root n at 0.975 falls below 0.1 at n = 7
    # (0.0925), at 1 - 0.025 / 2 at n = 9 (2.7515 / 3 = 0.0917; n = 8: 2.8412 / root 8 = 0.1005).
    found = compared((1.8, 2.0, 2.2), (2.0, 2.1, 2.2), margin=0.021)
    assert found.judge() is OPEN
    assert found.seeds_to_settle(1) == 7
    assert found.seeds_to_settle(2) == 9
    # Only a difference of about half of what matters: it has to be shown to be below it.
    assert replace(found, margin=0.2).seeds_to_settle(2) == 9
    assert replace(found, margin=0.1).seeds_to_settle(2) == 9
    assert (
        replace(found, margin=0.1001).seeds_to_settle(2) is None
    )  # within a thousandth of the bound no number would do


def test_seeds_to_settle_ranks_repeats_what_was_seen() -> None:
    # Two looks: p must be at most 0.025, so 7 seeds that all favour one side: 2 / 2**7 = 0.0156.
    assert compared((1.0, 1.0, 1.0), (None, 1.1, 1.2)).seeds_to_settle(2) == 7
    # Beyond 6 looks 8 seeds: 7 * 2 / 2**8 = 0.0547 are not enough, 9 are.
    assert compared((1.0, 1.0, 1.0), (None, 1.1, 1.2)).seeds_to_settle(7) == 9
    assert compared((None, None), (None, None)).seeds_to_settle(2) is None


def test_failed_seeds_have_no_value() -> None:
    assert values_without_failures({0: 1.0, 1: 9.0, 2: None}, [1, 2]) == {0: 1.0, 1: None, 2: None}


@pytest.mark.parametrize(("candidates", "seeds"), [(2, 3), (6, 3), (15, 3), (6, 5), (15, 5)])
def test_study_without_an_effect_says_clip_in_at_most_one_of_forty(candidates: int, seeds: int) -> None:
    # Every setting, off included, draws from one distribution, and any difference matters: each CLIP is false.
    # The bound is 0.025; 4000 studies have a standard error of 0.0025.
    draw = random.Random(17)
    rates = {1: 0.0, candidates: 0.0}
    for _ in range(4000):
        off, *clips = ([draw.gauss() for _ in range(seeds)] for _ in range(candidates + 1))
        best = min(clips, key=sum)
        for corrected in rates:
            found = paired_difference(dict(enumerate(best)), dict(enumerate(off)), num_candidates=corrected)
            assert found is not None
            rates[corrected] += (judge_difference(found, margin=0.0) is CLIP) / 4000
    assert rates[candidates] <= 0.03
    # What the correction is for: without it there are more, with 6 settings and 3 seeds more than twice as many.
    assert rates[1] > (0.06 if candidates >= 6 else 0.03)


@pytest.mark.parametrize("settings", [7, 15])
def test_stopping_the_worse_half_early_does_not_break_that_bound(settings: int) -> None:
    # Stopped settings are not counted, though what they showed at the rung is 0.95 correlated with the end.
    draw = random.Random(3)
    rate = 0.0
    for _ in range(4000):
        off, *clips = ([draw.gauss() for _ in range(3)] for _ in range(settings + 1))
        clips.sort(key=lambda values: sum(0.95 * value + 0.312 * draw.gauss() for value in values))
        kept = clips[: (settings + 1) // 2]
        best = min(kept, key=sum)
        found = paired_difference(dict(enumerate(best)), dict(enumerate(off)), num_candidates=len(kept))
        assert found is not None
        rate += (judge_difference(found, margin=0.0) is CLIP) / 4000
    assert rate <= 0.03
