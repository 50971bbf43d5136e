"""Lanes of a batch equal plain PyTorch: every optimizer with a counterpart, every kind of model, every clip.

One cohort holds all clips under two seeds; five of its ten lanes are trained by hand as well, so that every clip
and both seeds are among them. ``CLIPTUNE_TEST_PARITY_STEPS=200`` trains the pairs other than SGD and Adam longer.
"""

from __future__ import annotations

import pytest
import torch
from reference.engines import (
    SETTINGS,
    TOLERANCE,
    compare_with_plain_pytorch,
    every_optimizer,
    every_type,
    steps_of,
    train_in_one_block,
)
from reference.training import CLIPS, MODELS, Task, train_plainly
from toys import assert_close, cohort_of, lanes_of, trained

from tuner.optimizers import OptimizerSetting, muon, shampoo
from tuner.training.batched import BatchedEngine
from tuner.training.engine import LaneId
from tuner.training.solo import SoloEngine

LANES = [LaneId(clip, number % 2) for number, clip in enumerate(CLIPS)]


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> None:
    torch.set_num_threads(1)


@every_type
@pytest.mark.parametrize("model", MODELS)
@every_optimizer
def test_lane_of_a_batch_equals_plain_pytorch(optimizer: str, model: str, dtype: torch.dtype) -> None:
    cohort = cohort_of(*CLIPS, rung_steps=(steps_of(optimizer),))
    task = Task(model, dtype, SETTINGS[optimizer])
    engine = BatchedEngine(cohort, task)
    steps = train_in_one_block(engine, lanes_of(cohort), steps_of(optimizer))
    trained_by_hand = {lane: steps[lane] for lane in LANES}
    worst = compare_with_plain_pytorch(
        engine, (model, dtype), trained_by_hand, optimizer=optimizer, tolerance=TOLERANCE[dtype]
    )
    print(f"largest deviation {worst:.1e}")


@pytest.mark.parametrize("model", MODELS)
def test_reference_clips_sometimes_and_not_always(model: str) -> None:
    # Else the comparison above would say nothing of clipping.
    counts = [
        train_plainly(model, torch.float64, optimizer="sgd", clip=clip, seed=0, num_steps=40).num_clipped
        for clip in CLIPS
    ]
    assert counts[0] == 0
    assert any(0 < count < 40 for count in counts)
    assert any(count == 40 for count in counts)


@pytest.mark.parametrize("setting", [muon(0.01), shampoo(0.05)], ids=lambda setting: type(setting).__name__)
@pytest.mark.parametrize("model", MODELS)
def test_optimizers_without_a_counterpart_are_the_same_in_a_batch_and_alone(
    setting: OptimizerSetting, model: str
) -> None:
    cohort = cohort_of("none", "global_norm:0.1", "value:0.02", rung_steps=(30,))
    task = Task(model, torch.float64, setting)
    assert_close(
        trained(BatchedEngine(cohort, task), cohort),
        trained(SoloEngine(cohort, task), cohort),
        tolerance=1e-9,
    )
