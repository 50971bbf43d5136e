"""Where exactly each adaptive method begins to act, with numbers that are exact in binary."""

from __future__ import annotations

import math

import pytest
import torch

from tuner.clippers import Clipper, ClipResult, ClipState
from tuner.clippers.adagc import AdaGCClipper
from tuner.clippers.agc import AgcClipper
from tuner.clippers.autoclip import AutoClipper
from tuner.clippers.norm_growth import NormGrowthClipper
from tuner.clippers.per_tensor_norm import PerTensorNormClipper
from tuner.clippers.quantile import QuantileClipper
from tuner.clippers.skip_step import SkipStepClipper
from tuner.clippers.zclip import ZClipper
from tuner.lanes import Layout

SINGLE = Layout(("weight",), ((1,),))


def feed(clipper: Clipper, *norms: float, losses: tuple[float, ...] | None = None) -> list[ClipResult]:
    """One lane with one parameter: the norm is the number."""
    state: ClipState = clipper.initial_state(torch.zeros(1, 1, dtype=torch.float64))
    results = []
    for norm, loss in zip(norms, losses or norms, strict=True):
        grads = torch.tensor([[norm]], dtype=torch.float64)
        results.append(clipper.clip(grads, state, weights=grads, loss=torch.tensor([loss])))
        state = results[-1].state
    return results


def clipped(results: list[ClipResult]) -> list[bool]:
    return [bool(each.clipped) for each in results]


def out(result: ClipResult) -> float:
    return float(result.grads[0, 0])


def one(threshold: float) -> torch.Tensor:
    return torch.tensor([threshold], dtype=torch.float64)


def test_autoclip_does_not_count_a_norm_that_equals_its_percentile() -> None:
    # Median of 1; of 1, 1; of 1, 1, 2; of 1, 1, 2, 2 = 1.5, which cuts the 2.
    results = feed(AutoClipper(one(50.0), SINGLE), 1.0, 1.0, 1.0, 2.0, 0.5)
    assert clipped(results) == [False, False, False, True, False]
    assert out(results[3]) == pytest.approx(1.0, rel=2e-6)


def test_autoclip_is_capped_by_the_reference_norm_only_if_there_is_one() -> None:
    runaway = [10.0**power for power in range(6)]
    free = feed(AutoClipper(one(99.0), SINGLE), *runaway)
    capped = feed(AutoClipper(one(99.0), SINGLE, reference_norm=1.0), *runaway)
    assert out(free[-1]) > 9e4
    assert out(capped[-1]) == pytest.approx(10.0, rel=1e-5)


def test_autoclip_window_forgets() -> None:
    results = feed(AutoClipper(one(50.0), SINGLE, window=2), 100.0, 1.0, 1.0, 3.0)
    assert out(results[-1]) == pytest.approx(2.0, rel=1e-5)


def test_zclip_limits_to_c_max_in_warmup_and_afterwards() -> None:
    clipper = ZClipper(one(2.0), SINGLE, warmup=2, c_max=4.0)
    results = feed(clipper, 4.0 - 1e-6, 4.0, 400.0)
    assert clipped(results) == [False, True, True]
    assert out(results[-1]) == pytest.approx(4.0, rel=1e-5)


def test_zclip_acts_above_the_threshold_not_at_it() -> None:
    # Mean 2 and deviation 1 after 1 and 3; the 1e-6 beside the deviation puts 4 + 2e-6 at z = 2 exactly.
    at, above = (
        feed(ZClipper(one(2.0), SINGLE, warmup=2, c_max=100.0), 1.0, 3.0, last) for last in (4.0, 4.001)
    )
    assert not at[-1].clipped
    assert above[-1].clipped


def test_zclip_statistics_receive_the_limited_norm() -> None:
    spiked = feed(ZClipper(one(2.0), SINGLE, warmup=2, c_max=100.0), 1.0, 3.0, 1000.0)[-1]
    assert float(spiked.state["mean"]) < 2.1


