"""Prune or go on: the worst of those that reached a rung end, whoever comes by when."""

from __future__ import annotations

from typing import Any

import pytest

from service.lanes import LaneStatus, Leased
from tuner.spec import ClipSetting, StudySpec

SETTINGS = ["none", "global_norm:1", "global_norm:2", "global_norm:3", "global_norm:4"]
SPEC = StudySpec(workload="mine", external=True, num_steps=400, num_seeds=2)


def reach(bench: Any, study_id: str, step: int, values: list[float]) -> list[Leased]:
    """One lane of each setting, by a client of its own, reports a value at a step."""
    leases = [bench.ask(study_id, f"client {number}") for number in range(len(values))]
    for lease, value in zip(leases, values, strict=True):
        bench.report(lease, step, value)
    return leases


def test_the_worst_of_four_is_pruned_with_all_its_lanes(bench: Any) -> None:
    study_id, ids = bench.ready(SETTINGS[:4])
    leases = reach(bench, study_id, 44, [1.0, 1.1, 1.2])
    last = bench.ask(study_id, "client 3")
    for number in range(3):
        bench.ask(study_id, f"second {number}")
    sibling = bench.ask(study_id, "sibling")
    assert (sibling.trial_id, sibling.seed) == (last.trial_id, 1)
    told = bench.report(last, 44, 9.0)
    assert (told.go_on, told.expires_at) == (False, None) and "pruned at step 44" in told.reason
    assert bench.states(study_id, ids[3]) == ["pruned", "pruned"]
    assert "pruned" in bench.heartbeat(sibling).reason
    assert bench.report(sibling, 44, 1.0).go_on is False and bench.reports(sibling) == []
    assert bench.complete(last, record={"seconds": 2.0}) is LaneStatus.PRUNED
    assert bench.complete(last, record={"seconds": 9.0}) is LaneStatus.PRUNED
    assert bench.lane(last).record == {"seconds": 2.0}, "the figures of a pruned run are kept, once"
    assert all(bench.heartbeat(lease).go_on for lease in leases)
    assert bench.lane(last).value == 9.0, "what it reported stays"


def test_lanes_of_a_pruned_trial_that_nobody_has_are_closed(bench: Any) -> None:
    study_id, ids = bench.ready(SETTINGS[:4])
    reach(bench, study_id, 50, [1.0, 1.1, 1.2, 9.0])
    assert bench.states(study_id, ids[3]) == ["pruned", "closed"]
    assert bench.states(study_id, *ids[:3]).count("waiting") == 3


def test_a_lane_that_waits_again_is_pruned_with_its_trial(bench: Any) -> None:
    """Otherwise no lane would say that the trial was pruned, had the one that told been lost in this moment."""
    study_id, ids = bench.ready(SETTINGS[:4])
    leases = reach(bench, study_id, 44, [1.0, 1.1, 1.2])
    bench.complete(bench.ask(study_id, "breaks"), cause="stall")
    for lease in leases:
        bench.complete(lease, value=1.0)
    for number in range(3):
        bench.ask(study_id, f"second {number}")
    second = bench.ask(study_id, "second 3")
    assert (second.trial_id, second.seed) == (ids[3], 1)
    for number in range(3):
        bench.report(bench.leases[f"second {number}"], 44, 1.0 + number)
    assert not bench.report(second, 44, 9.0).go_on
    assert bench.states(study_id, ids[3]) == ["pruned", "pruned"]


def test_the_best_one_that_clips_is_spared_among_those_that_still_train(bench: Any) -> None:
    """Where no two rungs agree on the best, each would be ended for the sake of one that was ended at another rung."""
    study_id, ids = bench.ready(SETTINGS[:4])
    off, one, two, three = (bench.ask(study_id, f"client {number}") for number in range(4))
    for lease, value in ((off, 1.0), (one, 1.1), (two, 1.2)):
        assert bench.report(lease, 44, value).go_on
    assert bench.report(off, 133, 1.0).go_on and bench.report(two, 133, 1.2).go_on
    assert not bench.report(three, 140, 1.3).go_on, "the last at step 44"
    assert not bench.report(one, 133, 5.0).go_on, "the last at step 133"
    bench.complete(off, value=1.0)
    bench.complete(two, value=1.0)
    bench.ask(study_id, "off again")
    again = bench.ask(study_id, "two again")
    assert (again.trial_id, again.seed) == (ids[2], 1)
    assert bench.report(again, 44, 1.2).go_on, "the only one left that clips"


def test_a_repeated_report_is_pruned_too(bench: Any) -> None:
    study_id, _ = bench.ready(SETTINGS[:4])
    leases = reach(bench, study_id, 44, [1.0, 1.1, 1.2, 9.0])
    again = bench.report(leases[3], 44, 9.0)
    assert not again.go_on and again == bench.heartbeat(leases[3])


