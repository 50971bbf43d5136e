"""Asking, telling and ending, one call after the other, on both databases."""

from __future__ import annotations

import math
from typing import Any

import pytest
from sqlalchemy import select, update

from service.db.models import JobRow, LaneRow
from service.errors import ConflictError, InvalidRequestError, NotFoundError, ProblemError
from service.lanes import Completion, LaneQueue, LaneStatus, Leased, LeaseToken, Report, Waiting, decisions
from service.lanes.lane import LaneLostError
from tuner.evidence import Stage
from tuner.spec import ClipSetting, StudySpec

TENANT = "tenant"
NOBODY = "00000000-0000-0000-0000-000000000000"
WHOLE = StudySpec(workload="mine", external=True, num_steps=400, num_seeds=2, num_rungs=1)


def code_of(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ProblemError) as caught:
        call(*arguments, **options)
    assert len(caught.value.detail) > 40, "says what to do"
    return caught.value.code


# --- asking ---


def test_lanes_are_given_out_seed_by_seed_with_all_that_a_training_needs(bench: Any) -> None:
    study_id, ids = bench.ready(["none", "global_norm:0.5@2"])
    leases = [bench.ask(study_id, f"client {number}") for number in range(4)]
    assert [(lease.trial_id, lease.seed) for lease in leases] == [
        (ids[0], 0), (ids[1], 0), (ids[0], 1), (ids[1], 1),
    ]  # fmt: skip
    second = leases[1]
    assert second.setting == ClipSetting(method="global_norm", threshold=0.5, learning_rate_scale=2.0)
    assert (second.number, second.stage, second.num_steps) == (1, Stage.SEARCH, 400)
    assert second.spec.rung_steps == (44, 133, 400) and second.reference_norm is None
    assert second.expires_at == bench.clock() + 60_000
    waiting = bench.find(study_id, "client 4")
    assert isinstance(waiting, Waiting) and "ask again" in waiting.detail


def test_the_norm_that_the_probe_measured_comes_along(bench: Any) -> None:
    study_id = bench.study(reference={"l2_norm": {"median": 0.25}})
    bench.put_up(study_id, bench.trials(study_id, ["zclip:2.5"]))
    assert bench.ask(study_id).reference_norm == 0.25
    without = bench.study(reference={"l2_norm": None})
    bench.put_up(without, bench.trials(without, ["none"]))
    assert bench.ask(without).reference_norm is None


def test_asking_again_gives_the_same_lane_under_a_new_token(bench: Any) -> None:
    study_id, _ = bench.ready()
    first = bench.ask(study_id, "a")
    other = bench.ask(study_id, "b")
    again = bench.ask(study_id, "a")
    assert (again.trial_id, again.seed) == (first.trial_id, first.seed) != (other.trial_id, other.seed)
    assert [LeaseToken.parse(lease.token).fence for lease in (first, again)] == [1, 2]
    assert code_of(bench.heartbeat, first) == "lease_lost"
    assert bench.heartbeat(again).go_on


def test_asking_again_after_the_lease_ran_out_still_gives_the_same_lane(bench: Any) -> None:
    study_id, _ = bench.ready()
    first = bench.ask(study_id, "a")
    bench.clock.advance(61)
    again = bench.ask(study_id, "a")
    assert (again.trial_id, again.seed) == (first.trial_id, first.seed)
    assert bench.lane(again).lost_count == 0, "until a reap nobody else had it"


def test_asking_takes_over_what_another_process_lost(bench: Any) -> None:
    study_id, _ = bench.ready(["none"], seeds=[0])
    lost = bench.ask(study_id, "a")
    assert isinstance(bench.find(study_id, "b"), Waiting)
    bench.clock.advance(60.001)
    found = bench.ask(study_id, "b")
    assert (found.trial_id, found.seed) == (lost.trial_id, lost.seed)
    lane = bench.lane(found)
    assert (lane.lost_count, lane.fence, lane.client_id, lane.last_cause) == (1, 2, "b", "worker_lost")
    assert code_of(bench.report, lost, 1, 0.5) == "lease_lost"
    assert code_of(bench.complete, lost, value=0.5) == "lease_lost"
    assert code_of(bench.heartbeat, lost) == "lease_lost"


