"""Thresholds are scaled by how a run begins, whatever becomes of it."""

from __future__ import annotations

import random

import pytest
from lane_states import lane

from service.lanes import LaneStatus
from service.worker.lane_reference import ENOUGH_NORMS, calm_norms, lane_reference, told_norms
from tuner.errors import ProbeError

EXPLODING = (5.0, 4.0, 10.0, 12.0, 15.0, 61.0, 540.0, 3e4, 2.6e7)


def test_run_that_explodes_counts_until_then() -> None:
    assert calm_norms(EXPLODING) == EXPLODING[:6]
    found = lane_reference([lane("off", 0, LaneStatus.DIVERGED, {10: None}, norms=EXPLODING)])
    assert found.l2_norm is not None and found.l2_norm.median == 11.0
    assert (found.num_batches, found.max_abs, found.features) == (6, None, None)


def test_spikes_of_a_heavy_tail_are_no_explosion() -> None:
    draws = random.Random(0)
    norms = [1.0 / max(draws.random(), 1e-3) for _ in range(80)]
    assert max(norms) > 50 * sorted(norms)[40]
    assert list(calm_norms(norms)) == norms


@pytest.mark.parametrize("norms", [(), (3.0,), (3.0, 1e9), (3.0, 1e9, 1e9), (0.0, 0.0, 0.0, 0.0)])
def test_too_few_to_tell_are_all_kept(norms: tuple[float, ...]) -> None:
    assert calm_norms(norms) == norms


def test_a_long_run_does_not_outweigh_the_others() -> None:
    lanes = [
        lane("off", 0, LaneStatus.COMPLETE, {10: 1.0}, norms=(1.0,) * 5000),
        lane("off", 1, LaneStatus.LEASED, {10: 1.0}, norms=(2.0,) * 30),
    ]
    assert len(told_norms(lanes)) == ENOUGH_NORMS + 30


@pytest.mark.parametrize("norms", [(), (0.0, 0.0, 0.0)])
def test_nothing_to_scale_by_says_what_to_do(norms: tuple[float, ...]) -> None:
    with pytest.raises(ProbeError, match=r"no gradient norm above 0.*grad_norm.*threshold_low"):
        lane_reference([lane("off", 0, LaneStatus.COMPLETE, {10: 1.0}, norms=norms)])
