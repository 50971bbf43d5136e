"""Slots that train nothing: processes that drive studies through the real queue, with timers for trainings.

A slot acquires a study, writes what a recorded study wrote (`benchmarks/scale_recording.py`) at the same moments of a
run, through `service.worker.ledger` under the fence, renews the lease, and finishes. Many slots share a process and its
threads, since a training that is a timer needs neither. Every action has the moment at which it is due, and its time
counts from then: a database that falls behind shows as lateness and not as fewer actions.
"""

from __future__ import annotations

import math
import random
import threading
import time
import uuid
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from benchmarks.scale_agenda import Agenda
from benchmarks.scale_script import script, writes_of_kind
from service import recommendations
from service.db.clock import database_now
from service.db.models import TrialRow, WorkerRow
from service.db.session import Database
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.launchers.protocol import read_reference
from service.states import JobState
from service.worker import ledger
from service.worker.stored import load_study
from tuner.evidence import LaneResult, Recommendation, Stage, Trial
from tuner.search.confirmation import Asked
from tuner.snippets import snippets
from tuner.spec import ClipSetting, study_spec
from tuner.training.cohort import (
    CheckpointSaved,
    Cohort,
    CohortTrial,
    EngineChosen,
    LaneValue,
    Progressed,
    RungReached,
    TrialEnded,
)

LEASE_SECONDS, RENEW_SECONDS, POLL_SECONDS, SEEN_SECONDS = 60.0, 15.0, 0.5, 10.0
#: Slots that one worker has; it says that it lives once for all of them.
SLOTS_PER_WORKER = 8
#: Threads of a process that act; no more than a worker has connections.
THREADS = 10

_LANE: TypeAdapter[LaneResult] = TypeAdapter(LaneResult)
_ANSWER: TypeAdapter[Recommendation] = TypeAdapter(Recommendation)


@dataclass(frozen=True)
class Play:
    """What one process does.

    Attributes:
        url: of the database.
        recording: a recorded study.
        mode: ``studies``: drive them; ``cycles``: acquire and finish at a rate; ``polls``: ask for a job of a kind that
            nobody queued; ``writes``: nothing but a rung and its trials, at a rate.
        slots: of this process.
        study_seconds: how long a study takes, for ``studies``.
        per_second: actions per second of this process, for the others.
        seconds: how long is measured.
    """

    url: str
    recording: dict[str, Any]
    mode: str
    slots: int
    study_seconds: float = 0.0
    per_second: float = 0.0
    seconds: float = 0.0


