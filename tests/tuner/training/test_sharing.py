"""Trials that follow *off* have exactly the results they would have had by themselves.

The batch of one known step is far larger than the others, so that a threshold is exceeded there and nowhere else.
A cohort without ``largest_norm`` shares nothing: it is what sharing is compared with, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from toys import (
    Outcome,
    advanced,
    assert_same_bits,
    cohort_of,
    lanes_of,
    outcomes,
    perceptron,
    regression,
    toy,
    trained,
    workload_of,
)

from tuner.training.auto import AutoEngine
from tuner.training.batched import BatchedEngine
from tuner.training.cohort import Cohort
from tuner.training.engine import EngineState, LaneId
from tuner.training.sharing import COMPANY, HEADROOM, Watch, followers, leader
from tuner.workloads import AnyWorkload

#: Above every norm but that of the large batch, and above that too.
BETWEEN, BEYOND = 300.0, 1e9
METHODS = ("global_norm", "global_norm_inf", "value")
NUM_STEPS = 70


def jumping(*steps: int, factor: float = 300.0, dropout: float = 0.3) -> AnyWorkload:
    """A regression whose batch is much larger at some steps; the weights survive it."""

    def train(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, targets = regression(step, generator)
        return inputs, targets * factor if step in steps else targets

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))

    return workload_of(model, train=train)


def both(
    cohort: Cohort, workload: AnyWorkload, *steps: int
) -> tuple[BatchedEngine, Mapping[LaneId, Outcome]]:
    """The engine with sharing after some steps; the outcomes equal those without, or the test ends here."""
    sharing = BatchedEngine(cohort, workload)
    found = trained(sharing, cohort, *steps)
    apart = BatchedEngine(dataclasses.replace(cohort, largest_norm=None), workload)
    assert_same_bits(found, trained(apart, cohort, *steps))
    return sharing, found


def make_cohort(*settings: str, rung_steps: tuple[int, ...] = (NUM_STEPS,)) -> Cohort:
    return cohort_of("none", *settings, rung_steps=rung_steps, largest_norm=10.0)


def test_only_far_away_thresholds_of_stateless_methods_follow() -> None:
    cohort = make_cohort(
        "global_norm:15",
        "global_norm:15.1",
        "value:100",
        "global_norm_inf:16",
        "zclip:4",
        "per_tensor_norm:1000",
    )
    assert leader(cohort) == "none"
    assert set(followers(cohort)) - {"per_tensor_norm:1000"} == {
        "global_norm:15.1",
        "value:100",
        "global_norm_inf:16",
    }
    assert HEADROOM == 1.5


@pytest.mark.parametrize(
    "cohort",
    [cohort_of("none", "value:100"), cohort_of("global_norm:1", "value:100", largest_norm=10.0)],
    ids=["no-probe", "no-off"],
)
def test_nothing_follows_without_a_probe_or_without_off(cohort: Cohort) -> None:
    assert followers(cohort) == {}


def test_only_trials_at_offs_learning_rate_follow() -> None:
    cohort = make_cohort("global_norm:100", "global_norm:100@0.5", "value:100@0.5")
    assert leader(cohort) == "none"
    assert set(followers(cohort)) == {"global_norm:100"}
    assert followers(make_cohort("value:100@0.5")) == {}


def test_off_that_most_can_follow_leads() -> None:
    cohort = make_cohort("none@0.5", "global_norm:100", "global_norm:100@0.5", "value:100@0.5")
    assert leader(cohort) == "none@0.5"
    assert set(followers(cohort)) == {"global_norm:100@0.5", "value:100@0.5"}
    assert leader(make_cohort("none@0.5", "global_norm:100", "global_norm:100@0.5")) == "none"


def test_another_learning_rate_is_trained_by_itself() -> None:
    cohort = make_cohort("none@0.5", f"global_norm:{BEYOND:g}", f"value:{BEYOND:g}@0.25")
    engine, found = both(cohort, jumping(40))
    assert engine.trained == ("none", "none@0.5", f"value:{BEYOND:g}@0.25")
    for lane in lanes_of(cohort, "none@0.5", f"value:{BEYOND:g}@0.25"):
        assert engine.num_shared_steps(lane) == 0
        assert not torch.equal(found[lane].weights, found[LaneId("none", lane.seed)].weights)
    for lane in lanes_of(cohort, f"global_norm:{BEYOND:g}"):
        assert engine.num_shared_steps(lane) == NUM_STEPS


@pytest.mark.parametrize("step", [0, 20, 45])
def test_followers_of_an_off_at_another_learning_rate_keep_it_when_they_leave(step: int) -> None:
    cohort = make_cohort(
        "none@0.5", f"global_norm:{BETWEEN:g}@0.5", f"value:{BEYOND:g}@0.5", f"value:{BETWEEN:g}@2"
    )
    engine, found = both(cohort, jumping(step))
    assert leader(cohort) == "none@0.5"
    assert found[LaneId(f"global_norm:{BETWEEN:g}@0.5", 0)].record.first_clipped_step == step
    assert engine.num_shared_steps(LaneId(f"value:{BEYOND:g}@0.5", 1)) == NUM_STEPS


def test_followers_that_never_leave_are_off_under_another_name() -> None:
    settings = [f"{method}:{BEYOND:g}" for method in METHODS]
    engine, found = both(make_cohort(*settings), jumping(40))
    assert engine.trained == ("none",)
    assert engine.num_lanes == 2
    for seed in (0, 1):
        off = found[LaneId("none", seed)]
        assert engine.num_shared_steps(LaneId("none", seed)) == 0
        for setting in settings:
            lane = LaneId(setting, seed)
            assert found[lane].record == off.record
            assert torch.equal(found[lane].weights, off.weights)
            assert engine.num_shared_steps(lane) == found[lane].record.num_steps == NUM_STEPS


@pytest.mark.parametrize("step", [0, 1, 5, 31, 32, 33, 45, 63, 64, 69])
def test_follower_leaves_where_its_threshold_is_exceeded(step: int) -> None:
    settings = [f"{method}:{BETWEEN:g}" for method in METHODS]
    cohort = make_cohort("global_norm:0.5", *settings, f"value:{BEYOND:g}")
    engine, found = both(cohort, jumping(step), 70)
    left = [setting for setting in settings if found[LaneId(setting, 0)].record.first_clipped_step == step]
    assert f"global_norm:{BETWEEN:g}" in left
    for lane in lanes_of(cohort, *settings):
        first = found[lane].record.first_clipped_step
        assert engine.num_shared_steps(lane) <= (NUM_STEPS if first is None else first)
    for lane in lanes_of(cohort, *left):
        # The host looks every 32 steps at least.
        assert engine.num_shared_steps(lane) > step - 32


@pytest.mark.parametrize("step", [3, 4, 11, 12])
def test_departure_around_a_rung(step: int) -> None:
    cohort = make_cohort(f"global_norm:{BETWEEN:g}", f"value:{BEYOND:g}", rung_steps=(4, 12, 20))
    workload = jumping(step)
    shared = BatchedEngine(cohort, workload)
    apart = BatchedEngine(dataclasses.replace(cohort, largest_norm=None), workload)
    for rung in cohort.rung_steps:
        for engine in (shared, apart):
            advanced(engine, lanes_of(cohort), rung)
        assert_same_bits(outcomes(shared, lanes_of(cohort)), outcomes(apart, lanes_of(cohort)))


def test_several_leave_at_different_steps() -> None:
    def train(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, targets = regression(step, generator)
        return inputs, targets * {9: 30.0, 40: 1e3, 41: 1e5}.get(step, 1.0)

    cohort = make_cohort("global_norm:100", "value:40", "global_norm:4000", "global_norm:1e5", "value:1e30")
    engine, found = both(cohort, workload_of(train=train))
    firsts = {trial.id: found[LaneId(trial.id, 0)].record.first_clipped_step for trial in cohort.trials}
    assert firsts == {
        "none": None,
        "global_norm:100": 9,
        "value:40": 9,
        "global_norm:4000": 40,
        "global_norm:1e5": 41,
        "value:1e30": None,
    }
    assert engine.num_shared_steps(LaneId("value:1e30", 0)) == NUM_STEPS


def test_departed_trials_join_lanes_that_have_a_state() -> None:
    # There is room beside the lanes of AutoClip and ZClip, whose histories must go on.
    cohort = make_cohort(
        "zclip:2", "autoclip:50", "adagc:1.1", *(f"{method}:{BETWEEN:g}" for method in METHODS)
    )
    engine, _ = both(cohort, jumping(20))
    assert engine.num_lanes == 2 * len(cohort.trials)


@pytest.mark.parametrize("max_lanes", [2, 4])
def test_departed_trials_find_room_in_blocks(max_lanes: int) -> None:
    cohort = make_cohort(*(f"{method}:{BETWEEN:g}" for method in METHODS), "global_norm:0.5")
    whole = trained(BatchedEngine(cohort, jumping(20)), cohort)
    engine = BatchedEngine(cohort, jumping(20), max_lanes=max_lanes)
    assert_same_bits(trained(engine, cohort), whole)
    assert engine.num_lanes <= max_lanes + 2 * len(METHODS)


def test_off_diverges_with_followers_alive() -> None:
    cohort = make_cohort(f"global_norm:{BEYOND:g}", "value:0.1", rung_steps=(40,))
    _, found = both(cohort, toy(nan_step=17, nan_seed=1))
    for trial in ("none", f"global_norm:{BEYOND:g}"):
        assert found[LaneId(trial, 1)].record.divergence_step == 17
        assert found[LaneId(trial, 0)].record.divergence_step is None


def test_follower_leaves_before_off_explodes() -> None:
    # Off's gradient grows step by step until it is no number; the follower is bounded on the way there.
    cohort = make_cohort("global_norm:1000", rung_steps=(300,))
    _, found = both(cohort, toy(learning_rate=3.0, dropout=0.0))
    assert found[LaneId("none", 0)].record.divergence_step is not None
    assert found[LaneId("global_norm:1000", 0)].record.first_clipped_step is not None


def test_lane_that_is_not_asked_for_any_more_leaves_the_others_as_they_are() -> None:
    cohort = make_cohort(f"global_norm:{BETWEEN:g}", f"value:{BEYOND:g}", rung_steps=(10, 40))
    engine = BatchedEngine(cohort, jumping(20))
    advanced(engine, lanes_of(cohort), 10)
    # The loop found that the off lanes of seed 1 passed the bound.
    left = [lane for lane in lanes_of(cohort) if lane.seed == 0]
    found = trained(engine, cohort, 40, lanes=left)
    whole = trained(BatchedEngine(cohort, jumping(20)), cohort, 40)
    assert_same_bits(found, whole)


@pytest.mark.parametrize("pruned", [f"value:{BEYOND:g}", f"global_norm:{BETWEEN:g}"])
@pytest.mark.parametrize("step", [2, 20])
def test_follower_is_pruned_at_a_rung(pruned: str, step: int) -> None:
    cohort = make_cohort(f"global_norm:{BETWEEN:g}", f"value:{BEYOND:g}", "value:0.1", rung_steps=(10, 40))
    engine = BatchedEngine(cohort, jumping(step))
    advanced(engine, lanes_of(cohort), 10)
    before = outcomes(engine, lanes_of(cohort, pruned))
    assert all(each.record.num_steps == 10 for each in before.values())
    engine.retire(lanes_of(cohort, pruned))
    left = [lane for lane in lanes_of(cohort) if lane.trial_id != pruned]
    found = trained(engine, cohort, 40, lanes=left)
    assert_same_bits(found, trained(BatchedEngine(cohort, jumping(step)), cohort, 40))


def test_off_ends_before_its_followers() -> None:
    # Nothing protects off if its trial is not marked.
    cohort = make_cohort(f"global_norm:{BETWEEN:g}", f"value:{BEYOND:g}", rung_steps=(10, 40))
    engine = BatchedEngine(cohort, jumping(20))
    advanced(engine, lanes_of(cohort), 10)
    engine.retire(lanes_of(cohort, "none"))
    left = [lane for lane in lanes_of(cohort) if lane.trial_id != "none"]
    found = trained(engine, cohort, 40, lanes=left)
    assert_same_bits(found, trained(BatchedEngine(cohort, jumping(20)), cohort, 40))


def through_a_file(state: EngineState | None) -> EngineState:
    assert state is not None
    return EngineState({name: each.clone() for name, each in state.tensors.items()}, state.values)


@pytest.mark.parametrize("stopped_at", [10, 20, 21, 40])
def test_restored_engine_still_shares(stopped_at: int) -> None:
    cohort = make_cohort(f"global_norm:{BETWEEN:g}", f"value:{BEYOND:g}", rung_steps=(40, 50))
    engine = BatchedEngine(cohort, jumping(20))
    advanced(engine, lanes_of(cohort), stopped_at)
    again = BatchedEngine(cohort, jumping(20))
    again.restore(through_a_file(engine.state()))
    assert_same_bits(trained(again, cohort, 50), trained(engine, cohort, 50))
    for lane in lanes_of(cohort):
        assert again.num_shared_steps(lane) == engine.num_shared_steps(lane)


def test_auto_engine_shares_and_counts_followers_as_progress() -> None:
    cohort = dataclasses.replace(make_cohort("global_norm:0.5", f"value:{BEYOND:g}"), lanes=100)
    engine = AutoEngine(cohort, workload_of(perceptron))
    told = advanced(engine, lanes_of(cohort), 70)
    assert sum(each.lane_steps for each in told) == 6 * 70
    assert engine.num_shared_steps(LaneId(f"value:{BEYOND:g}", 1)) == 70


def watch_of(parse: Callable[..., Cohort], *settings: str) -> Watch:
    trials = {trial.id: trial.setting for trial in parse(*settings).trials}
    return Watch(torch.tensor([1]), trials)


def test_watch_tells_who_exceeded_and_who_is_near() -> None:
    # Row 1 is off: norm 5, largest element 4; row 0 is somebody else's and much larger.
    grads = torch.tensor([[300.0, 400.0], [3.0, 4.0]])
    watch = watch_of(
        cohort_of, "global_norm:4.9", "global_norm:7", "global_norm:39", "global_norm:41", "value:4.5"
    )
    live = torch.tensor([True, True])
    watch.observe(grads, grads.norm(dim=1), live)
    exceeded, near = watch.look()
    assert exceeded == ("global_norm:4.9",)
    # 7 and 4.5 are within the headroom of 1.5; 39 leaves with them, being within a factor of 8.
    assert set(near) == {"global_norm:7", "global_norm:39", "value:4.5"}
    assert COMPANY == 8.0
    assert watch.look() == ((), ())


def test_watch_is_silent_while_nobody_is_near() -> None:
    watch = watch_of(cohort_of, "global_norm:8", "value:39")
    watch.observe(
        torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([0.0, 5.0]), torch.tensor([True, True])
    )
    assert watch.look() == ((), ())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_watch_ignores_steps_that_are_not_finite_and_lanes_that_are_not_live(value: float) -> None:
    watch = watch_of(cohort_of, "global_norm:1", "value:1")
    watch.observe(torch.full((2, 2), value), torch.full((2,), value), torch.tensor([True, True]))
    watch.observe(torch.full((2, 2), 9.0), torch.full((2,), 12.7), torch.tensor([True, False]))
    assert watch.look() == ((), ())
