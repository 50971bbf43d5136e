"""A study on several slots of a worker: the answer is that of one slot, whatever becomes of slots and processes.

The processes are real and killed for good; what they would train is a formula, so that a study takes a second.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from service.db.models import JobEventRow, RecommendationRow, StudyRow, TrialResultRow, TrialRow
from service.db.session import Database
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.launchers.local import LocalLauncher
from service.settings import Settings
from service.states import JobState
from service.worker import part
from service.worker.cohort_run import Patience
from service.worker.endings import NoDeviceError, ShutdownRequestedError, StudyFailedError
from service.worker.part import Part
from service.worker.pool import SlotPool
from service.worker.runner import StudyRunner
from service.worker.slot import Slot
from service.worker.slot_training import SlotTraining
from service.worker.training import Training
from tuner.spec import StudySpec

TIMED = str(Path(__file__).parent / "timed_trainer.py")
SPEC = StudySpec(
    workload="digits-mlp", num_trials=8, num_seeds=3, num_confirm_seeds=4, num_steps=27, cohort_size=8
)
TWO = ("cpu:0", "cpu:1")


class Quiet:
    """Signals that ask for nothing, until told otherwise."""

    def __init__(self) -> None:
        self.stops = threading.Event()

    def check(self) -> None:
        if self.stops.is_set():
            raise ShutdownRequestedError


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    return sqlite_database


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    folder = tmp_path / "orders"
    folder.mkdir()
    return folder


MakePool = Callable[..., SlotPool]


@pytest.fixture
def make_pool(orders: Path) -> Iterator[MakePool]:
    """Make the slots of a worker, by their names; ``broken`` ones never get a process ready."""
    pools = []

    def make(*names: str, broken: tuple[str, ...] = ()) -> SlotPool:
        slots = []
        for name in names:
            command = (sys.executable, TIMED, str(orders), name)
            if name in broken:
                command = (sys.executable, "-c", "raise SystemExit('the device is on fire')")
            launcher = LocalLauncher(threads=1, kill_grace_seconds=2, command=command)
            slots.append(Slot(name=name, launch=launcher.launch, expects="cpu"))
        pools.append(SlotPool(slots))
        return pools[-1]

    yield make
    for each in pools:
        each.close()


@pytest.fixture
def run(database: Database, queue: Queue, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a leased study on a pool; what it came to."""

    def go(
        lease: Lease,
        pool: SlotPool,
        signals: Quiet | None = None,
        *,
        on_steps: Callable[[int], None] = lambda num_steps: None,
        **settings: Any,
    ) -> dict[str, Any]:
        pool.enter(lease.study_id, tenant_id=lease.tenant_id)
        runner = StudyRunner(
            database=database,
            queue=queue,
            lease=lease,
            pool=pool,
            settings=Settings(checkpoint_dir=str(tmp_path / "checkpoints"), **settings),
            signals=signals or Quiet(),
            on_steps=on_steps,
        )
        try:
            assert runner.run() is JobState.SUCCEEDED
        finally:
            pool.leave(lease.study_id)
        return outcome(database, lease)

    return go


def outcome(database: Database, lease: Lease) -> dict[str, Any]:
    """All that a study found, by setting."""
    with database.read() as session:
        query = select(TrialRow, TrialResultRow).join(TrialResultRow, TrialResultRow.trial_id == TrialRow.id)
        rows = session.execute(query.where(TrialRow.study_id == lease.study_id)).all()
        document = session.scalars(
            select(RecommendationRow).where(RecommendationRow.study_id == lease.study_id)
        ).one()
        return {
            "trials": {
                (trial.method, trial.threshold, trial.stage): (trial.state, result.lanes)
                for trial, result in rows
            },
            "setting": (document.verdict, document.threshold),
        }


def logged(orders: Path, event: str) -> list[dict[str, Any]]:
    lines = (orders / "log").read_text().splitlines()
    return [each for each in map(json.loads, lines) if each["event"] == event]


@pytest.fixture
def alone(
    lease_of: Callable[[StudySpec], Lease], make_pool: MakePool, run: Any, orders: Path
) -> dict[str, Any]:
    """What the study finds on one slot, undisturbed."""
    found: dict[str, Any] = run(lease_of(SPEC), make_pool("cpu:0"))
    (orders / "log").unlink()
    return found


