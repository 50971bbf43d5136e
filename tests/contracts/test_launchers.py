"""What every launcher keeps, on this machine and on a Ray cluster of several nodes: real processes, odd and ordinary.

A launcher gives `TrainingProcess`es. However far away the training runs, its events arrive in order and once, what it
did wrong has the same cause and sentence, and nothing of it is left when it was stopped or its worker killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from liveness import is_running
from ray_nodes import RayNodes

from service.errors import TrainingError
from service.launchers.local import LocalLauncher
from service.launchers.process import TrainingProcess
from service.launchers.protocol import MAX_LINE_BYTES, Broken, Done, Message, PathWanted, Pending, Ready
from service.launchers.ray import RayLauncher
from service.settings import Settings
from service.worker.opening import _described, open_slots
from tuner.spec import OFF_SETTING, ClipSetting
from tuner.training.cohort import (
    CheckpointSaved,
    Cohort,
    CohortTrial,
    PartReached,
    Progressed,
    Resumed,
    RungReached,
    TrialEnded,
)
from tuner.workloads.registrations import BUILT_IN, Registrations, parse_registrations

FOLDER = Path(__file__).parents[1] / "service" / "launchers"
ODD = str(FOLDER / "odd_trainer.py")
#: Between SIGTERM and SIGKILL, in seconds.
GRACE = 3.0
REGISTERED = Registrations([*BUILT_IN, *parse_registrations("faulty=faulty:train", source="a test")])


class Local:
    """Trainings of this machine."""

    #: What a program has to import and call for a process that runs `odd_trainer.py`.
    worker = "TrainingProcess((sys.executable, sys.argv[1]), threads=1, kill_grace_seconds=3)"

    def __init__(self) -> None:
        self._started: list[TrainingProcess] = []

    def odd(self) -> TrainingProcess:
        """A process that takes a request for `odd_trainer.py`."""
        return self._kept(TrainingProcess((sys.executable, ODD), threads=1, kill_grace_seconds=GRACE))

    def trainer(self) -> TrainingProcess:
        """A process that trains."""
        launcher = LocalLauncher(
            threads=1, kill_grace_seconds=GRACE, registrations=REGISTERED, import_from=(str(FOLDER),)
        )
        return self._kept(launcher.launch())

    def stop(self) -> None:
        for process in self._started:
            process.stop()

    def _kept(self, process: TrainingProcess) -> TrainingProcess:
        self._started.append(process)
        return process


class OnRay(Local):
    """Trainings of the nodes of a cluster; a process that is still good serves the next test too."""

    worker = (
        "RayLauncher(Settings(launcher='ray', ray_gpus=0, kill_grace_seconds=3, ray_address=sys.argv[2]), "
        "registrations=Registrations([]), program=(sys.argv[1],)).launch()"
    )

    def __init__(self, nodes: RayNodes) -> None:
        super().__init__()
        self.nodes = nodes
        self._kinds: dict[str, TrainingProcess] = {}

    def launcher(self, *program: str, **settings: Any) -> RayLauncher:
        given = {
            "launcher": "ray",
            "ray_address": self.nodes.address,
            "ray_gpus": 0,
            "kill_grace_seconds": GRACE,
        }
        options = {"program": program} if program else {}
        return RayLauncher(
            Settings(**(given | settings)), registrations=REGISTERED, import_from=(str(FOLDER),), **options
        )

    def odd(self) -> TrainingProcess:
        return self._good("odd", ODD)

    def trainer(self) -> TrainingProcess:
        return self._good("trainer")

    def unkept(self, **settings: Any) -> TrainingProcess:
        """A process of one test's own."""
        return self._kept(self.launcher(ODD, **settings).launch())

    def _good(self, kind: str, *program: str) -> TrainingProcess:
        found = self._kinds.get(kind)
        if found is None or not found.is_alive:
            found = self._kinds[kind] = self._kept(self.launcher(*program).launch())
        return found


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    with RayNodes(tmp_path_factory.mktemp("cluster")) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        yield cluster


@pytest.fixture(scope="module")
def on_ray(nodes: RayNodes) -> Iterator[OnRay]:
    site = OnRay(nodes)
    yield site
    site.stop()


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    site = Local()
    yield site
    site.stop()