def test_zclip_caps_at_ten_reference_norms() -> None:
    assert out(feed(ZClipper(one(2.0), SINGLE, reference_norm=3.0), 300.0)[0]) == pytest.approx(30.0)
    assert out(feed(ZClipper(one(2.0), SINGLE), 300.0)[0]) == pytest.approx(1.0)


def test_norm_growth_lets_exactly_the_ratio_through() -> None:
    clipper = NormGrowthClipper(one(2.0), SINGLE)
    assert clipped(feed(clipper, 1.0, 2.0, 4.0, 8.5, 0.1)) == [False, False, False, True, False]


def test_norm_growth_recovers_a_hundredfold_in_463_steps() -> None:
    results = feed(NormGrowthClipper(one(1.01), SINGLE), 1.0, *[100.0] * 463)
    assert clipped(results)[1:] == [True] * 462 + [False]


def test_quantile_moves_by_eta_times_the_missing_share() -> None:
    clipper = QuantileClipper(one(0.75), SINGLE, c_start=1.0, eta=0.4)
    results = feed(clipper, 1.0 - 1e-5, 5.0)
    assert clipped(results) == [False, True]
    # Unclipped: C falls by exp(0.4 * 0.25); clipped: it rises by exp(0.4 * 0.75).
    assert float(results[0].state["limit"]) == pytest.approx(math.exp(-0.1))
    assert float(results[1].state["limit"]) == pytest.approx(math.exp(0.2))


def test_quantile_stops_at_ten_times_its_start() -> None:
    results = feed(QuantileClipper(one(0.99), SINGLE, reference_norm=2.0), *[1e6] * 50)
    assert float(results[-1].state["limit"]) == 20.0


def test_quantile_settles_at_its_share() -> None:
    norms = torch.randn(4000, generator=torch.Generator().manual_seed(0)).mul(0.5).exp().tolist()
    results = feed(QuantileClipper(one(0.8), SINGLE, reference_norm=1.0, eta=0.05), *norms)
    assert sum(clipped(results)[1000:]) / 3000 == pytest.approx(0.2, abs=0.01)


def test_agc_acts_above_ratio_times_weight_and_never_on_what_is_excluded() -> None:
    layout = Layout(("hidden", "head"), ((1, 1), (1, 1)))
    weights = torch.tensor([[2.0, 2.0]])
    clipper = AgcClipper(one(0.5), layout, excluded=("head",))
    at = clipper.clip(torch.tensor([[1.0, 9.0]]), {}, weights=weights, loss=torch.zeros(1))
    above = clipper.clip(torch.tensor([[4.0, 9.0]]), {}, weights=weights, loss=torch.zeros(1))
    assert not at.clipped
    assert above.grads.tolist() == [[1.0, 9.0]]


def test_agc_lets_units_that_start_at_zero_move_by_eps() -> None:
    clipper = AgcClipper(one(0.5), SINGLE, eps=1e-2)
    result = clipper.clip(torch.ones(1, 1), {}, weights=torch.zeros(1, 1), loss=torch.zeros(1))
    assert out(result) == pytest.approx(0.005)


def test_adagc_lets_exactly_the_ratio_through() -> None:
    clipper = AdaGCClipper(one(1.5), SINGLE, lambda_abs=4.0, warmup=3)
    results = feed(clipper, 4.0, 2.0, 3.0, 9.0)
    assert clipped(results) == [False, False, False, True]
    # gamma = 2 after warm-up; 0.98 * 2 + 0.02 * 3 = 2.02 after the third step.
    assert out(results[-1]) == pytest.approx(1.5 * 2.02)


def test_adagc_limits_the_whole_gradient_in_warmup() -> None:
    assert out(feed(AdaGCClipper(one(1.5), SINGLE, reference_norm=3.0), 30.0)[0]) == 3.0
    assert out(feed(AdaGCClipper(one(1.5), SINGLE), 30.0)[0]) == 1.0


def test_adagc_tensor_without_gradients_is_not_frozen() -> None:
    clipper = AdaGCClipper(one(1.5), SINGLE, warmup=3)
    results = feed(clipper, 0.0, 0.0, 0.0, 5.0, 0.0, 5.0, 50.0)
    # Its first norm, 5, is its average from then on; zeros do not lower it.
    assert [out(each) for each in results] == [0.0, 0.0, 0.0, 5.0, 0.0, 5.0, 7.5]


