"""D: a small perceptron on targets of size 180. Learning rate and threshold have to be found together.

The table is the median test error over seeds 0 to 2. At the larger rates all steps are clipped at the right threshold,
and training without clipping fails.
"""

from __future__ import annotations

import math
import statistics
from functools import cache
from typing import Any

import pytest
from known.problems import NUM_STEPS, Regression, at_rate, clip_at, score, train

from tuner.evidence import Recommendation, Verdict
from tuner.spec import ClipSetting
from tuner.training.probe import measure_reference
from tuner.tuning import tune

OFF = math.inf
BASE = 0.01
THRESHOLDS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e4, OFF)
TABLE: dict[float, tuple[float, ...]] = {
    1e-4: (3e4, 3e4, 3e4, 2e3, 120, 20, 13, 9.4, 9.4),
    3e-4: (3e4, 3e4, 2e3, 170, 12, 7.5, 6.8, 7, 7),
    1e-3: (3e4, 2e3, 120, 11, 7.6, 4.3, 8.6, math.nan, math.nan),
    # The page says 560 at 300, where training is unstable; plain numpy gives 237 (149 to 549 over 9 seeds).
    3e-3: (2e3, 170, 11, 12, 80, 300, 6e3, 4e6, OFF),
    1e-2: (120, 11, 12, 84, 470, 1e4, 3e4, 2e8, OFF),
    3e-2: (11, 12, 61, 280, 1e4, 6e4, 4e6, 4e10, OFF),
}
#: A test error above this is a failure: the table's tolerance is wider there.
FAILED = 1e3


@cache
def medians() -> dict[tuple[float, float], float]:
    """Test error by learning rate and threshold."""
    settings = {
        clip_at(threshold, scale=rate / BASE): (rate, threshold) for rate in TABLE for threshold in THRESHOLDS
    }
    found = train(Regression(), tuple(settings), num_steps=NUM_STEPS, seeds=range(3))
    return {settings[setting]: statistics.median(map(score, lanes)) for setting, lanes in found.items()}


@pytest.mark.parametrize("rate", TABLE)
def test_error_is_the_tables(rate: float) -> None:
    for threshold, expected in zip(THRESHOLDS, TABLE[rate], strict=True):
        found = medians()[rate, threshold]
        if math.isnan(expected):
            continue
        if math.isinf(expected):
            # The page says 2e26 to 4e30; here the norm overflows within 20 steps, and in plain numpy too.
            assert found == math.inf
            continue
        factor = 10 if expected >= FAILED else 2
        assert expected / factor < found < expected * factor, (rate, threshold, found)


def test_cells_of_equal_step_length_agree_where_all_steps_are_clipped() -> None:
    cells = [(3e-2, 1.0), (1e-2, 3.0), (3e-3, 10.0), (1e-3, 30.0)]
    errors = [medians()[cell] for cell in cells]
    assert max(errors) < 1.25 * min(errors)
    assert all(10 < each < 14 for each in errors)


@pytest.mark.parametrize("data_seed", [2, 3, 4, 5])
def test_right_thresholds_at_a_high_rate_on_other_data(data_seed: int) -> None:
    settings = {clip_at(each): each for each in (1.0, 3.0, 10.0, 30.0, OFF)}
    workload = Regression(Regression.Parameters(data_seed=data_seed))
    found = train(workload, tuple(settings), num_steps=NUM_STEPS, seeds=range(3))
    errors = {settings[each]: statistics.median(map(score, lanes)) for each, lanes in found.items()}
    best = min(errors.values())
    assert best == min(errors[3.0], errors[10.0])
    # The page says 3 times. Measured on these data: 6.5 to 10.4 times at 1, and 2.5 to 8.3 times at 30.
    assert errors[1.0] > 3 * best
    assert errors[30.0] > 2 * best
    assert all(lane.diverged for lane in found[clip_at(OFF)])


def test_off_at_a_moderate_rate_fails_in_some_seeds_only() -> None:
    # 35 % of 40 seeds in the page; the standard error is 7.5 %.
    (lanes,) = train(
        at_rate(Regression(), 1e-3), [clip_at(OFF)], num_steps=NUM_STEPS, seeds=range(40)
    ).values()
    num_failed = sum(score(lane) > FAILED for lane in lanes)
    assert 0.35 - 0.2 <= num_failed / len(lanes) <= 0.35 + 0.2
    assert statistics.median(score(lane) for lane in lanes if score(lane) <= FAILED) < 15


def test_percentile_of_the_runs_own_norms_fails() -> None:
    # A run that diverges raises its own percentiles.
    settings = [ClipSetting(method="autoclip", threshold=each) for each in (1.0, 10.0, 25.0, 50.0)]
    found = train(Regression(), settings, num_steps=NUM_STEPS, seeds=range(3))
    for lanes in found.values():
        assert statistics.median(map(score, lanes)) > FAILED


def test_reference_norms_are_the_pages() -> None:
    reference = measure_reference(Regression(), (0,), num_batches=48)
    # 437 at frozen weights.
    assert reference.l2_norm.median == pytest.approx(437, rel=0.01)


def study(learning_rate: float, **fields: Any) -> Recommendation:
    workload = at_rate(Regression(), learning_rate)
    return tune(workload, num_steps=NUM_STEPS, lanes=100, progress=False, **fields)


def test_study_at_a_high_rate_says_clip_far_below_the_smallest_norm() -> None:
    found = study(1e-2, num_trials=12)
    assert found.verdict == Verdict.CLIP
    assert found.setting.threshold is not None
    assert 1.5 <= found.setting.threshold <= 20
    assert found.clip_fraction == pytest.approx(1, abs=0.01)
    assert found.off_failures is not None
    assert found.off_failures.num_failed == found.off_failures.num_lanes > 0
    assert found.failures is not None
    assert found.failures.num_failed == 0


def test_study_at_a_moderate_rate_reports_how_often_off_fails() -> None:
    found = study(1e-3, num_trials=8)
    assert found.off_failures is not None
    assert 0 < found.off_failures.num_failed < found.off_failures.num_lanes
    assert "failed" in found.reason


def test_study_of_rate_and_threshold_finds_about_the_best_cell() -> None:
    found = study(1e-3, num_trials=24, learning_rate_low=0.1, learning_rate_high=30.0)
    assert found.value is not None
    assert found.value.mean is not None
    # The best cell of the table: learning rate 1e-3, threshold 300.
    assert found.value.mean < 2 * medians()[1e-3, 300.0]
