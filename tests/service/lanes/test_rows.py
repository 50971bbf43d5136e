"""What the study's worker does with lanes: putting them up, reading them, taking them back."""

from __future__ import annotations

from typing import Any

from service.lanes import LaneStatus, close_lanes, reap_lanes


def test_lanes_are_put_up_once_however_often(bench: Any) -> None:
    study_id, ids = bench.ready(["none", "global_norm:1"])
    lease = bench.ask(study_id)
    before = bench.lanes(study_id)
    bench.put_up(study_id, ids)
    assert bench.lanes(study_id) == before
    assert [lane.state for lane in before] == ["leased", "waiting", "waiting", "waiting"]
    assert bench.heartbeat(lease).go_on


def test_a_later_cohort_comes_after_the_one_before(bench: Any) -> None:
    study_id, first = bench.ready(["none"])
    later = bench.trials(study_id, ["global_norm:1"], cohort=1)
    bench.put_up(study_id, later, seeds=[0])
    asked = [bench.ask(study_id, name).trial_id for name in "abc"]
    assert asked == [*first, *first, *later]
    assert [lane.position for lane in bench.lanes(study_id)] == [1, 2, 3]


def test_lanes_are_read_with_or_without_their_norms(bench: Any) -> None:
    study_id, ids = bench.ready()
    lease = bench.ask(study_id)
    bench.report(lease, 1, 1.5, 0.5)
    bench.report(lease, 50, 1.25, 0.25)
    bench.report(lease, 60, 1.0)
    with bench.database.read() as session:
        from service.lanes import load_lanes

        (bare,) = [lane for lane in load_lanes(session, study_id, ids, with_norms=False) if lane.fence]
        assert load_lanes(session, study_id, []) == () == load_lanes(session, "other", ids)
    assert (bare.norms, bare.reports, bare.client_id) == ((), {50: 1.25}, "a"), (
        "what was told at the rung of 44"
    )
    assert (bare.step, bare.value) == (60, 1.0)
    assert bench.lane(lease).reports == {1: 1.5, 50: 1.25, 60: 1.0}
    assert bench.lane(lease).norms == (0.5, 0.25)
    assert (bare.leased_at, bare.created_at, bare.finished_at) == (bench.clock(), bench.clock(), None)


def test_closing_takes_back_what_is_open_and_nothing_else(bench: Any) -> None:
    study_id, ids = bench.ready(["none", "global_norm:1"])
    done, held = bench.ask(study_id, "a"), bench.ask(study_id, "b")
    bench.complete(done, value=1.0)
    with bench.database.write() as session:
        assert close_lanes(session, study_id=study_id, trial_id=ids[1], now=bench.clock()) == 2
    assert bench.states(study_id) == ["complete", "closed", "waiting", "closed"]
    assert bench.report(held, 1, 1.0).reason == "the trial has ended"
    with bench.database.write() as session:
        assert close_lanes(session, study_id=study_id) == 1
        assert close_lanes(session, study_id=study_id) == 0
    assert bench.states(study_id) == ["complete", "closed", "closed", "closed"]


def test_reaping_can_be_of_one_study(bench: Any) -> None:
    mine, other = bench.ready()[0], bench.ready()[0]
    leases = [bench.ask(mine), bench.ask(other)]
    with bench.database.write() as session:
        assert reap_lanes(session, max_lost=3, study_id=mine, now=bench.clock()) == []
    bench.clock.advance(60.001)
    with bench.database.write() as session:
        (reaped,) = reap_lanes(session, max_lost=3, study_id=mine, now=bench.clock())
    assert (reaped.study_id, reaped.trial_id, reaped.seed) == (mine, leases[0].trial_id, leases[0].seed)
    assert [bench.lane(lease).state for lease in leases] == [LaneStatus.WAITING, LaneStatus.LEASED]
    assert bench.lane(leases[0]).finished_at is None and "not heard of" in bench.lane(leases[0]).last_error


def test_the_first_loss_is_made_good_at_once_and_the_next_after_a_pause(bench: Any) -> None:
    study_id, _ = bench.ready(["none"], seeds=[0])
    bench.ask(study_id)
    bench.lose()
    bench.ask(study_id)
    bench.lose()
    assert not hasattr(bench.find(study_id), "token")
    bench.clock.advance(5)
    assert bench.ask(study_id).seed == 0
