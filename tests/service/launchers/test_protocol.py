"""Lines between worker and training process: what was recorded arrives as it was, and fits."""

from __future__ import annotations

import pytest
import torch

from service.launchers.protocol import MAX_LINE_BYTES, decode, encode
from tuner.evidence import LaneRecord, LaneResult
from tuner.training.cohort import LaneValue, RungReached, TrialEnded
from tuner.training.trace import StepRecords, Trace

MAX_SEEDS, MAX_COHORT = 32, 1000


def ended(records: tuple[LaneRecord, ...]) -> TrialEnded:
    lanes = tuple(
        LaneResult.of(record, seed=seed, value=1 / 3, divergence_step=record.divergence_step, seconds=1 / 7)
        for seed, record in enumerate(records)
    )
    return TrialEnded(trial_id="t" * 36, state="complete", lanes=lanes)


def recorded(norm: torch.Tensor) -> tuple[LaneRecord, ...]:
    """What lanes with these norms record, shape (steps, lanes)."""
    live = norm.isfinite()
    trace = Trace(norm.shape[1], max(1, len(norm)), "cpu")
    trace.fold(
        StepRecords(loss=norm, norm=norm, scale=1 / (1 + norm), clipped=norm > 0.5, live=live, applied=live)
    )
    return trace.read()


def test_a_trial_of_the_most_seeds_arrives_as_it_was() -> None:
    event = ended(recorded(torch.rand(300, MAX_SEEDS)))
    assert all(lane.tail_index and len(lane.phases) == 4 and lane.loss for lane in event.lanes)
    line = encode(event)
    assert decode(line) == event
    assert len(line) < 200_000  # and so a page of 100 such trials stays below 20 MB


@pytest.mark.parametrize("value", [0.0, 1e-45, 3.4e38, float("nan"), float("inf")])
def test_extreme_lanes_have_no_figure_that_is_no_json(value: float) -> None:
    for num_steps in (0, 1, 200):
        event = ended(recorded(torch.full((num_steps, 1), value)))
        assert decode(encode(event)) == event
    jumped = torch.ones(200, 1)
    jumped[100:] = value
    event = ended(recorded(jumped))
    assert decode(encode(event)) == event


def test_the_largest_rung_fits() -> None:
    values = tuple(
        LaneValue(trial_id=f"{trial:036}", seed=seed, value=1.2345678901234567e-100)
        for trial in range(MAX_COHORT)
        for seed in range(MAX_SEEDS)
    )
    rung = RungReached(
        index=0, step=10**6, values=values, pruned=tuple(f"{trial:036}" for trial in range(MAX_COHORT))
    )
    assert len(encode(rung)) < MAX_LINE_BYTES
