"""The loop: rungs, pruning, divergence as data, and the same results however a cohort is cut."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import pytest
import torch

from tuner.errors import LaneError, ProbeError
from tuner.evidence import LaneResult
from tuner.search.halving import halving
from tuner.training import solo
from tuner.training.cohort import Cohort, Event, Progressed, RungReached, TrialEnded
from tuner.training.loop import train_cohort
from tuner.training.probe import measure_reference
from tuner.workloads import AnyWorkload

MakeToy = Callable[..., AnyWorkload]
MakeCohort = Callable[..., Cohort]


@pytest.fixture(params=["solo", 64], ids=["solo", "lanes"])
def cohort(request: pytest.FixtureRequest, cohort: MakeCohort) -> MakeCohort:
    """Make a cohort that trains one lane at a time, or all at once; never whatever is faster just now."""
    return partial(cohort, lanes=request.param)


def results(events: Iterable[Event]) -> dict[str, tuple[LaneResult, ...]]:
    """Lane results by trial, without the wall time."""
    return {
        event.trial_id: tuple(dataclasses.replace(lane, seconds=0.0) for lane in event.lanes)
        for event in events
        if isinstance(event, TrialEnded)
    }


def rungs(events: Iterable[Event]) -> list[RungReached]:
    return [event for event in events if isinstance(event, RungReached)]


def test_events_come_rung_by_rung_and_end_every_trial(toy: MakeToy, cohort: MakeCohort) -> None:
    events = list(train_cohort(cohort("none", "value:0.1"), toy()))
    kinds = [event.kind for event in events]
    assert kinds == ["engine", "rung", "rung", "trial", "trial"]
    assert [(event.index, event.step) for event in rungs(events)] == [(0, 4), (1, 12)]
    assert [(value.trial_id, value.seed) for value in rungs(events)[0].values] == [
        ("none", 0),
        ("none", 1),
        ("value:0.1", 0),
        ("value:0.1", 1),
    ]
    for event in events[3:]:
        assert isinstance(event, TrialEnded)
        assert event.state == "complete"
        assert [lane.seed for lane in event.lanes] == [0, 1]
        assert [lane.num_steps for lane in event.lanes] == [12, 12]


def test_same_cohort_again_is_bit_equal(toy: MakeToy, cohort: MakeCohort) -> None:
    asked = cohort("none", "global_norm:0.5", "value:0.1")
    assert results(train_cohort(asked, toy())) == results(train_cohort(asked, toy()))


def test_rung_schedule_does_not_change_the_training(toy: MakeToy, cohort: MakeCohort) -> None:
    one = results(train_cohort(cohort("none", rung_steps=(12,)), toy()))
    other = results(train_cohort(cohort("none", rung_steps=(1, 5, 6, 12)), toy()))
    assert one == other


def test_lane_is_the_same_whichever_lanes_train_beside_it(toy: MakeToy, cohort: MakeCohort) -> None:
    together = results(train_cohort(cohort("none", "value:0.1", seeds=(0, 1, 2)), toy()))
    alone = results(train_cohort(cohort("value:0.1", seeds=(2,)), toy()))
    # Bit for bit one at a time; kernels for more lanes at once may sum in another order.
    assert together["value:0.1"][2].value == pytest.approx(alone["value:0.1"][0].value, rel=1e-6)


def test_trials_of_a_seed_are_paired_down_to_the_dropout_mask(toy: MakeToy, cohort: MakeCohort) -> None:
    # A threshold that is never exceeded leaves nothing to differ, dropout included.
    ended = results(train_cohort(cohort("none", "global_norm:1000000"), toy(dropout=0.5)))
    assert ended["none"] == ended["global_norm:1000000"]
    assert ended["none"][0].value != ended["none"][1].value  # seeds differ


def test_dropout_is_drawn_at_all(toy: MakeToy, cohort: MakeCohort) -> None:
    with_dropout = results(train_cohort(cohort("none"), toy(dropout=0.5)))
    without = results(train_cohort(cohort("none"), toy(dropout=0.0)))
    assert with_dropout["none"][0].value != without["none"][0].value


def test_callers_random_state_is_untouched_at_every_event(toy: MakeToy, cohort: MakeCohort) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    for _ in train_cohort(cohort("none", "value:0.1"), toy(), clock=ticking(2.0)):
        assert torch.equal(torch.get_rng_state(), before)


def test_callers_draws_between_events_change_nothing(toy: MakeToy, cohort: MakeCohort) -> None:
    def disturbed() -> Iterator[Event]:
        for event in train_cohort(cohort("none"), toy(), clock=ticking(2.0)):
            torch.randn(7)
            yield event

    assert results(disturbed()) == results(train_cohort(cohort("none"), toy()))


def test_probe_changes_nothing(toy: MakeToy, cohort: MakeCohort) -> None:
    plain = results(train_cohort(cohort("none"), toy()))
    workload = toy()
    before = torch.get_rng_state()
    measure_reference(workload, (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert results(train_cohort(cohort("none"), workload)) == plain


@pytest.mark.parametrize("nan_step", [0, 5])
def test_non_finite_step_is_data_and_leaves_the_weights(
    toy: MakeToy, cohort: MakeCohort, nan_step: int
) -> None:
    events = list(train_cohort(cohort("none", "value:0.1"), toy(nan_step=nan_step, momentum=0.9)))
    for lanes in results(events).values():
        for lane in lanes:
            assert lane.value is None
            assert lane.divergence_step == lane.num_steps == nan_step
            assert lane.num_non_finite == 1
    assert all(value.value is None for value in rungs(events)[-1].values)


def test_weights_stay_as_they_were_before_the_non_finite_step(toy: MakeToy, cohort: MakeCohort) -> None:
    def weights(steps: int) -> list[torch.Tensor]:
        engine = solo.SoloEngine(cohort("none"), toy(nan_step=3, momentum=0.9))
        lane = engine._lanes[solo.LaneId("none", 0)]
        engine._train(lane, steps)
        return [each.detach().clone() for each in lane.model.parameters()]

    for before, after in zip(weights(3), weights(8), strict=True):
        assert torch.equal(before, after)


def test_explosion_diverges_off_and_spares_the_clipped_lane(toy: MakeToy, cohort: MakeCohort) -> None:
    asked = cohort("none", "global_norm:0.01", rung_steps=(300,))
    ended = results(train_cohort(asked, toy(learning_rate=5.0, dropout=0.0)))
    assert all(lane.diverged and lane.value is None for lane in ended["none"])
    assert all(not lane.diverged and lane.value is not None for lane in ended["global_norm:0.01"])


def test_lane_beyond_the_bound_diverges_at_the_rung(toy: MakeToy, cohort: MakeCohort) -> None:
    # After 2 steps at this rate the loss is finite, but above 1.01 times its first value.
    asked = cohort("none", rung_steps=(2, 4), divergence_factor=1.01)
    (lane, _) = results(train_cohort(asked, toy(learning_rate=1.0, dropout=0.0)))["none"]
    assert (lane.divergence_step, lane.num_steps, lane.num_non_finite, lane.value) == (2, 2, 0, None)


def test_diverged_lane_stops_at_the_next_read(toy: MakeToy, cohort: MakeCohort) -> None:
    # The clock passes the read interval at every step, so the host looks after each of them.
    progress = [
        event
        for event in train_cohort(
            cohort("none", seeds=(0,), rung_steps=(50,), lanes="solo"), toy(nan_step=3), clock=ticking(2.0)
        )
        if isinstance(event, Progressed)
    ]
    assert [event.lane_steps for event in progress] == [1, 2, 3, 4]


def test_progress_is_told_about_once_a_second(toy: MakeToy, cohort: MakeCohort) -> None:
    asked = cohort("none", "value:0.1", rung_steps=(20,), seeds=(0,))
    events = list(train_cohort(asked, toy(), clock=ticking(0.3)))
    progress = [event for event in events if isinstance(event, Progressed)]
    assert progress
    assert len(progress) < 40
    assert all(event.total_lane_steps == 40 for event in progress)
    taken = [event.lane_steps for event in progress]
    assert taken == sorted(set(taken))
    assert next(train_cohort(asked, toy(), clock=lambda: 0.0)).kind == "engine"


def test_progress_total_shrinks_when_a_trial_is_pruned(toy: MakeToy, cohort: MakeCohort) -> None:
    asked = cohort("none", "value:0.1", rung_steps=(5, 20), seeds=(0,))
    events = train_cohort(asked, toy(), prune=lambda *_: ["value:0.1"], clock=ticking(2.0))
    totals = [event.total_lane_steps for event in events if isinstance(event, Progressed)]
    assert totals[0] == 40
    assert totals[-1] == 20 + 5


def test_prune_sees_values_history_and_protection(toy: MakeToy, cohort: MakeCohort) -> None:
    seen = []

    def prune(values: object, history: object, protected: object) -> list[str]:
        seen.append((values, history, protected))
        return ["value:0.1"]

    asked = cohort("none", "value:0.1", "value:0.2", rung_steps=(2, 4, 6), history={2: (1.0, math.inf)})
    events = list(train_cohort(asked, toy(), prune=prune))
    assert [history for _, history, _ in seen] == [(1.0, math.inf), ()]
    assert [list(values) for values, _, _ in seen] == [
        ["none", "value:0.1", "value:0.2"],
        ["none", "value:0.2"],
    ]
    assert seen[0][2] == {"none"}
    assert [event.pruned for event in rungs(events)] == [("value:0.1",), (), ()]
    ended = [event for event in events if isinstance(event, TrialEnded)]
    assert [(event.trial_id, event.state) for event in ended] == [
        ("value:0.1", "pruned"),
        ("none", "complete"),
        ("value:0.2", "complete"),
    ]
    assert {lane.num_steps for lane in ended[0].lanes} == {2}
    assert all(lane.value is not None for lane in ended[0].lanes)


def test_interrupted_cohort_ends_as_an_undisturbed_one(toy: MakeToy, cohort: MakeCohort) -> None:
    settings = ("none", "value:0.001", "value:0.01", "value:0.1", "value:1", "global_norm:1")
    whole = list(train_cohort(cohort(*settings), toy(), prune=halving((4, 12))))
    ended_early = rungs(whole)[0].pruned
    assert ended_early
    # The worker died after the first rung: its pruned trials are stored, the others are trained again.
    known = tuple(
        sum(value.value or 0.0 for value in rungs(whole)[0].values if value.trial_id == trial) / 2
        for trial in ended_early
    )
    left = [each for each in settings if each not in ended_early]
    again = list(train_cohort(cohort(*left, history={4: known}), toy(), prune=halving((4, 12))))
    expected = results(whole)
    assert results(again) == {trial: expected[trial] for trial in left}


def test_exception_of_the_workload_names_the_trial(toy: MakeToy, cohort: MakeCohort) -> None:
    with pytest.raises(
        LaneError, match="trial none with seed 0 failed at step 6: RuntimeError: broken"
    ) as caught:
        list(train_cohort(cohort("none"), toy(raise_step=6)))
    assert (caught.value.trial_id, caught.value.seed, caught.value.step) == ("none", 0, 6)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.code == "lane_failed"


def test_metric_is_the_objective_and_the_loss_decides_on_divergence(toy: MakeToy, cohort: MakeCohort) -> None:
    base = type(toy())

    class Counted(base):  # type: ignore[misc, valid-type]
        def metric(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return torch.tensor(float(len(batch[0])))

    events = train_cohort(cohort("none", seeds=(0,)), Counted())
    # Held-out batches of 16 and 8 examples, weighted by size: (16 * 16 + 8 * 8) / 24.
    assert results(events)["none"][0].value == pytest.approx(320 / 24)


def test_global_draws_are_paired_within_a_seed_and_differ_between_seeds(
    toy: MakeToy, cohort: MakeCohort
) -> None:
    draws: list[float] = []

    class Recording(type(toy())):  # type: ignore[misc]
        def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            if torch.is_grad_enabled():
                draws.append(torch.rand(1).item())
            return super().loss(model, batch)

    list(train_cohort(cohort("none", "value:0.1", rung_steps=(1, 2)), Recording()))
    # Four lanes at the first step (off with seeds 0 and 1, then value), then again at the second.
    first, second = draws[:4], draws[4:]
    for one, other, same, again in (first, second):
        assert (one, other) == (same, again)
        assert one != other
    assert not set(first) & set(second)


def test_evaluation_is_without_dropout_and_changes_nothing(toy: MakeToy, cohort: MakeCohort) -> None:
    workload = toy(dropout=0.9)
    engine = solo.SoloEngine(cohort("none", seeds=(0,)), workload)
    lane = solo.LaneId("none", 0)
    model = solo.initial_model(workload, 0, torch.device("cpu")).eval()
    inputs = torch.cat([batch[0] for batch in workload.validation_batches()])
    expected = workload.loss(model, (inputs, inputs.sum(dim=1))).item()
    for _ in range(2):
        assert engine.evaluate([lane])[lane].loss == pytest.approx(expected)


def test_objective_before_the_first_step_is_every_lanes_start(toy: MakeToy, cohort: MakeCohort) -> None:
    asked = cohort("none", "value:0.1@0.5")
    before = solo.SoloEngine(asked, toy()).evaluate([solo.LaneId("none", seed) for seed in asked.seeds])
    for lanes in results(train_cohort(asked, toy())).values():
        for lane in lanes:
            assert lane.initial == pytest.approx(before[solo.LaneId("none", lane.seed)].objective, rel=1e-6)
    first, second = before.values()
    assert first != second


def test_start_of_a_metric_is_the_metrics_own_and_none_where_it_is_not_finite(
    toy: MakeToy, cohort: MakeCohort
) -> None:
    class Shrinking(type(toy())):  # type: ignore[misc]
        def metric(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            size = len(batch[0])
            return self.loss(model, batch) * 0 + (math.inf if self.parameters.dropout == 0 else size)

    lanes = [*results(train_cohort(cohort("none"), Shrinking()))["none"]]
    assert [lane.initial for lane in lanes] == pytest.approx([320 / 24] * 2)
    overflowing = Shrinking(Shrinking.Parameters(dropout=0.0))
    for lane in results(train_cohort(cohort("none"), overflowing))["none"]:
        assert lane.initial is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_validation_loss_that_is_not_finite_before_the_first_step_is_told(
    toy: MakeToy, cohort: MakeCohort, value: float
) -> None:
    class Broken(type(toy())):  # type: ignore[misc]
        def validation_batches(self) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
            return [(torch.ones(4, 4), torch.full((4,), value))]

    with pytest.raises(ProbeError, match=f"before the first step is {value} with seed 0") as caught:
        list(train_cohort(cohort("none"), Broken()))
    assert caught.value.code == "probe_failed"


def test_negative_loss_has_no_divergence_bound(toy: MakeToy, cohort: MakeCohort) -> None:
    class Shifted(type(toy())):  # type: ignore[misc]
        def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return super().loss(model, batch) - 100.0

    for lanes in results(train_cohort(cohort("none"), Shifted())).values():
        assert all(lane.value is not None and not lane.diverged for lane in lanes)


def test_seconds_are_measured_around_the_steps(toy: MakeToy, cohort: MakeCohort) -> None:
    events = train_cohort(
        cohort("none", seeds=(0,), rung_steps=(3,), lanes="solo"), toy(), clock=ticking(0.1)
    )
    (ended,) = [event for event in events if isinstance(event, TrialEnded)]
    # One reading before the steps, one after each of 3, one at the end: 4 ticks in between.
    assert ended.lanes[0].seconds == pytest.approx(0.4)


def ticking(seconds: float) -> Callable[[], float]:
    """A clock that moves on by so much at every reading."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += seconds
        return now

    return clock
