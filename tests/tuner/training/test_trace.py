"""The trace: exact counts, bounded memory, nothing after the first non-finite step."""

from __future__ import annotations

import pytest
import torch

from tuner.clippers import ClipResult
from tuner.evidence import NormSketch
from tuner.training.trace import LaneRecord, Trace, sketch

NAN, INF = float("nan"), float("inf")


def result(norms: list[float], scales: list[float]) -> ClipResult:
    norm, scale = torch.tensor(norms), torch.tensor(scales)
    return ClipResult(grads={}, state={}, norm=norm, scale=scale, clipped=scale < 1, finite=norm.isfinite())


def test_counts_and_means_are_exact() -> None:
    trace = Trace(2, torch.device("cpu"))
    trace.record(result([1.0, 4.0], [1.0, 0.5]), torch.zeros(2))
    trace.record(result([3.0, 2.0], [1.0, 1.0]), torch.zeros(2))
    one, other = trace.read()
    assert one == LaneRecord(
        num_steps=2,
        divergence_step=None,
        clip_fraction=0.0,
        mean_scale=1.0,
        norms=NormSketch(median=2.0, q90=pytest.approx(2.8), q99=pytest.approx(2.98), max=3.0),
        num_non_finite=0,
    )
    assert (other.clip_fraction, other.mean_scale) == (0.5, 0.75)


@pytest.mark.parametrize(("norm", "loss"), [(NAN, 1.0), (INF, 1.0), (1.0, NAN), (1.0, INF)])
def test_first_non_finite_step_ends_the_lane_and_only_that_one(norm: float, loss: float) -> None:
    trace = Trace(2, torch.device("cpu"))
    for step in range(5):
        norms, losses = ([norm, 1.0], [loss, 1.0]) if step == 2 else ([1.0, 1.0], [1.0, 1.0])
        live = trace.record(result(norms, [1.0, 1.0]), torch.tensor(losses))
        assert live.tolist() == [step < 2, True]
    diverged, sound = trace.read()
    assert (diverged.num_steps, diverged.divergence_step, diverged.num_non_finite) == (2, 2, 1)
    assert (sound.num_steps, sound.divergence_step, sound.num_non_finite) == (5, None, 0)


def test_lane_that_diverges_at_once_has_no_norms() -> None:
    trace = Trace(1, torch.device("cpu"))
    trace.record(result([NAN], [1.0]), torch.zeros(1))
    (lane,) = trace.read()
    assert (lane.num_steps, lane.divergence_step, lane.norms) == (0, 0, None)
    assert (lane.clip_fraction, lane.mean_scale) == (0.0, 1.0)


def test_memory_is_bounded_and_the_maximum_stays_exact() -> None:
    trace = Trace(1, torch.device("cpu"), capacity=8)
    for step in range(1000):
        trace.record(result([1e6 if step == 501 else float(step)], [1.0]), torch.zeros(1))
    (lane,) = trace.read()
    assert trace._norms.shape == (8, 1)
    assert lane.num_steps == 1000
    assert lane.norms is not None
    assert lane.norms.max == 1e6  # step 501 is in no regular sample
    # 1000 steps at capacity 8: the stride doubles to 128, and steps 0, 128, ..., 896 are kept.
    assert lane.norms.median == 448


def test_sketch_leaves_out_what_is_not_finite() -> None:
    assert sketch(torch.tensor([NAN, 2.0, INF])) == NormSketch(median=2.0, q90=2.0, q99=2.0, max=2.0)
    assert sketch(torch.tensor([NAN])) is None
