"""Schedules equal PyTorch's, and a table of known factors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from tuner.errors import SpecError
from tuner.optimizers import Schedule, constant, cosine, sgd, step_decay, warmup

NUM_STEPS = 30
Make = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


def factors_of_torch(make: Make, num_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(num_steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def line(optimizer: torch.optim.Optimizer, num_steps: int) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LinearLR(optimizer, start_factor=1 / num_steps, total_iters=num_steps - 1)


@pytest.mark.parametrize(
    ("schedule", "make", "num_steps"),
    [
        (constant(), lambda given: lr_scheduler.LambdaLR(given, lambda _: 1.0), NUM_STEPS),
        (cosine(NUM_STEPS), lambda given: lr_scheduler.CosineAnnealingLR(given, NUM_STEPS), NUM_STEPS + 1),
        (
            cosine(NUM_STEPS, final=0.1),
            lambda given: lr_scheduler.CosineAnnealingLR(given, NUM_STEPS, eta_min=0.1),
            NUM_STEPS + 1,
        ),
        (step_decay(7, 0.3), lambda given: lr_scheduler.StepLR(given, 7, gamma=0.3), NUM_STEPS),
        (warmup(5), lambda given: line(given, 5), NUM_STEPS),
        (
            warmup(5, then=cosine(20)),
            lambda given: lr_scheduler.SequentialLR(
                given, [line(given, 5), lr_scheduler.CosineAnnealingLR(given, 20)], milestones=[5]
            ),
            26,
        ),
        (
            warmup(3, then=step_decay(4, 0.5)),
            lambda given: lr_scheduler.SequentialLR(
                given, [line(given, 3), lr_scheduler.StepLR(given, 4, gamma=0.5)], milestones=[3]
            ),
            NUM_STEPS,
        ),
    ],
)
# PyTorch's own SequentialLR passes a deprecated argument to the schedulers it wraps.
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_factors_equal_pytorch(schedule: Schedule, make: Make, num_steps: int) -> None:
    expected = torch.tensor(factors_of_torch(make, num_steps), dtype=torch.float64)
    torch.testing.assert_close(schedule.factor(torch.arange(num_steps)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (constant(), 10**6, 1.0),
        (cosine(10), 5, 0.5),
        (cosine(10), 25, 0.0),
        (cosine(10, final=0.25), 25, 0.25),
        (cosine(10, final=1.0), 5, 1.0),
        (warmup(4), 0, 0.25),
        (warmup(1), 0, 1.0),
        (warmup(4, then=cosine(10)), 4, 1.0),
        (warmup(4, then=cosine(10)), 9, 0.5),
        (warmup(2, then=warmup(2)), 2, 0.5),
        (step_decay(10, 0.5), 29, 0.25),
        (step_decay(10, 1.0), 29, 1.0),
    ],
)
def test_known_factor(schedule: Schedule, step: int, expected: float) -> None:
    assert schedule.factor(torch.tensor(step)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", [constant(), cosine(7, 0.1), warmup(3, cosine(5)), step_decay(2, 0.9)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_shape_is_kept_and_the_argument_left_alone(schedule: Schedule, dtype: torch.dtype) -> None:
    steps = torch.arange(12).to(dtype).reshape(3, 4)
    factors = schedule.factor(steps)
    assert factors.shape == (3, 4)
    assert factors.dtype == torch.float64
    assert torch.equal(steps, torch.arange(12).to(dtype).reshape(3, 4))
    each = torch.stack([schedule.factor(step) for step in steps.flatten()]).reshape(3, 4)
    torch.testing.assert_close(factors, each, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cosine(0), "num_steps must be a whole number >= 1, got 0"),
        (lambda: cosine(2.5), "num_steps must be a whole number >= 1, got 2.5"),
        (lambda: cosine(True), "num_steps must be a whole number >= 1, got True"),
        (lambda: cosine(5, final=-0.1), r"final must be in \[0, 1\], got -0.1"),
        (lambda: cosine(5, final=1.1), r"final must be in \[0, 1\], got 1.1"),
        (lambda: cosine(5, final=float("nan")), r"final must be in \[0, 1\], got nan"),
        (lambda: warmup(0), "num_steps must be a whole number >= 1, got 0"),
        (lambda: warmup(5, then="cosine"), "then must be a schedule, for example .*, got 'cosine'"),
        (lambda: step_decay(0, 0.5), "every must be a whole number >= 1, got 0"),
        (lambda: step_decay(5, 0.0), r"factor must be in \(0, 1\], got 0.0"),
        (lambda: step_decay(5, 1.5), r"factor must be in \(0, 1\], got 1.5"),
        (lambda: sgd(0.1, schedule=0.5), "schedule must be a schedule, for example .*, got 0.5"),
    ],
)
def test_bound_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        make()


def test_settings_with_a_schedule_are_values() -> None:
    one, other = (sgd(0.1, schedule=warmup(5, then=cosine(9))) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