def test_per_tensor_threshold_is_the_norm_of_the_whole() -> None:
    layout = Layout(("a", "b", "c", "d"), ((3,), (2,), (1,), ()))
    grads = torch.full((1, 7), 100.0)
    result = PerTensorNormClipper(one(2.0), layout).clip(grads, {}, weights=grads, loss=torch.zeros(1))
    assert float(result.grads.norm()) == pytest.approx(2.0)


def test_skip_step_needs_half_a_window() -> None:
    norms = [1.0, 2.0] * 31
    assert not feed(SkipStepClipper(one(6.0), SINGLE), *norms, 1000.0)[-1].skipped  # 63 with the current one
    assert feed(SkipStepClipper(one(6.0), SINGLE), *norms, 1.0, 1000.0)[-1].skipped  # 64


def test_skip_step_deviation_is_unbiased() -> None:
    # Of 1, 3, 1, 3: mean 2, deviation sqrt(4 / 3); 3 deviations up are 5.464, and would be 5 with the biased one.
    clipper = SkipStepClipper(one(3.0), SINGLE, window=4)
    below, above = (feed(clipper, 1.0, 3.0, 1.0, 3.0, last) for last in (5.46, 5.47))
    assert not below[-1].skipped
    assert above[-1].skipped


def test_skip_step_judges_the_loss_as_well() -> None:
    losses = tuple([1.0, 2.0] * 40)
    norms = [1.0, 2.0] * 40
    result = feed(SkipStepClipper(one(6.0), SINGLE), *norms, 1.0, losses=(*losses, 50.0))[-1]
    assert result.skipped
    assert (out(result), float(result.scale), bool(result.clipped)) == (1.0, 0.0, True)


def test_skip_step_loss_that_is_nan_never_enters_the_window() -> None:
    clipper = SkipStepClipper(one(6.0), SINGLE)
    norms = [1.0, 2.0] * 40
    results = feed(clipper, *norms, 1.0, 1000.0, losses=(*norms, math.nan, 1.0))
    assert not results[-2].skipped
    assert int(results[-2].state["count"]) == 80
    assert results[-1].skipped


@pytest.mark.parametrize(
    ("kind", "constants", "message"),
    [
        (AgcClipper, {"eps": 0.0}, "eps must be finite and > 0, got 0.0; leave it out for the default"),
        (AgcClipper, {"excluded": ("head",)}, r"excluded names no parameter: \['head'\]; there are weight"),
        (AutoClipper, {"window": 0}, "window must be finite and >= 1, got 0"),
        (AutoClipper, {"kappa_max": math.inf}, "kappa_max must be finite and > 0, got inf"),
        (ZClipper, {"alpha": 1.5}, "alpha must be finite, > 0 and <= 1, got 1.5"),
        (ZClipper, {"warmup": 0}, "warmup must be finite and >= 1"),
        (ZClipper, {"factor": 0.0}, "factor must be finite, > 0 and <= 1"),
        (ZClipper, {"c_max": -1.0}, "c_max must be finite and > 0"),
        (AdaGCClipper, {"lambda_abs": 0.0}, "lambda_abs must be finite and > 0"),
        (AdaGCClipper, {"beta": 2.0}, "beta must be finite, > 0 and <= 1"),
        (AdaGCClipper, {"warmup": 1}, "warmup must be finite and >= 2"),
        (QuantileClipper, {"eta": 0.0}, "eta must be finite and > 0"),
        (QuantileClipper, {"c_start": 0.0}, "c_start must be finite and > 0"),
        (QuantileClipper, {"c_start": 2.0, "c_max": 1.0}, "c_max must be finite and >= 2"),
        (SkipStepClipper, {"window": 3}, "window must be finite and >= 4"),
    ],
)
def test_constant_out_of_bounds_is_refused(kind: type[Clipper], constants: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(one(2.0), SINGLE, **constants)