def test_who_may_not_ask_is_told_why(bench: Any) -> None:
    ours, _ = bench.ready()
    ask = bench.queue.ask
    assert code_of(ask, tenant_id="other", study_id=ours, client_id="a") == "study_not_found"
    assert code_of(ask, tenant_id=TENANT, study_id=NOBODY, client_id="a") == "study_not_found"
    trained_here = bench.study(StudySpec(workload="charlm-rnn"))
    assert code_of(bench.find, trained_here) == "not_external"
    for state in ("succeeded", "failed", "cancelled"):
        ended = bench.study(job=state)
        with pytest.raises(ConflictError, match=state) as caught:
            bench.find(ended)
        assert caught.value.code == "study_ended"


def test_a_study_that_is_being_cancelled_gives_out_nothing(bench: Any) -> None:
    study_id, _ = bench.ready()
    lease = bench.ask(study_id)
    with bench.database.write() as session:
        session.execute(update(JobRow).where(JobRow.study_id == study_id).values(cancel_requested=True))
    assert code_of(bench.find, study_id, "b") == "study_ended"
    stopped = bench.heartbeat(lease)
    assert (stopped.go_on, stopped.reason, stopped.expires_at) == (False, "the study was cancelled", None)
    assert bench.lane(lease).state is LaneStatus.CLOSED


def test_a_study_without_a_worker_says_that_it_waits_for_one(bench: Any) -> None:
    waiting = bench.find(bench.study(job="queued"))
    assert isinstance(waiting, Waiting) and "cliptune worker" in waiting.detail


def test_a_lane_that_measures_norms_needs_no_trial_and_no_objective(bench: Any) -> None:
    study_id = bench.study()
    bench.put_up(study_id, [NOBODY], seeds=[3], is_probe=True, num_steps=20)
    lease = bench.ask(study_id)
    assert (lease.number, lease.stage, lease.seed, lease.num_steps) == (None, None, 3, 20)
    assert lease.setting.is_off
    assert bench.tell_norms(lease, 10, 0.5, 0.7).go_on
    assert bench.complete(lease) is LaneStatus.COMPLETE
    (lane,) = bench.lanes(study_id, NOBODY)
    assert (lane.is_probe, lane.norms, lane.reports) == (True, (0.5, 0.7), {})


# --- telling ---


def test_reports_are_kept_and_extend_the_lease(bench: Any) -> None:
    study_id, _ = bench.ready()
    lease = bench.ask(study_id)
    for step, value in ((0, 2.5), (44, 1.5)):
        bench.clock.advance(50)
        told = bench.report(lease, step, value, 0.25, 0.5)
        assert (told.go_on, told.expires_at) == (True, bench.clock() + 60_000)
    bench.clock.advance(59)
    assert bench.heartbeat(lease).expires_at == bench.clock() + 60_000
    assert bench.queue.reap() == []
    lane = bench.lane(lease)
    assert (lane.step, lane.value, lane.initial) == (44, 1.5, 2.5)
    assert lane.reports == {0: 2.5, 44: 1.5} and lane.norms == (0.25, 0.5, 0.25, 0.5)


def test_a_repeated_report_is_answered_alike_and_kept_once(bench: Any) -> None:
    study_id, _ = bench.ready()
    lease = bench.ask(study_id)
    assert bench.report(lease, 44, 1.5, 0.25) == bench.report(lease, 44, 1.5, 0.25)
    bench.report(lease, 60, 1.4)
    assert bench.report(lease, 44, 1.5, 9.0).go_on, "the norms that came first stay"
    assert bench.lane(lease).norms == (0.25,) and bench.lane(lease).step == 60
    with pytest.raises(ConflictError, match=r"with 1\.5 before, and now with 1\.25") as caught:
        bench.report(lease, 44, 1.25)
    assert caught.value.code == "report_differs"
    assert code_of(bench.report, lease, 50, 1.5) == "step_not_rising"
    assert [row["step"] for row in bench.reports(lease)] == [44, 60], "a refused report leaves nothing"


