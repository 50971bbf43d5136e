"""The client's side of a lease, against the real application over sockets: reports, outages, ends, lost processes."""

from __future__ import annotations

import gc
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from serving import serving

from service.api.app import create_app
from service.client import Client, LeasedTrial
from service.db.session import Database
from service.errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError
from service.lanes import close_lanes, load_lanes
from service.lanes.lane import LaneState
from service.settings import Settings
from tuner.errors import TrialPruned
from tuner.evidence import Stage
from tuner.records import LaneRecord
from tuner.spec import ClipSetting

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 30.0


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    """SQLite alone: the client never sees which database answers."""
    return sqlite_database


class World:
    """An external study with one trial, two lanes, and a service with short leases."""

    def __init__(self, api: Any, lease_seconds: float, num_lanes: int = 2) -> None:
        self.api = api
        settings = Settings(
            home=api.settings.home,
            lease_seconds=lease_seconds,
            renew_seconds=lease_seconds / 4,
            kill_grace_seconds=lease_seconds / 5,
        )
        self.app = create_app(settings, api.database)
        body = {"workload": "mine", "external": True, "parameters": {"depth": 3}, "num_steps": 90}
        self.study_id = api.study(**body)["id"]
        self.lease = api.queue.acquire(str(uuid.uuid4()), ["external", "study"])
        assert self.lease is not None
        self.trial_id = api.put_up_lanes(self.study_id, num_lanes)

    def lanes(self) -> tuple[LaneState, ...]:
        with self.api.database.read() as session:
            return load_lanes(session, self.study_id, [self.trial_id])

    def states(self) -> list[str]:
        return [str(lane.state) for lane in self.lanes()]

    def wait_for(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.lanes()
            time.sleep(0.02)


@pytest.fixture
def world(api: Any) -> World:
    return World(api, lease_seconds=60)


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    with serving(world.app) as url, Client(url, world.api.key) as opened:
        yield opened


def ask(client: Client, world: World, **options: Any) -> LeasedTrial:
    trial = client.ask(world.study_id, **options)
    assert trial is not None
    return trial


# --- the usual course ---


def test_a_block_trains_a_lane_from_asking_to_its_end(world: World, client: Client) -> None:
    with ask(client, world) as trial:
        assert (trial.trial_id, trial.study_id, trial.number) == (world.trial_id, world.study_id, 0)
        assert (trial.seed, trial.stage, trial.workload) == (0, Stage.SEARCH, "mine")
        assert trial.setting == ClipSetting(method="global_norm", threshold=0.35)
        assert (trial.parameters, trial.objective) == ({"depth": 3}, "val_loss")
        assert (trial.num_steps, trial.rung_steps) == (90, (10, 30, 90))
        assert "seed=0" in repr(trial) and "global_norm:0.35" in repr(trial)
        trial.report(0, 2.5)
        trial.report(10, 1.5, norms=[0.25, math.nan, -1.0, 0.5])
        trial.report(20, None, norms=[0.75])
        trial.report(90, 1.25)
    (lane, _) = world.lanes()
    assert (lane.state, lane.value, lane.initial, lane.record) == ("complete", 1.25, 2.5, None)
    assert lane.reports == {0: 2.5, 10: 1.5, 90: 1.25} and lane.norms == (0.25, 0.5, 0.75)


def test_norms_and_figures_come_from_clip(world: World, client: Client) -> None:
    import torch

    weight = torch.nn.Parameter(torch.zeros(4))
    with ask(client, world) as trial:
        for step in range(3):
            weight.grad = torch.full((4,), 0.5 if step else 0.05)
            norm = trial.clip([weight], loss=1.0)
            assert math.isclose(float(norm), 1.0 if step else 0.1, rel_tol=1e-6)
        assert torch.allclose(weight.grad, torch.full((4,), 0.175), rtol=1e-4)
        trial.report(3, 1.5)
        trial.report(90, 1.0)
    (lane, _) = world.lanes()
    assert [round(norm, 4) for norm in lane.norms] == [0.1, 1.0, 1.0]
    assert lane.record is not None and lane.record["num_steps"] == 3
    assert round(lane.record["clip_fraction"], 4) == 0.6667 and lane.record["seconds"] > 0


def test_a_value_and_a_record_can_be_given_at_the_end(world: World, client: Client) -> None:
    record = LaneRecord(
        num_steps=90, divergence_step=None, clip_fraction=0.25, mean_scale=0.5, norms=None, num_non_finite=0
    )
    with ask(client, world) as trial:
        trial.complete(0.75, record)
        trial.complete(9.0)
        with pytest.raises(TrialPruned, match="completed already"):
            trial.report(90, 1.0)
    (lane, _) = world.lanes()
    assert (lane.value, lane.step) == (0.75, 90)
    assert lane.record is not None and lane.record["clip_fraction"] == 0.25


def test_the_study_is_worked_off_until_it_has_ended(world: World, client: Client) -> None:
    seeds = []
    while (trial := client.ask(world.study_id)) is not None:
        with trial:
            seeds.append(trial.seed)
            trial.report(90, 1.0)
        if len(seeds) == 2:
            world.api.http.post(f"/v1/studies/{world.study_id}/cancel")
    assert seeds == [0, 1] and world.states() == ["complete", "complete"]


def test_asking_again_under_one_name_gives_the_same_lane(world: World, client: Client) -> None:
    first = ask(client, world, client_id="me")
    again = ask(client, world, client_id="me")
    assert (first.seed, again.seed) == (0, 0)
    with pytest.raises(TrialPruned, match="lease is lost"):
        first.report(10, 1.0)
    again.report(10, 1.0)
    again.complete()
    with pytest.raises(TrialPruned, match="lease is lost"):
        first.report(20, 1.0)
    first.close()


def test_who_finds_no_lane_waits_or_is_told(world: World, client: Client) -> None:
    trials = [ask(client, world), ask(client, world)]
    with pytest.raises(UnavailableError, match=r"no lane .* free within 0 s") as caught:
        client.ask(world.study_id, wait=0)
    assert caught.value.code == "no_lane_ready"
    threading.Timer(0.3, trials[1].fail, ["device_lost", "given back"]).start()
    found = ask(client, world)
    assert found.seed == 1
    found.close()
    trials[0].close()


def test_what_can_not_be_asked_is_a_problem(world: World, client: Client) -> None:
    with pytest.raises(NotFoundError):
        client.ask(str(uuid.UUID(int=0)))
    with pytest.raises(ConflictError) as caught:
        client.ask(world.api.study()["id"])
    assert caught.value.code == "not_external"
    with pytest.raises(InvalidRequestError, match="client_id"):
        client.ask(world.study_id, client_id="x" * 101)


def test_the_first_contact_is_not_waited_for() -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url, "key") as nobody, pytest.raises(UnavailableError) as caught:
            nobody.ask("study")
    assert caught.value.code == "service_unreachable"