def test_a_decision_that_got_lost_is_made_at_the_repetition(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_id, _ = bench.ready(SETTINGS[:4])
    reach(bench, study_id, 44, [1.0, 1.1, 1.2])
    last = bench.ask(study_id, "last")

    def dies(*arguments: Any, **options: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("service.lanes.queue.ends_trial", dies)
    with pytest.raises(KeyboardInterrupt):
        bench.report(last, 44, 9.0)
    assert bench.lane(last).step == 44, "the report was committed before"
    monkeypatch.undo()
    assert not bench.report(last, 44, 9.0).go_on


def test_between_rungs_and_at_the_last_one_nothing_ends(bench: Any) -> None:
    study_id, _ = bench.ready(SETTINGS[:4])
    leases = reach(bench, study_id, 43, [1.0, 1.1, 1.2, 9.0])
    assert all(bench.heartbeat(lease).go_on for lease in leases), "before the first rung"
    for lease, value in zip(reversed(leases), [9.0, 3.0, 2.0, 1.0], strict=True):
        assert bench.report(lease, 140, value).go_on, (
            "each is the best so far, or came before there were four"
        )
    for step in (300, 400):
        for lease, value in zip(leases, [1.0, 1.1, 1.2, 9.0], strict=True):
            assert bench.report(lease, step, value).go_on, "nothing is left to save"


def test_the_first_report_at_or_past_a_rung_decides_and_no_later_one(bench: Any) -> None:
    study_id, _ = bench.ready(SETTINGS[:4])
    off, early = bench.ask(study_id, "off"), bench.ask(study_id, "early")
    assert bench.report(early, 44, 9.0).go_on, "alone there"
    for name, value in (("b", 1.0), ("c", 1.1)):
        assert bench.report(bench.ask(study_id, name), 60, value).go_on
    assert bench.report(off, 44, 1.2).go_on
    assert bench.report(early, 60, 9.0).go_on, "it was decided at 44"
    assert bench.report(early, 44, 9.0).go_on is False, (
        "asked anew by a repetition, it is known to be the worst"
    )


def test_off_today_and_what_is_confirmed_are_never_pruned(bench: Any) -> None:
    current = ClipSetting(method="global_norm", threshold=4.0)
    spec = StudySpec(workload="mine", external=True, num_steps=400, num_seeds=2, current=current)
    study_id = bench.study(spec)
    ids = bench.trials(study_id, ["global_norm:1", "global_norm:2", "global_norm:3", current, "none"])
    bench.put_up(study_id, ids)
    leases = reach(bench, study_id, 44, [1.0, 1.1, 1.2, 9.0, 99.0])
    assert all(bench.heartbeat(lease).go_on for lease in leases)
    confirmed = bench.trials(study_id, SETTINGS[:4], cohort=1, stage="confirm")
    bench.put_up(study_id, confirmed, seeds=[7])
    for lease in leases:
        bench.complete(lease, value=1.0)
    for trial in range(5):
        bench.complete(bench.ask(study_id, f"rest {trial}"), value=1.0)
    assert [bench.report(bench.ask(study_id, f"c{each}"), 44, 1.0 + each).go_on for each in range(4)] == [
        True
    ] * 4


def test_earlier_cohorts_are_compared_with(bench: Any) -> None:
    study_id, ids = bench.ready(SETTINGS[:3], seeds=[0])
    reach(bench, study_id, 44, [1.0, 1.1, 1.2])
    later = bench.trials(study_id, ["global_norm:5"], cohort=1)
    bench.put_up(study_id, later, seeds=[0])
    assert not bench.report(bench.ask(study_id, "late"), 44, 9.0).go_on
    assert len(ids) == 3


def test_diverged_lanes_count_as_worst_and_seeds_are_paired(bench: Any) -> None:
    study_id, ids = bench.ready(SETTINGS[:4], seeds=[0, 1])
    leases = reach(bench, study_id, 44, [1.0, 1.1, 1.2])
    diverged = bench.ask(study_id, "client 3")
    bench.report(diverged, 10, None)
    assert bench.lane(diverged).state is LaneStatus.DIVERGED
    assert bench.states(study_id, ids[3]) == ["diverged", "waiting"], "its other seed is still trained"
    for lease in leases:
        bench.complete(lease, value=1.0)
    seconds = [bench.ask(study_id, f"second {number}") for number in range(4)]
    for lease in seconds[:2]:
        assert bench.report(lease, 44, 1.0).go_on
    assert not bench.report(seconds[3], 44, 0.5).go_on, "half of it diverged"


def test_a_divergence_after_the_rung_counts_by_what_was_reported_there(bench: Any) -> None:
    study_id, _ = bench.ready(SETTINGS[:4])
    leases = reach(bench, study_id, 44, [1.0, 1.1, 1.2])
    bench.report(leases[1], 50, None)
    assert not bench.report(bench.ask(study_id, "client 3"), 44, 9.0).go_on, "three were better there"


def test_reports_of_a_lease_before_count_until_the_rung_is_reached_again(bench: Any) -> None:
    study_id, _ = bench.ready(SETTINGS[:4])
    leases = reach(bench, study_id, 44, [1.0, 1.1, 1.2])
    bench.ask(study_id, "client 0")
    bench.ask(study_id, "client 1")
    assert bench.lane(leases[0]).fence == 2
    assert not bench.report(bench.ask(study_id, "client 3"), 44, 9.0).go_on


def test_a_study_with_one_rung_prunes_nothing(bench: Any) -> None:
    spec = StudySpec(workload="mine", external=True, num_steps=400, num_seeds=2, num_rungs=1)
    study_id, _ = bench.ready(SETTINGS[:4], spec=spec)
    leases = reach(bench, study_id, 400, [1.0, 1.1, 1.2, 9.0])
    assert all(bench.heartbeat(lease).go_on for lease in leases)