def play(what: Play, ready: Barrier, answer: Connection) -> None:
    """The process: prepare, wait for the others, be measured, answer."""
    database = Database(what.url, pool_size=THREADS)
    player = Player(what, database)
    threads = [threading.Thread(target=player.agenda.work, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    player.prepare()
    ready.wait(timeout=300)
    began = time.monotonic()
    player.begin()
    time.sleep(what.seconds)
    until = time.monotonic()
    overdue = player.agenda.num_overdue()
    player.agenda.end()
    for thread in threads:
        thread.join(timeout=60)
    # What was due while the slots were prepared waited for that.
    taken = [(name, took) for name, at, took in player.agenda.taken if began <= at and at + took <= until]
    answer.send({"taken": taken, "errors": player.agenda.errors, "overdue": overdue})
    database.close()


class Player:
    """The slots of one process."""

    def __init__(self, what: Play, database: Database) -> None:
        self.agenda = Agenda()
        self._what = what
        self._database = database
        self._queue = Queue(database, lease_seconds=LEASE_SECONDS)
        self._recording = what.recording
        self._spec = study_spec(what.recording["study"])
        self._lane = _LANE.validate_python(what.recording["lane"])
        fields = set(Recommendation.__dataclass_fields__) & set(what.recording["answer"])
        self._answer = _ANSWER.validate_python({name: what.recording["answer"][name] for name in fields})
        self._reference = read_reference(what.recording["reference"])
        self._script = script(what.recording, what.study_seconds or what.recording["seconds"])
        self._workers = [str(uuid.uuid4()) for _ in range(math.ceil(what.slots / SLOTS_PER_WORKER))]
        self._leases: list[Lease] = []

    def prepare(self) -> None:
        """Have every slot in the middle of a study, each at another moment of it."""
        self._register()
        if self._what.mode == "studies":
            waiting = threading.Semaphore(0)
            for slot in range(self._what.slots):
                phase = random.random()
                self.agenda.add(
                    0.0, "start", lambda slot=slot, phase=phase: self._start(slot, phase, waiting)
                )
            for _ in range(self._what.slots):
                waiting.acquire(timeout=300)
        elif self._what.mode == "writes":
            for _ in range(self._what.slots):
                lease = self._acquire(0)
                self._leases.append(lease)
                self._perform(lease, writes_of_kind(self._script, "cohort"))

    def begin(self) -> None:
        """Put on the agenda what is measured and not put there by something before it."""
        now = time.monotonic()
        for number, worker in enumerate(self._workers):
            at = now + SEEN_SECONDS * number / len(self._workers)
            self.agenda.add(at, "seen", lambda worker=worker, at=at: self._say_seen(worker, at))
        if self._what.mode == "studies":
            return
        action = {"cycles": self._cycle, "polls": self._poll, "writes": self._write}[self._what.mode]
        count = int(self._what.per_second * self._what.seconds)
        for number in range(count):
            at = now + number / self._what.per_second
            self.agenda.add(at, self._what.mode, lambda number=number: action(number))

    # One action each.

    def _cycle(self, number: int) -> None:
        lease = self._queue.acquire(self._workers[number % len(self._workers)], ["study"])
        if lease is not None:
            self.agenda.add(time.monotonic(), "finish", lambda: self._queue.finish(lease, JobState.CANCELLED))

    def _poll(self, number: int) -> None:
        self._queue.reap()
        self._queue.acquire(self._workers[number % len(self._workers)], ["external"])

    def _write(self, number: int) -> None:
        lease = self._leases[number % len(self._leases)]
        rungs = [each for each in self._script if any(write["kind"] == "rung" for write in each["writes"])]
        self._perform(lease, rungs[number % len(rungs)]["writes"], again=number)

    def _say_seen(self, worker: str, at: float) -> None:
        with self._database.write() as session:
            values = {"seen_at": database_now(session), "slots": _slots("busy"), "lane_steps": int(at)}
            session.execute(update(WorkerRow).where(WorkerRow.id == worker).values(**values))
        again = at + SEEN_SECONDS
        self.agenda.add(again, "seen", lambda: self._say_seen(worker, again))

    def _start(self, slot: int, phase: float, waiting: threading.Semaphore | None) -> None:
        """Acquire a study and put its transactions on the agenda; what came before ``phase`` only as far as needed."""
        self._queue.reap()
        lease = self._acquire_once(slot)
        if lease is None:
            at = time.monotonic() + POLL_SECONDS * random.uniform(0.8, 1.2)
            self.agenda.add(at, "acquire", lambda: self._start(slot, phase, waiting))
            return
        seconds = self._what.study_seconds
        began = time.monotonic() - phase * seconds
        passed = [each for each in self._script if each["at"] < phase * seconds]
        for each in passed:
            self._perform(lease, [write for write in each["writes"] if write["kind"] == "cohort"])
        if waiting is not None:
            waiting.release()
        self._renew_at(lease, time.monotonic() + RENEW_SECONDS, began + seconds)
        self._go_on(slot, lease, began, len(passed))

    def _go_on(self, slot: int, lease: Lease, began: float, index: int) -> None:
        """The next transaction comes when it is due, and not before the one before has been committed."""
        if index == len(self._script):
            at = time.monotonic()
            self.agenda.add(at, "acquire", lambda: self._start(slot, 0.0, None))
            return
        entry = self._script[index]
        at = began + entry["at"]

        def act() -> None:
            self._perform(lease, entry["writes"])
            late = max(0.0, time.monotonic() - at)
            self._go_on(slot, lease, began + late, index + 1)

        self.agenda.add(at, entry["name"], act)

    def _renew_at(self, lease: Lease, at: float, until: float) -> None:
        def act() -> None:
            self._queue.renew(lease)
            if at + RENEW_SECONDS < until:
                self._renew_at(lease, at + RENEW_SECONDS, until)

        self.agenda.add(at, "renew", act)

    # What is written.

    def _acquire_once(self, slot: int) -> Lease | None:
        return self._queue.acquire(self._workers[slot // SLOTS_PER_WORKER], ["study"])

    def _acquire(self, slot: int) -> Lease:
        lease = self._acquire_once(slot)
        assert lease is not None, "the queue is empty: queue more studies"
        return lease

    def _perform(self, lease: Lease, writes: list[dict[str, Any]], again: int = 0) -> None:
        if not writes:
            return
        for write in writes:
            if write["kind"] == "cohort":
                self._ask(lease, write)
            elif write["kind"] == "recommendation":
                with self._database.read() as session:
                    load_study(session, lease.study_id)
        with self._queue.held(lease) as session:
            for write in writes:
                self._record(session, lease, write, again)

    def _ask(self, lease: Lease, write: dict[str, Any]) -> None:
        """What a worker does before a cohort: read the study, write the trials down, read it again."""
        settings = tuple(ClipSetting(**each["setting"]) for each in write["trials"])
        asked = Asked(settings=settings, stage=Stage(write["stage"]), seeds=tuple(write["seeds"]))
        with self._database.read() as session:
            load_study(session, lease.study_id)
        with self._queue.held(lease) as session:
            ledger.insert_trials(session, lease, asked, cohort=write["cohort"])
        with self._database.read() as session:
            load_study(session, lease.study_id)

    def _record(self, session: Session, lease: Lease, write: dict[str, Any], again: int) -> None:
        queue = self._queue
        match write["kind"]:
            case "probe":
                ledger.record_reference(
                    session, queue, lease, self._reference, spec=self._spec, begins_warm=True
                )
            case "cohort":
                ledger.start_cohort(session, queue, lease, *self._cohort(session, lease, write))
            case "rung":
                ids = _trial_ids(session, lease)
                values = tuple(
                    LaneValue(trial_id=ids[number], seed=seed, value=mean)
                    for number, mean in write["values"]
                    for seed in self._spec.seeds
                    if number in ids
                )
                event = RungReached(
                    index=write["index"],
                    # Another step each time: a row that is there already would not be written.
                    step=write["step"] + again,
                    values=values,
                    pruned=tuple(ids[each] for each in write["pruned"] if each in ids),
                )
                ledger.record_rung(
                    session, queue, lease, event, cohort=write["cohort"], num_rungs=write["num_rungs"]
                )
            case "trial":
                if (trial_id := _trial_ids(session, lease).get(write["number"])) is not None:
                    lanes = (self._lane,) * self._spec.num_seeds
                    ended = TrialEnded(trial_id=trial_id, state=write["state"], lanes=lanes)
                    ledger.record_trial(session, queue, lease, ended)
            case "engine":
                chosen = EngineChosen(**_without_cohort(write))
                ledger.record_engine(session, queue, lease, chosen, cohort=write["payload"]["cohort"])
            case "checkpoint":
                saved = CheckpointSaved(**_without_cohort(write))
                ledger.record_checkpoint(session, queue, lease, saved, cohort=write["payload"]["cohort"])
            case "progress":
                moved = Progressed(lane_steps=1000, total_lane_steps=24_000, step=100)
                ledger.record_progress(session, queue, lease, moved, cohort=0)
            case "recommendation":
                recommendations.store(
                    session,
                    study_id=lease.study_id,
                    tenant_id=lease.tenant_id,
                    spec=self._spec,
                    reference=self._reference,
                    recommendation=self._answer,
                    snippets=snippets(self._answer.setting),
                    provenance=self._recording["answer"]["provenance"],
                )
                queue.append_event(session, lease, "recommendation", {"verdict": self._answer.verdict})
            case "succeeded":
                queue.finish_in(session, lease, JobState.SUCCEEDED)
            case kind:
                queue.append_event(session, lease, kind, write.get("payload", {}))

    def _cohort(self, session: Session, lease: Lease, write: dict[str, Any]) -> tuple[Cohort, list[Trial]]:
        ids = _trial_ids(session, lease)
        trials = [
            Trial(
                id=ids[each["number"]],
                number=each["number"],
                cohort=write["cohort"],
                setting=ClipSetting(**each["setting"]),
            )
            for each in write["trials"]
        ]
        cohort = Cohort(
            workload=self._spec.workload,
            parameters=self._spec.parameters,
            trials=tuple(CohortTrial(id=trial.id, setting=trial.setting) for trial in trials),
            seeds=tuple(write["seeds"]),
            rung_steps=tuple(write["rung_steps"]),
            divergence_factor=self._spec.divergence_factor,
        )
        return cohort, trials

    def _register(self) -> None:
        with self._database.write() as session:
            now = database_now(session)
            rows = [
                {
                    "id": worker,
                    "hostname": "benchmark",
                    "pid": number,
                    "version": "0",
                    "device": "timer",
                    "slots": _slots("free"),
                    "started_at": now,
                    "seen_at": now,
                }
                for number, worker in enumerate(self._workers)
            ]
            session.execute(insert(WorkerRow), rows)


def _trial_ids(session: Session, lease: Lease) -> dict[int, str]:
    found = session.execute(select(TrialRow.number, TrialRow.id).where(TrialRow.study_id == lease.study_id))
    return {row.number: row.id for row in found}


def _without_cohort(write: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in write["payload"].items() if name != "cohort"}


def _slots(state: str) -> list[dict[str, Any]]:
    study = str(uuid.uuid4()) if state == "busy" else None
    slot = {"device": "cuda", "threads": 1, "state": state, "study_id": study, "reason": None}
    return [{"name": f"cuda:{number}"} | slot for number in range(SLOTS_PER_WORKER)]
