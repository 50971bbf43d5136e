"""Training problems whose right answer is known: clipping-methods, section 4, A to D. Everything is float64.

Shape letters: N = numbers that a lane trains, each on noise of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tuner.evidence import LaneResult
from tuner.optimizers import OptimizerSetting, sgd
from tuner.spec import ClipSetting
from tuner.training.cohort import Cohort, CohortTrial, TrialEnded
from tuner.training.loop import train_cohort
from tuner.training.randomness import data_generator, stream_seed
from tuner.workloads import AnyWorkload, Workload, parameter

Draw = Callable[[int, torch.Generator], Tensor]


def normal(num: int, generator: torch.Generator) -> Tensor:
    return torch.randn(num, generator=generator, dtype=torch.float64)


def mixture(num: int, generator: torch.Generator) -> Tensor:
    """95 % N(0, 1) and 5 % N(0, 10**2)."""
    is_wide = torch.rand(num, generator=generator, dtype=torch.float64) < 0.05
    return normal(num, generator) * torch.where(is_wide, 10.0, 1.0)


def student(degrees: int) -> Draw:
    def draw(num: int, generator: torch.Generator) -> Tensor:
        squares = normal(degrees * num, generator).square().view(degrees, num)
        return normal(num, generator) / squares.mean(0).sqrt()

    return draw


def cauchy(num: int, generator: torch.Generator) -> Tensor:
    return torch.empty(num, dtype=torch.float64).cauchy_(generator=generator)


def exponential(num: int, generator: torch.Generator) -> Tensor:
    return torch.empty(num, dtype=torch.float64).exponential_(generator=generator)


#: Laws of the noise by name; the mean of the first is 1, the others are symmetric around 0.
LAWS: Mapping[str, Draw] = {
    "exponential": exponential,
    "normal": normal,
    "mixture": mixture,
    "t3": student(3),
    "t2": student(2),
    "cauchy": cauchy,
}
SYMMETRIC = tuple(LAWS)[1:]


class Averaged(nn.Module):
    """Numbers and the mean of what they were in training, after some steps that do not count, shape (N,)."""

    def __init__(self, start: float, num: int, burn_in: int) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.full((num,), start, dtype=torch.float64))
        self.register_buffer("mean", torch.full((num,), start, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))
        self.burn_in = burn_in

    def forward(self) -> Tensor:
        if self.training:
            self.steps.add_(1)
            counted = self.steps - self.burn_in
            share = torch.where(counted > 0, 1 / counted.clamp(min=1), 0.0)
            self.mean.add_((self.numbers.detach() - self.mean) * share)
        return self.numbers


class Noise(Workload[Tensor]):
    """x <- x - lr * clip(x - noise), N times side by side; scored by the averaged x.

    The score is num_averaged * mean((averaged x - mean of the noise)**2): what a variance is for one averaged step.
    """

    @dataclass(frozen=True)
    class Parameters:
        """Settings of the problem."""

        law: str = parameter("normal", "Law of the noise, or all symmetric ones.", choices=(*LAWS, "all"))
        num: int = parameter(1, "Numbers per lane and law.", low=1)
        learning_rate: float = parameter(0.02, "Learning rate.", low=1e-6, high=1.0)
        distance: float = parameter(0.0, "First x less the optimum.", low=-100.0, high=100.0)
        burn_in: int = parameter(0, "Steps before the average begins.", low=0)
        num_averaged: int = parameter(1, "Steps that are averaged.", low=1)

    name = "noise"
    parameters: Parameters

    @property
    def laws(self) -> Sequence[str]:
        return SYMMETRIC if self.parameters.law == "all" else (self.parameters.law,)

    @property
    def center(self) -> float:
        """The mean of the noise, which is the optimum."""
        return float(self.parameters.law == "exponential")

    def model(self) -> nn.Module:
        start = self.center + self.parameters.distance
        return Averaged(start, self.parameters.num * len(self.laws), self.parameters.burn_in)

    def train_batch(self, step: int, generator: torch.Generator) -> Tensor:
        del step
        return torch.cat([LAWS[law](self.parameters.num, generator) for law in self.laws])

    def validation_batches(self) -> Iterable[Tensor]:
        return [torch.full((self.parameters.num * len(self.laws),), self.center, dtype=torch.float64)]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return (model() - batch).square().sum() / 2

    def metric(self, model: nn.Module, batch: Tensor) -> Tensor:
        return (model.get_buffer("mean") - self.center).square().mean() * self.parameters.num_averaged

    def optimizer(self) -> OptimizerSetting:
        return sgd(self.parameters.learning_rate)


def noise(law: str, **given: float) -> Noise:
    return Noise(Noise.Parameters(law=law, **given))  # type: ignore[arg-type]


class Cosh(Workload[Tensor]):
    """cosh(x) - 1 from one start, without noise: the curvature grows with the gradient."""

    @dataclass(frozen=True)
    class Parameters:
        """Settings of the problem."""

        start: float = parameter(
            0.0, "First x; 0 for 8, 9 or 10, by the training seed.", low=-20.0, high=20.0
        )
        learning_rate: float = parameter(0.01, "Learning rate.", low=1e-9, high=1e3)

    name = "cosh"
    parameters: Parameters

    def model(self) -> nn.Module:
        start = self.parameters.start or 8.0 + _SEED_OF[torch.initial_seed()] % 3
        return Averaged(start, 1, burn_in=0)

    def train_batch(self, step: int, generator: torch.Generator) -> Tensor:
        del step, generator
        return torch.zeros(1, dtype=torch.float64)

    def validation_batches(self) -> Iterable[Tensor]:
        return [torch.zeros(1, dtype=torch.float64)]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return 2 * ((model() - batch) / 2).sinh().square().sum()

    def optimizer(self) -> OptimizerSetting:
        return sgd(self.parameters.learning_rate)


class Draws(NamedTuple):
    """What one seed of `Regression` draws.

    Attributes:
        first: weights of the first layer, shape (20, 25).
        second: weights of the second layer, shape (25, 1).
        orders: a permutation of the training rows per epoch.
    """

    first: Tensor
    second: Tensor
    orders: Sequence[Tensor]


NUM_ROWS, NUM_EPOCHS, BATCH_SIZE = 500, 60, 32
#: Batches of an epoch; the last one is smaller.
EPOCH = math.ceil(NUM_ROWS / BATCH_SIZE)
NUM_STEPS = NUM_EPOCHS * EPOCH
MAX_SEEDS = 100
_SEED_OF = {stream_seed(seed, "model"): seed for seed in range(MAX_SEEDS)} | {
    data_generator(seed).initial_seed(): seed for seed in range(MAX_SEEDS)
}


@cache
def drawn(seed: int) -> Draws:
    rng = np.random.default_rng(100 + seed)
    first = rng.standard_normal((20, 25)) * math.sqrt(2 / 20)
    second = rng.standard_normal((25, 1)) * math.sqrt(1 / 25)
    orders = [torch.from_numpy(rng.permutation(NUM_ROWS)) for _ in range(NUM_EPOCHS)]
    return Draws(torch.from_numpy(first), torch.from_numpy(second), orders)


@cache
def regression_data(seed: int) -> tuple[Tensor, Tensor]:
    """Inputs of shape (1000, 20) and targets of shape (1000,)."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((1000, 20))
    weights = np.zeros(20)
    weights[:10] = 100 * rng.random(10)
    targets = inputs @ weights + 0.1 * rng.standard_normal(1000)
    return torch.from_numpy(inputs), torch.from_numpy(targets)