@pytest.fixture(params=["local", "on_ray"])
def site(request: pytest.FixtureRequest) -> Local:
    found: Local = request.getfixturevalue(request.param)
    if isinstance(found, OnRay):
        found.nodes.have(1)
    return found


def ask(process: TrainingProcess, behaviour: str, **more: Any) -> None:
    process.send({"kind": "odd", "behaviour": behaviour} | more)


def receive(process: TrainingProcess) -> Message:
    """The next message that is about the request itself.

    Raises:
        TrainingError: if the process broke, or told that the request did.
    """
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        message = process.receive(1)
        if isinstance(message, Broken):
            raise TrainingError(f"{message.detail}\n{message.traceback}", cause=message.cause)
        if message is not None and not isinstance(message, Ready | Pending):
            return message
    raise AssertionError("nothing was said for two minutes")


def await_pending(process: TrainingProcess, detail: str) -> bool:
    """Listen until a request waits for a certain reason.

    Raises:
        TrainingError: if the process broke.
    """
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        message = process.receive(1)
        if isinstance(message, Pending) and message.detail == detail:
            return True
        assert message is None or isinstance(message, Ready | Pending)
    return False


def told_by(process: TrainingProcess) -> list[Message]:
    """Everything up to `Done`."""
    return list(iter(lambda: receive(process), Done()))


def seconds_until_gone(*pids: int) -> float:
    started = time.monotonic()
    while any(map(is_running, pids)):
        assert time.monotonic() < started + 60, f"one of {pids} lives on"
        time.sleep(0.01)
    return time.monotonic() - started


# ---- what is said ----


def test_events_arrive_in_order_and_once(site: Local) -> None:
    process = site.odd()
    ask(process, "counts", up_to=3000)
    assert [each.lane_steps for each in told_by(process)] == list(range(3000))  # type: ignore[union-attr]


def test_part_hears_each_decision(site: Local) -> None:
    process = site.odd()
    ask(process, "parts")
    told = []
    for index in range(3):
        assert isinstance(receive(process), PartReached)
        process.send({"kind": "decision", "index": index, "pruned": [f"trial-{index}"]})
        told.append(receive(process))
    assert isinstance(receive(process), Done)
    assert [each.pruned for each in told if isinstance(each, RungReached)] == [
        ("trial-0",),
        ("trial-1",),
        ("trial-2",),
    ]


@pytest.mark.parametrize(
    ("behaviour", "cause", "sentence"),
    [
        ("exit", "bug", r"exit code 7\nthe reason is here"),
        ("killed", "device_lost", "killed by SIGKILL, which was not ours"),
        ("bad_json", "bad_output", "no event .*Segmentation fault"),
        ("wrong_type", "bad_output", "no event"),
        ("nan", "bad_output", "no event"),
        ("long_line", "bad_output", f"more than {MAX_LINE_BYTES} bytes"),
        ("closes", "bad_output", "closed its event pipe but lives on"),
        ("orphaned_pipe", "device_lost", "killed by SIGKILL"),
        ("exception", "bug", "ValueError: no"),
    ],
)
def test_fault_has_its_cause(site: Local, behaviour: str, cause: str, sentence: str) -> None:
    process = site.odd()
    ask(process, behaviour)
    with pytest.raises(TrainingError, match=sentence) as caught:
        told_by(process)
    assert caught.value.cause == cause


def test_output_is_no_event_and_holds_nothing_up(site: Local) -> None:
    process = site.odd()
    ask(process, "noise")
    assert told_by(process) == []


