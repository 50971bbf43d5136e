"""Small workloads and cohorts for the tests of training, and what an engine holds of a lane after some steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tuner.optimizers import OptimizerSetting, sgd
from tuner.spec import ClipSetting
from tuner.training.auto import AutoEngine
from tuner.training.batched import BatchedEngine
from tuner.training.cohort import Cohort, CohortTrial
from tuner.training.engine import Advance, Engine, Evaluation, LaneId
from tuner.training.lane_batch import LaneBatch
from tuner.training.randomness import data_generator
from tuner.training.solo import SoloEngine
from tuner.training.trace import LaneRecord
from tuner.workloads import AnyWorkload, Workload, parameter

Batch = tuple[Tensor, Tensor]


class Toy(Workload[Batch]):
    """Linear regression with dropout; curvature * lr above 2 makes plain SGD explode."""

    @dataclass(frozen=True)
    class Parameters:
        """Settings of the toy."""

        learning_rate: float = parameter(0.05, "Learning rate.", low=1e-6, high=100.0)
        momentum: float = parameter(0.0, "Momentum.", low=0.0, high=0.99)
        dropout: float = parameter(0.5, "Dropout.", low=0.0, high=0.9)
        nan_step: int = parameter(-1, "Step whose batch holds a NaN.", low=-1)
        nan_seed: int = parameter(-1, "The only training seed that gets it; -1 for all.", low=-1)
        raise_step: int = parameter(-1, "Step that raises.", low=-1)
        batch_norm: bool = parameter(False, "Whether running statistics are kept.")

    name = "toy"
    parameters: Parameters

    def model(self) -> nn.Module:
        norm = [nn.BatchNorm1d(8)] if self.parameters.batch_norm else []
        return nn.Sequential(nn.Linear(4, 8), *norm, nn.Dropout(self.parameters.dropout), nn.Linear(8, 1))

    def train_batch(self, step: int, generator: torch.Generator) -> Batch:
        inputs = torch.randn(8, 4, generator=generator)
        if step == self.parameters.raise_step:
            raise RuntimeError("broken data")
        if step == self.parameters.nan_step and self._gets_nan(generator):
            inputs[0, 0] = torch.nan
        return inputs, inputs.sum(dim=1)

    def _gets_nan(self, generator: torch.Generator) -> bool:
        seed = self.parameters.nan_seed
        return seed < 0 or generator.initial_seed() == data_generator(seed).initial_seed()

    def validation_batches(self) -> Iterable[Batch]:
        generator = torch.Generator().manual_seed(1)
        inputs = [torch.randn(size, 4, generator=generator) for size in (16, 8)]
        return [(each, each.sum(dim=1)) for each in inputs]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return (model(inputs).squeeze(1) - targets).square().mean()

    def optimizer(self) -> OptimizerSetting:
        return sgd(self.parameters.learning_rate, momentum=self.parameters.momentum)


def toy(**given: Any) -> Toy:
    """A toy with some of its parameters set."""
    return Toy(Toy.Parameters(**given))


def regression(step: int, generator: torch.Generator, num_examples: int = 8, num_features: int = 4) -> Batch:
    """A batch whose targets a linear model can reach."""
    del step
    inputs = torch.randn(num_examples, num_features, generator=generator)
    return inputs, inputs.sum(dim=1, keepdim=True)


def squared(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def workload_of(model: Callable[[], nn.Module] | nn.Module | None = None, **parts: Any) -> AnyWorkload:
    """A workload of parts; what is left out is a small perceptron's regression with SGD."""
    given: dict[str, Any] = {
        "model": model or perceptron,
        "train": regression,
        "validation": [regression(0, torch.Generator().manual_seed(1), 16)],
        "loss": squared,
        "optimizer": sgd(0.05),
    }
    return Workload.of(**(given | parts))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def cohort_of(
    *settings: str,
    seeds: Sequence[int] = (0, 1),
    rung_steps: Sequence[int] = (4, 12),
    divergence_factor: float = 3.0,
    history: Mapping[int, tuple[float, ...]] | None = None,
    **fields: Any,
) -> Cohort:
    """A cohort of settings in text form; the trial's id is the text, off is protected."""
    return Cohort(
        workload="toy",
        parameters={},
        trials=tuple(
            CohortTrial(id=text, setting=ClipSetting.parse(text), protected=text == "none")
            for text in settings
        ),
        seeds=tuple(seeds),
        rung_steps=tuple(rung_steps),
        divergence_factor=divergence_factor,
        history=history or {},
        **fields,
    )