# --- being told to stop ---


def test_a_lane_that_is_not_wanted_any_more_ends_its_block_quietly(world: World, client: Client) -> None:
    steps = []
    with ask(client, world) as trial:
        for step in (10, 20, 30):
            trial.report(step, 1.0)
            steps.append(step)
            with world.api.database.write() as session:
                close_lanes(session, study_id=world.study_id)
    assert steps == [10] and world.states() == ["closed", "closed"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverged_training_ends(world: World, client: Client, value: float) -> None:
    with ask(client, world) as trial:
        trial.report(0, 2.0)
        with pytest.raises(TrialPruned, match="diverged at step 10"):
            trial.report(10, value)
    assert world.lanes()[0].state == "diverged" and world.lanes()[0].reports == {0: 2.0, 10: None}
    with ask(client, world) as trial:
        trial.complete(value)
    assert world.states() == ["diverged", "diverged"]


def test_a_heartbeat_that_is_told_to_stop_ends_the_training_at_its_next_report(api: Any) -> None:
    world = World(api, lease_seconds=0.4)
    with serving(world.app) as url, Client(url, api.key) as client, ask(client, world) as trial:
        with api.database.write() as session:
            close_lanes(session, study_id=world.study_id)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while trial._delivery.stop_reason is None and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(TrialPruned, match="the trial has ended"):
            trial.report(10, 1.0)
    assert world.lanes()[0].reports == {}


# --- failures ---


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "cause", "state"),
    [
        (ValueError("boom"), "bug", "waiting"),
        (OutOfMemoryError("CUDA"), "oom", "fail"),
        (MemoryError(), "oom", "fail"),
        (KeyboardInterrupt(), "preempted", "waiting"),
        (SystemExit(3), "device_lost", "waiting"),
    ],
)
def test_a_broken_block_gives_the_lane_back_with_its_cause(
    world: World, client: Client, error: BaseException, cause: str, state: str
) -> None:
    with pytest.raises(type(error)), ask(client, world) as trial:
        trial.report(10, 1.0)
        raise error
    (lane, _) = world.lanes()
    assert (lane.state, lane.last_cause) == (state, cause)
    assert type(error).__name__ in lane.last_error