def test_environment_is_an_allow_list(site: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPTUNE_API_KEY", "canary")
    monkeypatch.setenv("CLIPTUNE_DATABASE_URL", "sqlite:///canary.db")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    process = site.odd()
    ask(process, "environment")
    with pytest.raises(TrainingError, match="PATH") as caught:
        told_by(process)
    for word in ("CLIPTUNE_", "AWS_", "RAY_AUTH", "canary"):
        assert word not in str(caught.value)


# ---- the end ----


def test_hanging_training_is_its_callers_to_end_with_all_it_started(site: Local) -> None:
    """Silence is no error here: the caller has the patience, and `stop` leaves nothing after five seconds."""
    process = site.odd()
    ask(process, "stubborn")
    grandchild = receive(process).lane_steps  # type: ignore[union-attr]
    assert process.receive(0.2) is None
    assert process.ready is not None
    started = time.monotonic()
    process.stop()
    seconds_until_gone(process.ready.pid, process.pid, grandchild)
    assert time.monotonic() - started < 5
    with pytest.raises(TrainingError):
        process.send({"kind": "odd", "behaviour": "counts", "up_to": 1})


def test_process_that_is_stopped_between_two_requests_leaves_nothing(site: Local) -> None:
    process = site.odd()
    ask(process, "leaves")
    (told,) = told_by(process)
    assert process.ready is not None
    trainer = process.ready.pid
    folder = Path(f"/proc/{trainer}/cwd").resolve()
    assert folder.exists()
    process.stop()
    seconds_until_gone(trainer, process.pid, told.lane_steps)  # type: ignore[union-attr]
    assert not folder.exists()


@pytest.mark.parametrize("victim", ["worker", "process"])
def test_killed_worker_takes_its_training_along(site: Local, victim: str) -> None:
    """Nobody is left to ask for it: standard input closes, or on Ray the actor's owner is gone."""
    program = (
        "import os, sys, time\n"
        "from service.launchers.process import TrainingProcess\n"
        "from service.launchers.ray import RayLauncher\n"
        "from service.settings import Settings\n"
        "from tuner.workloads.registrations import Registrations\n"
        f"process = {site.worker}\n"
        "process.send({'kind': 'odd', 'behaviour': 'grandchild'})\n"
        "while (told := process.receive(60)).kind != 'progress': pass\n"
        "print(process.pid, process.ready.pid, told.lane_steps, flush=True)\n"
        "time.sleep(600)\n"
    )
    arguments = [ODD, site.nodes.address] if isinstance(site, OnRay) else [ODD]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        process, trainer, _ = map(int, worker.stdout.readline().split())
        assert is_running(trainer)
        os.kill(worker.pid if victim == "worker" else process, signal.SIGKILL)
        assert seconds_until_gone(process, trainer) < 5
        worker.kill()


# ---- what trains ----


def cohort(**more: Any) -> Cohort:
    """*off* and a threshold on a small net, compared at step 5 of 20."""
    trials = (
        CohortTrial(id="off", setting=OFF_SETTING, protected=True),
        CohortTrial(id="half", setting=ClipSetting.parse("global_norm:0.5")),
    )
    given = {
        "workload": "digits-mlp",
        "parameters": {},
        "trials": trials,
        "seeds": (0, 1),
        "rung_steps": (5, 20),
    }
    return Cohort(**(given | {"divergence_factor": 3.0} | more))


def part_of(process: TrainingProcess, folder: Path) -> list[Message]:
    """Ask for the cohort as a part, trained as one batch; what was told up to its first rung, where it waits."""
    request = {"kind": "cohort", "cohort": cohort().to_json(), "checkpoints": str(folder), "is_part": True}
    process.send(request)
    told = [receive(process)]
    while not isinstance(told[-1], PartReached):
        if isinstance(told[-1], PathWanted):
            process.send({"kind": "path", "path": "lanes"})
        told.append(receive(process))
    return told


def decided(process: TrainingProcess) -> list[Message]:
    """Let everybody go on, and train to the end."""
    process.send({"kind": "decision", "index": 0, "pruned": []})
    return told_by(process)


def values_of(told: list[Message]) -> list[tuple[str, list[float | None]]]:
    return [
        (each.trial_id, [lane.value for lane in each.lanes]) for each in told if isinstance(each, TrialEnded)
    ]


@pytest.fixture(scope="module")
def undisturbed(
    local: Local, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, list[float | None]]]:
    """What the cohort gives where nothing happens to it."""
    process = local.trainer()
    part_of(process, tmp_path_factory.mktemp("undisturbed"))
    return values_of(decided(process))


@pytest.mark.parametrize("where", ["local", "on_ray"])
def test_device_that_is_out_of_memory_is_told_as_that(where: str, request: pytest.FixtureRequest) -> None:
    site = request.getfixturevalue(where)
    if isinstance(site, OnRay):
        site.nodes.have(1)
    large = (CohortTrial(id="large", setting=ClipSetting.parse("global_norm:8")),)
    faulty = cohort(workload="faulty", parameters={"fault": "memory"}, trials=large, seeds=(0,))
    process = site.trainer()
    process.send({"kind": "cohort", "cohort": faulty.to_json(), "checkpoints": None})
    with pytest.raises(TrainingError, match="can't allocate memory") as caught:
        told_by(process)
    assert caught.value.cause == "oom"