def lanes_of(cohort: Cohort, *trials: str) -> list[LaneId]:
    """The lanes of some trials, or of all."""
    wanted = trials or [trial.id for trial in cohort.trials]
    return [LaneId(trial, seed) for trial in wanted for seed in cohort.seeds]


class Outcome(NamedTuple):
    """What training made of a lane."""

    weights: Tensor
    buffers: dict[str, Tensor]
    record: LaneRecord
    evaluation: Evaluation


def row_in(engine: Engine, lane: LaneId) -> tuple[LaneBatch, int, Mapping[str, Tensor]]:
    """The lane batch that trains a lane, its row there, and its buffers."""
    match engine:
        case AutoEngine():
            return row_in(engine._engine, lane)
        case BatchedEngine():
            home = engine._home(lane)
            block = next(each for each in engine._blocks if home.trial_id in each.trials)
            row = block.row_of(home)
            return block.batch, row, {name: each[row] for name, each in block.batch.buffers.items()}
        case SoloEngine():
            held = engine._lanes[lane]
            return held.batch, 0, dict(held.model.named_buffers())
    raise TypeError(f"do not know where {type(engine).__name__} keeps its lanes")


def outcomes(engine: Engine, lanes: Sequence[LaneId]) -> dict[LaneId, Outcome]:
    """Weights, buffers, record and held-out results of some lanes, copied."""
    records, evaluations = engine.read(lanes), engine.evaluate(lanes)
    found = {}
    for lane in lanes:
        batch, row, buffers = row_in(engine, lane)
        copies = {name: each.clone() for name, each in buffers.items()}
        found[lane] = Outcome(batch.weights[row].clone(), copies, records[lane], evaluations[lane])
    return found


def trained(
    engine: Engine, cohort: Cohort, *steps: int, lanes: Sequence[LaneId] | None = None
) -> dict[LaneId, Outcome]:
    """Train some lanes (all by default) to one step after the other, and look."""
    wanted = lanes_of(cohort) if lanes is None else lanes
    for step in steps or (cohort.rung_steps[-1],):
        advanced(engine, wanted, step)
    return outcomes(engine, wanted)


def advanced(engine: Engine, lanes: Sequence[LaneId], step: int) -> list[Advance]:
    return list(engine.advance(lanes, step))


def assert_same_bits(one: Mapping[LaneId, Outcome], other: Mapping[LaneId, Outcome]) -> None:
    """Every lane of the first is among the second, and equal in every bit."""
    assert one
    for lane, mine in one.items():
        theirs = other[lane]
        assert bits(mine.weights) == bits(theirs.weights), lane
        assert mine.record == theirs.record, lane
        assert mine.evaluation == theirs.evaluation, lane
        for name in mine.buffers.keys() & theirs.buffers.keys():
            assert bits(mine.buffers[name]) == bits(theirs.buffers[name]), (lane, name)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().numpy().tobytes()


def assert_close(
    one: Mapping[LaneId, Outcome], other: Mapping[LaneId, Outcome], *, tolerance: float = 1e-5
) -> None:
    """Every lane of the first is among the second, with the same history of clipping, and equal within rounding."""
    assert one
    for lane, mine in one.items():
        theirs = other[lane]
        torch.testing.assert_close(mine.weights, theirs.weights, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(
            torch.tensor(mine.evaluation), torch.tensor(theirs.evaluation), rtol=tolerance, atol=tolerance
        )
        for name in mine.buffers.keys() & theirs.buffers.keys():
            torch.testing.assert_close(
                mine.buffers[name], theirs.buffers[name], rtol=tolerance, atol=tolerance
            )
        for field in ("num_steps", "divergence_step", "clip_fraction", "num_non_finite", "num_skipped"):
            assert getattr(mine.record, field) == getattr(theirs.record, field), (lane, field)


def ticking(seconds: float) -> Callable[[], float]:
    """A clock that moves on by so much at every reading."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += seconds
        return now

    return clock
