"""A setting and the parameters that stand for it are two forms of one thing."""

from __future__ import annotations

import math

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.evidence import Reference
from tuner.methods import METHODS, OFF
from tuner.search import axes
from tuner.search.space import RateRange, Space, ThresholdRange, is_same, search_space
from tuner.spec import ClipSetting, StudySpec

WITH_THRESHOLD = [name for name in METHODS if name != OFF]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    """Optuna's messages about studies in memory are not asked for here."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def space_of(reference: Reference, *methods: str, rates: bool = False) -> Space:
    low, high = (0.1, 10.0) if rates else (None, None)
    spec = StudySpec(workload="w", methods=methods, learning_rate_low=low, learning_rate_high=high)
    return search_space(spec, reference)


def replayed(space: Space, setting: ClipSetting) -> ClipSetting:
    """What `suggest` gives when exactly the setting's parameters are drawn."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(axes.params(space, setting))
    return axes.suggest(study.ask(axes.distributions(space, setting.method)), space)


@pytest.mark.parametrize("rates", [False, True])
@pytest.mark.parametrize("method", WITH_THRESHOLD)
def test_every_drawn_setting_comes_back_from_its_parameters(
    reference: Reference, sgd_reference: Reference, method: str, rates: bool
) -> None:
    for probe in (reference, sgd_reference):
        space = space_of(probe, method, rates=rates)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        for _ in range(30):
            setting = axes.suggest(study.ask(), space)
            assert axes.is_inside(space, setting)
            assert replayed(space, setting) == setting


@pytest.mark.parametrize("method", WITH_THRESHOLD)
def test_ends_of_the_ranges_are_inside(sgd_reference: Reference, method: str) -> None:
    space = space_of(sgd_reference, method, rates=True)
    (chosen,) = space.ranges
    for threshold in (chosen.low, chosen.high):
        for scale in (0.1, 1.0, 10.0):
            setting = ClipSetting(method=method, threshold=threshold, learning_rate_scale=scale)
            assert axes.is_inside(space, setting)
            distributions = axes.distributions(space, method)
            for name, value in axes.params(space, setting).items():
                assert distributions[name]._contains(distributions[name].to_internal_repr(value))
            assert is_same(replayed(space, setting), setting)


def test_parameters_are_the_coordinate_and_only_what_is_open(reference: Reference) -> None:
    setting = ClipSetting.parse("norm_growth:1.25")
    assert axes.params(space_of(reference, "norm_growth"), setting) == {"norm_growth.threshold": 0.25}
    several = space_of(reference, "norm_growth", "value")
    assert axes.params(several, setting) == {"method": "norm_growth", "norm_growth.threshold": 0.25}
    with_rate = ClipSetting.parse("norm_growth:1.25@0.5")
    assert axes.params(space_of(reference, "norm_growth", rates=True), with_rate) == {
        "method": "norm_growth",
        "learning_rate_scale": 0.5,
        "norm_growth.threshold": 0.25,
    }
    assert axes.params(space_of(reference, "value", rates=True), ClipSetting.parse("none@0.5")) == {
        "method": "none",
        "learning_rate_scale": 0.5,
    }


def test_step_cap_is_rate_times_threshold_under_sgd_for_thresholds_with_a_unit(
    reference: Reference, sgd_reference: Reference
) -> None:
    setting = ClipSetting.parse("global_norm:2@0.25")
    capped = space_of(sgd_reference, "global_norm", rates=True)
    assert capped.has_step_cap
    assert axes.params(capped, setting)["global_norm.threshold"] == 0.5
    # Thresholds 0.001 to 10, rates 0.1 to 10.
    found = axes.distributions(capped, "global_norm")["global_norm.threshold"]
    assert (found.low, found.high) == (pytest.approx(0.0001), pytest.approx(100.0))
    # Without features, and for a percentile, the threshold is itself.
    assert axes.params(space_of(reference, "global_norm", rates=True), setting)["global_norm.threshold"] == 2
    percentile = space_of(sgd_reference, "autoclip", rates=True)
    assert axes.params(percentile, ClipSetting.parse("autoclip:80@0.5"))["autoclip.threshold"] == 4.0
    # A rate that is left alone caps nothing.
    assert not space_of(sgd_reference, "global_norm").has_step_cap


@pytest.mark.parametrize(
    ("setting", "without_rates", "with_rates"),
    [
        ("none", False, True),
        ("none@0.05", False, False),
        ("global_norm:1", True, True),
        ("global_norm:1@0.5", False, True),
        ("global_norm:1@11", False, False),
        ("global_norm:11", False, False),
        ("value:0.01", False, False),
    ],
)
def test_inside(reference: Reference, setting: str, without_rates: bool, with_rates: bool) -> None:
    parsed = ClipSetting.parse(setting)
    assert axes.is_inside(space_of(reference, "global_norm"), parsed) is without_rates
    assert axes.is_inside(space_of(reference, "global_norm", rates=True), parsed) is with_rates


@settings(max_examples=50, deadline=None)
@given(
    low=st.floats(1e-3, 10.0),
    width=st.floats(1.05, 100.0),
    rate_low=st.floats(1e-3, 1.0),
    rate_width=st.floats(1.05, 100.0),
    has_step_cap=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_range_is_respected(
    low: float, width: float, rate_low: float, rate_width: float, has_step_cap: bool, seed: int
) -> None:
    space = Space(
        ranges=(ThresholdRange(method="global_norm", low=low, high=low * width),),
        rates=RateRange(low=rate_low, high=rate_low * rate_width),
        has_step_cap=has_step_cap,
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(5):
        setting = axes.suggest(study.ask(), space)
        assert axes.is_inside(space, setting)
        if setting.threshold is not None and has_step_cap:
            cap = axes.params(space, setting)["global_norm.threshold"]
            assert math.isclose(float(cap or 0), setting.threshold * setting.learning_rate_scale)
