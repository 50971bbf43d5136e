"""Order statistics: known quantiles, and Hill's estimate on tails of known weight."""

from __future__ import annotations

import pytest
import torch

from tuner.evidence import NormSketch
from tuner.training.sketches import rank, sketch, tail_indices

NAN, INF = float("nan"), float("inf")


def tail_index(values: torch.Tensor) -> float | None:
    (found,) = tail_indices(*rank(values[None]))
    return found


def test_sketch_leaves_out_what_is_not_finite() -> None:
    found = sketch(torch.tensor([NAN, 1.0, INF]))
    assert found == NormSketch(
        q01=1.0, q10=1.0, median=1.0, q90=1.0, q99=1.0, max=1.0, min=1.0, log_mean=0.0, log_std=0.0
    )
    assert sketch(torch.tensor([NAN])) is None
    assert sketch(torch.tensor([])) is None


def test_sketch_of_a_sample_has_the_maximum_it_is_told() -> None:
    found = sketch(torch.tensor([1.0, 2.0, 3.0]), largest=9.0)
    assert found is not None
    assert (found.min, found.median, found.max) == (1.0, 2.0, 9.0)


def test_quantiles_are_torchs() -> None:
    values = torch.rand(37)
    found = sketch(values)
    assert found is not None
    wanted = torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    exact = torch.quantile(values.double(), wanted).tolist()
    assert [found.q01, found.q10, found.median, found.q90, found.q99] == pytest.approx(exact, rel=1e-12)


def test_logarithms_are_of_the_values_above_zero() -> None:
    found = sketch(torch.tensor([0.0, 1.0, torch.e**2], dtype=torch.float64))
    assert found is not None
    assert (found.log_mean, found.log_std) == (pytest.approx(1.0), pytest.approx(1.0))


@pytest.mark.parametrize("exponent", [1.0, 1.5, 3.0, 6.0])
def test_hill_finds_the_exponent_of_a_pareto_tail(exponent: float) -> None:
    uniform = torch.rand(8000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert tail_index(uniform ** (-1 / exponent)) == pytest.approx(exponent, rel=0.15)


def test_hill_by_hand() -> None:
    # 90 ones and ten values e: k = 10, x(11) = 1, every excess is 1.
    assert tail_index(torch.tensor([1.0] * 90 + [torch.e] * 10, dtype=torch.float64)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "values",
    [
        [2.0 + index for index in range(99)],
        [3.0] * 200,
        [0.0] * 95 + [1.0] * 5,
        [NAN] * 150 + [1.0, 2.0] * 49,
    ],
    ids=["fewer than 100", "all equal", "begins at zero", "fewer than 100 are finite"],
)
def test_hill_says_nothing_of_what_is_no_tail(values: list[float]) -> None:
    assert tail_index(torch.tensor(values)) is None


def test_scale_does_not_change_the_tail() -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(2)) + 0.5
    assert tail_index(values * 1024) == pytest.approx(tail_index(values), rel=1e-12)
