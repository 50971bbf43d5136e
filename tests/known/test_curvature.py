"""C: cosh(x) - 1 without noise. The curvature grows with the gradient, so that clipping allows a larger rate.

x <- x - lr * g * min(1, c / (|g| + 1e-6)), 60 steps from 8, 9 and 10: the right threshold is about L0 / L1 = 1.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
from known.problems import Cosh, clip_at, score, train

from tuner.evidence import Verdict
from tuner.tuning import tune

#: F(c), the best over learning rates of the worst over starts, and W(c), the number of rates that arrive.
WIDTHS = {
    0.01: 0,
    0.03: 0,
    0.1: 0,
    0.3: 16,
    1.0: 27,
    3.0: 30,
    10.0: 26,
    30.0: 16,
    100.0: 2,
    300.0: 0,
    1000.0: 0,
    math.inf: 0,
}
BEST = {0.01: 7e-3, 0.03: 8e-4, 0.1: 3e-4, 100.0: 1.5e-7, 300.0: 8e-3, 1000.0: 0.2, math.inf: 7.7}
STARTS = (8.0, 9.0, 10.0)
NUM_STEPS, NUM_RATES, BASE = 60, 200, 0.01
RATES = tuple(1e-5 * (30 / 1e-5) ** (number / (NUM_RATES - 1)) for number in range(NUM_RATES))


def final(start: float, thresholds: tuple[float, ...], rates: tuple[float, ...]) -> dict[float, list[float]]:
    """Last value by threshold, one per rate; every pair is a lane."""
    settings = [clip_at(each, scale=rate / BASE) for each in thresholds for rate in rates]
    workload = Cosh(Cosh.Parameters(start=start, learning_rate=BASE))
    found = train(workload, settings, num_steps=NUM_STEPS)
    scores = [score(found[setting][0]) for setting in settings]
    return {each: scores[n * len(rates) : (n + 1) * len(rates)] for n, each in enumerate(thresholds)}


@cache
def worst() -> dict[float, list[float]]:
    """The worst over the starts, by threshold, one per learning rate."""
    by_start = [final(start, tuple(WIDTHS), RATES) for start in STARTS]
    return {
        each: [max(values) for values in zip(*(found[each] for found in by_start), strict=True)]
        for each in WIDTHS
    }


@pytest.mark.parametrize(("threshold", "width"), WIDTHS.items())
def test_number_of_rates_that_arrive_is_the_tables(threshold: float, width: int) -> None:
    assert abs(sum(value < 1e-6 for value in worst()[threshold]) - width) <= 2


@pytest.mark.parametrize("threshold", [0.3, 1.0, 3.0, 10.0, 30.0])
def test_right_thresholds_reach_the_optimum(threshold: float) -> None:
    assert min(worst()[threshold]) < 1e-12


@pytest.mark.parametrize(("threshold", "best"), BEST.items())
def test_wrong_thresholds_do_not(threshold: float, best: float) -> None:
    found = min(worst()[threshold])
    # Given to one digit, on a grid of rates 7.8 % apart, which a fast descent feels.
    assert best / 2 < found < best * 2
    assert threshold == 100.0 or found > 1e-5


def test_one_rate_from_one_start() -> None:
    found = final(10.0, (0.03, 0.1, 0.2, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, math.inf), (1.0,))
    values = {threshold: value for threshold, (value,) in found.items()}
    assert values[0.03] == pytest.approx(1.8e3, rel=0.05)
    assert values[0.1] == pytest.approx(26.3, rel=0.01)
    assert all(values[each] < 1e-12 for each in (0.2, 0.3, 1.0, 3.0, 10.0))
    assert [values[each] for each in (30.0, 100.0)] == pytest.approx([1.1e4] * 2, rel=0.05)
    assert values[math.inf] == math.inf


def test_one_start_is_not_enough() -> None:
    # From 10 alone an unclipped rate of about 10 / sinh(10) jumps next to the optimum by luck.
    lucky = min(final(10.0, (math.inf,), RATES)[math.inf])
    assert lucky < 0.01 < 0.01 * min(worst()[math.inf])


def test_value_clipping_of_one_number_arrives_where_norm_clipping_does() -> None:
    settings = [clip_at(1.0, scale=100.0, method=method) for method in ("global_norm", "value")]
    found = train(Cosh(Cosh.Parameters(start=9.0, learning_rate=BASE)), settings, num_steps=5)
    one, other = (score(lanes[0]) for lanes in found.values())
    assert one == pytest.approx(other, rel=1e-3)


def test_study_of_rate_and_threshold_says_clip() -> None:
    found = tune(
        Cosh(),
        num_trials=48,
        cohort_size=16,
        num_steps=NUM_STEPS,
        num_rungs=1,
        threshold_low=0.01,
        threshold_high=1000.0,
        learning_rate_low=0.01,
        learning_rate_high=1000.0,
        lanes=100,
        progress=False,
    )
    assert found.verdict == Verdict.CLIP
    assert found.setting.threshold is not None
    assert 0.3 <= found.setting.threshold <= 30
    assert found.value is not None
    assert found.value.mean is not None
    # Off is compared at the best rate that was found for it.
    assert found.off.mean is None or found.off.mean > 10 * found.value.mean
