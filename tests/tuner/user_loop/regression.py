"""Training functions for tests: a linear regression in a loop of its own, and ways to spoil it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

NUM_FEATURES = 4


def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(64, NUM_FEATURES, generator=torch.Generator().manual_seed(99))
    return inputs, inputs.sum(dim=1, keepdim=True)


class Regression:
    """A loop; override a method to spoil it."""

    learning_rate = 0.05
    report_every = 5

    def __call__(self, trial: Any) -> float | None:
        self.model = nn.Linear(NUM_FEATURES, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.rate(trial))
        self.report(trial, 0)
        for step in range(1, trial.num_steps + 1):
            self.step(trial, step)
            if step % self.report_every == 0 or step == trial.num_steps:
                self.report(trial, step)
        return None

    def rate(self, trial: Any) -> float:
        return self.learning_rate * trial.learning_rate_scale

    def batch(self, trial: Any) -> torch.Tensor:
        del trial
        return torch.randn(8, NUM_FEATURES)

    def step(self, trial: Any, step: int) -> None:
        del step
        inputs = self.batch(trial)
        loss = (self.model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.clip(trial, loss)
        self.optimizer.step()

    def clip(self, trial: Any, loss: torch.Tensor) -> None:
        trial.clip(self.model.parameters(), loss=loss)

    def value(self) -> float:
        inputs, targets = held_out()
        with torch.no_grad():
            return float((self.model(inputs) - targets).square().mean())

    def report(self, trial: Any, step: int) -> None:
        trial.report(step, self.value())


def train(trial: Any) -> float | None:
    """A linear regression."""
    return Regression()(trial)


def spoiled(**methods: Callable[..., Any]) -> Callable[[Any], float | None]:
    """The regression with methods of its class replaced."""
    kind = type("Spoiled", (Regression,), methods)

    def train(trial: Any) -> float | None:
        return kind()(trial)

    return train


def swallowing(trial: Any) -> None:
    """Goes on whatever happens."""
    loop = Regression()
    loop.model = nn.Linear(NUM_FEATURES, 1)
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=loop.rate(trial))
    for step in range(1, 100_000):
        try:
            loop.step(trial, step)
            loop.report(trial, step)
        except Exception:
            continue


def draws(trial: Any) -> tuple[float, float, float]:
    """A number from each global generator."""
    del trial
    return random.random(), float(np.random.rand()), float(torch.rand(()))
