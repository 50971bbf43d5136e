"""A: noise with a mean that is not its median. Clipping biases the mean of the iterates towards the median.

x <- x - lr * clip(x - noise, -c, c) with noise ~ Exp(1), scored by the averaged iterate: the right answer is *off*.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from known.problems import clip_at, cohort_of, noise, train
from toys import Outcome, trained

from tuner.clippers import create_clipper
from tuner.evidence import Recommendation, Verdict
from tuner.lanes import Layout
from tuner.spec import ClipSetting
from tuner.training.batched import BatchedEngine
from tuner.tuning import tune

#: Fixed point and risk of the averaged iterate, by threshold.
FIXED_POINTS = {0.2: 0.6998, 0.5: 0.7345, 1.0: 0.8414, 2.0: 0.9475, 4.0: 0.9932, 8.0: 0.9999, math.inf: 1.0}
RISKS = {0.2: 0.0450, 0.5: 0.0351, 1.0: 0.0127, 2.0: 0.0015, 4.0: 0.0002, 8.0: 0.0002, math.inf: 0.0002}
LEARNING_RATE, BURN_IN, NUM_AVERAGED, NUM_REPEATS = 0.01, 3000, 3000, 300


def fixed_point(threshold: float) -> float:
    """Where the mean clipped gradient vanishes."""
    if threshold <= 0.79681:
        return math.log(2 * math.sinh(threshold) / threshold)
    low, high = 0.5, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle - 1 + math.exp(-middle - threshold) < 0 else (low, middle)
    return high


@pytest.mark.parametrize(("threshold", "expected"), FIXED_POINTS.items())
def test_fixed_point_is_the_tables(threshold: float, expected: float) -> None:
    assert fixed_point(threshold) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.79, 0.8, 1.0, 2.0, 4.0])
def test_mean_clipped_gradient_vanishes_at_the_fixed_point(threshold: float) -> None:
    # Quantiles of Exp(1) in the middle of equal shares, clipped by the clipper itself.
    num = 200_000
    shares = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    grads = (fixed_point(threshold) + torch.log1p(-shares)).unsqueeze(0)
    clipper = create_clipper([clip_at(threshold, method="value")], Layout(("x",), ((num,),)))
    clipped = clipper.clip(grads, {}, weights=grads, loss=torch.zeros(1)).grads
    assert float(clipped.mean()) == pytest.approx(0, abs=1e-5)
    assert fixed_point(1e-6) == pytest.approx(math.log(2), abs=1e-6)


@cache
def clipped_by_value() -> dict[float, Outcome]:
    """One lane per threshold, with all repeats side by side: a clamp acts on each by itself."""
    workload = noise(
        "exponential",
        num=NUM_REPEATS,
        learning_rate=LEARNING_RATE,
        burn_in=BURN_IN,
        num_averaged=NUM_AVERAGED,
    )
    settings = {clip_at(each, method="value"): each for each in FIXED_POINTS}
    cohort = cohort_of(workload, tuple(settings), num_steps=BURN_IN + NUM_AVERAGED)
    found = trained(BatchedEngine(cohort, workload), cohort)
    return {settings[ClipSetting.parse(lane.trial_id)]: outcome for lane, outcome in found.items()}


@pytest.mark.parametrize("threshold", FIXED_POINTS)
def test_mean_of_the_iterates_follows_the_curve(threshold: float) -> None:
    # Its standard error is at most 1 / sqrt(3000 * 300) = 0.0011: this is 2.8 of them.
    mean = float(clipped_by_value()[threshold].buffers["mean"].mean())
    assert abs(mean - fixed_point(threshold)) <= 0.003


@pytest.mark.parametrize(("threshold", "risk"), RISKS.items())
def test_averaged_risk_is_the_tables(threshold: float, risk: float) -> None:
    found = clipped_by_value()[threshold].evaluation.objective / NUM_AVERAGED / 2
    # A deviation of 0.003 of the mean costs 0.003 * (1 - x*) beside the noise of a single repeat, 0.0002.
    assert abs(found - risk) <= 0.003 * (1 - fixed_point(threshold)) + 1e-4


def test_averaged_risk_says_off_and_the_last_iterate_does_not() -> None:
    averaged = {threshold: each.evaluation.objective for threshold, each in clipped_by_value().items()}
    assert min(averaged[each] for each in (4.0, 8.0, math.inf)) < 0.3 * averaged[2.0]
    last = {
        threshold: float((each.weights - 1).square().mean() / 2)
        for threshold, each in clipped_by_value().items()
    }
    # A trap: fixed thresholds also lower the effective rate, so that the last iterate scatters less.
    assert last[4.0] < last[math.inf]


def test_norm_clipping_of_one_number_is_value_clipping() -> None:
    # Apart from the 1e-6 in the norm's denominator.
    thresholds = (0.5, 1.0, 2.0)
    workload = noise("exponential", learning_rate=LEARNING_RATE, burn_in=300, num_averaged=300)
    settings = [clip_at(each, method=method) for each in thresholds for method in ("value", "global_norm")]
    found = train(workload, settings, num_steps=600, seeds=range(4))
    for each in thresholds:
        one, other = (found[clip_at(each, method=method)] for method in ("value", "global_norm"))
        for mine, theirs in zip(one, other, strict=True):
            assert mine.value == pytest.approx(theirs.value, rel=1e-4)
            assert 0 < mine.clip_fraction < 1


def test_norm_clipping_follows_the_curve() -> None:
    # Seeds are the repeats here. The rate is larger, so that fewer steps do: the fixed point does not depend on it.
    num_seeds, burn_in, num_averaged = 48, 400, 1600
    workload = noise("exponential", learning_rate=0.05, burn_in=burn_in, num_averaged=num_averaged)
    settings = {clip_at(each): each for each in (0.5, 1.0, 2.0, math.inf)}
    cohort = cohort_of(workload, tuple(settings), num_steps=burn_in + num_averaged, seeds=range(num_seeds))
    found = trained(BatchedEngine(cohort, workload), cohort)
    for setting, threshold in settings.items():
        means = [each.buffers["mean"] for lane, each in found.items() if lane.trial_id == str(setting)]
        # The standard error is at most 1 / sqrt(1600 * 48) = 0.0036.
        assert abs(float(torch.cat(means).mean()) - fixed_point(threshold)) <= 3.5 * 0.0036


@cache
def answer(low: float | None = None, high: float | None = None) -> Recommendation:
    """Starts below the fixed points: at the optimum a threshold that moves nothing would be the best."""
    workload = noise("exponential", num=50, learning_rate=0.04, burn_in=200, num_averaged=600, distance=-1.0)
    return tune(
        workload,
        methods=("value",),
        threshold_low=low,
        threshold_high=high,
        num_trials=8,
        num_confirm_seeds=4,
        num_steps=800,
        num_rungs=1,
        lanes=32,
        progress=False,
    )


def test_study_of_thresholds_that_all_bias_says_do_not_clip() -> None:
    assert answer(0.1, 2.0).verdict == Verdict.DO_NOT_CLIP
    assert answer(0.1, 2.0).setting.is_off


def test_study_over_the_default_range_recommends_off_or_a_threshold_that_hardly_biases() -> None:
    setting = answer().setting
    assert setting.threshold is None or setting.threshold >= 4