# ---- a cluster ----


def test_node_that_dies_costs_a_relaunch_on_another_and_changes_nothing(
    on_ray: OnRay, undisturbed: list[tuple[str, list[float | None]]], tmp_path: Path
) -> None:
    on_ray.nodes.have(2)
    process = on_ray.trainer()
    assert any(isinstance(each, CheckpointSaved) for each in part_of(process, tmp_path))
    assert process.ready is not None
    node = on_ray.nodes.node_of(process.ready.pid)
    on_ray.nodes.kill(node)
    started = time.monotonic()
    with pytest.raises(TrainingError, match="died") as caught:
        receive(process)
    assert caught.value.cause == "device_lost"
    assert time.monotonic() - started < 10
    again = part_of(process, tmp_path)
    assert [each.step for each in again if isinstance(each, Resumed)] == [5]
    assert on_ray.nodes.node_of(process.ready.pid) != node
    told = decided(process)
    assert values_of(told) == undisturbed
    assert not [each for each in told if isinstance(each, Progressed) and each.step < 5]


def test_next_request_finds_its_process_warm_and_the_device_is_given_back_after_a_while(
    on_ray: OnRay,
) -> None:
    on_ray.nodes.have(1)
    process = on_ray.unkept()
    pids = []
    for _ in range(2):
        ask(process, "counts", up_to=3)
        assert len(told_by(process)) == 3
        assert process.ready is not None
        pids.append(process.ready.pid)
    assert pids[0] == pids[1]
    assert is_running(pids[0])
    seconds_until_gone(pids[0])
    ask(process, "counts", up_to=3)
    assert len(told_by(process)) == 3
    assert process.ready.pid != pids[0]
    assert process.greeting is not None and process.greeting.pid == process.pid, "it stands for them"
    # One that died while nobody asked costs no request.
    os.kill(process.ready.pid, signal.SIGKILL)
    ask(process, "counts", up_to=3)
    assert len(told_by(process)) == 3


def test_node_that_dies_between_two_requests_costs_none_of_them(on_ray: OnRay) -> None:
    on_ray.nodes.have(2)
    process = on_ray.unkept()
    ask(process, "counts", up_to=3)
    told_by(process)
    assert process.ready is not None
    on_ray.nodes.kill(on_ray.nodes.node_of(process.ready.pid))
    ask(process, "counts", up_to=3)
    assert len(told_by(process)) == 3


def test_preempted_node_is_told_as_that(on_ray: OnRay) -> None:
    on_ray.nodes.have(1)
    process = on_ray.odd()
    ask(process, "grandchild")
    receive(process)
    assert process.ready is not None
    on_ray.nodes.preempt(on_ray.nodes.node_of(process.ready.pid))
    with pytest.raises(TrainingError, match="was preempted") as caught:
        receive(process)
    assert caught.value.cause == "device_lost"


def test_requests_wait_for_nodes_and_say_so(on_ray: OnRay) -> None:
    """Two requests and no node: both wait, the autoscaler sees both, and one node serves one after the other."""
    on_ray.nodes.kill_all()
    first, second = on_ray.odd(), on_ray.unkept()
    for process in (first, second):
        ask(process, "counts", up_to=1)
    # The cluster misses a node that was killed only after some heartbeats.
    assert await_pending(first, "no node of the cluster has 1 CPU: it waits for one to join")
    while len(on_ray.nodes.demand()) < 2:
        second.receive(0.5)
    assert on_ray.nodes.demand() == [{"CPU": 1.0}] * 2
    on_ray.nodes.have(1)
    assert [len(told_by(each)) for each in (first, second)] == [1, 1]


def test_workload_that_ends_its_process_keeps_no_other_from_being_described(on_ray: OnRay) -> None:
    on_ray.nodes.have(1)
    launcher = on_ray.launcher(ODD)
    launcher.registrations = Registrations(
        parse_registrations("good=faulty:train,ends=faulty:train", source="a test")
    )
    catalogue, process = _described(launcher, launcher.launch())
    assert process is None
    assert [each.name for each in catalogue.workloads] == ["good"]
    assert [(each.name, "exit code 7" in each.reason) for each in catalogue.refused] == [("ends", True)]


