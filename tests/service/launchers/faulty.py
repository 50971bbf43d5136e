"""A training function that misbehaves, in the way its parameter names, in trials with a large threshold."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tuner.workloads import parameter, training_function

FAULTS = (
    "none", "raise", "sys_exit", "os_exit", "hang", "print", "fork", "fork_exec", "memory", "killed", "nan", "swallow",
    "input",
)  # fmt: skip
#: Trials with thresholds above this misbehave.
LARGE = 4.0


@dataclass(frozen=True)
class Parameters:
    fault: str = parameter("none", "What goes wrong.", choices=FAULTS)


@training_function(parameters=Parameters, description="A linear regression that misbehaves.")
def train(trial: Any) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * trial.learning_rate_scale)
    trial.report(0, value(model))
    for step in range(1, trial.num_steps + 1):
        inputs = torch.randn(8, 4)
        optimizer.zero_grad()
        (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean().backward()
        trial.clip(model)
        optimizer.step()
        if step == 3 and (trial.setting.threshold or 0.0) > LARGE:
            strike(trial.parameters["fault"], trial)
        if step % 5 == 0:
            trial.report(step, value(model))


def value(model: nn.Module) -> float:
    inputs = torch.linspace(-1, 1, 32).reshape(8, 4)
    with torch.no_grad():
        return float((model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean())


def strike(fault: str, trial: Any) -> None:
    match fault:
        case "raise":
            raise ValueError("the batch has the wrong shape")
        case "sys_exit":
            sys.exit(5)
        case "os_exit":
            os._exit(3)
        case "hang":
            time.sleep(600)
        case "print":
            piece = "noise " * 20_000 + "\n"
            for _ in range(2**30 // len(piece)):
                sys.stdout.write(piece)
        case "fork":
            # The child goes on as if it were the training; its parent waits for it.
            if (pid := os.fork()) != 0:
                os.waitpid(pid, 0)
        case "fork_exec":
            # Something that outlives the training and has its files open, if they are passed on.
            os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60")
        case "memory":
            torch.empty(2**55, dtype=torch.uint8)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "nan":
            trial.report(4, float("nan"))
        case "swallow":
            for step in range(4, 1_000_000):
                try:
                    trial.report(step, float("nan"))
                except Exception:
                    continue
        case "input":
            input("does somebody answer?")
