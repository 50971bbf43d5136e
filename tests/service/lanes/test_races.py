"""Races on lanes: many who ask at once, and a reap, a report and a completion that meet before either has committed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from meeting import PATIENCE_SECONDS, KilledError, Meeting

from service.lanes import LaneStatus, Leased, Waiting, close_lanes
from service.lanes.lane import LaneLostError

CLIENTS = 16


def test_clients_that_ask_at_once_never_hold_the_same_lane(bench: Any) -> None:
    study_id, ids = bench.ready(["none", "global_norm:1", "global_norm:2"], seeds=range(4))
    begin = threading.Barrier(CLIENTS)

    def ask(number: int) -> Leased | Waiting:
        begin.wait(PATIENCE_SECONDS)
        return bench.find(study_id, f"client {number}")

    with ThreadPoolExecutor(CLIENTS) as threads:
        answers = list(threads.map(ask, range(CLIENTS)))
    leased = [(lease.trial_id, lease.seed) for lease in answers if isinstance(lease, Leased)]
    assert len(set(leased)) == len(leased) == 12 == 4 * len(ids), "every lane was given out, once"
    assert len({lease.token for lease in answers if isinstance(lease, Leased)}) == 12


def test_one_client_that_asks_many_times_at_once_holds_one_lane(bench: Any) -> None:
    study_id, _ = bench.ready(seeds=range(8))
    begin = threading.Barrier(8)

    def ask(number: int) -> Leased:
        begin.wait(PATIENCE_SECONDS)
        return bench.find(study_id, "same")

    with ThreadPoolExecutor(8) as threads:
        leases = list(threads.map(ask, range(8)))
    assert len({(lease.trial_id, lease.seed) for lease in leases}) == 1
    assert bench.states(study_id).count("leased") == 1
    works = [lease for lease in leases if _is_alive(bench, lease)]
    assert len(works) == 1, "the newest token alone"


def _is_alive(bench: Any, lease: Leased) -> bool:
    try:
        return bool(bench.heartbeat(lease).go_on)
    except LaneLostError:
        return False


def test_workers_in_a_loop_end_every_lane_once(bench: Any) -> None:
    study_id, ids = bench.ready(["none", *(f"global_norm:{each}" for each in range(1, 6))], seeds=range(3))
    ended: list[tuple[str, int]] = []

    def work(number: int) -> None:
        while isinstance(lease := bench.find(study_id, f"client {number}"), Leased):
            for step in (44, 133, 400):
                if not bench.report(lease, step, 1.0 + number / step).go_on:
                    break
            bench.complete(lease)
            ended.append((lease.trial_id, lease.seed))

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert len(ended) == len(set(ended))
    states = bench.states(study_id)
    assert set(states) <= {"complete", "pruned", "closed"} and len(states) == 3 * len(ids)
    assert len(ended) == len(states) - states.count("closed")


def test_two_lanes_of_a_trial_pruned_at_once_do_not_wait_for_each_other(bench: Any) -> None:
    for _ in range(5):
        study_id, ids = bench.ready(["none", *(f"global_norm:{each}" for each in (1, 2, 3))], seeds=[0, 1])
        leases = [bench.ask(study_id, f"client {number}") for number in range(8)]
        bad = [lease for lease in leases if lease.trial_id == ids[3]]
        for lease in leases:
            if lease not in bad:
                assert bench.report(lease, 44, 1.0 + lease.number).go_on, "three are too few to tell"
        with ThreadPoolExecutor(2) as threads:
            told = list(threads.map(lambda lease: bench.report(lease, 44, 9.0), bad))
        assert [each.go_on for each in told] == [False, False]
        assert bench.states(study_id, ids[3]) == ["pruned", "pruned"]


# --- pairs: the first stops before its commit, the second runs into it ---


class Race(Meeting):
    """Two connections to one lane whose lease has just expired."""

    def __init__(self, bench: Any) -> None:
        super().__init__(bench)
        self.study_id, _ = bench.ready(["none"], seeds=[0])
        self.lease = bench.ask(self.study_id)
        bench.clock.advance(60.001)


@pytest.fixture
def race(bench: Any) -> Iterator[Race]:
    prepared = Race(bench)
    yield prepared
    prepared.close()


OPERATIONS: dict[str, Callable[[Race, Any], Any]] = {
    "heartbeat": lambda race, queue: race.bench.heartbeat(race.lease, queue),
    "report": lambda race, queue: race.bench.report(race.lease, 1, 2.5, queue=queue),
    "complete": lambda race, queue: race.bench.complete(race.lease, value=1.5, queue=queue),
    "fail": lambda race, queue: race.bench.complete(race.lease, cause="bug", queue=queue),
}
#: State, lost processes and errors after each operation that came before the reap.
AFTER = {
    "heartbeat": ("leased", 0, 0),
    "report": ("leased", 0, 0),
    "complete": ("complete", 0, 0),
    "fail": ("waiting", 0, 1),
}


def outcome(race: Race) -> tuple[str, int, int]:
    lane = race.bench.lane(race.lease)
    return str(lane.state), lane.lost_count, lane.attempt


def reap(queue: Any) -> Any:
    return queue.reap()


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_that_meets_an_uncommitted_reap_is_refused(race: Race, name: str) -> None:
    reaped, operation = race.go(reap, lambda queue: OPERATIONS[name](race, queue), is_doomed=False)
    assert [each.seed for each in reaped.result()] == [0]
    assert isinstance(operation.exception(), LaneLostError)
    assert outcome(race) == ("waiting", 1, 0) and race.bench.reports(race.lease) == []


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_that_meets_a_dying_reap_is_accepted(race: Race, name: str) -> None:
    reaped, operation = race.go(reap, lambda queue: OPERATIONS[name](race, queue), is_doomed=True)
    assert isinstance(reaped.exception(), KilledError) and operation.exception() is None
    assert race.bench.queue.reap() == [] and outcome(race) == AFTER[name]


@pytest.mark.parametrize("name", OPERATIONS)
def test_reap_that_meets_an_uncommitted_operation_spares_it(race: Race, name: str) -> None:
    operation, reaped = race.go(lambda queue: OPERATIONS[name](race, queue), reap, is_doomed=False)
    assert operation.exception() is None
    # PostgreSQL skips a locked row until its next reap; SQLite waits and then decides on what was committed.
    assert reaped.result() + race.bench.queue.reap() == [] and outcome(race) == AFTER[name]


@pytest.mark.parametrize("name", OPERATIONS)
def test_reap_that_meets_a_dying_operation_takes_the_lane(race: Race, name: str) -> None:
    operation, reaped = race.go(lambda queue: OPERATIONS[name](race, queue), reap, is_doomed=True)
    assert isinstance(operation.exception(), KilledError)
    assert len(reaped.result() + race.bench.queue.reap()) == 1
    assert outcome(race) == ("waiting", 1, 0) and race.bench.reports(race.lease) == []


def test_a_report_and_a_completion_at_once_are_both_answered(race: Race) -> None:
    report, completion = race.go(
        lambda queue: OPERATIONS["report"](race, queue),
        lambda queue: OPERATIONS["complete"](race, queue),
        is_doomed=False,
    )
    assert report.result().go_on and completion.result() is LaneStatus.COMPLETE
    assert race.bench.lane(race.lease).reports == {1: 2.5}


def test_two_completions_at_once_have_one_effect(race: Race) -> None:
    first, second = race.go(
        lambda queue: OPERATIONS["complete"](race, queue),
        lambda queue: race.bench.complete(race.lease, value=9.0, queue=queue),
        is_doomed=False,
    )
    assert (first.result(), second.result()) == (LaneStatus.COMPLETE, LaneStatus.COMPLETE)
    assert race.bench.lane(race.lease).value == 1.5


def test_a_report_that_meets_the_closing_of_its_lane_is_told_to_stop(race: Race) -> None:
    def close(queue: Any) -> int:
        with race.paused.write() as session:
            return close_lanes(session, study_id=race.study_id)

    closed, report = race.go(close, lambda queue: OPERATIONS["report"](race, queue), is_doomed=False)
    assert closed.result() == 1 and not report.result().go_on
    assert race.bench.reports(race.lease) == []


def test_who_asks_again_while_it_is_being_reaped_loses_nothing(race: Race) -> None:
    _, asked = race.go(
        reap, lambda queue: queue.ask(tenant_id="tenant", study_id=race.study_id, client_id="a"), False
    )
    found = asked.result()
    lane = race.bench.lane(race.lease)
    if isinstance(found, Waiting):  # PostgreSQL: the row was still locked, or no longer the client's
        found = race.bench.ask(race.study_id)
        lane = race.bench.lane(race.lease)
    assert (found.trial_id, found.seed) == (race.lease.trial_id, race.lease.seed)
    assert (lane.state, lane.fence, lane.lost_count) == (LaneStatus.LEASED, 2, 1)
