"""How curvature grows with the gradient: the L0 and L1 of (L0, L1)-smoothness, measured along a short walk.

A loss is (L0, L1)-smooth if its curvature is at most L0 + L1 x gradient norm. Theory says that clipping is faster than
any fixed step where L1 x norm is large beside L0, and that L0 / L1 is the threshold. The walk takes small steps of
one length, whatever the gradient, so that it can't run away as an unclipped training can. At each place curvature is
the largest change of the gradient per distance in a few directions: downhill, and the steepest ones that power
iteration finds. All gradients of a place are those of one batch under one dropout mask.

Shape letters: P = trainable parameters, N = places.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, sqrt

import torch
from torch import Tensor

from tuner.evidence import Smoothness
from tuner.norms import l2_norm

#: ``gradient(place, weights)``: the gradient at some weights, of the batch that belongs to a place; both shape (P,).
Gradient = Callable[[int, Tensor], Tensor]

#: Places at which curvature is measured; each costs 1 + `NUM_DIRECTIONS` gradients, the first one more than others.
NUM_PLACES = 24
NUM_DIRECTIONS = 3
NUM_FIRST_DIRECTIONS = 7
#: Length of a step of the walk, as a share of the weights' norm.
STEP_SHARE = 0.02
#: Distance over which the gradient's change is taken, likewise.
REACH_SHARE = 1e-3
#: Weights smaller than this, in root mean square, count as this large: a model may begin at zero.
SMALLEST_WEIGHT = 0.01
#: Fewest places with finite values that a fit may rest on.
MIN_PLACES = 12
#: Norms whose range is below this share of their mean say nothing about how curvature grows with them.
LEAST_VARIATION = 0.02


def estimate_smoothness(
    gradient: Gradient, weights: Tensor, *, num_places: int = NUM_PLACES
) -> Smoothness | None:
    """Fit ``curvature = l0 + l1 * norm`` over the places of a walk from some weights.

    Places whose values are not finite are left out; the walk stays where it is there.

    Args:
        gradient: called 100 times for 24 places; it must give the same for the same arguments.
        weights: where the walk begins, shape (P,), float32 or float64.
        num_places: steps of the walk, at least 12.

    Returns:
        The fit; None with fewer than 12 finite places, if the norms hardly vary, or if it is too large for a number.

    Source:
        Zhang, He, Sra and Jadbabaie (2020), Why gradient clipping accelerates training, definition 1 and section 5,
        https://arxiv.org/abs/1905.11881. They take curvature along the steps of a training; steps of one length,
        the directions of power iteration and the fit are ours.

    Example:
        Half the square of the weight: the gradient is the weight itself, the curvature 1 everywhere.

        >>> found = estimate_smoothness(lambda place, weights: weights, torch.tensor([3.0], dtype=torch.float64))
        >>> round(found.l0, 3), round(found.l1, 3)
        (1.0, 0.0)
    """
    measured = _walk(gradient, weights, num_places).cpu()
    finite = measured[measured.isfinite().all(dim=1)]
    if len(finite) < MIN_PLACES:
        return None
    norms, curvatures = finite.unbind(dim=1)
    if not float(norms.max() - norms.min()) > LEAST_VARIATION * float(norms.mean()):
        return None
    l0, l1 = _fit(norms, curvatures)
    correlation = _correlation(norms, curvatures)
    if not all(map(isfinite, (l0, l1, correlation))):
        return None
    return Smoothness(l0=l0, l1=l1, num_points=len(finite), correlation=correlation)


def _walk(gradient: Gradient, weights: Tensor, num_places: int) -> Tensor:
    """Gradient norm and curvature at each place, shape (N, 2), float64."""
    size = max(float(_norm(weights)), SMALLEST_WEIGHT * sqrt(len(weights)))
    reach, here, steepest = REACH_SHARE * size, weights, None
    rows = []
    for place in range(num_places):
        slope = gradient(place, here)
        downhill = direction = -_unit(slope)
        curvatures = []
        for number in range(NUM_FIRST_DIRECTIONS if steepest is None else NUM_DIRECTIONS):
            change = (gradient(place, here + reach * direction) - slope) / reach
            curvatures.append(_norm(change))
            # The change is the Hessian times the direction: to take it for the next direction is power iteration,
            # which goes on from place to place.
            direction = steepest if number == 0 and steepest is not None else _unit(change)
        steepest = direction
        rows.append(torch.stack([_norm(slope), torch.stack(curvatures).max()]))
        here = here + STEP_SHARE * size * downhill
    return torch.stack(rows)


def _norm(vector: Tensor) -> Tensor:
    return l2_norm(vector.double().unsqueeze(0))[0]


def _unit(vector: Tensor) -> Tensor:
    """A vector's direction; zeros for one that is zero or not finite."""
    norm = _norm(vector)
    usable = norm.isfinite() & (norm > 0)
    return torch.where(usable, vector / norm.to(vector.dtype), torch.zeros_like(vector))


def _fit(norms: Tensor, curvatures: Tensor) -> tuple[float, float]:
    """Least squares with both coefficients >= 0: the line itself, or the better end where it leaves that region."""
    deviations = norms - norms.mean()
    slope = float(deviations @ (curvatures - curvatures.mean()) / (deviations @ deviations))
    intercept = float(curvatures.mean()) - slope * float(norms.mean())
    if slope < 0:
        return float(curvatures.mean()), 0.0
    if intercept < 0:
        return 0.0, float(norms @ curvatures / (norms @ norms))
    return intercept, slope


def _correlation(norms: Tensor, curvatures: Tensor) -> float:
    """Pearson's; 0 if the curvature is the same everywhere."""
    one, other = norms - norms.mean(), curvatures - curvatures.mean()
    scale = float(_norm(one) * _norm(other))
    return max(-1.0, min(1.0, float(one @ other) / scale)) if scale > 0 else 0.0
