"""The training problems on which searches are compared: small enough to train thousands of runs of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tuner.optimizers import OptimizerSetting, sgd
from tuner.parameters import ParameterValue
from tuner.workloads.base import AnyWorkload, Workload, parameter
from tuner.workloads.charlm_rnn import CharlmRnn
from tuner.workloads.digits_mlp import DigitsMlp

#: Examples [batch, 20] and targets [batch].
Pair = tuple[Tensor, Tensor]

NUM_TRAINED = 500
BATCH_SIZE = 32
#: The last batch of an epoch is smaller.
STEPS_PER_EPOCH = math.ceil(NUM_TRAINED / BATCH_SIZE)


@lru_cache(maxsize=1)
def regression_data() -> tuple[Pair, Pair]:
    """Training and held-out halves of the data, drawn once and for all."""
    generator = np.random.default_rng(1)
    inputs = generator.standard_normal((1000, 20))
    weights = np.zeros(20)
    weights[:10] = 100 * generator.random(10)
    targets = inputs @ weights + 0.1 * generator.standard_normal(1000)
    whole = torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32)
    return (
        (whole[0][:NUM_TRAINED], whole[1][:NUM_TRAINED]),
        (whole[0][NUM_TRAINED:], whole[1][NUM_TRAINED:]),
    )


@lru_cache(maxsize=4096)
def _order(seed: int, epoch: int) -> Tensor:
    """A permutation of the training examples."""
    return torch.randperm(NUM_TRAINED, generator=torch.Generator().manual_seed((seed + epoch) % 2**63))


class RegressionMlp(Workload[Pair]):
    """Regression with a 20-25-1 perceptron whose targets are large: threshold and learning rate interact.

    At 0.01 every run without clipping explodes and a tight threshold acts as a smaller rate; at 0.001 about a third
    of them do; at 0.0003 none.
    """

    @dataclass(frozen=True)
    class Parameters:
        """The learning rate."""

        learning_rate: float = parameter(1e-3, "Learning rate of SGD with momentum 0.9.", low=1e-9, high=1.0)

    name: ClassVar[str] = "regression-mlp"
    parameters: Parameters

    def model(self) -> nn.Module:  # noqa: D102
        layers = nn.Linear(20, 25), nn.Linear(25, 1)
        for layer in layers:
            nn.init.normal_(layer.weight, std=math.sqrt(2 / 20 if layer is layers[0] else 1 / 25))
            nn.init.zeros_(layer.bias)
        return nn.Sequential(layers[0], nn.ReLU(), layers[1])

    def train_batch(self, step: int, generator: torch.Generator) -> Pair:  # noqa: D102
        epoch, position = divmod(step, STEPS_PER_EPOCH)
        chosen = _order(generator.initial_seed(), epoch)[position * BATCH_SIZE : (position + 1) * BATCH_SIZE]
        inputs, targets = regression_data()[0]
        return inputs[chosen], targets[chosen]

    def validation_batches(self) -> Iterable[Pair]:  # noqa: D102
        return (regression_data()[1],)

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:  # noqa: D102
        inputs, targets = batch
        return (model(inputs).squeeze(-1) - targets).square().mean()

    def optimizer(self) -> OptimizerSetting:  # noqa: D102
        return sgd(self.parameters.learning_rate, momentum=0.9)


@dataclass(frozen=True, kw_only=True)
class SearchProblem:
    """One workload at one learning rate.

    Attributes:
        workload: its class.
        parameters: values for it; the rest keep their defaults.
        num_steps: of a full run.
        num_thresholds: of the truth, beside *off*.
        num_seeds: of the truth.
        max_lanes: trained at once for the truth.
    """

    workload: type[AnyWorkload]
    parameters: Mapping[str, ParameterValue]
    num_steps: int
    num_thresholds: int = 40
    num_seeds: int = 64
    max_lanes: int = 1024

    def make(self, learning_rate_scale: float = 1.0) -> AnyWorkload:
        """A fresh workload, its learning rate multiplied by a factor."""
        rate = self.parameters["learning_rate"]
        return self.workload.create({**self.parameters, "learning_rate": float(rate) * learning_rate_scale})


def _regression(learning_rate: float) -> SearchProblem:
    return SearchProblem(workload=RegressionMlp, parameters={"learning_rate": learning_rate}, num_steps=960)


def _digits(learning_rate: float) -> SearchProblem:
    return SearchProblem(workload=DigitsMlp, parameters={"learning_rate": learning_rate}, num_steps=400)


def _characters(learning_rate: float) -> SearchProblem:
    """A step takes about ten times as long as those of the others, and its lanes fill the cache earlier."""
    return SearchProblem(
        workload=CharlmRnn,
        parameters={"learning_rate": learning_rate},
        num_steps=120,
        num_thresholds=24,
        num_seeds=24,
        max_lanes=64,
    )


PROBLEMS: dict[str, SearchProblem] = {
    "regression-mlp-0.01": _regression(1e-2),
    "regression-mlp-0.001": _regression(1e-3),
    "regression-mlp-0.0003": _regression(3e-4),
    "digits-mlp-0.1": _digits(0.1),
    "digits-mlp-1": _digits(1.0),
    "charlm-rnn-1": _characters(1.0),
    "charlm-rnn-4": _characters(4.0),
}
