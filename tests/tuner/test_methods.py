"""The table of methods is complete and consistent."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuner.clippers import Clipper, clipper_class
from tuner.errors import SpecError, UnknownMethodError
from tuner.lanes import Layout
from tuner.methods import METHODS, OFF, Method, get_method
from tuner.spec import ClipSetting, StudySpec

WITH_THRESHOLD = [name for name in METHODS if METHODS[name].has_threshold]
coordinates = st.floats(1e-4, 1e4)


def search_range(method: Method) -> tuple[float | None, float | None]:
    return (
        (method.kappa_low, method.kappa_high)
        if method.scale
        else (method.threshold_low, method.threshold_high)
    )


def test_every_method_has_a_clipper_and_a_summary() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert isinstance(clipper_class(name)(torch.ones(1), Layout(("weight",), ((2,),))), Clipper)
        assert method.summary.endswith(".")
        assert method.has_threshold == (name != OFF) == bool(method.threshold_unit)


def test_norms_are_searched_from_a_thousandth_of_the_median() -> None:
    found = {name: (each.kappa_low, each.kappa_high) for name, each in METHODS.items() if each.scale}
    assert found == {
        "global_norm": (1e-3, 10.0),
        "global_norm_inf": (1e-3, 10.0),
        "per_tensor_norm": (1e-3, 10.0),
        "value": (1e-3, 1.0),
    }


def test_every_threshold_has_one_range_in_kappa_or_in_its_own_unit() -> None:
    for name in WITH_THRESHOLD:
        method = METHODS[name]
        low, high = search_range(method)
        assert low is not None
        assert high is not None
        assert method.low_bound < low < high < method.high_bound
        other = (method.threshold_low, method.threshold_high) if method.scale else (method.kappa_low,)
        assert set(other) == {None}
    assert search_range(METHODS[OFF]) == (None, None)


@pytest.mark.parametrize("name", WITH_THRESHOLD)
@given(coordinate=coordinates)
def test_coordinate_is_undone(name: str, coordinate: float) -> None:
    method = METHODS[name]
    threshold = method.at_coordinate(coordinate)
    assert method.coordinate(threshold) == pytest.approx(coordinate, rel=1e-6)


@pytest.mark.parametrize("name", WITH_THRESHOLD)
@given(coordinate=coordinates)
def test_rounding_moves_less_than_one_percent_on_the_axis_and_only_once(name: str, coordinate: float) -> None:
    method = METHODS[name]
    rounded = method.rounded(method.at_coordinate(coordinate))
    assert method.low_bound < rounded < method.high_bound
    assert abs(math.log(method.coordinate(rounded) / coordinate)) < 0.0102
    assert method.rounded(rounded) == rounded


@pytest.mark.parametrize(
    ("name", "threshold", "rounded"),
    [
        ("global_norm", 0.123456, 0.123),
        ("norm_growth", 1.003, 1.003),
        ("norm_growth", 1.0034567, 1.00346),
        ("adagc", 1.05, 1.05),
        ("autoclip", 12.3456, 12.3),
        ("autoclip", 98.76543, 98.77),
        ("quantile", 0.98765, 0.9877),
        ("quantile", 0.5, 0.5),
    ],
)
def test_rounding_keeps_three_digits_of_what_matters(name: str, threshold: float, rounded: float) -> None:
    assert get_method(name).rounded(threshold) == rounded


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("autoclip:0", "must be > 0 and < 100 for the percentile of 'autoclip', got 0.0"),
        ("autoclip:100", "must be > 0 and < 100 for the percentile of 'autoclip', got 100.0"),
        ("quantile:1", "must be > 0 and < 1 for the unclipped_share of 'quantile', got 1.0"),
        ("adagc:1", "must be finite and > 1 for the lambda_rel of 'adagc', got 1.0"),
        ("norm_growth:0.5", "must be finite and > 1 for the growth_ratio of 'norm_growth', got 0.5"),
        ("skip_step:inf", "must be finite and > 0 for the num_sigmas of 'skip_step', got inf"),
    ],
)
def test_setting_out_of_its_methods_bounds_names_bound_and_remedy(text: str, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        ClipSetting.parse(text)
    assert caught.value.reason == f"{sentence}; use method 'none' for off"
    assert (caught.value.field, caught.value.code) == ("threshold", "invalid_spec")


def test_range_of_a_study_out_of_its_methods_bounds_is_refused() -> None:
    with pytest.raises(SpecError, match="threshold_low must be finite and > 1 for the growth_ratio"):
        StudySpec(workload="w", methods=("norm_growth",), threshold_low=0.9, threshold_high=1.5)
    with pytest.raises(SpecError, match="threshold_high must be > 0 and < 100 for the percentile"):
        StudySpec(workload="w", methods=("autoclip",), threshold_low=1.0, threshold_high=100.0)


def test_unknown_method_is_told_with_the_known_ones() -> None:
    with pytest.raises(UnknownMethodError) as caught:
        get_method("spam")
    assert caught.value.known == tuple(sorted(METHODS))


def test_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        METHODS["new"] = METHODS[OFF]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS[OFF].name = "off"  # type: ignore[misc]