def test_two_slots_find_what_one_finds(
    alone: dict[str, Any], lease_of: Any, make_pool: MakePool, run: Any, orders: Path, database: Database
) -> None:
    lease = lease_of(SPEC)
    (orders / "late").write_text("0.3")
    assert run(lease, make_pool(*TWO)) == alone
    assert {state for state, _ in alone["trials"].values()} == {"complete", "pruned"}
    parts = logged(orders, "begins")
    # 8 trials x 3 seeds: four trials each; 4 fresh seeds: two each.
    assert sorted(
        (each["slot"], each["trials"], len(each["seeds"])) for each in parts if each["trials"] == 4
    ) == [
        ("cpu:0", 4, 3),
        ("cpu:1", 4, 3),
    ]
    assert {each["slot"] for each in parts if len(each["seeds"]) == 2} == set(TWO)
    with database.read() as session:
        assert session.get_one(StudyRow, lease.study_id).device_milliseconds > 0
        started = session.scalars(
            select(JobEventRow.payload).where(
                JobEventRow.kind == "training_started", JobEventRow.study_id == lease.study_id
            )
        ).all()
    # One process each, for the probe and all cohorts, though it takes its time to end one.
    assert sorted(each["slot"] for each in started) == sorted(TWO)


@pytest.mark.parametrize("is_lost", [False, True])
def test_one_part_of_a_cohort_measures_how_the_lanes_of_all_train(
    is_lost: bool, alone: dict[str, Any], lease_of: Any, make_pool: MakePool, run: Any, orders: Path
) -> None:
    if is_lost:
        (orders / "lost-0").touch()
    assert run(lease_of(SPEC), make_pool(*TWO)) == alone
    trained = logged(orders, "trains")
    # By settings in the search, by fresh seeds in the confirmation.
    for of_search in (True, False):
        parts = [each for each in trained if (each["num_seeds"] == 3) == of_search]
        assert {each["slot"] for each in parts} == set(TWO)
        assert len({each["path"] for each in parts}) == 1
    assert len(logged(orders, "measures")) == 2 + is_lost


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("mum", "reached a rung before it told how its lanes train"),
        ("asks", "asked more than 10 times how its lanes train"),
    ],
)
def test_part_that_keeps_the_others_waiting_for_its_path_breaks(
    fault: str,
    says: str,
    alone: dict[str, Any],
    lease_of: Any,
    make_pool: MakePool,
    run: Any,
    orders: Path,
    database: Database,
) -> None:
    (orders / f"{fault}-0").touch()
    assert run(lease_of(SPEC), make_pool(*TWO)) == alone
    with database.read() as session:
        query = select(TrialRow.last_error).where(TrialRow.last_error.is_not(None))
        errors = set(session.scalars(query))
    assert len(errors) == 1
    assert says in errors.pop()


@pytest.mark.parametrize("fault", ["kill", "kill before any progress", "orphan", "hang"])
def test_part_that_breaks_goes_on_from_its_rung_while_the_other_waits(
    fault: str,
    alone: dict[str, Any],
    lease_of: Any,
    make_pool: MakePool,
    run: Any,
    orders: Path,
    database: Database,
) -> None:
    if fault == "kill before any progress":
        fault = "kill"
        (orders / "quiet").touch()
    (orders / f"{fault}-0").touch()
    lease, steps = lease_of(SPEC), []
    stall_seconds = 2 if fault == "hang" else 60
    assert run(lease, make_pool(*TWO), stall_seconds=stall_seconds, on_steps=steps.append) == alone
    resumed = [each for each in logged(orders, "begins") if each["first"] > 0]
    assert len(resumed) == 1
    # Of the steps that were taken twice each counts once, and none is left out.
    lanes = [lane for _, trained in alone["trials"].values() for lane in trained]
    assert sum(steps) == sum(lane["num_steps"] for lane in lanes)
    (told_again,) = told(database, lease, "resumed")
    assert told_again["lane_steps"] > 0, "what need not be trained again"
    with database.read() as session:
        query = select(TrialRow.last_error).where(
            TrialRow.study_id == lease.study_id, TrialRow.last_error.is_not(None)
        )
        errors = {error.splitlines()[0] for error in session.scalars(query)}
        assert len(errors) == 1
        assert ("said nothing" if fault == "hang" else "killed by SIGKILL") in errors.pop()
        assert len(session.scalars(select(TrialResultRow)).all()) == 2 * len(alone["trials"])


