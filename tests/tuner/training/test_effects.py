"""Code with effects that a recorded program would not repeat trains one lane at a time, or is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import (
    assert_close,
    cohort_of,
    lanes_of,
    outcomes,
    perceptron,
    regression,
    squared,
    trained,
    workload_of,
)

from tuner.errors import UnsupportedModelError
from tuner.optimizers import sgd
from tuner.training.auto import AutoEngine
from tuner.training.cohort import Cohort
from tuner.training.loop import train_cohort
from tuner.training.solo import SoloEngine
from tuner.tuning import tune
from tuner.workloads import AnyWorkload
from tuner.workloads.parts import PartsWorkload

COHORT = cohort_of("none", "global_norm:0.5", rung_steps=(24,), lanes=64)
Batch = tuple[Tensor, Tensor]


def assert_solo(make: Callable[[], AnyWorkload], reason: str, cohort: Cohort = COHORT) -> None:
    """It trains one lane at a time, as the solo engine does, for a reason that holds these words."""
    engine = AutoEngine(cohort, make())
    assert engine.choice.path == "solo"
    assert reason in engine.choice.reason
    assert_close(trained(engine, cohort), trained(SoloEngine(cohort, make()), cohort), tolerance=1e-6)


class Annealed(PartsWorkload[Batch]):
    """The loss depends on a step that the data loader noted down."""

    def train_batch(self, step: int, generator: torch.Generator) -> Batch:
        self.progress = step / 24
        return super().train_batch(step, generator)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return (1.0 + self.progress) * squared(model, batch)


class Counting(nn.Sequential):
    """Changes after ten passes."""

    def __init__(self) -> None:
        super().__init__(*perceptron())
        self.num_passes = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.num_passes += 1
        outputs: Tensor = super().forward(inputs)
        return outputs if self.num_passes < 10 else 2 * outputs


class Decaying(nn.Sequential):
    """Shrinks its own weights in every pass."""

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            self[0].weight.mul_(0.999)
        outputs: Tensor = super().forward(inputs)
        return outputs


class Replacing(nn.Sequential):
    """Puts another tensor in the place of a weight."""

    def forward(self, inputs: Tensor) -> Tensor:
        self[0].weight.data = nn.functional.normalize(self[0].weight.data)
        outputs: Tensor = super().forward(inputs)
        return outputs


class Bounded(nn.Sequential):
    """Writes into a product with 1, which must be a tensor of its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self[0].weight * 1.0
        weight.clamp_(min=-0.1)
        return self[2](torch.tanh(nn.functional.linear(inputs, weight, self[0].bias)))


class Caching(nn.Sequential):
    """Builds a table in its first pass."""

    table: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(4.0)
        outputs: Tensor = super().forward(inputs + self.table)
        return outputs


def test_step_that_the_workload_remembers_trains_solo() -> None:
    def make() -> AnyWorkload:
        return Annealed(
            model=perceptron,
            train=regression,
            validation=[regression(0, torch.Generator().manual_seed(1), 16)],
            loss=squared,
            optimizer=sgd(0.05),
            metric=None,
        )

    assert_solo(make, "the workload's attribute 'progress' changes from step to step")


def test_module_that_counts_its_passes_trains_solo() -> None:
    engine = AutoEngine(COHORT, workload_of(Counting))
    assert engine.choice.path == "solo"
    assert "the model's attribute 'num_passes' changes from step to step" in engine.choice.reason


def test_model_that_writes_its_weights_trains_solo() -> None:
    assert_solo(lambda: workload_of(lambda: Decaying(*perceptron())), "writes parameter '0.weight'")


def test_model_that_replaces_its_weights_is_refused() -> None:
    engine = AutoEngine(COHORT, workload_of(lambda: Replacing(*perceptron())))
    with pytest.raises(UnsupportedModelError, match=r"parameter '0.weight' is replaced by the model.*copy_"):
        trained(engine, COHORT)


def test_loss_that_changes_its_batch_is_refused() -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        batch[0].mul_(0.9)
        return squared(model, batch)

    engine = AutoEngine(COHORT, workload_of(loss=loss))
    assert "changes its batch in place" in engine.choice.reason
    with pytest.raises(UnsupportedModelError, match="the loss changes its batch in place"):
        trained(engine, COHORT)


