"""Every engine keeps the promises of `tuner.training.engine.Engine`, whatever way it trains.

Four ways: one lane at a time; all lanes in one block; several blocks that take turns; and the engine that chooses.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import (
    Outcome,
    advanced,
    assert_close,
    assert_same_bits,
    cohort_of,
    lanes_of,
    outcomes,
    row_in,
    ticking,
    toy,
    trained,
    workload_of,
)

from tuner.errors import LaneError
from tuner.optimizers import OptimizerSetting, adam, adamw, cosine, sgd, warmup
from tuner.training.auto import AutoEngine
from tuner.training.batched import BatchedEngine
from tuner.training.cohort import Cohort
from tuner.training.engine import Engine, EngineState, LaneId
from tuner.training.initial import initial_model
from tuner.training.probe import measure_reference
from tuner.training.solo import SoloEngine
from tuner.workloads import AnyWorkload

Make = Callable[..., Engine]


def auto(cohort: Cohort, workload: AnyWorkload, **options: Any) -> Engine:
    engine = AutoEngine(dataclasses.replace(cohort, lanes=64), workload, **options)
    assert engine.choice.path == "lanes", engine.choice.reason
    return engine


def blocks(cohort: Cohort, workload: AnyWorkload, **options: Any) -> Engine:
    return BatchedEngine(cohort, workload, max_lanes=2 * len(cohort.seeds), **options)


ENGINES: Mapping[str, Make] = {"solo": SoloEngine, "batched": BatchedEngine, "blocks": blocks, "auto": auto}

#: A stateless norm, a stateless clamp, a method with a state, one that skips steps, and another learning rate.
SETTINGS = ("none", "global_norm:0.5", "value:0.1", "zclip:2", "skip_step:3", "global_norm:0.5@0.5")

#: By learning rate.
OPTIMIZERS: Mapping[str, Callable[[float], OptimizerSetting]] = {
    "momentum": lambda rate: sgd(rate, momentum=0.9, weight_decay=1e-3),
    "cosine": lambda rate: sgd(rate, schedule=cosine(40)),
    "adam": adam,
    "adamw": lambda rate: adamw(rate, schedule=warmup(5)),
}


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest) -> Make:
    """Builds one of the engines."""
    return ENGINES[request.param]


def test_same_cohort_again_is_bit_equal(make: Make) -> None:
    cohort = cohort_of(*SETTINGS)
    assert_same_bits(trained(make(cohort, toy()), cohort), trained(make(cohort, toy()), cohort))


def test_lane_alone_is_the_lane_in_a_cohort(make: Make) -> None:
    cohort = cohort_of(*SETTINGS, seeds=(0, 1, 2), rung_steps=(40,))
    together = trained(make(cohort, toy(batch_norm=True)), cohort)
    for setting in SETTINGS:
        one = cohort_of(setting, seeds=(2,), rung_steps=(40,))
        assert_close(trained(make(one, toy(batch_norm=True)), one), together, tolerance=1e-6)


def test_engines_agree_with_one_another(make: Make) -> None:
    cohort = cohort_of(*SETTINGS, rung_steps=(40,))
    workload = toy(batch_norm=True, momentum=0.9, learning_rate=0.01)
    assert_close(trained(make(cohort, workload), cohort), trained(SoloEngine(cohort, workload), cohort))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_lane_at_half_the_rate_is_a_lane_of_the_workload_with_half_the_rate(
    make: Make, optimizer: str
) -> None:
    at_half = cohort_of("none@0.5", "global_norm:0.5@0.5", "zclip:2@0.5", rung_steps=(40,))
    plain = cohort_of("none", "global_norm:0.5", "zclip:2", rung_steps=(40,))
    found = trained(make(at_half, workload_of(optimizer=OPTIMIZERS[optimizer](0.02))), at_half)
    expected = trained(make(plain, workload_of(optimizer=OPTIMIZERS[optimizer](0.01))), plain)
    assert_same_bits(
        {LaneId(lane.trial_id.removesuffix("@0.5"), lane.seed): each for lane, each in found.items()},
        expected,
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_lanes_of_several_rates_train_side_by_side(make: Make, optimizer: str) -> None:
    cohort = cohort_of("none", "none@0.5", "value:0.1@3", "global_norm:0.5@0.25", rung_steps=(40,))
    found = trained(make(cohort, workload_of(optimizer=OPTIMIZERS[optimizer](0.01))), cohort)
    for trial in cohort.trials:
        text, _, scale = trial.id.partition("@")
        alone = cohort_of(text, rung_steps=(40,))
        workload = workload_of(optimizer=OPTIMIZERS[optimizer](0.01 * float(scale or 1)))
        expected = trained(SoloEngine(alone, workload), alone)
        for seed in cohort.seeds:
            mine, theirs = found[LaneId(trial.id, seed)], expected[LaneId(text, seed)]
            torch.testing.assert_close(mine.weights, theirs.weights, rtol=1e-5, atol=1e-6)


def test_rungs_do_not_change_the_training(make: Make) -> None:
    cohort = cohort_of(*SETTINGS, rung_steps=(70,))
    assert_same_bits(
        trained(make(cohort, toy()), cohort, 1, 5, 6, 37, 70), trained(make(cohort, toy()), cohort, 70)
    )


def test_callers_random_state_is_untouched_whenever_control_is_with_the_caller(make: Make) -> None:
    cohort = cohort_of(*SETTINGS)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    engine = make(cohort, toy(), clock=ticking(2.0))
    assert torch.equal(torch.get_rng_state(), before)
    advances = 0
    for _ in engine.advance(lanes_of(cohort), 4):
        advances += 1
        assert torch.equal(torch.get_rng_state(), before)
    assert advances > 1
    engine.evaluate(lanes_of(cohort))
    engine.read(lanes_of(cohort))
    state = engine.state()
    assert state is not None
    make(cohort, toy()).restore(state)
    assert torch.equal(torch.get_rng_state(), before)


def test_callers_draws_change_nothing(make: Make) -> None:
    cohort = cohort_of(*SETTINGS)
    engine = make(cohort, toy(), clock=ticking(2.0))
    for _ in engine.advance(lanes_of(cohort), 12):
        torch.randn(7)
    disturbed = outcomes(engine, lanes_of(cohort))
    assert_same_bits(disturbed, trained(make(cohort, toy()), cohort))


def test_probe_changes_nothing(make: Make) -> None:
    cohort = cohort_of(*SETTINGS)
    plain = trained(make(cohort, toy()), cohort)
    workload = toy()
    engine = make(cohort, workload)
    advanced(engine, lanes_of(cohort), 5)
    measure_reference(workload, (0, 1), num_batches=3)
    assert_same_bits(trained(engine, cohort), plain)


def test_nan_in_one_lane_leaves_the_others_bit_identical(make: Make) -> None:
    cohort = cohort_of(*SETTINGS, rung_steps=(40,))
    healthy = trained(make(cohort, toy(dropout=0.0)), cohort)
    found = trained(make(cohort, toy(dropout=0.0, nan_step=5, nan_seed=1)), cohort)
    for lane, outcome in found.items():
        assert (outcome.record.divergence_step is not None) == (lane.seed == 1)
    assert_same_bits({lane: each for lane, each in found.items() if lane.seed == 0}, healthy)


def test_lane_that_explodes_leaves_the_others_bit_identical(make: Make) -> None:
    # At this rate the lanes that clip loosely leave float32 after some tens of steps; one is bounded tightly.
    workload = toy(learning_rate=8.0, dropout=0.0)
    cohort = cohort_of("none", "value:1e6", "global_norm:0.001", rung_steps=(200,))
    found = trained(make(cohort, workload), cohort)
    assert all(found[lane].record.divergence_step is not None for lane in lanes_of(cohort, "none"))
    alone = cohort_of("global_norm:0.001", "global_norm:0.002", "global_norm:0.003", rung_steps=(200,))
    spared = {lane: found[lane] for lane in lanes_of(cohort, "global_norm:0.001")}
    assert all(each.record.divergence_step is None for each in spared.values())
    assert_same_bits(spared, trained(make(alone, workload), alone))


@pytest.mark.parametrize("nan_step", [0, 5, 31, 32])
def test_divergence_is_data_with_the_right_step(make: Make, nan_step: int) -> None:
    cohort = cohort_of(*SETTINGS, rung_steps=(40,))
    found = trained(
        make(cohort, toy(nan_step=nan_step, nan_seed=0, momentum=0.9, learning_rate=0.01)), cohort
    )
    for lane in lanes_of(cohort):
        record = found[lane].record
        expected = (nan_step, nan_step, 1) if lane.seed == 0 else (None, 40, 0)
        assert (record.divergence_step, record.num_steps, record.num_non_finite) == expected


def test_diverged_lanes_keep_their_weights(make: Make) -> None:
    cohort = cohort_of(*SETTINGS, rung_steps=(40,))
    before = make(cohort, toy(momentum=0.9))
    advanced(before, lanes_of(cohort), 5)
    after = make(cohort, toy(nan_step=5, momentum=0.9))
    advanced(after, lanes_of(cohort), 40)
    for lane in lanes_of(cohort):
        one, row, _ = row_in(before, lane)
        other, other_row, _ = row_in(after, lane)
        assert torch.equal(one.weights[row], other.weights[other_row])


def test_engine_stops_soon_after_all_lanes_diverged(make: Make) -> None:
    cohort = cohort_of("none", "value:0.1", rung_steps=(100_000,))
    (*_, last) = advanced(make(cohort, toy(nan_step=3), clock=ticking(2.0)), lanes_of(cohort), 100_000)
    assert last.step <= 32


def test_evaluation_changes_nothing(make: Make) -> None:
    cohort = cohort_of(*SETTINGS)
    engine = make(cohort, toy(batch_norm=True))
    advanced(engine, lanes_of(cohort), 5)
    once = engine.evaluate(lanes_of(cohort))
    assert engine.evaluate(lanes_of(cohort)) == once
    assert_same_bits(trained(engine, cohort), trained(make(cohort, toy(batch_norm=True)), cohort))


def test_evaluation_is_without_dropout(make: Make) -> None:
    cohort = cohort_of("none", "value:0.1")
    workload = toy(dropout=0.9)
    found = make(cohort, workload).evaluate(lanes_of(cohort))
    for lane, evaluation in found.items():
        model = initial_model(workload, lane.seed, torch.device("cpu")).eval()
        inputs = torch.cat([batch[0] for batch in workload.validation_batches()])
        expected = workload.loss(model, (inputs, inputs.sum(dim=1))).item()
        assert evaluation.loss == evaluation.objective == pytest.approx(expected, rel=1e-6)


def test_dropout_is_paired_within_a_seed_and_differs_between_seeds(make: Make) -> None:
    # Thresholds that are never exceeded leave nothing to differ, dropout included.
    cohort = cohort_of("none", "global_norm:1000000", "value:1000000")
    found = trained(make(cohort, toy()), cohort)
    for seed in cohort.seeds:
        same = [found[LaneId(trial.id, seed)] for trial in cohort.trials]
        assert all(torch.equal(each.weights, same[0].weights) for each in same)
    assert not torch.equal(found[LaneId("none", 0)].weights, found[LaneId("none", 1)].weights)
    without = trained(make(cohort, toy(dropout=0.0)), cohort)
    assert not torch.equal(found[LaneId("none", 0)].weights, without[LaneId("none", 0)].weights)


def num_bytes(engine: Engine) -> int:
    state = engine.state()
    assert state is not None
    return sum(each.nbytes for each in state.tensors.values())


@pytest.mark.parametrize("kept", [["zclip:2"], ["none", "value:0.1"], ["none"]], ids="+".join)
def test_retiring_trials_frees_them_and_leaves_the_rest_bit_equal(make: Make, kept: list[str]) -> None:
    cohort = cohort_of(*SETTINGS, rung_steps=(4, 40))
    engine = make(cohort, toy())
    advanced(engine, lanes_of(cohort), 4)
    before = num_bytes(engine)
    engine.retire([lane for lane in lanes_of(cohort) if lane.trial_id not in kept])
    found = trained(engine, cohort, 40, lanes=lanes_of(cohort, *kept))
    assert_same_bits(found, trained(make(cohort, toy()), cohort, 40))
    assert num_bytes(engine) < 0.7 * before


def through_a_file(state: EngineState | None) -> EngineState:
    """What a checkpoint does to a state: JSON, and tensors of their own."""
    assert state is not None
    return EngineState(
        {name: each.clone() for name, each in state.tensors.items()}, json.loads(json.dumps(state.values))
    )


@pytest.mark.parametrize("stopped_at", [0, 1, 4, 31, 32, 33])
def test_restored_engine_continues_bit_for_bit(make: Make, stopped_at: int) -> None:
    cohort = cohort_of(*SETTINGS, rung_steps=(4, 70))
    workload = toy(batch_norm=True, momentum=0.9, learning_rate=0.01)
    engine = make(cohort, workload)
    advanced(engine, lanes_of(cohort), stopped_at)
    state = through_a_file(engine.state())
    undisturbed = trained(engine, cohort, 70)
    again = make(cohort, workload)
    again.restore(state)
    assert_same_bits(trained(again, cohort, 70), undisturbed)


def test_state_is_of_this_moment_only(make: Make) -> None:
    cohort = cohort_of(*SETTINGS)
    engine = make(cohort, toy())
    advanced(engine, lanes_of(cohort), 4)
    state = through_a_file(engine.state())
    again = make(cohort, toy())
    again.restore(state)
    trained(again, cohort, 12)
    # Going on did not change what it was restored from.
    third = make(cohort, toy())
    third.restore(state)
    assert_same_bits(trained(third, cohort, 12), trained(engine, cohort, 12))


def test_restored_engine_knows_what_ended_and_diverged(make: Make) -> None:
    cohort = cohort_of(*SETTINGS, rung_steps=(8, 40))
    workload = toy(nan_step=5, nan_seed=1)
    engine = make(cohort, workload)
    advanced(engine, lanes_of(cohort), 8)
    engine.retire(lanes_of(cohort, "value:0.1", "zclip:2"))
    state = through_a_file(engine.state())
    left = lanes_of(cohort, "none", "global_norm:0.5", "skip_step:3")
    undisturbed = trained(engine, cohort, 40, lanes=left)
    again = make(cohort, workload)
    again.restore(state)
    found = trained(again, cohort, 40, lanes=left)
    assert_same_bits(found, undisturbed)
    assert {lane.seed for lane in left if found[lane].record.divergence_step is not None} == {1}
    assert all(again.seconds(lane) > 0 for lane in left)


def test_exception_of_the_data_is_a_lane_error_that_names_a_trial(make: Make) -> None:
    cohort = cohort_of(*SETTINGS)
    with pytest.raises(
        LaneError, match="trial none with seed 0 failed at step 6: RuntimeError: broken"
    ) as caught:
        advanced(make(cohort, toy(raise_step=6)), lanes_of(cohort), 12)
    assert (caught.value.trial_id, caught.value.seed, caught.value.step) == ("none", 0, 6)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_progress_adds_up_to_the_steps_taken(make: Make) -> None:
    cohort = cohort_of(*SETTINGS)
    engine = make(cohort, toy(), clock=ticking(2.0))
    told = [*advanced(engine, lanes_of(cohort), 5), *advanced(engine, lanes_of(cohort), 12)]
    assert len(told) >= 12
    assert sum(each.lane_steps for each in told) == len(lanes_of(cohort)) * 12
    assert all(1 <= each.step <= 12 for each in told)


def test_progress_counts_only_lanes_that_are_left(make: Make) -> None:
    cohort = cohort_of("none", "value:0.1", "value:0.2", "value:0.3")
    engine = make(cohort, toy())
    advanced(engine, lanes_of(cohort), 4)
    engine.retire(lanes_of(cohort, "value:0.2", "value:0.3"))
    left = lanes_of(cohort, "none", "value:0.1")
    assert sum(each.lane_steps for each in advanced(engine, left, 12)) == len(left) * 8


def test_seconds_are_spent_on_every_lane(make: Make) -> None:
    cohort = cohort_of(*SETTINGS)
    engine = make(cohort, toy())
    assert all(engine.seconds(lane) == 0 for lane in lanes_of(cohort))
    advanced(engine, lanes_of(cohort), 4)
    first = {lane: engine.seconds(lane) for lane in lanes_of(cohort)}
    assert all(seconds > 0 for seconds in first.values())
    advanced(engine, lanes_of(cohort), 12)
    assert all(engine.seconds(lane) > first[lane] for lane in lanes_of(cohort))


def test_shared_steps_are_never_more_than_the_steps_taken(make: Make) -> None:
    cohort = cohort_of("none", "global_norm:1000000", "value:0.1", largest_norm=100.0)
    engine = make(cohort, toy())
    advanced(engine, lanes_of(cohort), 12)
    for lane in lanes_of(cohort, "none", "value:0.1"):
        assert engine.num_shared_steps(lane) == 0
    for lane in lanes_of(cohort, "global_norm:1000000"):
        assert engine.num_shared_steps(lane) in (0, 12)


def quarters(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return inputs, inputs.sum(dim=1, keepdim=True)


def whole(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three of `quarters` at once."""
    parts = [quarters(step, generator) for _ in range(3)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def in_double(**parts: Any) -> AnyWorkload:
    def model() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()

    return workload_of(model, validation=[quarters(0, torch.Generator().manual_seed(1))], **parts)


def test_accumulated_batches_are_one_big_batch_and_are_clipped_once(make: Make) -> None:
    cohort = cohort_of("none", "global_norm:0.5", "value:0.1", rung_steps=(30,))
    apart = trained(make(cohort, in_double(train=quarters, accumulation_steps=3)), cohort)
    together = trained(make(cohort, in_double(train=whole)), cohort)
    assert_close(apart, together, tolerance=1e-12)
    clipped = apart[LaneId("global_norm:0.5", 0)].record
    assert 0 < clipped.clip_fraction <= 1
    assert clipped.num_steps == 30


def test_batch_norm_statistics_are_a_lanes_own(make: Make) -> None:
    cohort = cohort_of("none", "global_norm:0.05", rung_steps=(30,))
    found: dict[LaneId, Outcome] = trained(make(cohort, toy(batch_norm=True)), cohort)
    means = [each.buffers["1.running_mean"] for each in found.values()]
    assert len({tuple(each.tolist()) for each in means}) == 4
    assert all(each.buffers["1.num_batches_tracked"] == 30 for each in found.values())
