"""Rules of thumb on known norms, and what the signs make of a probe."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tuner.evidence import Features, NormSketch, Reference, Smoothness
from tuner.search.prior import Expectation, prior, share_above
from tuner.training.sketches import sketch

# Log-normal norms: median 2, mean 2 * exp(0.125) = 2.2663.
NORMS = NormSketch(
    min=0.6,
    q01=0.63,
    q10=1.05,
    median=2.0,
    q90=3.8,
    q99=6.4,
    max=7.0,
    log_mean=math.log(2),
    log_std=0.5,
)
FEATURES = Features(
    model_signature="0" * 16,
    num_parameters=1,
    num_tensors=1,
    optimizer="sgd",
    learning_rate=0.1,
    batch_size=8,
    precision="fp32",
)


def reference(
    *,
    l0: float = 1.0,
    l1: float = 0.0,
    correlation: float = 0.9,
    spike_ratio: float | None = 1.5,
    tail_index: float | None = 12.0,
) -> Reference:
    return Reference(
        l2_norm=NORMS,
        max_abs=NORMS,
        num_batches=100,
        spike_ratio=spike_ratio,
        tail_index=tail_index,
        smoothness=Smoothness(l0=l0, l1=l1, num_points=24, correlation=correlation),
        features=FEATURES,
    )


def test_rules_pick_what_their_sources_say() -> None:
    found = prior(reference(l0=0.9, l1=3.0))
    thresholds = {rule.name: rule.setting.threshold for rule in found.rules}
    assert thresholds == {
        "L0 / L1": 0.3,
        "1.0": 1.0,
        "10th percentile": 1.05,
        "median": 2.0,
        "90th percentile": 3.8,
        "mean x 5": 11.3,
        "mean x 10": 22.7,
    }
    assert list(thresholds.values()) == sorted(thresholds.values())
    assert all(rule.setting.method == "global_norm" and rule.source for rule in found.rules)


def test_kappa_is_relative_to_the_median() -> None:
    found = prior(reference())
    assert {rule.name: rule.kappa for rule in found.rules}["90th percentile"] == pytest.approx(1.9)
    rule = found.rule("1.0")
    assert rule is not None and rule.kappa == 0.5
    assert found.rule("no such rule") is None


def test_rules_beyond_all_norms_are_flagged() -> None:
    found = prior(reference(l0=0.9, l1=3.0))
    sentences = {rule.name: (rule.clip_fraction, rule.sentence) for rule in found.rules}
    assert sentences["L0 / L1"] == (
        1.0,
        "below every norm: clips every step and so acts as a learning rate",
    )
    assert sentences["mean x 5"] == (0.0, "above every norm: would never act on such gradients")
    assert sentences["median"] == (0.5, "clips about 50% of the steps")
    assert sentences["10th percentile"] == (0.9, "clips about 90% of the steps")


def test_norms_that_were_not_measured_leave_rules_out() -> None:
    plain = NormSketch(median=2.0, q90=3.0, q99=4.0, max=5.0)
    found = prior(Reference(l2_norm=plain, max_abs=plain, num_batches=64))
    # Without their logarithms, the median stands for the mean.
    assert {rule.name: rule.setting.threshold for rule in found.rules} == {
        "1.0": 1.0,
        "median": 2.0,
        "90th percentile": 3.0,
        "mean x 5": 10.0,
        "mean x 10": 20.0,
    }
    assert found.expectation is Expectation.MAY_HELP
    assert "nothing speaks for or against" in found.sentence


@pytest.mark.parametrize(
    "smoothness",
    [None, (1.0, 0.0, 0.9), (0.0, 2.0, 0.9), (1.0, 2.0, 0.4)],
    ids=["not measured", "no growth", "no curvature at zero", "by chance"],
)
def test_l0_over_l1_needs_both_and_a_correlation(smoothness: tuple[float, float, float] | None) -> None:
    if smoothness is None:
        found = prior(replace(reference(), smoothness=None))
    else:
        l0, l1, correlation = smoothness
        found = prior(reference(l0=l0, l1=l1, correlation=correlation))
    assert found.rule("L0 / L1") is None


def test_tenth_percentile_of_zero_is_no_threshold() -> None:
    found = prior(replace(reference(), l2_norm=replace(NORMS, min=0.0, q01=0.0, q10=0.0)))
    assert found.rule("10th percentile") is None
    assert found.rule("1.0") is not None


@pytest.mark.parametrize(
    ("signs", "expectation", "says"),
    [
        ({}, Expectation.UNLIKELY, "tail is light (tail index 12)"),
        ({"tail_index": 4.0}, Expectation.UNLIKELY, "tail is light"),
        ({"tail_index": 3.9}, Expectation.MAY_HELP, "tail is heavy (tail index 3.9)"),
        ({"tail_index": 2.0}, Expectation.MAY_HELP, "tail is heavy"),
        ({"tail_index": 1.9}, Expectation.HELPS, "variance is infinite (tail index 1.9)"),
        ({"spike_ratio": 2.9}, Expectation.UNLIKELY, "no spikes"),
        ({"spike_ratio": 3.0}, Expectation.MAY_HELP, "spikes (largest / median norm 3)"),
        ({"spike_ratio": 10.0}, Expectation.HELPS, "large spikes"),
        # The largest norm is 7: L1 x 7 / L0.
        ({"l1": 0.14}, Expectation.UNLIKELY, "hardly grows"),
        ({"l1": 0.15}, Expectation.MAY_HELP, "curvature grows with the gradient's norm"),
        ({"l1": 1.43}, Expectation.HELPS, "grows in proportion"),
        ({"l0": 0.0, "l1": 1.0}, Expectation.HELPS, "L1 x largest norm / L0 = inf"),
        ({"l1": 1.5, "correlation": 0.4}, Expectation.UNLIKELY, "does not follow"),
        # The rate is 0.1: 0.1 x L0.
        ({"l0": 19.9}, Expectation.UNLIKELY, "short enough for the curvature"),
        ({"l0": 20.1}, Expectation.MAY_HELP, "too long without momentum for the curvature"),
        ({"l0": 40.1}, Expectation.HELPS, "too long for the curvature (learning rate x curvature = 4.01)"),
    ],
)
def test_strongest_sign_decides(signs: dict[str, float], expectation: Expectation, says: str) -> None:
    found = prior(reference(**signs))
    assert found.expectation is expectation
    assert says in found.sentence


def test_strongest_sign_comes_first() -> None:
    sentence = prior(reference(spike_ratio=20.0, tail_index=3.0)).sentence
    assert sentence.startswith("large spikes (largest / median norm 20); the norms' tail is heavy")


@pytest.mark.parametrize(
    "features", [replace(FEATURES, optimizer="adam"), replace(FEATURES, learning_rate=None)]
)
def test_steps_are_judged_for_sgd_alone(features: Features) -> None:
    found = prior(replace(reference(l0=1e6), features=features))
    assert found.expectation is Expectation.UNLIKELY
    assert "steps" not in found.sentence


def test_share_above_a_threshold_is_that_of_the_norms() -> None:
    norms = torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    found = sketch(norms)
    assert found is not None
    for threshold in (0.05, 0.2, 0.5, 1.0, 2.0, 8.0):
        expected = float((norms > threshold).double().mean())
        assert share_above(found, threshold) == pytest.approx(expected, abs=0.05)


def test_share_above_equal_norms_is_all_or_nothing() -> None:
    same = NormSketch(min=1.0, q01=1.0, q10=1.0, median=1.0, q90=1.0, q99=1.0, max=1.0)
    assert (share_above(same, 0.99), share_above(same, 1.0)) == (1.0, 0.0)


def test_share_below_the_lowest_known_quantile_is_the_least_it_can_be() -> None:
    plain = NormSketch(median=2.0, q90=3.0, q99=4.0, max=5.0)
    assert share_above(plain, 0.1) == 0.5


def test_prior_loads_no_torch() -> None:
    program = "import tuner.search.prior, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