@pytest.mark.parametrize("model", [Bounded, Caching])
def test_harmless_effects_train_in_lanes(model: type[nn.Sequential]) -> None:
    engine = AutoEngine(COHORT, workload_of(lambda: model(*perceptron())))
    assert engine.choice.path == "lanes", engine.choice.reason
    solo = SoloEngine(COHORT, workload_of(lambda: model(*perceptron())))
    assert_close(trained(engine, COHORT), trained(solo, COHORT))


def test_average_of_the_weights_that_begins_later_is_a_lanes_own() -> None:
    class Averaging(nn.Linear):
        """Its average stays at 0 for ten passes, and is written at each of them."""

        def __init__(self) -> None:
            super().__init__(4, 1)
            self.register_buffer("mean", torch.zeros(1, 4))
            self.register_buffer("steps", torch.zeros(()))
            self.register_buffer("unused", torch.zeros(()))

        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                self.steps += 1
                share = torch.where(self.steps > 10, 1 / (self.steps - 10).clamp(min=1), 0.0)
                self.mean += (self.weight.detach() - self.mean) * share
            return super().forward(inputs)

    engine = AutoEngine(COHORT, workload_of(Averaging))
    assert engine.choice.path == "lanes", engine.choice.reason
    found = trained(engine, COHORT)
    assert_close(found, trained(SoloEngine(COHORT, workload_of(Averaging)), COHORT))
    assert all(each.buffers.keys() == {"mean", "steps"} for each in found.values())
    assert len({tuple(each.buffers["mean"][0].tolist()) for each in found.values()}) == 4


def test_array_in_a_batch_trains_solo() -> None:
    def train(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, np.ndarray]:
        return (*regression(step, generator), np.full((64, 64), step))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, np.ndarray]) -> Tensor:
        return squared(model, batch[:2]) * (1 + float(batch[2][32, 32]))

    validation = [(*regression(0, torch.Generator().manual_seed(1), 16), np.zeros((64, 64)))]
    assert_solo(lambda: workload_of(train=train, loss=loss, validation=validation), "a batch holds a ndarray")


def test_loss_and_metric_of_one_name_are_two_functions() -> None:
    def made(factor: float) -> Callable[[nn.Module, Batch], Tensor]:
        def train_error(model: nn.Module, batch: Batch) -> Tensor:
            return factor * squared(model, batch)

        return train_error

    workload = workload_of(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)),
        loss=made(1.0),
        metric=made(100.0),
    )
    engine = AutoEngine(COHORT, workload)
    assert engine.choice.path == "lanes", engine.choice.reason
    for outcome in outcomes(engine, lanes_of(COHORT)).values():
        assert outcome.evaluation.objective == pytest.approx(100 * outcome.evaluation.loss)


def test_number_as_a_metric_is_a_metric() -> None:
    workload = workload_of(metric=lambda model, batch: squared(model, batch).item())
    ended = [event for event in train_cohort(COHORT, workload) if event.kind == "trial"]
    assert all(lane.value is not None for event in ended for lane in event.lanes)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_batch_norm_in_lower_precision_trains_in_lanes(precision: str) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))

    engine = AutoEngine(COHORT, workload_of(model, precision=precision))
    assert engine.choice.path == "lanes", engine.choice.reason
    solo = SoloEngine(COHORT, workload_of(model, precision=precision))
    assert_close(trained(engine, COHORT), trained(solo, COHORT), tolerance=0.05)


def test_many_numbers_of_lanes_are_not_many_shapes() -> None:
    from tuner.training.rehearsals import Rehearsals

    rehearsals, workload = Rehearsals(), workload_of()
    for num_trials in range(2, 40):
        settings = ["none", *(f"global_norm:{0.1 * number:g}" for number in range(1, num_trials))]
        cohort = cohort_of(*settings, seeds=(0,), rung_steps=(1,), lanes=1000)
        engine = AutoEngine(cohort, workload, rehearsals=rehearsals)
        outcomes(engine, lanes_of(cohort)[:1])
        assert engine.choice.path == "lanes", engine.choice.reason


def test_study_goes_on_when_a_later_cohort_ends_before_its_last_rung() -> None:
    answer = tune(
        workload_of(), num_trials=16, cohort_size=8, num_seeds=2, num_steps=30, lanes=64, progress=True
    )
    assert answer.num_trials == 16
