"""The solo engine on a GPU: no host sync in a step, and the CPU's results within rounding."""

from __future__ import annotations

import pytest
import torch
from toys import cohort_of, toy

from tuner.training.cohort import TrialEnded
from tuner.training.engine import LaneId
from tuner.training.loop import train_cohort
from tuner.training.probe import measure_reference
from tuner.training.solo import SoloEngine
from tuner.workloads import create_workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("setting", ["none", "global_norm:0.3", "global_norm_inf:0.1", "value:0.01"])
@pytest.mark.parametrize("name", ["charlm-rnn", "digits-mlp"])
def test_step_reads_nothing_back(name: str, setting: str) -> None:
    engine = SoloEngine(cohort_of(setting, seeds=(0,)), create_workload(name, {}), device="cuda")
    lane = engine._lanes[LaneId(setting, 0)]
    engine._step(lane)  # the first call loads libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            engine._step(lane)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_results_agree_with_the_cpu() -> None:
    workload = create_workload("digits-mlp", {})
    asked = cohort_of("none", "global_norm:0.3", rung_steps=(30,))
    ended = {
        device: [
            event for event in train_cohort(asked, workload, device=device) if isinstance(event, TrialEnded)
        ]
        for device in ("cpu", "cuda")
    }
    for one, other in zip(ended["cpu"], ended["cuda"], strict=True):
        for mine, theirs in zip(one.lanes, other.lanes, strict=True):
            assert theirs.value == pytest.approx(mine.value, rel=1e-3)
            assert theirs.clip_fraction == pytest.approx(mine.clip_fraction, abs=0.04)


def test_global_generators_are_given_back() -> None:
    before = torch.cuda.get_rng_state(), torch.get_rng_state()
    list(train_cohort(cohort_of("none"), toy(), device="cuda"))
    measure_reference(toy(), (0,), num_batches=3, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
