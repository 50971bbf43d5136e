"""The slots of a worker: held by one study at a time, set aside when no process gets ready, tried again in time."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.launchers.local import LocalLauncher
from service.launchers.process import TrainingProcess
from service.worker.pool import SlotPool
from service.worker.slot import Slot

TIMED = str(Path(__file__).parent / "timed_trainer.py")


@pytest.fixture
def launch(tmp_path: Path) -> Callable[[], TrainingProcess]:
    return LocalLauncher(
        threads=1, kill_grace_seconds=2, command=(sys.executable, TIMED, str(tmp_path), "slot")
    ).launch


MakePool = Callable[..., SlotPool]


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    pools: list[SlotPool] = []

    def make(*slots: Slot, **options: object) -> SlotPool:
        pools.append(SlotPool(slots, **options))  # type: ignore[arg-type]
        for study in "ab":
            pools[-1].enter(study, tenant_id=study)
        return pools[-1]

    yield make
    for each in pools:
        each.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_slots_are_shared_and_given_back_once(
    make_pool: MakePool, launch: Callable[[], TrainingProcess]
) -> None:
    pool = make_pool(Slot("x", launch), Slot("y", launch))
    pool.want("a", 2)
    first = pool.take("a")
    assert first is not None
    pool.want("b", 1)
    assert pool.take("a") is None, "it is the turn of the study that has none"
    second = pool.take("b")
    assert second is not None
    assert second is not first
    pool.give_back(first, "a")
    pool.want("b", 1)
    assert pool.take("b") is None, "the other one wants it and has none"
    pool.want("a", 0)
    again = pool.take("b")
    assert again is first
    pool.give_back(again, "a")
    assert [each["study_id"] for each in pool.to_json()] == ["b", "b"], "what is not held can't be given back"


def test_process_is_kept_for_its_study_and_nobody_else(
    make_pool: MakePool, launch: Callable[[], TrainingProcess]
) -> None:
    pool = make_pool(Slot("x", launch))
    pids = []
    for study in "aab":
        pool.want(study, 1)
        slot = pool.take(study)
        assert slot is not None
        pids.append(pool.process(slot).pid)
        pool.give_back(slot, study)
    assert pids[0] == pids[1] != pids[2]


def test_slot_is_tried_again_and_comes_back(
    make_pool: MakePool, launch: Callable[[], TrainingProcess]
) -> None:
    now, works = [0.0], []

    def launch_if_it_works() -> TrainingProcess:
        if not works:
            raise OSError("no such device")
        return launch()

    pool = make_pool(Slot("x", launch_if_it_works, expects="cpu"), clock=lambda: now[0])
    pool.want("a", 1)
    slot = pool.take("a")
    assert slot is not None
    pool.set_aside(slot, "a", "it failed\nTraceback\nOSError: no such device")
    assert pool.reasons() == {"x": "it failed: OSError: no such device"}
    assert (pool.num_usable, pool.take("a")) == (0, None)
    now[0] = 4.9
    pool.tend()
    assert slot.num_failures == 1, "not before its time"
    now[0] = 5.1
    pool.tend()
    assert (slot.num_failures, slot.again_at) == (2, 15.1), "the pause doubles"
    works.append(True)
    now[0] = 15.2
    until(lambda: pool.tend() is None and pool.num_usable == 1)
    assert pool.to_json()[0]["state"] == "free"
    pool.want("a", 1)
    assert pool.take("a") is slot


def test_wrong_device_and_dead_processes_are_seen_before_a_study_comes(
    make_pool: MakePool, launch: Callable[[], TrainingProcess]
) -> None:
    dead = LocalLauncher(
        threads=1, kill_grace_seconds=2, command=(sys.executable, "-c", "raise SystemExit('burnt')")
    )
    pool = make_pool(
        Slot("x", launch, expects="cuda"),
        Slot("y", dead.launch),
        Slot("z", launch, expects="cpu"),
        keeps_warm=True,
    )
    pool.warm()
    until(lambda: pool.tend() is None and len(pool.reasons()) == 2)
    assert pool.reasons() == {
        "x": "PyTorch 0 finds no cuda device there, only cpu",
        "y": "the training process ended with exit code 1: burnt",
    }
    assert [each["state"] for each in pool.to_json()] == ["aside", "aside", "free"]


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_slots_of_a_study_that_leaves_are_fresh_again(
    is_cut_off: bool, make_pool: MakePool, launch: Callable[[], TrainingProcess]
) -> None:
    pool = make_pool(Slot("x", launch), keeps_warm=True)
    pool.want("a", 1)
    slot = pool.take("a")
    assert slot is not None
    used = pool.process(slot)
    if is_cut_off:
        pool.drop(slot, "a")
        pool.give_back(slot, "a")
    pool.leave("a")
    assert not used.is_alive
    assert slot.process is not None
    assert slot.process_of is None
    pool.close()
    pool.warm()
    assert not slot.process.is_alive


def test_study_that_leaves_takes_nobody_elses_slot(
    make_pool: MakePool, launch: Callable[[], TrainingProcess]
) -> None:
    """Its process waits in a slot that another study has taken and not used yet."""
    pool = make_pool(Slot("x", launch), keeps_warm=True)
    pool.want("a", 1)
    slot = pool.take("a")
    assert slot is not None
    used = pool.process(slot)
    pool.give_back(slot, "a")
    pool.want("b", 1)
    assert pool.take("b") is slot
    pool.leave("a")
    assert not used.is_alive
    assert pool.to_json()[0]["study_id"] == "b"
    assert pool.process(slot).is_alive
    pool.give_back(slot, "b")
    assert pool.num_free == 1


def test_study_comes_back_only_when_its_last_driver_has_left(
    make_pool: MakePool, launch: Callable[[], TrainingProcess]
) -> None:
    """A worker may get a lease again that it has lost, before whoever drove under the lost one has noticed."""
    pool = make_pool(Slot("x", launch))
    pool.want("a", 1)
    assert pool.take("a") is not None
    entering = threading.Thread(target=pool.enter, args=("a",), kwargs={"tenant_id": "a"})
    entering.start()
    entering.join(0.1)
    assert entering.is_alive()
    pool.leave("a")
    entering.join(60)
    assert not entering.is_alive()
    assert pool.want("a", 1) == 1


def test_what_a_study_did_to_its_process_sets_no_slot_aside(
    make_pool: MakePool, launch: Callable[[], TrainingProcess]
) -> None:
    pool = make_pool(Slot("x", launch))
    pool.want("a", 1)
    slot = pool.take("a")
    assert slot is not None
    process = pool.process(slot)
    until(lambda: process.receive(0.1) is not None)
    pool.give_back(slot, "a")
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: pool.tend() is None and slot.process is None)
    assert pool.reasons() == {}
    assert pool.num_free == 1


def test_device_that_is_gone_for_days_is_tried_every_five_minutes(make_pool: MakePool) -> None:
    now = [0.0]

    def fail() -> TrainingProcess:
        raise OSError("no such device")

    slot = Slot("x", fail)
    pool = make_pool(slot, clock=lambda: now[0])
    pool.want("a", 1)
    assert pool.take("a") is slot
    pool.set_aside(slot, "a", "no such device")
    for _ in range(1100):
        now[0] = slot.again_at
        pool.tend()
    assert slot.num_failures == 1101
    assert slot.again_at - now[0] == 300.0
