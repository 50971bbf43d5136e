"""Known answers for (L0, L1)-smoothness, and where it has none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tuner.training.smoothness import NUM_PLACES, Gradient, estimate_smoothness


def scalar(value: float) -> Tensor:
    return torch.tensor([value])


# cosh(x) - 1 has gradient sinh(x) and curvature cosh(x) <= 1 + |sinh(x)|: L0 = L1 = 1, and any threshold from 0.3 to 30
# is right. Over a short stretch a line through cosh = root(1 + sinh^2) lies below that bound at its ends.
@pytest.mark.parametrize("start", [1.5, 2.0, 2.5, -2.0])
def test_hyperbolic_cosine_has_both_near_one(start: float) -> None:
    found = estimate_smoothness(lambda place, weights: weights.sinh(), scalar(start))
    assert found is not None
    assert 0.25 <= found.l0 <= 1.05
    assert 0.75 <= found.l1 <= 1.05
    assert 0.3 <= found.l0 / found.l1 <= 30
    assert found.correlation > 0.99
    assert found.num_points == NUM_PLACES


def test_far_out_the_curvature_is_the_norm() -> None:
    found = estimate_smoothness(lambda place, weights: weights.sinh(), scalar(8.0))
    assert found is not None
    assert found.l1 == pytest.approx(1.0, abs=0.01)


def test_quadratic_has_its_curvature_and_no_growth() -> None:
    found = estimate_smoothness(lambda place, weights: 3.0 * weights, scalar(2.0))
    assert found is not None
    assert found.l0 == pytest.approx(3.0, rel=0.01)
    assert found.l1 == pytest.approx(0.0, abs=0.01)


def test_curvature_is_that_of_the_steepest_direction() -> None:
    # Curvatures 1 to 10; the gradient itself points between them.
    curvatures = torch.linspace(1.0, 10.0, 20)
    weights = torch.randn(20, generator=torch.Generator().manual_seed(0))
    found = estimate_smoothness(lambda place, at: curvatures * at, weights)
    assert found is not None
    assert found.l0 == pytest.approx(10.0, rel=0.06)
    assert found.l1 == 0.0


def test_scale_of_the_loss_scales_l0_and_leaves_l1() -> None:
    one, other = (
        estimate_smoothness(lambda place, weights, by=by: by * weights.sinh(), scalar(2.0))
        for by in (1.0, 64.0)
    )
    assert one is not None and other is not None
    assert other.l0 == pytest.approx(64 * one.l0, rel=1e-3)
    assert other.l1 == pytest.approx(one.l1, rel=1e-3)


def test_a_model_that_begins_at_zero_can_be_measured() -> None:
    found = estimate_smoothness(lambda place, weights: (weights - 1.0) * (1.0 + 0.1 * place), torch.zeros(4))
    assert found is not None
    assert found.l0 >= 0 and found.l1 >= 0


def test_at_most_a_hundred_gradients_on_one_batch_per_place() -> None:
    places: list[int] = []

    def gradient(place: int, weights: Tensor) -> Tensor:
        places.append(place)
        return weights.sinh()

    weights = scalar(2.0)
    estimate_smoothness(gradient, weights)
    assert len(places) <= 100
    assert places == sorted(places) and set(places) == set(range(NUM_PLACES))
    assert torch.equal(weights, scalar(2.0))


def test_walk_is_short_and_its_steps_do_not_grow_with_the_gradient() -> None:
    seen: list[float] = []

    def gradient(place: int, weights: Tensor) -> Tensor:
        seen.append(float(weights))
        return 1e6 * weights.sinh()

    estimate_smoothness(gradient, scalar(2.0))
    assert min(seen) >= 1.0 and max(seen) <= 2.1


def test_places_that_are_not_finite_are_left_out() -> None:
    def gradient(place: int, weights: Tensor) -> Tensor:
        return weights.sinh() * (math.nan if place % 4 == 0 else 1.0)

    found = estimate_smoothness(gradient, scalar(2.0))
    assert found is not None
    assert found.num_points == NUM_PLACES - 6
    assert 0.75 <= found.l1 <= 1.05


@pytest.mark.parametrize(
    "gradient",
    [
        lambda place, weights: weights * torch.nan,
        lambda place, weights: torch.full_like(weights, math.inf),
        # A linear loss: one gradient everywhere, so nothing is learned about how curvature grows with it.
        lambda place, weights: torch.ones_like(weights),
        lambda place, weights: torch.zeros_like(weights),
        lambda place, weights: weights.sinh() * (1.0 if place < 11 else torch.nan),
        lambda place, weights: 1e200 * weights.double().sinh(),
    ],
    ids=["nan", "infinite", "linear", "constant", "too few places", "too large"],
)
def test_no_answer_is_none(gradient: Gradient) -> None:
    assert estimate_smoothness(gradient, scalar(2.0)) is None