def test_a_long_error_keeps_its_end(world: World, client: Client) -> None:
    ask(client, world).fail("bug", "x" * 9000 + "\ud800 the end")
    kept = world.lanes()[0].last_error
    assert kept is not None and kept.endswith("the end") and len(kept) <= 8000


def test_a_block_without_any_objective_is_a_failure_that_says_so(world: World, client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="without an objective") as caught, ask(client, world):
        pass
    assert caught.value.code == "value_missing"
    (lane, _) = world.lanes()
    assert (lane.state, lane.last_cause) == ("waiting", "bad_output")


def test_a_refused_report_is_raised_and_the_next_one_goes_on(world: World, client: Client) -> None:
    with ask(client, world) as trial:
        with pytest.raises(InvalidRequestError, match="at most 90"):
            trial.report(91, 1.0)
        trial.report(90, 1.0)
    assert world.lanes()[0].reports == {90: 1.0}


def test_more_norms_than_a_report_takes_are_thinned_evenly(world: World, client: Client) -> None:
    with ask(client, world) as trial:
        trial.report(90, 1.0, norms=range(3000))
    norms = world.lanes()[0].norms
    assert (len(norms), norms[0], norms[-1]) == (1000, 0.0, 2997.0)


# --- time and outages ---


def test_a_slow_training_keeps_its_lease(api: Any) -> None:
    world = World(api, lease_seconds=0.5, num_lanes=1)
    with serving(world.app) as url, Client(url, api.key) as client, ask(client, world) as trial:
        time.sleep(1.5)
        with pytest.raises(UnavailableError):
            client.ask(world.study_id, client_id="other", wait=0)
        trial.report(90, 1.0)
    assert world.lanes()[0].lost_count == 0 and world.states() == ["complete"]


def test_a_handle_that_is_forgotten_lets_the_lease_run_out(api: Any) -> None:
    world = World(api, lease_seconds=0.4, num_lanes=1)
    with serving(world.app) as url, Client(url, api.key) as client:
        ask(client, world)
        gc.collect()
        other = ask(client, world)
        assert world.lanes()[0].lost_count == 1
        other.complete(1.0)


def test_reports_of_an_outage_are_sent_when_the_service_is_back(api: Any) -> None:
    world = World(api, lease_seconds=60)
    with serving(world.app) as url:
        port = int(url.rpartition(":")[2])
        client = Client(url, api.key)
        trial = ask(client, world)
        trial.report(0, 2.0)
    began = time.monotonic()
    trial.report(10, 1.5, norms=[0.5])
    trial.report(30, 1.25)
    assert time.monotonic() - began < PATIENCE_SECONDS, "the training goes on"
    assert world.lanes()[0].reports == {0: 2.0}
    with serving(world.app, port):
        trial.complete(1.0)
    client.close()
    lane = world.lanes()[0]
    assert lane.reports == {0: 2.0, 10: 1.5, 30: 1.25} and lane.norms == (0.5,)
    assert (lane.state, lane.value) == ("complete", 1.0)