def test_head_that_is_away_ends_a_worker_that_starts_with_its_sentence(nodes: RayNodes) -> None:
    settings = Settings(launcher="ray", ray_address="127.0.0.1:1", kill_grace_seconds=GRACE)
    with pytest.raises(
        TrainingError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 .*\[ray_unreachable\]$"
    ):
        open_slots(settings)


def test_request_that_is_lost_before_it_reaches_its_node_is_told_after_a_few_times(
    on_ray: OnRay, tmp_path: Path
) -> None:
    """The node's process ends where it would import the relay."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Ends:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'service.launchers.ray_relay':\n"
        "            os._exit(1)\n"
        "sys.meta_path.insert(0, Ends())\n"
    )
    environment = tmp_path / "runtime-env.json"
    environment.write_text(json.dumps({"env_vars": {"PYTHONPATH": str(tmp_path)}}))
    on_ray.nodes.have(1)
    process = on_ray.unkept(ray_runtime_env=str(environment))
    ask(process, "counts", up_to=1)
    with pytest.raises(
        TrainingError, match="killed the training's process on a node that it had not reached"
    ) as caught:
        receive(process)
    assert caught.value.cause == "device_lost"


def test_gpu_that_pytorch_does_not_see_is_refused(on_ray: OnRay) -> None:
    """The nodes say that they have one, and there is none: half of it is given, and nothing is trained on the CPU."""
    on_ray.nodes.have(1)
    process = on_ray.unkept(ray_gpus=0.5)
    ask(process, "stubborn")
    with pytest.raises(TrainingError, match="has a GPU for Ray, and PyTorch 0 sees none there") as caught:
        receive(process)
    assert caught.value.cause == "device_lost"


@pytest.mark.parametrize(
    ("variables", "settings", "code"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, {}, "ray_authentication_off"),
        ({"RAY_AUTH_TOKEN_PATH": ""}, {}, "ray_token_refused"),
        ({"RAY_AUTH_TOKEN_PATH": "wrong"}, {}, "ray_token_refused"),
        ({}, {"ray_address": "127.0.0.1:1"}, "ray_unreachable"),
        ({}, {"ray_runtime_env": "runtime-env.json"}, "ray_runtime_env_refused"),
    ],
    ids=["off", "none", "wrong", "nobody", "runtime env"],
)
def test_cluster_that_can_not_be_used_is_named_before_the_process_is_ready(
    on_ray: OnRay,
    variables: dict[str, str],
    settings: dict[str, Any],
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "wrong").touch(mode=0o600)
    (tmp_path / "wrong").write_text("0" * 64)
    (tmp_path / "runtime-env.json").write_text('{"working_dir": "no-such-folder"}')
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value == "wrong" else value)
    process = on_ray.unkept(**settings)
    with pytest.raises(TrainingError, match=rf"\[{code}\]$") as caught:
        receive(process)
    assert process.ready is None
    assert caught.value.cause == "device_lost"


def test_head_that_is_killed_ends_the_process_and_the_next_one_attaches_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a cluster of one machine without authentication, which the operator allows."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with contextlib.ExitStack() as stack:
        head = stack.enter_context(RayNodes(tmp_path, is_secure=False, head_cpus=1))
        settings = Settings(
            launcher="ray",
            ray_address=head.address,
            ray_gpus=0,
            ray_allow_insecure=True,
            kill_grace_seconds=GRACE,
        )
        launcher = RayLauncher(settings, registrations=Registrations([]), program=(ODD,))
        process = launcher.launch()
        stack.callback(process.stop)
        ask(process, "grandchild")
        receive(process)
        trainer = process.ready.pid if process.ready else 0
        waits = launcher.launch()
        stack.callback(waits.stop)
        ask(waits, "counts", up_to=1)
        assert await_pending(waits, "every node with 1 CPU is busy")
        head.kill_head()
        assert await_pending(waits, "the head of the cluster does not answer")
        with pytest.raises(TrainingError) as caught:
            receive(process)
        assert caught.value.cause == "device_lost"
        seconds_until_gone(trainer)
        again = stack.enter_context(
            RayNodes(tmp_path, is_secure=False, head_cpus=1, port=int(head.address.rpartition(":")[2]))
        )
        assert again.address == head.address
        process = launcher.launch()
        stack.callback(process.stop)
        ask(process, "counts", up_to=2)
        assert len(told_by(process)) == 2
