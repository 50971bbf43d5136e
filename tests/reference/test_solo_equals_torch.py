"""The engine that trains one lane at a time equals plain PyTorch, as the batched one does."""

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
    train_one_by_one,
)
from reference.training import MODELS, Task
from toys import cohort_of

from tuner.training.engine import LaneId
from tuner.training.solo import SoloEngine

# Among those that the batched engine is compared with: each is trained by hand only once.
LANES = [LaneId("global_norm:0.8", 0), LaneId("global_norm_inf:0.1", 1)]


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> None:
    torch.set_num_threads(1)


@every_type
@pytest.mark.parametrize("model", MODELS)
@every_optimizer
def test_lane_by_itself_equals_plain_pytorch(optimizer: str, model: str, dtype: torch.dtype) -> None:
    cohort = cohort_of("global_norm:0.8", "global_norm_inf:0.1", rung_steps=(steps_of(optimizer),))
    task = Task(model, dtype, SETTINGS[optimizer])
    engine = SoloEngine(cohort, task)
    steps = train_one_by_one(engine, LANES, steps_of(optimizer))
    worst = compare_with_plain_pytorch(
        engine, (model, dtype), steps, optimizer=optimizer, tolerance=TOLERANCE[dtype]
    )
    print(f"largest deviation {worst:.1e}")
