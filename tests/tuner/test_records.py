"""Figures from norms that were told as numbers equal those from tensors."""

from __future__ import annotations

import math

import pytest
import torch

from tuner.errors import ProbeError
from tuner.evidence import Reference
from tuner.records import LaneRecord, NormSketch, mean_known, tail_index
from tuner.training.sketches import rank, sketch, tail_indices

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1001])
def test_sketch_of_numbers_is_the_sketch_of_tensors(count: int) -> None:
    norms = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64) ** -0.7
    found, expected = NormSketch.of(norms.tolist()), sketch(norms)
    assert found is not None and expected is not None
    for name in ("median", "q90", "q99", "max", "q01", "q10", "min", "log_mean", "log_std"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12, abs=1e-12), name
    assert found.first == float(norms[0])
    if count < 100:
        assert tail_index(norms.tolist()) is None
        return
    assert tail_index(norms.tolist()) == pytest.approx(tail_indices(*rank(norms[None]))[0], rel=1e-9)


def test_sketch_leaves_out_what_is_not_finite() -> None:
    assert NormSketch.of([NAN, 2.0, INF]) == NormSketch.of([2.0])
    assert NormSketch.of([NAN]) is None
    assert NormSketch.of([]) is None


def test_norms_of_zero_have_no_logarithm() -> None:
    found = NormSketch.of([0.0, 0.0])
    assert found is not None
    assert (found.median, found.log_mean, found.log_std) == (0.0, None, None)


@pytest.mark.parametrize("norms", [[1.0] * 99, [1.0] * 200, [1.0] * 15 + [0.0] * 185])
def test_tail_needs_enough_different_norms(norms: list[float]) -> None:
    assert tail_index(norms) is None


def test_mean_of_what_is_known() -> None:
    assert mean_known([1.0, None, 3.0]) == 2.0
    assert mean_known([]) is None


@pytest.mark.parametrize(("fraction", "may"), [(0.0, False), (0.1, True), (None, True)])
def test_unknown_clipping_may_have_happened(fraction: float | None, may: bool) -> None:
    record = LaneRecord(
        num_steps=1,
        divergence_step=None,
        clip_fraction=fraction,
        mean_scale=None,
        norms=None,
        num_non_finite=0,
    )
    assert record.may_have_clipped is may


def test_reference_without_norms_says_what_to_do() -> None:
    reference = Reference(l2_norm=None, max_abs=None, num_batches=0)
    assert reference.median_norm is None
    with pytest.raises(ProbeError, match=r"no gradient norm was reported.*threshold_low"):
        _ = reference.norms