def test_norms_may_come_before_the_objective_of_their_step(bench: Any) -> None:
    study_id, _ = bench.ready()
    lease = bench.ask(study_id)
    assert bench.tell_norms(lease, 50, 0.1).go_on
    assert bench.lane(lease).step is None, "no objective yet"
    assert bench.report(lease, 50, 1.5, 0.2).go_on
    assert bench.tell_norms(lease, 50, 0.3).go_on, "late, and not kept"
    lane = bench.lane(lease)
    assert (lane.step, lane.reports, lane.norms) == (50, {50: 1.5}, (0.1, 0.2))


def test_a_step_above_the_last_one_is_refused(bench: Any) -> None:
    study_id, _ = bench.ready()
    lease = bench.ask(study_id)
    with pytest.raises(InvalidRequestError, match=r"at most 400.*got 401") as caught:
        bench.report(lease, 401, 1.0)
    assert (caught.value.code, caught.value.errors[0]["pointer"]) == ("step_out_of_range", "/step")
    assert bench.report(lease, 400, 1.0).go_on


def test_a_lane_has_room_for_so_many_reports(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MAX_REPORTS", 2)
    study_id, _ = bench.ready()
    lease = bench.ask(study_id)
    bench.report(lease, 1, 1.0)
    bench.tell_norms(lease, 2, 1.0)
    assert code_of(bench.report, lease, 3, 1.0) == "too_many_reports"
    assert bench.report(lease, 1, 1.0).go_on, "a repetition needs no room"
    again = bench.ask(study_id)
    assert code_of(bench.report, again, 1, 1.0) == "too_many_reports", "over all leases"


@pytest.mark.parametrize("value", [None, math.inf, 7.6])
def test_divergence_is_a_result_and_ends_the_lane(bench: Any, value: float | None) -> None:
    study_id, _ = bench.ready()
    lease = bench.ask(study_id)
    bench.report(lease, 0, 2.5)
    assert bench.report(lease, 10, 7.4).go_on, "below 3 times the first one"
    told = bench.report(lease, 20, value if value is None or math.isfinite(value) else None)
    assert (told.go_on, told.reason) == (False, "the training diverged at step 20")
    lane = bench.lane(lease)
    assert (lane.state, lane.step, lane.finished_at) == (LaneStatus.DIVERGED, 20, bench.clock())
    assert bench.report(lease, 30, 1.0) == told == bench.heartbeat(lease)
    assert bench.complete(lease, value=1.0) is LaneStatus.DIVERGED
    assert bench.lane(lease).attempt == 0, "no error"


def test_without_a_first_objective_above_0_nothing_but_nan_diverges(bench: Any) -> None:
    study_id, _ = bench.ready()
    first, second = bench.ask(study_id, "a"), bench.ask(study_id, "b")
    assert bench.report(first, 10, 1e300).go_on
    assert bench.report(second, 0, -2.0).go_on and bench.report(second, 10, 5.0).go_on


def test_a_new_lease_begins_anew_and_its_reports_count(bench: Any) -> None:
    study_id, _ = bench.ready()
    first = bench.ask(study_id)
    bench.report(first, 0, 2.5, 0.1)
    bench.report(first, 44, 1.5, 0.2)
    again = bench.ask(study_id)
    lane = bench.lane(again)
    assert (lane.step, lane.value, lane.initial) == (None, None, None)
    assert lane.reports == {0: 2.5, 44: 1.5}, "the newest lease that reported"
    assert bench.report(again, 0, 2.25, 0.3).go_on
    lane = bench.lane(again)
    assert (lane.reports, lane.norms, lane.initial) == ({0: 2.25}, (0.3,), 2.25)


# --- ending ---


def test_a_completed_lane_keeps_its_figures_and_stays_complete(bench: Any) -> None:
    study_id, _ = bench.ready()
    lease = bench.ask(study_id)
    bench.report(lease, 400, 1.25)
    record = {"clip_fraction": 0.5, "mean_scale": 0.9, "num_steps": 400, "seconds": 1.5}
    assert bench.complete(lease, record=record) is LaneStatus.COMPLETE
    assert bench.complete(lease, value=9.0) is LaneStatus.COMPLETE, "the same answer"
    assert bench.complete(lease, cause="bug") is LaneStatus.COMPLETE
    told = bench.heartbeat(lease)
    assert (told.go_on, told.reason) == (False, "the lane is complete")
    lane = bench.lane(lease)
    assert (lane.value, lane.step, lane.record, lane.finished_at) == (1.25, 400, record, bench.clock())
    assert bench.ask(study_id).trial_id != "", "the client is free for another"


def test_a_value_at_the_end_counts_as_the_last_steps(bench: Any) -> None:
    study_id, _ = bench.ready()
    lease, other = bench.ask(study_id, "a"), bench.ask(study_id, "b")
    assert bench.complete(lease, value=1.5) is LaneStatus.COMPLETE
    assert (bench.lane(lease).value, bench.lane(lease).step) == (1.5, 400)
    bench.report(other, 0, 2.0)
    assert bench.complete(other, value=6.5) is LaneStatus.DIVERGED


def test_a_completion_without_any_objective_is_refused(bench: Any) -> None:
    study_id, _ = bench.ready()
    lease = bench.ask(study_id)
    bench.tell_norms(lease, 400, 0.5)
    with pytest.raises(InvalidRequestError, match="without an objective") as caught:
        bench.complete(lease)
    assert (caught.value.code, caught.value.errors[0]["pointer"]) == ("value_missing", "/value")
    assert bench.lane(lease).state is LaneStatus.LEASED


def test_a_bug_is_tried_again_after_a_pause_and_then_given_up(bench: Any) -> None:
    study_id, _ = bench.ready(["none"], seeds=[0])
    for attempt in (1, 2):
        lease = bench.ask(study_id)
        assert bench.complete(lease, cause="bug", error="boom\x00\ud800") is LaneStatus.WAITING
        assert bench.complete(lease, cause="bug") is LaneStatus.WAITING, "counted once"
        assert bench.lane(lease).attempt == attempt
        assert isinstance(bench.find(study_id), Waiting), "not before the pause is over"
        assert code_of(bench.heartbeat, lease) == "lease_lost"
        bench.clock.advance(60)
    lease = bench.ask(study_id)
    assert bench.complete(lease, cause="bug", error="boom") is LaneStatus.FAIL
    lane = bench.lane(lease)
    assert (lane.attempt, lane.last_cause, lane.last_error) == (3, "bug", "boom")
    assert lane.finished_at == bench.clock() and code_of(bench.report, lease, 1, 1.0) == "lease_lost"


@pytest.mark.parametrize(
    ("cause", "state", "attempt", "lost_count"),
    [
        ("bug", "waiting", 1, 0),
        ("stall", "waiting", 1, 0),
        ("bad_output", "waiting", 1, 0),
        ("oom", "fail", 1, 0),
        ("device_lost", "waiting", 0, 1),
    ],
)
def test_each_cause_counts_on_its_own(
    bench: Any, cause: str, state: str, attempt: int, lost_count: int
) -> None:
    study_id, _ = bench.ready()
    lease = bench.ask(study_id)
    assert bench.complete(lease, cause=cause, error="e") == state
    lane = bench.lane(lease)
    assert (lane.attempt, lane.lost_count, lane.last_cause) == (attempt, lost_count, cause)


def test_a_process_taken_away_gives_its_lane_back_at_once(bench: Any) -> None:
    study_id, _ = bench.ready(["none"], seeds=[0])
    bench.complete(bench.ask(study_id, "a"), cause="device_lost")
    assert bench.ask(study_id, "b").seed == 0


def test_a_lane_lost_too_often_fails(bench: Any) -> None:
    study_id, _ = bench.ready(["none"], seeds=[0])
    for _ in range(2):
        bench.ask(study_id)
        bench.lose()
        bench.clock.advance(5)
    lease = bench.ask(study_id)
    bench.clock.advance(60.001)
    (reaped,) = bench.queue.reap()
    assert (reaped.state, reaped.lost_count, reaped.fence) == (LaneStatus.FAIL, 3, 3)
    lane = bench.lane(lease)
    assert (lane.state, lane.last_cause, lane.finished_at) == ("fail", "worker_lost", bench.clock())
    assert bench.queue.reap() == []


def test_a_study_that_ended_stops_its_lanes_at_their_next_word(bench: Any) -> None:
    study_id, _ = bench.ready()
    first, second, third = (bench.ask(study_id, name) for name in "abc")
    bench.end(study_id, "failed")
    assert bench.report(first, 1, 1.0).reason == "the study has failed"
    assert bench.heartbeat(second).reason == "the study has failed"
    record = {"seconds": 1.0}
    assert bench.complete(third, value=1.0, record=record) is LaneStatus.CLOSED
    assert bench.lane(third).record == record and bench.reports(first) == []
    assert bench.heartbeat(first) == bench.heartbeat(second)


@pytest.mark.parametrize("call", ["heartbeat", "report", "complete"])
def test_nobody_else_gets_at_a_lane(bench: Any, call: str) -> None:
    study_id, ids = bench.ready()
    lease = bench.ask(study_id)
    token = LeaseToken.parse(lease.token)
    options: dict[str, Any] = {
        "heartbeat": {},
        "report": {"report": Report(step=1, has_value=True, value=1.0)},
        "complete": {"completion": Completion(value=1.0)},
    }[call]
    method = getattr(bench.queue, call)
    forged = LeaseToken(token.seed, token.fence, "A" * 43)
    later = LeaseToken(token.seed, token.fence + 1, token.secret)
    for bad in (forged, later):
        assert (
            code_of(method, tenant_id=TENANT, trial_id=lease.trial_id, token=bad, **options) == "lease_lost"
        )
    elsewhere = LeaseToken(999, token.fence, token.secret)
    for tenant, trial, known in (
        ("other", lease.trial_id, token),
        (TENANT, NOBODY, token),
        (TENANT, lease.trial_id, elsewhere),
    ):
        with pytest.raises(NotFoundError, match="trials:ask") as caught:
            method(tenant_id=tenant, trial_id=trial, token=known, **options)
        assert caught.value.code == "trial_not_found"
    other = LeaseToken(1, token.fence, token.secret)
    assert code_of(method, tenant_id=TENANT, trial_id=ids[0], token=other, **options) == "lease_lost"
    assert bench.lane(lease).state is LaneStatus.LEASED and bench.reports(lease) == []


def test_the_token_is_kept_as_a_digest_alone(bench: Any) -> None:
    study_id, _ = bench.ready()
    secret = LeaseToken.parse(bench.ask(study_id).token).secret
    with bench.database.read() as session:
        rows = session.execute(select(LaneRow.__table__)).all()
    assert rows and secret not in str(rows) and secret not in repr(LeaseToken.parse(f"0.1.{secret}"))


def test_limits_are_checked(database: Any) -> None:
    with pytest.raises(ValueError, match="lease_seconds must be > 0, got 0"):
        LaneQueue(database, lease_seconds=0)
    with pytest.raises(ValueError, match="must be >= 1, got 0 and 3"):
        LaneQueue(database, lease_seconds=1, max_attempts=0)


def test_a_lost_lease_names_the_lane_and_what_to_do() -> None:
    error = LaneLostError("t", 3)
    assert "seed 3" in error.detail and "ask for another lane" in error.detail
    assert (error.status, error.code) == (409, "lease_lost")


def test_an_answer_is_one_of_two(bench: Any) -> None:
    study_id, _ = bench.ready([], spec=WHOLE)
    assert not isinstance(bench.find(study_id), Leased)