class Perceptron(nn.Module):
    """20-25-1 with ReLU; biases start at 0."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(draws.first.clone()), nn.Parameter(draws.second.clone())
        self.first_bias = nn.Parameter(torch.zeros(25, dtype=torch.float64))
        self.second_bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = (inputs @ self.first + self.first_bias).relu()
        return (hidden @ self.second + self.second_bias).squeeze(1)


class Regression(Workload[tuple[Tensor, Tensor]]):
    """A small perceptron on targets of the order of 180: its best learning rate and threshold hang together."""

    @dataclass(frozen=True)
    class Parameters:
        """Settings of the problem."""

        learning_rate: float = parameter(0.01, "Learning rate.", low=1e-9, high=10.0)
        data_seed: int = parameter(1, "Seed of the data.", low=0)

    name = "regression"
    parameters: Parameters

    def model(self) -> nn.Module:
        return Perceptron(drawn(_SEED_OF[torch.initial_seed()]))

    def train_batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(step, EPOCH)
        order = drawn(_SEED_OF[generator.initial_seed()]).orders[epoch % NUM_EPOCHS]
        rows = order[position * BATCH_SIZE : (position + 1) * BATCH_SIZE]
        inputs, targets = regression_data(self.parameters.data_seed)
        return inputs[rows], targets[rows]

    def validation_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        inputs, targets = regression_data(self.parameters.data_seed)
        return [(inputs[NUM_ROWS:], targets[NUM_ROWS:])]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    def optimizer(self) -> OptimizerSetting:
        return sgd(self.parameters.learning_rate, momentum=0.9)


def clip_at(threshold: float, *, scale: float = 1.0, method: str = "global_norm") -> ClipSetting:
    """A setting; an infinite threshold is *off*."""
    if math.isinf(threshold):
        return ClipSetting(method="none", learning_rate_scale=scale)
    return ClipSetting(method=method, threshold=threshold, learning_rate_scale=scale)


def cohort_of(
    workload: AnyWorkload,
    settings: Sequence[ClipSetting],
    *,
    num_steps: int,
    seeds: Sequence[int] = (0,),
    reference_norm: float | None = None,
) -> Cohort:
    """All settings side by side, without a bound beyond which a lane counts as diverged."""
    return Cohort(
        workload=workload.name,
        parameters=workload.parameter_values,
        trials=tuple(CohortTrial(id=str(setting), setting=setting) for setting in settings),
        seeds=tuple(seeds),
        rung_steps=(num_steps,),
        divergence_factor=1e300,
        reference_norm=reference_norm,
        lanes=len(settings) * len(seeds),
    )


def train(
    workload: AnyWorkload,
    settings: Sequence[ClipSetting],
    *,
    num_steps: int,
    seeds: Sequence[int] = (0,),
    reference_norm: float | None = None,
) -> dict[ClipSetting, tuple[LaneResult, ...]]:
    """What every setting ended with, one result per seed."""
    cohort = cohort_of(workload, settings, num_steps=num_steps, seeds=seeds, reference_norm=reference_norm)
    by_id = {trial.id: trial.setting for trial in cohort.trials}
    ended = [event for event in train_cohort(cohort, workload) if isinstance(event, TrialEnded)]
    return {by_id[event.trial_id]: event.lanes for event in ended}


def score(lane: LaneResult) -> float:
    """Its objective; a lane that diverged scores infinity."""
    return math.inf if lane.value is None else lane.value


def at_rate(workload: Regression, learning_rate: float) -> Regression:
    return Regression(dataclasses.replace(workload.parameters, learning_rate=learning_rate))
