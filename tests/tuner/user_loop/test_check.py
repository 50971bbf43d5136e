"""A check finds what is wrong with a workload, one bad workload for each kind, and nothing with a good one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from regression import Regression, spoiled, swallowing, train
from torch import Tensor, nn
from toys import Batch, Toy

from tuner.optimizers import OptimizerSetting
from tuner.user_loop.check import check
from tuner.user_loop.findings import Checked, Finding
from tuner.workloads import create_workload
from tuner.workloads.base import AnyWorkload, Workload
from tuner.workloads.function import FunctionWorkload


def checked(workload: AnyWorkload | FunctionWorkload, num_steps: int = 6) -> Checked:
    return check("it", workload, num_steps=num_steps)


def faults(found: Checked) -> list[Finding]:
    return [each for each in found.findings if each.standing == "fix"]


@pytest.mark.parametrize("name", ["digits-mlp", "charlm-rnn"])
def test_built_in_workloads_have_nothing_to_fix(name: str) -> None:
    found = checked(create_workload(name, {"hidden": 8}))
    assert [each.standing for each in found.findings] == ["ok"] * 7
    assert (found.form, found.num_to_fix, found.device) == ("class", 0, "cpu")
    assert found.solo_per_second is not None and found.solo_per_second > 0
    assert found.lanes_per_second is not None and found.lanes_per_second > 0
    assert found.peak_bytes is not None and found.peak_bytes > 50 * 2**20
    assert found.data_share is not None and 0 < found.data_share < 1


def test_workload_is_left_as_it_was() -> None:
    workload = Toy()
    checked(workload)
    assert "train_batch" not in vars(workload)


class UnseededModel(Toy):
    def model(self) -> nn.Module:
        made = nn.Linear(4, 1)
        made.weight.data.fill_(random.random())
        return made


class UnseededBatches(Toy):
    def train_batch(self, step: int, generator: torch.Generator) -> Batch:
        inputs = torch.from_numpy(np.random.default_rng().normal(size=(8, 4))).float()
        return inputs, inputs.sum(dim=1)


class SeedlessBatches(Toy):
    def train_batch(self, step: int, generator: torch.Generator) -> Batch:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return inputs, inputs.sum(dim=1)


class SpentIterator(Toy):
    def __init__(self) -> None:
        super().__init__()
        self._batches = iter(list(super().validation_batches()))

    def validation_batches(self) -> Iterable[Batch]:
        return self._batches


class MovingHeldOut(Toy):
    def validation_batches(self) -> Iterable[Batch]:
        inputs = torch.randn(8, 4)
        return [(inputs, inputs.sum(dim=1))]


class NothingHeldOut(Toy):
    def validation_batches(self) -> Iterable[Batch]:
        return []


class VectorLoss(Toy):
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch[0])


class NanLoss(Toy):
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, batch) * torch.nan


class DetachedLoss(Toy):
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, batch).detach()


class Forgetful(Toy):
    calls = count()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, batch) * (1 + next(self.calls) / 1000)


class HalfPrecisionTypo(Toy):
    precision = "fp8"  # type: ignore[assignment]


class TorchOptimizer(Toy):
    def optimizer(self) -> Any:
        return own_optimizer


class VectorMetric(Toy):
    def metric(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch[0])


class NanMetric(Toy):
    def metric(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, batch) * torch.nan


class SummedLoss(Toy):
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, batch) * len(batch[0])


class RaisingModel(Toy):
    def model(self) -> nn.Module:
        raise FileNotFoundError("weights.pt")


@pytest.mark.parametrize(
    ("kind", "about", "text", "remedy"),
    [
        (
            UnseededModel,
            "model",
            "two models under one seed start from different weights",
            "PyTorch's global",
        ),
        (
            UnseededBatches,
            "batches",
            "two runs under one seed get different training batches",
            "generator that",
        ),
        (SeedlessBatches, "batches", "every seed gets the same training batches", "choose examples with"),
        (SpentIterator, "held-out data", "(the second time there was none)", "read only once"),
        (MovingHeldOut, "held-out data", "is not the same on every call", "fixed batches"),
        (NothingHeldOut, "held-out data", "gives no batch", "no objective"),
        (VectorLoss, "loss", "must be one number, got a tensor of shape (8, 1)", ""),
        (NanLoss, "loss", "is not finite in any of 3 batches", "look for NaN"),
        (DetachedLoss, "loss", "depends on none of the 4 trainable parameter", "without detach()"),
        (
            TorchOptimizer,
            "optimizer",
            "must give a setting of tuner.optimizers, got function",
            "CustomOptimizer",
        ),
        (VectorMetric, "objective", "metric() must be one number, got shape", "take the mean over the batch"),
        (NanMetric, "objective", "the objective after 6 steps is nan", "look at the metric"),
        (Forgetful, "repeatable", "two equal runs of 6 steps end in different numbers", "kept between calls"),
        (
            HalfPrecisionTypo,
            "settings",
            "precision must be one of fp32, bf16, fp16, got 'fp8'",
            "repair this",
        ),
        (RaisingModel, "model", "FileNotFoundError: weights.pt (test_check.py, line", "repair this first"),
    ],
)
def test_bad_class_is_told_with_its_remedy(kind: type[Toy], about: str, text: str, remedy: str) -> None:
    found = checked(kind())
    assert found.num_to_fix >= 1
    first = faults(found)[0]
    assert first.about == about
    assert text in first.text
    assert remedy in first.remedy


def test_what_can_not_be_looked_at_is_left_out() -> None:
    found = checked(RaisingModel())
    assert [each.about for each in found.findings] == ["parameters", "parameters", "model"]


class Pretrained(Toy):
    def model(self) -> nn.Module:
        torch.manual_seed(5)
        return super().model()


class WholeData(Toy):
    def train_batch(self, step: int, generator: torch.Generator) -> Batch:
        return next(iter(super().validation_batches()))


def own_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


@pytest.mark.parametrize(
    ("workload", "about", "text"),
    [
        (Pretrained(), "model", "every seed starts from the same weights"),
        (WholeData(), "batches", "every seed gets the same training batches, the same in each step"),
        (SummedLoss(), "loss", "so it is a sum over the batch"),
        (Toy(), "parameters", "without bounds: nan_step, nan_seed, raise_step"),
        (
            Workload.of(
                model=lambda: nn.Linear(4, 1),
                train=lambda step, generator: (torch.randn(8, 4, generator=generator), torch.ones(8, 1)),
                validation=[(torch.ones(8, 4), torch.ones(8, 1))],
                loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
                optimizer=own_optimizer,
            ),
            "lanes",
            "solo, one lane at a time: its optimizer is a function",
        ),
    ],
)
def test_what_may_be_meant_is_a_note(workload: AnyWorkload, about: str, text: str) -> None:
    found = checked(workload)
    assert not faults(found)
    notes = {each.about: each.text for each in found.findings if each.standing == "note"}
    assert text in notes[about]


# ---- functions ----


def test_good_function_has_nothing_to_fix() -> None:
    found = checked(FunctionWorkload.of(train), num_steps=12)
    assert [each.about for each in found.findings if each.standing == "ok"] == [
        "clip", "report", "clipping", "repeatable", "seeds", "pruning",
    ]  # fmt: skip
    assert [each.about for each in found.findings if each.standing == "note"] == ["lanes"]
    assert (found.form, found.num_to_fix, found.lanes_per_second) == ("function", 0, None)
    assert found.solo_per_second is not None and found.solo_per_second > 0


def own_seed(self: Regression, trial: Any) -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def fixed_everything(trial: Any) -> float | None:
    torch.manual_seed(0)
    return train(trial)


def unseeded(self: Regression, trial: Any) -> Tensor:
    return torch.from_numpy(np.random.default_rng().normal(size=(8, 4))).float()


def ten_steps(trial: Any) -> None:
    class Short:
        def __init__(self) -> None:
            self.num_steps, self.learning_rate_scale = 10, trial.learning_rate_scale
            self.clip, self.report = trial.clip, trial.report

    Regression()(Short())


def clip_behind_the_step(self: Regression, trial: Any, step: int) -> None:
    inputs = self.batch(trial)
    loss = (self.model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
    self.optimizer.zero_grad()
    loss.backward()
    self.optimizer.step()
    trial.clip(self.model)


def never(self: Regression, trial: Any, step: int) -> None:
    """Report nothing."""


@pytest.mark.parametrize(
    ("function", "about", "text", "remedy"),
    [
        (
            spoiled(clip=lambda self, trial, loss: None),
            "clip",
            "ended without a call of trial.clip",
            "call trial.clip",
        ),
        (
            ten_steps,
            "clip",
            "10 calls of trial.clip with a finite gradient, where trial.num_steps is 12",
            "clip once",
        ),
        (
            ten_steps,
            "report",
            "the last report is at step 10, where trial.num_steps is 12",
            "report at trial.num",
        ),
        (spoiled(report=never), "report", "nothing was reported", "call trial.report(step, value)"),
        (
            spoiled(value=lambda self: float("nan")),
            "report",
            "the objective at step 0 is not finite",
            "learning rate",
        ),
        (
            spoiled(step=clip_behind_the_step),
            "clipping",
            "without clipping is the same in every step",
            "between backward",
        ),
        (
            spoiled(batch=unseeded),
            "repeatable",
            "two runs under one seed differ from step 1 on",
            "are seeded before",
        ),
        (fixed_everything, "seeds", "seeds 0 and 1 give the same training", "trial.seed"),
        (
            lambda trial: 1 / 0,
            "clip",
            "ZeroDivisionError: division by zero (test_check.py, line",
            "repair this",
        ),
    ],
)
def test_bad_function_is_told_with_its_remedy(
    function: Callable[[Any], float | None], about: str, text: str, remedy: str
) -> None:
    found = checked(FunctionWorkload.of(function, name="it"), num_steps=12)
    (first, *_) = [each for each in faults(found) if each.about == about]
    assert text in first.text
    assert remedy in first.remedy


def test_function_that_swallows_the_stop_is_told() -> None:
    def stubborn(trial: Any) -> None:
        class Loop(Regression):
            def report(self, trial: Any, step: int) -> None:
                try:
                    super().report(trial, step)
                except Exception:
                    return

            def clip(self, trial: Any, loss: Tensor) -> None:
                try:
                    super().clip(trial, loss)
                except Exception:
                    return

        Loop()(trial)

    (fault,) = faults(checked(FunctionWorkload.of(stubborn), num_steps=12))
    assert (fault.about, fault.text) == ("pruning", "it went on for 13 calls after it was told to stop")
    assert fault.remedy.startswith("let TrialPruned pass")
    (fault,) = faults(checked(FunctionWorkload.of(swallowing), num_steps=12))
    assert "went on after it was stopped" in fault.text


def test_function_with_own_seeded_data_may_pass_by_its_weights() -> None:
    assert not faults(checked(FunctionWorkload.of(spoiled(batch=own_seed)), num_steps=12))


def test_what_a_function_may_leave_out_is_a_note() -> None:
    def at_the_end(self: Regression, trial: Any, step: int) -> None:
        if step == trial.num_steps:
            trial.report(step, self.value())

    function = spoiled(report=at_the_end, rate=lambda self, trial: 0.05)
    found = checked(FunctionWorkload.of(function), num_steps=12)
    assert not faults(found)
    notes = [each.text for each in found.findings if each.standing == "note"]
    assert notes[0] == "nothing is reported at step 0, before training"
    assert notes[1] == "nothing is reported on the way"
    assert notes[2].startswith("trial.learning_rate_scale is not read")


def test_parameters_reach_a_workload() -> None:
    class Kind(Toy):
        def optimizer(self) -> OptimizerSetting:
            assert self.parameters.learning_rate == 0.01
            return super().optimizer()

    assert not faults(checked(Kind(Kind.Parameters(learning_rate=0.01))))