def test_a_heartbeat_delivers_what_was_kept(api: Any) -> None:
    world = World(api, lease_seconds=4)
    with serving(world.app) as url:
        port = int(url.rpartition(":")[2])
        client = Client(url, api.key)
        trial = ask(client, world)
    trial.report(10, 1.5)
    with serving(world.app, port):
        world.wait_for(lambda: world.lanes()[0].reports)
        trial.complete()
    client.close()
    assert world.lanes()[0].state == "complete"


def test_a_lane_that_was_lost_in_an_outage_stops_the_training(api: Any) -> None:
    world = World(api, lease_seconds=60)
    with serving(world.app) as url:
        port = int(url.rpartition(":")[2])
        client = Client(url, api.key)
        trial = ask(client, world, client_id="a")
    trial.report(10, 1.5)
    world.app.state.lanes.queue.ask(tenant_id="default", study_id=world.study_id, client_id="a")
    with serving(world.app, port), pytest.raises(TrialPruned, match="lease is lost"):
        trial.complete(1.0)
    client.close()
    assert world.lanes()[0].reports == {}


def test_a_service_that_stays_away_ends_the_completion(api: Any) -> None:
    world = World(api, lease_seconds=0.4)
    with serving(world.app) as url:
        client = Client(url, api.key)
        trial = ask(client, world)
    with pytest.raises(UnavailableError) as caught:
        trial.complete(1.0)
    assert caught.value.code == "service_unreachable"
    with pytest.raises(ZeroDivisionError), trial:
        raise ZeroDivisionError  # and no other error hides it
    client.close()


def test_asking_survives_a_restart_of_the_service(api: Any) -> None:
    world = World(api, lease_seconds=60)
    with serving(world.app) as url:
        port = int(url.rpartition(":")[2])
        client = Client(url, api.key)
        ask(client, world).complete(1.0)
    found: list[LeasedTrial] = []
    asker = threading.Thread(target=lambda: found.append(ask(client, world)))
    asker.start()
    time.sleep(0.3)  # at least one try is refused
    with serving(world.app, port):
        asker.join(timeout=PATIENCE_SECONDS)
        found[0].complete(1.0)
    client.close()
    assert world.states() == ["complete", "complete"]


PROCESS = """
    import sys, time
    from service.client import Client
    client = Client(sys.argv[1], sys.argv[2])
    trial = client.ask(sys.argv[3])
    trial.report(10, 1.5)
    print("training", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_gives_its_lane_back_within_the_lease(api: Any) -> None:
    world = World(api, lease_seconds=1.0, num_lanes=1)
    with serving(world.app) as url, Client(url, api.key) as client:
        command = [sys.executable, "-c", textwrap.dedent(PROCESS), url, api.key, world.study_id]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "training\n"
            time.sleep(1.5)
            assert world.lanes()[0].lost_count == 0, "it lived"
            process.send_signal(signal.SIGKILL)
            process.wait()
            with ask(client, world) as trial:
                assert trial.seed == 0
                trial.report(10, 1.25)
    lane = world.lanes()[0]
    assert (lane.state, lane.fence, lane.lost_count, lane.reports) == ("complete", 2, 1, {10: 1.25})


def test_the_client_loads_no_torch_unless_it_clips(world: World, client: Client) -> None:
    program = textwrap.dedent("""
        import sys
        from service.client import Client
        with Client(sys.argv[1], sys.argv[2]) as client, client.ask(sys.argv[3]) as trial:
            trial.report(90, 1.0)
        heavy = {"torch", "optuna", "sqlalchemy", "fastapi", "numpy"}
        print(sorted(heavy & set(sys.modules)))
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, client.url, world.api.key, world.study_id],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert world.states() == ["complete", "waiting"]