def test_device_that_is_lost_three_times_in_a_row_fails_its_trials(
    lease_of: Any, make_pool: MakePool, run: Any, orders: Path, database: Database
) -> None:
    """All on one slot: every process kills itself after the first rung, which is progress once and never again."""
    for number in range(40):
        (orders / f"kill-{number}").touch()
    with pytest.raises(StudyFailedError, match=r"trials failed .* killed by SIGKILL, which was not ours"):
        run(lease_of(SPEC), make_pool("cpu:0"), max_failed_trials=2)
    with database.read() as session:
        trials = session.scalars(select(TrialRow).where(TrialRow.state == "fail")).all()
    assert len(trials) > 2
    assert {(each.attempt, each.lost_count) for each in trials} == {(0, 3)}


def test_more_parts_than_slots_take_turns(
    alone: dict[str, Any], lease_of: Any, make_pool: MakePool, run: Any, orders: Path
) -> None:
    """The second slot's device is gone before the cohort is over: its part waits for the other's slot."""
    pool = make_pool(*TWO)
    lease = lease_of(SPEC)
    (orders / "kill-0").touch()
    first = pool._slots[1]
    real, calls = first.launch, []

    def launch_once() -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise OSError("the device has fallen off the bus")
        return real()

    first.launch = launch_once
    # Long enough apart that the part on the second slot is the one that takes the order to be killed.
    (orders / "slow-cpu:0").write_text("0.5")
    assert run(lease, pool) == alone
    reasons = [each["reason"] for each in pool.to_json() if each["reason"]]
    assert reasons in ([], ["no training process could be started: the device has fallen off the bus"])
    assert any(each["first"] > 0 for each in logged(orders, "begins"))


def test_slot_that_never_gets_ready_is_set_aside_with_its_reason(
    alone: dict[str, Any], lease_of: Any, make_pool: MakePool, run: Any, database: Database
) -> None:
    pool = make_pool(*TWO, broken=("cpu:1",))
    lease = lease_of(SPEC)
    assert run(lease, pool) == alone
    documents = {each["name"]: each for each in pool.to_json()}
    assert documents["cpu:1"]["state"] == "aside"
    assert "on fire" in documents["cpu:1"]["reason"]
    assert documents["cpu:0"]["state"] == "free"
    with database.read() as session:
        trials = session.scalars(select(TrialRow).where(TrialRow.study_id == lease.study_id)).all()
    assert {(each.attempt, each.lost_count) for each in trials} == {(0, 0)}


def test_worker_without_a_usable_device_hands_the_study_back(
    lease_of: Any, make_pool: MakePool, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "SECONDS", 0.2)
    with pytest.raises(NoDeviceError, match=r"cpu:0: .*on fire"):
        run(lease_of(SPEC), make_pool("cpu:0", broken=("cpu:0",)))


def stop_once(condition: Callable[[], Any], run: Any, lease: Lease, pool: SlotPool) -> None:
    """Run a study on a worker that is asked to stop as soon as something holds."""
    signals = Quiet()

    def watch() -> None:
        while not condition():
            time.sleep(0.02)
        signals.stops.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(ShutdownRequestedError):
        run(lease, pool, signals)
    watcher.join()


def test_next_worker_keeps_the_grid_and_goes_on_from_its_checkpoints(
    alone: dict[str, Any],
    lease_of: Any,
    make_pool: MakePool,
    run: Any,
    orders: Path,
    queue: Queue,
    database: Database,
) -> None:
    """The first worker has two slots and stops in mid-cohort; the second has one, so that its parts take turns."""
    lease = lease_of(SPEC)
    for name in TWO:
        (orders / f"slow-{name}").write_text("0.4")

    stop_once(lambda: told(database, lease, "rung"), run, lease, make_pool(*TWO))
    queue.release(lease)
    again = queue.acquire("another worker", ["study"])
    assert again is not None
    for name in TWO:
        (orders / f"slow-{name}").unlink()
    assert run(again, make_pool("cpu:0")) == alone
    resumed = [each for each in logged(orders, "begins") if each["first"] > 0]
    assert {each["trials"] for each in resumed} <= {1, 2, 3, 4}
    assert len({each["pid"] for each in resumed}) >= 2


def test_next_worker_trains_a_cohort_that_has_no_checkpoint_as_the_one_before(
    alone: dict[str, Any],
    lease_of: Any,
    make_pool: MakePool,
    run: Any,
    orders: Path,
    queue: Queue,
    database: Database,
) -> None:
    lease = lease_of(SPEC)
    (orders / "slow-cpu:1").write_text("600")

    stop_once(lambda: told(database, lease, "engine"), run, lease, make_pool("cpu:1"))
    queue.release(lease)
    again = queue.acquire("another worker", ["study"])
    assert again is not None
    # By itself the other slot finds lanes.
    assert run(again, make_pool("cpu:0")) == alone
    begun = [(each["slot"], each["path"]) for each in logged(orders, "trains") if each["num_seeds"] == 3]
    assert begun == [("cpu:1", "solo"), ("cpu:0", "solo")]


