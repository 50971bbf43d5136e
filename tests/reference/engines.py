"""What the engines are held to: the plain trainings of `reference.training`, lane by lane, step by step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from reference.training import train_plainly
from torch import Tensor
from toys import outcomes, row_in

from tuner.norms import l2_norm
from tuner.optimizers import adagrad, adam, adamw, rmsprop, sgd
from tuner.training.engine import Engine, LaneId
from tuner.training.lane_batch import LaneBatch

#: Steps of every model under SGD and Adam, and of the other pairs.
NUM_STEPS = 200
OTHER_STEPS = int(os.environ.get("CLIPTUNE_TEST_PARITY_STEPS", "40"))
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

SETTINGS = {
    "sgd": sgd(0.05),
    "nesterov": sgd(0.01, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": adam(1e-3, eps=1e-3, weight_decay=1e-3),
    "adamw": adamw(1e-3, eps=1e-3, weight_decay=0.1),
    "rmsprop": rmsprop(1e-3, alpha=0.95, eps=1e-2, momentum=0.5),
    "adagrad": adagrad(0.01, eps=1e-6, initial_accumulator_value=0.1),
}

every_type = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
every_optimizer = pytest.mark.parametrize("optimizer", SETTINGS)


def steps_of(optimizer: str) -> int:
    return NUM_STEPS if optimizer in ("sgd", "adam") else OTHER_STEPS


class Steps(NamedTuple):
    """Losses, and norms before clipping, of one lane in full precision; each of shape (steps,)."""

    losses: Tensor
    norms: Tensor


@contextmanager
def spied() -> Iterator[list[Tensor]]:
    """Note what every lane batch is updated with, (2, L) per step; records keep it in single precision only."""
    seen: list[Tensor] = []
    apply = LaneBatch.apply

    def noting(self: LaneBatch, losses: Tensor, grads: Tensor) -> None:
        seen.append(torch.stack([losses, l2_norm(grads)]))
        apply(self, losses, grads)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LaneBatch, "apply", noting)
        yield seen


def train_in_one_block(engine: Engine, lanes: Sequence[LaneId], num_steps: int) -> dict[LaneId, Steps]:
    with spied() as seen:
        list(engine.advance(lanes, num_steps))
    steps = torch.stack(seen)
    return {lane: Steps(*steps[:, :, row_in(engine, lane)[1]].unbind(1)) for lane in lanes}


def train_one_by_one(engine: Engine, lanes: Sequence[LaneId], num_steps: int) -> dict[LaneId, Steps]:
    found = {}
    for lane in lanes:
        found |= train_in_one_block(engine, [lane], num_steps)
    return found


def compare_with_plain_pytorch(
    engine: Engine,
    task: tuple[str, torch.dtype],
    steps: Mapping[LaneId, Steps],
    *,
    optimizer: str,
    tolerance: float,
) -> float:
    """Train some lanes by hand as well; the largest deviation of weights, buffers, losses, norms and value."""
    found, worst = outcomes(engine, list(steps)), 0.0
    for lane, (losses, norms) in steps.items():
        num_steps = len(losses)
        plain = train_plainly(
            *task, optimizer=optimizer, clip=lane.trial_id, seed=lane.seed, num_steps=num_steps
        )
        batch, row, _ = row_in(engine, lane)
        weights = {name: each[row] for name, each in batch.layout.views(batch.weights).items()}
        worst = max(
            worst,
            *(deviation(weights[name], each) for name, each in plain.weights.items()),
            *(deviation(each, plain.buffers[name]) for name, each in found[lane].buffers.items()),
            deviation(losses, plain.losses),
            deviation(norms, plain.norms),
            abs(found[lane].evaluation.loss / plain.value - 1),
        )
        assert worst <= tolerance, (lane, worst)
        assert round(found[lane].record.clip_fraction * num_steps) == plain.num_clipped
    return worst


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the tensor's largest element."""
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp_min(1e-30))
