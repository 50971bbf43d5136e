"""Ranges come from the spec or from the probe."""

from __future__ import annotations

import pytest

from tuner.evidence import Reference
from tuner.search.space import ThresholdRange, is_known, is_same, kappa, threshold_ranges
from tuner.spec import OFF_SETTING, ClipSetting, StudySpec


def test_range_is_kappa_times_the_median_of_what_the_method_compares(reference: Reference) -> None:
    spec = StudySpec(workload="w", methods=("global_norm", "global_norm_inf", "value"))
    # Median norm 1 and kappa 0.001 to 10; median largest element 0.1 and kappa 0.001 to 10, then 0.001 to 1.
    assert [(each.low, each.high) for each in threshold_ranges(spec, reference)] == [
        (0.001, 10.0),
        (0.0001, 1.0),
        (0.0001, 0.1),
    ]


def test_range_of_the_spec_wins(reference: Reference) -> None:
    spec = StudySpec(workload="w", threshold_low=0.123456, threshold_high=2.0)
    assert threshold_ranges(spec, reference) == (
        ThresholdRange(method="global_norm", low=0.123456, high=2.0),
    )


def test_spread_takes_the_middles_of_equal_parts() -> None:
    space = ThresholdRange(method="value", low=1.0, high=10000.0)
    assert space.spread(2) == (10.0, 1000.0)
    assert space.spread(0) == ()


def test_rounding_does_not_leave_the_range() -> None:
    space = ThresholdRange(method="value", low=0.123456, high=0.987654)
    assert space.rounded(0.1235) == 0.123456
    assert space.rounded(0.9876) == 0.987654
    assert space.rounded(0.55555) == 0.556


def test_kappa_is_relative_to_the_methods_own_scale(reference: Reference) -> None:
    assert kappa(ClipSetting.parse("global_norm:0.5"), reference) == 0.5
    assert kappa(ClipSetting.parse("value:0.5"), reference) == 5.0
    assert kappa(OFF_SETTING, reference) is None


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("value:1", "value:1.009", True),
        ("value:1", "value:1.02", False),
        ("value:1", "global_norm:1", False),
        ("none", "none", True),
        ("none", "value:1", False),
        ("value:1@0.5", "value:1@0.504", True),
        ("value:1@0.5", "value:1", False),
        ("none@0.5", "none@0.6", False),
    ],
)
def test_same_candidate(one: str, other: str, expected: bool) -> None:
    first, second = ClipSetting.parse(one), ClipSetting.parse(other)
    assert is_same(first, second) is is_same(second, first) is expected
    assert is_known(first, [OFF_SETTING, second]) is (expected or first == OFF_SETTING)
    assert not is_known(first, [])


def test_range_of_a_threshold_without_a_scale_does_not_depend_on_the_probe(reference: Reference) -> None:
    spec = StudySpec(workload="w", methods=("autoclip", "norm_growth", "quantile"))
    assert [(each.low, each.high) for each in threshold_ranges(spec, reference)] == [
        (1.0, 99.0),
        (1.001, 2.0),
        (0.01, 0.99),
    ]


def test_spread_is_even_on_the_methods_own_axis() -> None:
    # Excess 0.001 to 1 in three decades; odds 1/99 to 99, symmetric around even odds.
    growth = ThresholdRange(method="norm_growth", low=1.001, high=2.0).spread(3)
    assert growth == (1.00316, 1.0316, 1.316)
    share = ThresholdRange(method="quantile", low=0.01, high=0.99).spread(3)
    assert share == (0.0446, 0.5, 0.9554)
    assert ThresholdRange(method="autoclip", low=1.0, high=99.0).spread(3) == (4.46, 50.0, 95.54)


def test_threshold_without_a_scale_has_no_kappa(reference: Reference) -> None:
    assert kappa(ClipSetting.parse("autoclip:10"), reference) is None
    assert kappa(ClipSetting.parse("per_tensor_norm:0.5"), reference) == 0.5


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("norm_growth:1.003", "norm_growth:1.00302", True),
        ("norm_growth:1.003", "norm_growth:1.004", False),
        ("autoclip:99", "autoclip:99.001", True),
        ("autoclip:99", "autoclip:99.2", False),
        ("quantile:0.5", "quantile:0.501", True),
        ("quantile:0.5", "quantile:0.51", False),
    ],
)
def test_same_candidate_is_a_distance_on_the_axis(one: str, other: str, expected: bool) -> None:
    first, second = ClipSetting.parse(one), ClipSetting.parse(other)
    assert is_same(first, second) is is_same(second, first) is expected