def test_cluster_with_fewer_devices_than_slots_is_not_asked_for_more_again(
    alone: dict[str, Any],
    lease_of: Any,
    make_pool: MakePool,
    run: Any,
    orders: Path,
    monkeypatch: pytest.MonkeyPatch,
    database: Database,
) -> None:
    """Two slots of a cluster with one device: the first cohort's parts take turns, the next one is not split."""
    monkeypatch.setattr(part, "_PATIENCE_SECONDS", 0.1)
    (orders / "one-device").touch()
    lease = lease_of(SPEC)
    assert run(lease, make_pool(*TWO)) == alone
    begun = logged(orders, "begins")
    assert any(each["first"] > 0 for each in begun)
    assert {len(each["seeds"]) for each in begun if each["first"] == 0} == {3, 4}
    with database.read() as session:
        query = select(JobEventRow.kind).where(JobEventRow.study_id == lease.study_id)
        assert "resumed" not in session.scalars(query).all(), "taking turns is no news"


def told(database: Database, lease: Lease, kind: str) -> list[Any]:
    """Payloads of a study's events."""
    with database.read() as session:
        query = select(JobEventRow.payload).where(
            JobEventRow.kind == kind, JobEventRow.study_id == lease.study_id
        )
        return list(session.scalars(query))


def test_studies_share_the_slots_and_each_finds_what_it_finds_alone(
    alone: dict[str, Any], lease_of: Any, make_pool: MakePool, run: Any, orders: Path
) -> None:
    """The second study comes while the first has both slots; at its next rung it gets one of them."""
    for name in TWO:
        (orders / f"slow-{name}").write_text("0.3")
    pool, first, second = make_pool(*TWO), lease_of(SPEC), lease_of(SPEC)
    found: dict[str, Any] = {}

    def drive(lease: Lease) -> None:
        found[lease.study_id] = run(lease, pool)

    threads = [threading.Thread(target=drive, args=(each,)) for each in (first, second)]
    threads[0].start()
    while sum(each["study_id"] == first.study_id for each in pool.to_json()) < 2:
        time.sleep(0.02)
    threads[1].start()
    seen = set()
    while any(each.is_alive() for each in threads):
        seen.add(frozenset(each["study_id"] for each in pool.to_json()))
        time.sleep(0.02)
    for each in threads:
        each.join()
    assert found == {first.study_id: alone, second.study_id: alone}
    assert {first.study_id, second.study_id} in seen


def test_device_time_counts_while_a_slot_is_held(make_pool: MakePool) -> None:
    """A training function holds its slot for a whole cohort: its time is told as it goes."""
    pool = make_pool("cpu:0")
    pool.enter("study", tenant_id="t")
    training = SlotTraining(
        pool, "study", settings=Settings(), signals=Quiet(), on_ready=lambda slot, ready: None
    )
    answers = training.measure({"kind": "probe"})
    next(answers)
    while_held = training.device_seconds
    assert while_held > 0
    assert list(answers) == []
    assert training.device_seconds >= while_held
    assert pool.num_free == 1


def test_study_that_stops_before_its_first_event_held_a_device(
    lease_of: Any, make_pool: MakePool, run: Any, orders: Path, database: Database
) -> None:
    (orders / "mute-0").touch()
    lease, pool = lease_of(SPEC), make_pool("cpu:0")

    stop_once(lambda: not (orders / "mute-0").exists(), run, lease, pool)
    with database.read() as session:
        assert session.get_one(StudyRow, lease.study_id).device_milliseconds > 0
    assert [each.process for each in pool._slots] == [None]


def test_part_that_broke_leaves_no_process_that_could_be_used_again(
    make_pool: MakePool, orders: Path
) -> None:
    """What it still trains would be told in answer to the next request."""
    (orders / "mute-0").touch()
    pool, part = make_pool("cpu:0"), Part(0)
    pool.enter("study", tenant_id="t")
    pool.want("study", 1)
    slot = pool.take("study")
    assert slot is not None
    process = pool.process(slot)
    while process.ready is None:
        process.receive(0.1)
    training = Training(lambda: process, stall_seconds=0.1, signals=Quiet(), on_ready=lambda ready: None)
    part.begin(slot, training, {"kind": "probe"})
    error = None
    while error is None:
        _, error = part.poll(0.1)
    assert error.cause == "stall"
    assert process.is_alive
    assert not part.has_ended
