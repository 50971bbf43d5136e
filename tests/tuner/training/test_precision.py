"""Lower precision: the batch equals the single lane, and a loss scale belongs to one lane alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from toys import advanced, assert_same_bits, cohort_of, lanes_of, regression, row_in, trained, workload_of

from tuner.lanes import Layout
from tuner.optimizers import sgd
from tuner.spec import ClipSetting, Lanes
from tuner.training import precision
from tuner.training.auto import AutoEngine
from tuner.training.batched import BatchedEngine
from tuner.training.engine import LaneId
from tuner.training.lane_batch import LaneBatch
from tuner.training.precision import INITIAL_SCALE, LossScale, autocast
from tuner.training.randomness import data_generator
from tuner.training.solo import SoloEngine
from tuner.workloads import AnyWorkload
from tuner.workloads.base import Precision

COHORT = cohort_of("none", "global_norm:0.3", "value:0.05", rung_steps=(40,))
#: Largest difference of a weight between a batch and a single lane after 40 steps: a few roundings of the format.
TOLERANCE: dict[Precision, float] = {"bf16": 2e-2, "fp16": 2e-3}


def workload_in(number_format: Precision, factor: float = 1.0, at: int = -1, of_seed: int = 1) -> AnyWorkload:
    """A regression with small targets, so that fp16 does not overflow; one batch of one seed may be larger."""

    def train(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, targets = regression(step, generator)
        is_large = step == at and generator.initial_seed() == data_generator(of_seed).initial_seed()
        return inputs, 0.1 * targets * (factor if is_large else 1.0)

    return workload_of(train=train, precision=number_format)


@pytest.mark.parametrize("number_format", ["bf16", "fp16"])
@pytest.mark.parametrize("engine", [SoloEngine, BatchedEngine])
def test_forward_runs_in_the_lower_format_and_weights_stay(number_format: Precision, engine: type) -> None:
    seen = []

    def loss(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        outputs = model(batch[0])
        seen.append(outputs.dtype)
        return (outputs.float() - batch[1]).square().mean()

    made = engine(COHORT, workload_of(loss=loss, precision=number_format))
    found = trained(made, COHORT, 2)
    assert seen[-1] is seen[len(seen) // 2]
    assert set(seen[1:]) == {torch.bfloat16 if number_format == "bf16" else torch.float16}
    assert {each.weights.dtype for each in found.values()} == {torch.float32}


@pytest.mark.parametrize("number_format", ["bf16", "fp16"])
def test_batch_equals_single_lanes_within_rounding(number_format: Precision) -> None:
    batched = trained(BatchedEngine(COHORT, workload_in(number_format)), COHORT)
    solo = trained(SoloEngine(COHORT, workload_in(number_format)), COHORT)
    worst = max(float((batched[lane].weights - solo[lane].weights).abs().max()) for lane in batched)
    print(f"largest difference {worst:.1e}")
    assert worst < TOLERANCE[number_format]
    for lane in batched:
        assert batched[lane].evaluation.loss == pytest.approx(
            solo[lane].evaluation.loss, rel=0.05, abs=TOLERANCE[number_format]
        )


@pytest.mark.parametrize("number_format", ["bf16", "fp16"])
@pytest.mark.parametrize("engine", [SoloEngine, BatchedEngine])
def test_lower_precision_is_near_single_precision(number_format: Precision, engine: type) -> None:
    low = trained(engine(COHORT, workload_in(number_format)), COHORT)
    full = trained(engine(COHORT, workload_in("fp32")), COHORT)
    for lane in lanes_of(COHORT):
        assert (low[lane].weights - full[lane].weights).abs().max() < 10 * TOLERANCE[number_format]
        # Clipping sees gradients without the scale of 65,536: else every step would be clipped.
        assert low[lane].record.clip_fraction == pytest.approx(full[lane].record.clip_fraction, abs=0.1)
        assert low[lane].record.norms is not None and full[lane].record.norms is not None
        assert low[lane].record.norms.median == pytest.approx(full[lane].record.norms.median, rel=0.05)
    assert 0 < full[LaneId("global_norm:0.3", 0)].record.clip_fraction < 1


@pytest.mark.parametrize("engine", [SoloEngine, BatchedEngine])
def test_overflow_of_one_lane_is_its_own_affair(engine: type) -> None:
    calm = engine(COHORT, workload_in("fp16"))
    expected = trained(calm, COHORT)
    made = engine(COHORT, workload_in("fp16", factor=1e3, at=5))
    found = trained(made, COHORT)
    for lane in lanes_of(COHORT):
        batch, row, _ = row_in(made, lane)
        assert batch.scale is not None
        overflowed = int(lane.seed == 1)
        assert float(batch.scale.scale[row]) == INITIAL_SCALE / 2**overflowed
        record = found[lane].record
        assert (record.divergence_step, record.num_steps) == (None, 40)
        assert record.num_non_finite == record.num_skipped == overflowed
    spared = {lane: each for lane, each in found.items() if lane.seed == 0}
    assert_same_bits(spared, expected)


@pytest.mark.parametrize("engine", [SoloEngine, BatchedEngine])
def test_forgiven_step_changes_no_weight(engine: type) -> None:
    made = engine(COHORT, workload_in("fp16", factor=1e3, at=5))
    advanced(made, lanes_of(COHORT), 5)
    batch, row, _ = row_in(made, LaneId("none", 1))
    before = batch.weights[row].clone()
    advanced(made, lanes_of(COHORT), 6)
    assert torch.equal(batch.weights[row], before)


@pytest.mark.parametrize("engine", [SoloEngine, BatchedEngine])
def test_lane_that_overflows_at_the_lowest_scale_diverges(engine: type) -> None:
    # Targets of 1e7 give gradients above 65,504 at any scale. Sixteen halvings lead from 2**16 to 1: the steps 0 to
    # 15 are forgiven, the step 16 is not.
    def train(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, targets = regression(step, generator)
        return inputs, 1e7 * targets.sign()

    cohort = cohort_of("none", "value:0.05", rung_steps=(40,))
    found = trained(engine(cohort, workload_of(train=train, precision="fp16")), cohort)
    for each in found.values():
        assert (each.record.divergence_step, each.record.num_steps) == (16, 16)
        assert each.record.num_skipped == 16


def scale_of(*values: float) -> LossScale:
    return LossScale(torch.tensor(values), torch.zeros(len(values), dtype=torch.int64))


def test_scale_halves_where_a_lane_overflows_and_never_below_one() -> None:
    scale = scale_of(8.0, 8.0, 1.0)
    overflowed = torch.tensor([True, False, True])
    assert scale.forgives(overflowed).tolist() == [True, False, False]
    scale.update(overflowed)
    assert scale.scale.tolist() == [4.0, 8.0, 1.0]
    assert scale.streak.tolist() == [0, 1, 0]


def test_scale_doubles_after_long_enough_without_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "GROWTH_INTERVAL", 3)
    scale = scale_of(8.0, 8.0)
    for step in range(4):
        scale.update(torch.tensor([False, step == 1]))
    # Lane 0 grew after the steps 0 to 2; lane 1 was halved at step 1 and has held for two steps.
    assert scale.scale.tolist() == [16.0, 4.0]
    assert scale.streak.tolist() == [1, 2]


def test_gradients_are_unscaled_before_they_are_measured_and_clipped() -> None:
    layout = Layout(("weight",), ((2,),))
    settings = [ClipSetting.parse("none"), ClipSetting.parse("global_norm:2.5")]
    batch = LaneBatch(settings, layout, torch.zeros(2, 2), optimizer=sgd(1.0), num_steps=4, precision="fp16")
    assert batch.loss_scale is not None
    batch.update(torch.ones(2), torch.tensor([[3.0, 4.0]] * 2) * batch.loss_scale.unsqueeze(1))
    torch.testing.assert_close(batch.weights, torch.tensor([[-3.0, -4.0], [-1.5, -2.0]]))
    batch.flush()
    norms = [record.norms for record in batch.trace.read()]
    assert [each.max for each in norms if each is not None] == [5.0, 5.0]


@pytest.mark.parametrize("number_format", ["fp32", "bf16"])
def test_only_half_precision_has_a_scale(number_format: Precision) -> None:
    batch = LaneBatch(
        [ClipSetting.parse("none")],
        Layout(("weight",), ((2,),)),
        torch.zeros(1, 2),
        optimizer=sgd(1.0),
        num_steps=4,
        precision=number_format,
    )
    assert batch.loss_scale is None


def test_single_precision_is_no_autocast() -> None:
    with autocast("fp32", torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
    with autocast("bf16", torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("number_format", ["bf16", "fp16"])
@pytest.mark.parametrize("lanes", ["auto", 64])
def test_engine_that_chooses_trains_lower_precision_too(number_format: Precision, lanes: Lanes) -> None:
    # Fresh programs are compared with the plain module first, and that without a scale.
    cohort = dataclasses.replace(COHORT, lanes=lanes)
    engine = AutoEngine(cohort, workload_in(number_format))
    found = trained(engine, cohort)
    expected = trained(SoloEngine(COHORT, workload_in(number_format)), COHORT)
    for lane in lanes_of(COHORT):
        assert (found[lane].weights - expected[lane].weights).abs().max() < TOLERANCE[number_format]
    batched = AutoEngine(dataclasses.replace(COHORT, lanes=64), workload_in(number_format))
    assert batched.choice.path == "lanes", batched.choice.reason
