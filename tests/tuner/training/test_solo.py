"""What only the engine that trains one lane at a time does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toys import (
    advanced,
    assert_close,
    assert_same_bits,
    cohort_of,
    lanes_of,
    perceptron,
    regression,
    ticking,
    toy,
    trained,
    workload_of,
)

from tuner.errors import LaneError, UnsupportedModelError
from tuner.optimizers import adam
from tuner.training.engine import LaneId
from tuner.training.solo import SoloEngine
from tuner.workloads import AnyWorkload

COHORT = cohort_of("none", "global_norm:0.5", "value:0.1", rung_steps=(30,))


def test_lanes_take_turns_until_each_has_arrived() -> None:
    engine = SoloEngine(COHORT, toy(), clock=ticking(0.3))
    told = advanced(engine, lanes_of(COHORT), 30)
    assert sum(each.lane_steps for each in told) == 6 * 30
    assert told[0].step < 30
    assert told[-1].step == 30


def test_lane_trained_in_small_pieces_is_the_same_lane() -> None:
    pieces = trained(SoloEngine(COHORT, toy(), clock=ticking(2.0)), COHORT)
    assert_same_bits(pieces, trained(SoloEngine(COHORT, toy()), COHORT))


def test_custom_optimizer_equals_ours() -> None:
    def custom() -> AnyWorkload:
        return workload_of(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01))

    ours = trained(SoloEngine(COHORT, workload_of(optimizer=adam(0.01))), COHORT)
    assert_close(trained(SoloEngine(COHORT, custom()), COHORT), ours, tolerance=1e-5)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_custom_optimizer_takes_each_lanes_own_rate(scale: float) -> None:
    def custom(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        head, body = parameters[-2:], parameters[:-2]
        return torch.optim.Adam([{"params": body}, {"params": head, "lr": 0.05}], lr=0.01)

    def scaled(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = custom(parameters)
        for group in made.param_groups:
            group["lr"] *= scale
        return made

    cohort = cohort_of("global_norm:0.5", f"global_norm:0.5@{scale}", rung_steps=(30,))
    found = trained(SoloEngine(cohort, workload_of(optimizer=custom)), cohort)
    expected = trained(SoloEngine(cohort, workload_of(optimizer=scaled)), cohort, lanes=lanes_of(cohort)[:2])
    for seed in cohort.seeds:
        mine = found[LaneId(cohort.trials[1].id, seed)].weights
        assert torch.equal(mine, expected[LaneId("global_norm:0.5", seed)].weights)
        assert not torch.equal(mine, found[LaneId("global_norm:0.5", seed)].weights)


def test_custom_optimizer_without_a_rate_is_told_only_when_one_is_asked_for() -> None:
    class Halving(torch.optim.Optimizer):
        def __init__(self, parameters: list[nn.Parameter]) -> None:
            super().__init__(parameters, {})

        def step(self, closure: object = None) -> None:
            for each in self.param_groups[0]["params"]:
                each.data.mul_(0.5)

    plain = cohort_of("none", rung_steps=(1,))
    assert trained(SoloEngine(plain, workload_of(optimizer=Halving)), plain)
    with pytest.raises(
        UnsupportedModelError, match="the optimizer Halving has a parameter group without 'lr'"
    ):
        SoloEngine(cohort_of("none@0.5"), workload_of(optimizer=Halving))


def test_custom_optimizer_takes_no_step_with_a_gradient_that_is_no_number() -> None:
    def train(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, targets = regression(step, generator)
        return (inputs * torch.nan if step == 5 else inputs), targets

    workload = workload_of(train=train, optimizer=lambda given: torch.optim.SGD(given, lr=0.1, momentum=0.9))
    engine = SoloEngine(COHORT, workload)
    before = {lane: each.weights for lane, each in trained(engine, COHORT, 5).items()}
    for lane, each in trained(engine, COHORT, 30).items():
        assert torch.equal(each.weights, before[lane])
        assert each.record.divergence_step == 5


def test_engine_with_a_custom_optimizer_cannot_be_written_down() -> None:
    engine = SoloEngine(COHORT, workload_of(optimizer=lambda given: torch.optim.SGD(given, lr=0.1)))
    assert engine.state() is None


@pytest.mark.parametrize(("fails", "step"), [("train", 0), ("evaluate", 1)])
def test_exception_of_the_workload_names_the_lane_and_keeps_the_cause(fails: str, step: int) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if model.training == (fails == "train"):
            raise KeyError("nothing there")
        return (model(batch[0]) - batch[1]).square().mean()

    engine = SoloEngine(COHORT, workload_of(loss=loss))
    lane = LaneId("value:0.1", 1)
    with pytest.raises(
        LaneError, match=rf"trial value:0\.1 with seed 1 failed at step {step}: KeyError"
    ) as caught:
        advanced(engine, [lane], 1)
        engine.evaluate([lane])
    assert isinstance(caught.value.__cause__, KeyError)


def test_parameter_that_the_loss_does_not_use_has_no_gradient_and_stays() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 1), nn.Linear(4, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.used(inputs)

    engine = SoloEngine(COHORT, workload_of(Half))
    before = engine._lanes[LaneId("none", 0)].model.unused.weight.detach().clone()
    advanced(engine, lanes_of(COHORT), 5)
    assert torch.equal(engine._lanes[LaneId("none", 0)].model.unused.weight, before)


def test_rehearsal_takes_steps_of_one_lane() -> None:
    step = SoloEngine(COHORT, workload_of(perceptron)).rehearsal()
    for _ in range(3):
        step()
